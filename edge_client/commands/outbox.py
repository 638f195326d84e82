"""`edge outbox`: relayed questions that wait, and those that came to no answer."""

import time
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from edge_client.commands.terminal import JSON, note, run, show

if TYPE_CHECKING:
    from edge_client.outbox import Entry

outbox = typer.Typer(
    help="Relayed questions that wait or came to no answer.", rich_markup_mode=None, invoke_without_command=True
)
_ID: Final = typer.Argument(metavar="ID", help="As the list shows it, or as many of its digits as are unambiguous.")
_EXCERPT: Final = 48  # characters of a question that are shown
_SAYS: Final = {
    "waiting": "waits for a link; nothing was sent",
    "sent": "sent; its answer is still to come",
    "failed": "no provider took it",
    "interrupted": "whether the provider was called is not known",
    "expired": "waited too long",
}


@outbox.callback()
def listing(context: typer.Context, as_json: Annotated[bool, JSON] = False) -> None:
    """List relayed questions that wait or came to no answer."""
    if context.invoked_subcommand is not None:
        return

    async def work() -> None:
        from edge_client.app import App
        from edge_client.config import Config

        entries: list[Entry] = []
        async with App.open(Config.load(), store="if present") as app:
            if app.has_store:
                await app.outbox.expire(now=int(time.time()))
                entries = await app.outbox.entries()
        if as_json:
            show({"outbox": [_object(entry) for entry in entries]})
            return
        for entry in entries:
            reason = f" ({entry.note})" if entry.note else ""
            print(f"{entry.name}  {entry.state:<11}  {_age(entry):>4}  {_question(entry) or '-'}")
            print(f"          {_SAYS.get(entry.state, '')}{reason}")
        if not entries:
            note("the outbox is empty")

    run(work, as_json=as_json)


@outbox.command()
def retry(request: Annotated[str, _ID], as_json: Annotated[bool, JSON] = False) -> None:
    """Get the answer: go on with what waits or was sent, ask anew what failed or was interrupted (billed again)."""

    async def work() -> None:
        from edge_client.app import App
        from edge_client.completions import ROUTE, AnswerReader, failure
        from edge_client.config import Config
        from edge_client.errors import BadUse
        from transport.messages import decode_header
        from transport.telemetry import trace_id_of

        async with App.open(Config.load(), store="if present", tell=note) as app:
            entry = await app.outbox.find(request)
            if entry.header is not None and decode_header(entry.header).route != ROUTE:
                raise BadUse("this is not a question", hint=f"`edge outbox cancel {entry.name}` drops it")
            with app.tracing.span("edge.ask") as span:
                own_trace = trace_id_of(span)
                answer = await app.client.retry(entry.id)
                if answer.status != 200:
                    raise await failure(answer.status, answer.chunks())
                reader = AnswerReader(answer.content_type)
                pieces: list[str] = []
                async for text in reader.texts(answer.chunks()):
                    pieces.append(text)
                    if not as_json:
                        print(text, end="", flush=True)
            app.client.report(own_trace)
            if as_json:
                show({
                    "id": answer.request_id[:4].hex(), "answer": "".join(pieces), "via": answer.via,
                    "finish_reason": reader.finish_reason, "trace_id": answer.trace_id,
                })
            else:
                print(flush=True)
                note(f"relayed{', via ' + answer.via if answer.via else ''}, trace {answer.trace_id}")

    run(work, as_json=as_json)


@outbox.command()
def cancel(request: Annotated[str, _ID], as_json: Annotated[bool, JSON] = False) -> None:
    """Drop a question for good; the gateway is told to stop the call. Again changes nothing."""

    async def work() -> None:
        from edge_client.app import App
        from edge_client.config import Config

        async with App.open(Config.load(), store="if present") as app:
            entry = await app.outbox.find(request)
            told = await app.client.cancel(entry.id)
        if as_json:
            show({"id": entry.name, "cancelled": True, "gateway_told": told})
            return
        print(f"cancelled {entry.name}")
        if not told:
            note("the gateway cannot be reached now; the next session tells it")

    run(work, as_json=as_json)


def _object(entry: "Entry") -> dict[str, Any]:
    return {
        "id": entry.name, "state": entry.state, "reason": entry.note, "attempts": entry.attempts,
        "created_at": entry.created_at, "expires_at": entry.expires_at, "question": _question(entry),
        "prompt_kept": entry.body is not None,
    }


def _question(entry: "Entry") -> str:
    """The beginning of what was asked, on one line; empty if it is erased or no question."""
    import msgspec

    class Message(msgspec.Struct):
        content: str

    class Body(msgspec.Struct):
        messages: list[Message]

    try:
        text = " ".join(msgspec.json.decode(entry.body or b"", type=Body).messages[-1].content.split())
    except (msgspec.MsgspecError, IndexError):
        return ""
    return text if len(text) <= _EXCERPT else text[: _EXCERPT - 1] + "…"


def _age(entry: "Entry") -> str:
    seconds = max(0, int(time.time()) - entry.created_at)
    for size, unit in ((86400, "d"), (3600, "h"), (60, "m")):
        if seconds >= size:
            return f"{seconds // size} {unit}"
    return f"{seconds} s"

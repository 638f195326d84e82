"""`edge outbox`: relayed questions that wait, and those that came to no answer."""

import time
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from edge_client.commands.terminal import JSON, note, run, show

if TYPE_CHECKING:
    from edge_client.outbox import Entry
    from edge_client.promises import KeptAnswer

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
        answers: list[KeptAnswer] = []
        async with App.open(Config.load(), store="if present") as app:
            if app.has_store:
                await app.outbox.expire(now=int(time.time()))
                entries, answers = await app.outbox.entries(), await app.promises.answers()
        if as_json:
            show({"outbox": [_object(entry) for entry in entries] + [_answered(answer) for answer in answers]})
            return
        for entry in entries:
            reason = f" ({entry.note})" if entry.note else ""
            print(f"{entry.name}  {entry.state:<11}  {_age(entry.created_at):>4}  {_question(entry) or '-'}")
            print(f"          {_SAYS.get(entry.state, '')}{reason}")
        for answer in answers:
            print(f"{answer.name}  {'done':<11}  {_age(answer.kept.at):>4}  {_excerpt(answer.kept.question) or '-'}")
            print(f"          its answer is here: `edge outbox show {answer.name}`")
        if not entries and not answers:
            note("the outbox is empty")

    run(work, as_json=as_json)


@outbox.command("show")
def show_answer(request: Annotated[str, _ID], as_json: Annotated[bool, JSON] = False) -> None:
    """Read the answer that came to a queued question; it stays until `edge outbox cancel` drops it."""

    async def work() -> None:
        from edge_client.app import App
        from edge_client.config import Config
        from edge_client.errors import BadUse

        async with App.open(Config.load(), store="if present") as app:
            found = await app.promises.find(request)
            if found is None:
                entry = await app.outbox.find(request)
                raise BadUse(
                    f"there is no answer to {entry.name} yet: {entry.state}, {_SAYS.get(entry.state, '')}",
                    hint="`edge serve` fetches it when it can" if entry.state in ("waiting", "sent")
                    else f"`edge outbox retry {entry.name}` asks again",
                )
        kept = found.kept
        if as_json:
            show(_answered(found) | {
                "answer": kept.text, "via": kept.via, "finish_reason": kept.finish_reason, "trace_id": kept.trace_id,
            })
            return
        print(kept.text)
        if kept.failure:
            note(kept.failure)
        note(f"relayed{', via ' + kept.via if kept.via else ''}, {_age(kept.at)} ago, trace {kept.trace_id}")

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
            found = await app.promises.find(request)
            if found is not None:
                name, told = found.name, True
                await app.promises.drop(found.id)
            else:
                entry = await app.outbox.find(request)
                name, told = entry.name, await app.client.cancel(entry.id)
        if as_json:
            show({"id": name, "cancelled": True, "gateway_told": told})
            return
        print(f"cancelled {name}")
        if not told:
            note("the gateway cannot be reached now; the next session tells it")

    run(work, as_json=as_json)


def _object(entry: "Entry") -> dict[str, Any]:
    return {
        "id": entry.name, "state": entry.state, "reason": entry.note, "attempts": entry.attempts,
        "created_at": entry.created_at, "expires_at": entry.expires_at, "question": _question(entry),
        "prompt_kept": entry.body is not None,
    }


def _answered(answer: "KeptAnswer") -> dict[str, Any]:
    kept = answer.kept
    return {
        "id": answer.name, "state": "done", "reason": kept.failure, "created_at": kept.at,
        "question": _excerpt(kept.question), "prompt_kept": False,
    }


def _question(entry: "Entry") -> str:
    from edge_client.outbox import question_of

    return _excerpt(question_of(entry))


def _excerpt(text: str) -> str:
    return text if len(text) <= _EXCERPT else text[: _EXCERPT - 1] + "…"


def _age(at: int) -> str:
    seconds = max(0, int(time.time()) - at)
    for size, unit in ((86400, "d"), (3600, "h"), (60, "m")):
        if seconds >= size:
            return f"{seconds // size} {unit}"
    return f"{seconds} s"

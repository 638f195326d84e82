"""`edge ask`."""

import contextlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from edge_client.commands.terminal import JSON, LOCAL, RELAYED, coloured, note, run, show
from edge_client.commands.within import COLLECTION, File, Labels, Since, Until, scope

if TYPE_CHECKING:
    from edge_client.answering import Answer, Leaving, Routed
    from edge_client.offline import Queued
    from edge_client.retrieval import Passage
    from edge_client.router.policy import Decision


def ask(
    question: Annotated[str | None, typer.Argument(help="The question; what is piped in follows it.")] = None,
    local: Annotated[bool, typer.Option("--local", help="Answer on this device.")] = False,
    relay: Annotated[bool, typer.Option("--relay", help="Send it to the gateway.")] = False,
    model: Annotated[str | None, typer.Option(help="The model a relayed question asks for.")] = None,
    queue: Annotated[
        bool, typer.Option("--queue", help="Leave it in the outbox; `edge serve` sends it when it can.")
    ] = False,
    no_documents: Annotated[
        bool, typer.Option("--no-documents", help="Look into no document, and send none along.")
    ] = False,
    collection: Annotated[str, COLLECTION] = "default",
    label: Labels = None, file: File = None, since: Since = None, until: Until = None,
    explain: Annotated[
        bool, typer.Option("--explain", help="Say also how the way was chosen: features, scores, rule.")
    ] = False,
    as_json: Annotated[bool, JSON] = False,
) -> None:
    """Answer a question, here or by the gateway.

    Says which, and why, before the answer; and what leaves this device before it leaves.
    """
    if local and relay:
        raise typer.BadParameter("--local and --relay exclude each other")
    if local and queue:
        raise typer.BadParameter("--local and --queue exclude each other")
    narrow = (label, file, since, until) != (None,) * 4 or collection != "default"
    if narrow and no_documents:
        raise typer.BadParameter("--no-documents leaves nothing to choose from")

    async def work() -> None:
        from edge_client.answering import Question, Routed
        from edge_client.app import App
        from edge_client.config import Config
        from edge_client.engine.base import Message, Text
        from edge_client.errors import BadUse
        from edge_client.offline import Queued
        from edge_client.scope import Scope

        prompt = _prompt(question)
        flag: Literal["local", "relay"] | None = "local" if local else "relay" if relay or queue else None
        async with App.open(Config.load(), store="if present", tell=note) as app:
            within = Scope()
            if narrow:
                within = await scope(app.documents, collection, label, file, since, until)
                if not await app.documents.has(within.collection, within.filter):  # else nobody would notice
                    raise BadUse("there are no such documents", hint="`edge documents` lists what there is")
            assistant = await app.assistant(relay=not local, later=queue)

            async def deliver(event: Routed | Text) -> None:
                if as_json:
                    return
                if isinstance(event, Text):
                    print(event.text, end="", flush=True)
                else:
                    told.extend(event.notes)
                    announce(event)

            def decided(decision: "Decision") -> None:
                if explain and (not as_json or decision.route == "refuse"):
                    _explain(decision)

            told: list[str] = []
            asked = Question((Message("user", prompt),), flag, model, documents=not no_documents, within=within)
            try:
                with _link_hint():
                    answer = await assistant.answer(asked, deliver, say_what_leaves, decided)
            except Queued as queued:
                _promise(queued, as_json)
                return
        if as_json:
            show(_object(answer) | ({"explanation": _explanation(answer.routed.decision)} if explain else {}))
        else:
            print(flush=True)
            _footer(answer, prompt, told)

    run(work, as_json=as_json)


def _prompt(question: str | None) -> str:
    from edge_client.errors import EmptyPrompt

    parts = [question or ""]
    if not sys.stdin.isatty():
        # A terminal is never read: `edge ask` without a question should say so rather than wait.
        parts.append(sys.stdin.buffer.read().decode("utf-8", "replace"))
    prompt = "\n\n".join(part.strip() for part in parts if part.strip())
    if not prompt:
        raise EmptyPrompt
    return prompt


@contextlib.contextmanager
def _link_hint() -> Iterator[None]:
    """Whoever has no way to the gateway may do without."""
    from edge_client.errors import EdgeError
    from transport.errors import TransportError

    try:
        yield
    except (EdgeError, TransportError) as error:
        if error.fault == "link":
            here = "`edge ask --local` answers on this device"
            error.hint = f"{error.hint}; {here}" if error.hint else here
        raise


def _promise(queued: "Queued", as_json: bool) -> None:
    from edge_client.outbox import short

    name = short(queued.request_id)
    if as_json:
        show({"queued": name, "expires_at": queued.expires_at, "show": f"edge outbox show {name}"})
        return
    print(f"queued as {name}")
    note(f"`edge serve` sends it when there is a way to the gateway, and `edge outbox retry {name}` now; "
         f"`edge outbox show {name}` then has the answer. It waits until {_clock(queued.expires_at)}")


def _clock(at: int) -> str:
    import time

    return time.strftime("%Y-%m-%d %H:%M", time.localtime(at))


def say_what_leaves(what: "Leaving", say: Callable[[str], None] = note) -> None:
    """Before anything is sent, also with --json: a person may be at the keyboard, and can still press Ctrl-C."""
    to = f" to {what.model}" if what.model else ""
    say(f"{coloured('relay', RELAYED)}{to}: {'; '.join(what.decision.reasons)}")
    for text in what.notes:
        say(text)


def _explain(decision: "Decision") -> None:
    for name, value in _explanation(decision).items():
        if isinstance(value, dict):
            value = ", ".join(f"{part} {figure:+.2f}" for part, figure in value.items())
        elif isinstance(value, list):
            value = ", ".join(value) or "none"
        print(f"  {name.replace('_', ' '):<22} {'none' if value is None else value}", file=sys.stderr)


def _explanation(decision: "Decision") -> dict[str, Any]:
    from edge_client.router.policy import need

    features = decision.features
    assert features is not None  # decide() never leaves them out
    return {
        "asked_for": features.flag,
        "secret_or_personal": list(features.sensitive),
        "evidence": None if features.evidence is None else round(features.evidence, 3),
        "words": features.words,
        "asks_for_reasoning": "yes" if features.hard else "no",
        "difficulty": round(features.difficulty.score, 3),
        "difficulty_by": {name: round(part, 3) for name, part in features.difficulty.parts},
        "need": round(need(features), 3),
        "threshold": None if features.threshold is None else round(features.threshold, 3),
        "gateway": "joined" if features.joined else "not joined",
        "rule": decision.rule,
        "route": decision.route,
    }


def announce(routed: "Routed", say: Callable[[str], None] = note) -> None:
    """Where the answer that follows was made, and why."""
    if routed.decision.route == "relay":
        say(f"{coloured('relayed', RELAYED)} to {routed.model}")  # the rest was said before it was sent
        return
    say(f"{coloured('local', LOCAL)}: {'; '.join(routed.decision.reasons)}")
    for text in routed.notes:
        say(text)


def cited(passage: "Passage") -> str:
    """Where a passage stands, as people say it."""
    return f"{passage.place} ({Path(passage.source).name})"


def _footer(answer: "Answer", question: str, told: list[str]) -> None:
    from edge_client.extracts import extract

    for number, passage in enumerate(answer.routed.citations, 1):
        quoted = extract(passage.text, f"{question} {answer.text}")
        # Of an answer that begins with the passage's own words the place is enough.
        rest = "" if passage.text and extract(passage.text, question) in answer.text else f': "{quoted}"'
        print(f"  [{number}] {cited(passage)}{rest}", file=sys.stderr)
    for text in answer.routed.notes:
        if text not in told:  # it came up while the model answered
            note(text)
    if answer.finish_reason == "length":
        note("the answer was cut off at its limit")
    way = f", via {answer.via}" if answer.via else ""
    seconds = answer.timings["total_ms"] / 1000
    route = "local" if answer.routed.decision.route == "local" else "relayed"
    note(f"{route}{way} in {seconds:.1f} s, trace {answer.routed.trace_id}")


def _object(answer: "Answer") -> dict[str, Any]:
    routed = answer.routed
    return {
        "route": routed.decision.route,
        "rule": routed.decision.rule,
        "reasons": list(routed.decision.reasons),
        "notes": list(routed.notes),
        "documents": routed.documents,
        "label": routed.label,
        "model": routed.model,
        "answer": answer.text,
        "finish_reason": answer.finish_reason,
        "citations": [_citation(passage) for passage in routed.citations],
        "trace_id": routed.trace_id,
        "via": answer.via,
        "usage": {"prompt_tokens": answer.prompt_tokens, "completion_tokens": answer.answer_tokens},
        "timings": answer.timings,
    }


def _citation(passage: "Passage") -> dict[str, Any]:
    return {
        "document": passage.document, "source": passage.source, "page": passage.page, "line": passage.line,
        "text": passage.text, "similarity": round(passage.similarity, 4),
    }

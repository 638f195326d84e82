"""`edge ask`."""

import sys
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from edge_client.commands.terminal import JSON, note, run, show

if TYPE_CHECKING:
    from edge_client.answering import Answer, Routed
    from edge_client.retrieval import Passage

_QUOTE = 240  # characters of a cited passage that are shown


def ask(
    question: Annotated[str | None, typer.Argument(help="The question; what is piped in follows it.")] = None,
    local: Annotated[bool, typer.Option("--local", help="Answer on this device.")] = False,
    relay: Annotated[bool, typer.Option("--relay", help="Send it to the gateway.")] = False,
    model: Annotated[str | None, typer.Option(help="The model a relayed question asks for.")] = None,
    as_json: Annotated[bool, JSON] = False,
) -> None:
    """Answer a question from your documents, or relay it; says which, and why."""

    async def work() -> None:
        from edge_client.answering import Question, Routed
        from edge_client.app import App
        from edge_client.config import Config
        from edge_client.engine.base import Message, Text
        from edge_client.errors import BadUse

        if local and relay:
            raise BadUse("--local and --relay exclude each other")
        prompt = _prompt(question)
        flag: Literal["local", "relay"] | None = "local" if local else "relay" if relay else None
        async with App.open(Config.load(), store="if present", tell=note) as app:
            assistant = await app.assistant(relay=not local)

            async def deliver(event: Routed | Text) -> None:
                if as_json:
                    return
                if isinstance(event, Text):
                    print(event.text, end="", flush=True)
                else:
                    _announce(event)

            answer = await assistant.answer(Question((Message("user", prompt),), flag, model), deliver)
        if as_json:
            show(_object(answer))
        else:
            print(flush=True)
            _footer(answer)

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


def _announce(routed: "Routed") -> None:
    word = "local" if routed.decision.route == "local" else f"relayed to {routed.model}"
    note(f"{word}: {'; '.join(routed.decision.reasons)}")
    for text in routed.notes:
        note(text)


def _footer(answer: "Answer") -> None:
    for number, passage in enumerate(answer.routed.citations, 1):
        text = " ".join(passage.text.split())
        quote = text if len(text) <= _QUOTE else text[: _QUOTE - 1] + "…"
        print(f"  [{number}] {passage.place}: \"{quote}\"", file=sys.stderr)
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

"""`edge explain`: where prompts would go and why, without asking anybody: no store, no identity, no passphrase."""

import contextlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, BinaryIO, Final

import typer

from edge_client.commands.terminal import run

_LINE_BYTES: Final = 8 << 20  # a longer line is a file that holds none
_PROMPT_CHARS: Final = 1 << 20  # as `edge ask` takes it


def explain(
    prompt: Annotated[
        str | None,
        typer.Argument(metavar="[PROMPT|FILE]", help="A prompt; with --jsonl a file. Else, or if -, standard input."),
    ] = None,
    jsonl: Annotated[
        bool, typer.Option("--jsonl", help='Read a {"prompt"} a line, write {"difficulty", "route", "reasons"} a line.')
    ] = False,
) -> None:
    """Say where prompts would go, and why.

    As JSON, of a joined device without documents; nothing is asked or sent. A line that cannot be read is answered
    by {"error"} in its place; an "id" comes back as it was.
    """

    async def work() -> None:
        _write(prompt, jsonl=jsonl)

    run(work)


def _write(prompt: str | None, *, jsonl: bool) -> None:
    from edge_client.config import Config
    from edge_client.errors import BadUse

    threshold = Config.load().router.limit()
    named = prompt is not None and prompt != "-"
    with contextlib.ExitStack() as stack:
        source: BinaryIO = sys.stdin.buffer
        if jsonl and named:
            try:
                source = stack.enter_context(Path(str(prompt)).open("rb"))
            except OSError as error:
                reason = (error.strerror or "").lower()
                raise BadUse(f"cannot read {prompt}: {reason}", hint="name a file, or - for standard input") from None
        if jsonl:
            for line in _lines(source):
                print(json.dumps(_answer(line, threshold)), flush=True)
            return
        text = str(prompt) if named else source.read(_LINE_BYTES).decode("utf-8", "replace")
        print(json.dumps(told := _explained(text, threshold)))
        if "error" in told:
            raise BadUse(told["error"], hint="give it as an argument or on standard input")


def _lines(source: BinaryIO) -> Iterator[bytes]:
    """Lines without their end; of one that is too long its first bytes, which are then too many."""
    while line := source.readline(_LINE_BYTES + 1):
        rest = line
        while len(rest) > _LINE_BYTES and not rest.endswith(b"\n"):
            rest = source.readline(_LINE_BYTES + 1)
        yield line


def _answer(line: bytes, threshold: float | None) -> dict[str, Any]:
    if len(line) > _LINE_BYTES:
        return {"error": "the line is over 8 MiB"}
    try:
        asked = json.loads(line)
    except (ValueError, RecursionError):
        return {"error": "the line is no JSON"}
    if not isinstance(asked, dict):
        return {"error": "the line is no JSON object"}
    known = {"id": asked["id"]} if "id" in asked else {}
    prompt = asked.get("prompt")
    if not isinstance(prompt, str):
        return known | {"error": "the line has no prompt, which is text"}
    return known | _explained(prompt, threshold)


def _explained(prompt: str, threshold: float | None) -> dict[str, Any]:
    from edge_client.router.policy import decide, features_of
    from edge_client.router.sensitivity import kinds

    if not prompt.strip():
        return {"error": "the prompt is empty"}
    if len(prompt) > _PROMPT_CHARS:
        return {"error": "the prompt is over 1 MiB"}
    features = features_of(
        prompt, flag=None, sensitive=kinds(prompt), evidence=None, joined=True, threshold=threshold
    )
    decision = decide(features)
    return {
        "difficulty": round(features.difficulty.score, 6), "route": decision.route, "rule": decision.rule,
        "reasons": list(decision.reasons),
    }

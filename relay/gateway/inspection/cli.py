"""`relay gateway inspect`: what the gateway would think of texts, without a gateway: no folder, store or identity."""

import contextlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, BinaryIO, Final

import typer

if TYPE_CHECKING:
    from relay.gateway.inspection.inspector import Inspector

_LINE_BYTES: Final = 8 << 20  # a longer line is a file that holds none


def inspect(
    file: Annotated[
        Path | None, typer.Argument(metavar="[FILE]", help="Else, or if -, standard input.", show_default=False)
    ] = None,
    jsonl: Annotated[
        bool, typer.Option("--jsonl", help='Read a {"text"} a line, write {"score", "verdict", "reasons"} a line.')
    ] = False,
) -> None:
    """Judge texts as the gateway judges prompts: allow, flag or block, and how sure it is.

    Without --jsonl all that is read is one text. A line that cannot be read is answered by {"error"} in its place; an
    "id" comes back as it was.
    """
    from relay.gateway.errors import ConfigError
    from relay.gateway.inspection.inspector import Inspector
    from relay.gateway.inspection.model import ModelUnusable, shipped

    try:
        inspector = Inspector(shipped())
    except ModelUnusable as error:
        raise ConfigError(str(error), hint="install this package again") from None
    with contextlib.ExitStack() as stack:
        source: BinaryIO = sys.stdin.buffer
        if file is not None and str(file) != "-":
            try:
                source = stack.enter_context(file.open("rb"))
            except OSError as error:
                reason = (error.strerror or "").lower()
                raise ConfigError(f"cannot read {file}: {reason}", hint="name a file, or -") from None
        if not jsonl:
            text = source.read(_LINE_BYTES).decode("utf-8", "replace")
            print(json.dumps(_judged(inspector, text)))
            return
        for line in _lines(source):
            print(json.dumps(_answer(inspector, line)), flush=True)


def _lines(source: BinaryIO) -> Iterator[bytes]:
    """Lines without their end; of one that is too long its first bytes, which are then too many."""
    while line := source.readline(_LINE_BYTES + 1):
        rest = line
        while len(rest) > _LINE_BYTES and not rest.endswith(b"\n"):
            rest = source.readline(_LINE_BYTES + 1)
        yield line


def _answer(inspector: "Inspector", line: bytes) -> dict[str, Any]:
    if len(line) > _LINE_BYTES:
        return {"error": "the line is over 8 MiB"}
    try:
        asked = json.loads(line)
    except (ValueError, RecursionError):
        return {"error": "the line is no JSON"}
    if not isinstance(asked, dict):
        return {"error": "the line is no JSON object"}
    known = {"id": asked["id"]} if "id" in asked else {}
    text = asked.get("text")
    if not isinstance(text, str):
        return known | {"error": "the line has no text"}
    return known | _judged(inspector, text)


def _judged(inspector: "Inspector", text: str) -> dict[str, Any]:
    found = inspector.of(text)
    return {"score": round(found.score, 6), "verdict": found.verdict, "reasons": found.reasons()}

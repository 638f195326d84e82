"""Text formats to blocks: plain text, Markdown, tables of values, source code. Every block knows its line."""

import csv
import io
import re
from collections.abc import Iterator
from typing import Final

from edge_client.chunking import Block, Content
from edge_client.errors import BadDocument

__all__ = ["paragraphs", "read_code", "read_csv", "read_markdown"]

_HEADING: Final = re.compile(r"(#{1,6})\s+(.*)")
_FENCE: Final = ("```", "~~~")
_DELIMITERS: Final = ",;\t|"
_OF_NUMBERS: Final = frozenset("0123456789.,:/ %+-")
# What opens a named part in most languages; a part opened further in belongs to the one around it.
_DEFINITION: Final = re.compile(
    r"([ \t]{0,40})(?:(?:export|default|pub(?:\([a-z]{1,9}\))?|public|private|protected|static|async|abstract|final|"
    r"unsafe|extern|override)[ \t]{1,4}){0,4}"
    r"(?:def|class|func|fn|function|interface|struct|impl|trait|enum|module|namespace|proc|sub|CREATE TABLE)"
    r"[ \t]{1,4}[\w$<(*&\"].{0,200}"
)


def paragraphs(text: str, *, page: int | None = None) -> Iterator[Block]:
    """Blocks between empty lines; a page has no line numbers, for its lines are the extractor's guess."""
    held: list[str] = []
    start = 1
    for number, line in enumerate([*text.splitlines(), ""], start=1):
        if line.strip():
            if not held:
                start = number
            held.append(line.strip())
        elif held:
            yield Block("\n".join(held), page, None if page is not None else start)
            held = []


def read_markdown(stem: str, text: str) -> Content:
    blocks: list[Block] = []
    held: list[str] = []
    start, fence, title = 1, "", ""

    def flush() -> None:
        if held:
            blocks.append(Block("\n".join(held), None, start))
            held.clear()

    for number, line in enumerate(text.splitlines(), start=1):
        stripped = line.strip()
        if fence:
            held.append(line.rstrip())
            if stripped.startswith(fence):
                fence = ""
            continue
        heading = _HEADING.fullmatch(stripped)
        said = heading[2].rstrip("#").rstrip() if heading is not None else ""
        if heading is not None and said:
            flush()
            title = title or (said if len(heading[1]) == 1 else "")
            blocks.append(Block(said, None, number, len(heading[1])))
        elif not stripped:
            flush()
        else:
            if not held:
                start = number
            if stripped.startswith(_FENCE):
                fence = stripped[:3]
            held.append(line.rstrip())
    flush()
    return Content(title or stem, tuple(blocks))


def read_csv(stem: str, text: str) -> Content:
    """A block a row, each value after its column's name: a row says little without them. Raises BadDocument."""
    first = text[: text.find("\n")] if "\n" in text else text
    delimiter = max(_DELIMITERS, key=first.count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
    blocks: list[Block] = []
    names: list[str] | None = None
    try:
        start = 1
        for row in reader:
            values = [" ".join(value.split()) for value in row]
            if names is None:
                named = all(values) and len(set(values)) == len(values) and not any(map(_OF_NUMBERS.issuperset, values))
                names = values if named and len(values) > 1 else []
                if names:
                    start = reader.line_num + 1
                    continue
            named_to = len(names)
            said = [
                f"{names[n]}: {value}" if n < named_to else value for n, value in enumerate(values) if value
            ]
            if said:
                blocks.append(Block(("; " if names else " | ").join(said), None, start))
            start = reader.line_num + 1
    except csv.Error:
        hint = "is a quotation mark left open?"
        raise BadDocument("it is not a table of values that can be read", hint=hint) from None
    if names and not blocks:
        blocks.append(Block(" | ".join(names), None, 1))
    return Content(stem, tuple(blocks))


def read_code(stem: str, text: str) -> Content:
    """Parts between empty lines; what defines something is the heading of its lines and stands before all of them."""
    blocks: list[Block] = []
    held: list[str] = []
    start, depths = 1, list[int]()

    def flush() -> None:
        while held and not held[-1].strip():
            held.pop()
        if held:
            blocks.append(Block("\n".join(held), None, start))
            held.clear()

    for number, line in enumerate(text.splitlines(), start=1):
        defined = _DEFINITION.fullmatch(line)
        indent = len(line) - len(line.lstrip())
        if defined is not None:
            flush()
            depths = [depth for depth in depths if depth < indent]
            depths.append(indent)
            blocks.append(Block(line.strip(), None, number, min(len(depths), 6)))
            continue
        if not line.strip() and held:
            flush()
        elif line.strip():
            if not held:
                start = number
            held.append(line.rstrip())
    flush()
    return Content(stem, tuple(blocks))

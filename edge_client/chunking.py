"""Text with a place in a document to chunks that the embedder can take whole.

A *block* is a paragraph, list, table or heading with the page or line where it begins. Blocks of one section are packed
together up to the limit; a heading opens a new chunk and is repeated in front of every chunk of its section, because a
paragraph under "Pump P-101, limits" rarely says again which pump it means.
"""

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Final

__all__ = ["Block", "Content", "Piece", "chunks"]

_SENTENCE_END: Final = re.compile(r"(?<=[.!?:;])\s+|\n")
_HEADING_MAX_SHARE: Final = 3  # a heading path may take a third of a chunk, or it is left out


@dataclass(frozen=True)
class Block:
    """`level` is 0 for text, 1..6 for a heading of that depth."""

    text: str
    page: int | None = None
    line: int | None = None
    level: int = 0


@dataclass(frozen=True)
class Content:
    """A document: what it calls itself, and its blocks in order."""

    title: str
    blocks: tuple[Block, ...]


@dataclass(frozen=True)
class Piece:
    text: str
    page: int | None
    line: int | None


def chunks(blocks: Iterable[Block], count: Callable[[str], int], limit: int) -> Iterator[Piece]:
    """Pieces of at most `limit` tokens by `count`, in order, each with the page and line of its first block.

    Nothing is lost: the pieces' texts without repeated headings hold every word of the blocks. A piece never spans
    two pages or two sections.
    """
    path: list[tuple[int, str]] = []
    pending: list[Block] = []
    for block in blocks:
        if block.level:
            # A heading followed at once by a deeper one needs no piece of its own: it opens all that follows.
            if not (len(pending) == 1 and 0 < pending[0].level < block.level):
                yield from _pack(pending, _heading(path), count, limit)
            pending = []
            path = [entry for entry in path if entry[0] < block.level] + [(block.level, block.text)]
            # A heading without any text below it must not vanish, so it waits as a block like any other.
            pending.append(block)
            continue
        if pending and pending[-1].page != block.page:
            yield from _pack(pending, _heading(path), count, limit)
            pending = []
        pending.append(block)
    yield from _pack(pending, _heading(path), count, limit)


def _heading(path: list[tuple[int, str]]) -> str:
    return " > ".join(text for _, text in path)


def _pack(blocks: list[Block], heading: str, count: Callable[[str], int], limit: int) -> Iterator[Piece]:
    if not blocks:
        return
    opening = blocks[0] if blocks[0].level else None
    texts = [block for block in blocks if not block.level]
    if not texts:
        for part in _split(heading, count, limit):
            yield Piece(part, blocks[0].page, blocks[0].line)
        return
    used = count(heading) if heading else 0
    if used * _HEADING_MAX_SHARE > limit:
        texts = [Block(heading, (opening or texts[0]).page, (opening or texts[0]).line), *texts]
        heading, used = "", 0
    first = opening or texts[0]
    page, line, parts, total = first.page, first.line, list[str](), used
    for block in texts:
        for part in _split(block.text, count, limit - used):
            size = count(part)
            if parts and total + size > limit:
                yield _piece(heading, parts, page, line)
                parts, total, page, line = [], used, block.page, block.line
            parts.append(part)
            total += size
    if parts:
        yield _piece(heading, parts, page, line)


def _piece(heading: str, parts: list[str], page: int | None, line: int | None) -> Piece:
    body = "\n".join(parts)
    return Piece(f"{heading}\n{body}" if heading else body, page, line)


def _split(text: str, count: Callable[[str], int], limit: int) -> Iterator[str]:
    """The text whole if it fits, else by sentences and lines, else by words, else by characters."""
    if count(text) <= limit:
        yield text
        return
    for separator in (_SENTENCE_END, re.compile(r"\s+")):
        parts = [part for part in separator.split(text) if part.strip()]
        if len(parts) > 1:
            yield from _join(parts, count, limit)
            return
    # One "word" longer than a chunk (a key, a base64 blob): at least one character makes at most a few tokens.
    step = max(1, len(text) // 2)
    for start in range(0, len(text), step):
        yield from _split(text[start : start + step], count, limit) if len(text) > 1 else iter((text,))


def _join(parts: list[str], count: Callable[[str], int], limit: int) -> Iterator[str]:
    held: list[str] = []
    total = 0
    for part in parts:
        size = count(part)
        if size > limit:
            if held:
                yield " ".join(held)
                held, total = [], 0
            yield from _split(part, count, limit)
            continue
        if held and total + size > limit:
            yield " ".join(held)
            held, total = [], 0
        held.append(part)
        total += size
    if held:
        yield " ".join(held)

"""Text with a place in a document to chunks that the embedder can take whole.

A *block* is a paragraph, list, table or heading with the page or line where it begins. Blocks of one section are packed
together up to the limit; a heading opens a new chunk and is repeated in front of every chunk of its section, because a
paragraph under "Pump P-101, limits" rarely says again which pump it means.
"""

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Final

__all__ = ["Block", "Content", "Piece", "chunks", "head"]

_SENTENCE_END: Final = re.compile(r"(?<=[.!?:;])\s+|\n")
_SPACE: Final = re.compile(r"\s+")
_OVERLAP_MAX_SHARE: Final = 6  # a sentence may take a sixth of a chunk to stand in the next one, too
_LONGEST_TOKEN: Final = 64  # characters; what has more of them for each token is cut without being counted as a whole
_HEADING_MAX_SHARE: Final = 3  # a heading path may take a third of a chunk, or it is left out


@dataclass(frozen=True)
class Block:
    """`level` is 0 for text, 1..6 for a heading of that depth. A text's lines are the lines of its document."""

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
    """Pieces of at most `limit` tokens by `count`, in order, each with the page and line where it begins.

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


def head(text: str, count: Callable[[str], int], limit: int) -> str:
    """The beginning of a text, of at most `limit` tokens; empty if it says nothing."""
    return next((piece.text for piece in chunks([Block(text.strip())], count, limit)), "")


def _pack(blocks: list[Block], heading: str, count: Callable[[str], int], limit: int) -> Iterator[Piece]:
    if not blocks:
        return
    opening = blocks[0] if blocks[0].level else None
    texts = [block for block in blocks if not block.level]
    if not texts:
        for start, end in _spans(heading, 0, len(heading), count, limit):
            yield Piece(heading[start:end], blocks[0].page, blocks[0].line)
        return
    used = count(heading) if heading else 0
    if used * _HEADING_MAX_SHARE > limit:
        texts = [Block(heading, (opening or texts[0]).page, (opening or texts[0]).line), *texts]
        heading, used = "", 0
    first = opening or texts[0]
    page, line, parts, total = first.page, first.line, list[str](), used
    for block in texts:
        for start, end in _spans(block.text, 0, len(block.text), count, limit - used):
            part = block.text[start:end]
            size = count(part)
            if parts and total + size > limit:
                yield _piece(heading, parts, page, line)
                parts, total, page = [], used, block.page
                line = None if block.line is None else block.line + block.text.count("\n", 0, start)
            parts.append(part)
            total += size
    if parts:
        yield _piece(heading, parts, page, line)


def _piece(heading: str, parts: list[str], page: int | None, line: int | None) -> Piece:
    body = "\n".join(parts)
    return Piece(f"{heading}\n{body}" if heading else body, page, line)


def _spans(text: str, start: int, end: int, count: Callable[[str], int], limit: int) -> Iterator[tuple[int, int]]:
    """Places of the parts: the text whole if it fits, else by sentences and lines, by words, by characters."""
    if end - start <= limit * _LONGEST_TOKEN and count(text[start:end]) <= limit:
        yield start, end
        return
    for separator in (_SENTENCE_END, _SPACE):
        parts = _between(separator, text, start, end)
        if len(parts) > 1:
            yield from _join(text, parts, count, limit)
            return
        start, end = parts[0] if parts else (start, start)
    # One "word" longer than a chunk (a key, a base64 blob): at least one character makes at most a few tokens.
    step = max(1, min((end - start) // 2, limit * _LONGEST_TOKEN))
    for at in range(start, end, step):
        stop = min(at + step, end)
        yield from _spans(text, at, stop, count, limit) if end - start > 1 else iter(((at, stop),))


def _between(separator: re.Pattern[str], text: str, start: int, end: int) -> list[tuple[int, int]]:
    places = [start]
    for found in separator.finditer(text, start, end):
        places += found.span()
    places.append(end)
    spans = zip(places[::2], places[1::2], strict=True)
    return [(first, last) for first, last in spans if text[first:last].strip()]


def _join(
    text: str, parts: list[tuple[int, int]], count: Callable[[str], int], limit: int
) -> Iterator[tuple[int, int]]:
    """As many parts together as fit. Where a short one ends a piece, the next begins with it again: what was cut is
    one paragraph, and its next sentence often speaks of the last.
    """
    held: list[tuple[int, int]] = []
    total = last = 0
    for first, end in parts:
        long = end - first > limit * _LONGEST_TOKEN
        size = limit + 1 if long else count(text[first:end])
        if held and total + size > limit:
            yield held[0][0], held[-1][1]
            again = len(held) > 1 and last * _OVERLAP_MAX_SHARE <= limit and last + size <= limit
            held, total = (held[-1:], last) if again else ([], 0)
        if size > limit:
            yield from _spans(text, first, end, count, limit)
            continue
        held.append((first, end))
        total, last = total + size, size
    if held:
        yield held[0][0], held[-1][1]

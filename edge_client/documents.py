"""Files to blocks: plain text, Markdown and PDF. Nothing here knows the store or the embedder."""

import logging
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from edge_client.chunking import Block
from edge_client.errors import BadDocument

__all__ = ["KINDS", "MAX_BYTES", "Content", "find_files", "parse"]

KINDS: Final = frozenset({".txt", ".md", ".markdown", ".pdf"})
MAX_BYTES: Final = 64 << 20
_MAX_PAGES: Final = 5_000
_MAX_PAGE_TEXT: Final = 1 << 20  # characters; a page of print has about 4,000
_HEADING: Final = re.compile(r"(#{1,6})\s+(.*?)\s*#*\s*")
_FENCE: Final = ("```", "~~~")


@dataclass(frozen=True)
class Content:
    title: str
    blocks: tuple[Block, ...]


def find_files(paths: Iterable[Path]) -> Iterator[Path]:
    """The given files, and below given folders those of a known kind; hidden ones are left out. Sorted by folder.

    A file named by the user is passed on whatever its kind, so that it is reported rather than ignored.
    """
    for path in paths:
        if not path.is_dir():
            yield path
            continue
        for found in sorted(path.rglob("*")):
            inner = found.relative_to(path).parts
            if found.suffix.lower() in KINDS and found.is_file() and not any(part.startswith(".") for part in inner):
                yield found


def parse(name: str, data: bytes) -> Content:
    """The content of a file called `name`. Raises BadDocument with the reason; never anything else."""
    kind = Path(name).suffix.lower()
    if kind not in KINDS:
        raise BadDocument(f"files of kind {kind or '(none)'} are not supported", hint="txt, md and pdf are")
    if len(data) > MAX_BYTES:
        raise BadDocument(f"the file has {len(data) >> 20} MiB, the limit is {MAX_BYTES >> 20}")
    stem = Path(name).stem
    if kind == ".pdf":
        content = _pdf(stem, data)
    else:
        text = _decoded(data)
        content = _markdown(stem, text) if kind in (".md", ".markdown") else Content(stem, tuple(_paragraphs(text)))
    if not content.blocks:
        raise BadDocument("it holds no text", hint="a scanned PDF needs text recognition first")
    return content


def _decoded(data: bytes) -> str:
    if b"\0" in data:
        raise BadDocument("it is not text")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise BadDocument("it is not UTF-8 text", hint="convert it, for example with iconv") from None


def _paragraphs(text: str, *, page: int | None = None) -> Iterator[Block]:
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


def _markdown(stem: str, text: str) -> Content:
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
        if heading is not None and heading[2]:
            flush()
            title = title or (heading[2] if len(heading[1]) == 1 else "")
            blocks.append(Block(heading[2], None, number, len(heading[1])))
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


def _pdf(stem: str, data: bytes) -> Content:
    import io

    import pypdf

    # pypdf reports every oddity of a file through logging; a broken file is one error of ours instead.
    logging.getLogger("pypdf").setLevel(logging.CRITICAL)
    blocks: list[Block] = []
    try:
        reader = pypdf.PdfReader(io.BytesIO(data), strict=False)
        # Many PDFs are "encrypted" with an empty password, which only forbids printing: those open.
        if reader.is_encrypted and not reader.decrypt(""):
            raise BadDocument("it is protected by a password")
        if len(reader.pages) > _MAX_PAGES:
            raise BadDocument(f"it has {len(reader.pages)} pages, the limit is {_MAX_PAGES}")
        for number, page in enumerate(reader.pages, start=1):
            text = page.extract_text()[:_MAX_PAGE_TEXT].replace("\0", "")
            # A word divided at a line's end would be found by neither of its halves.
            blocks.extend(_paragraphs(re.sub(r"(?<=[a-z])-\n(?=[a-z])", "", text), page=number))
        title = str((reader.metadata.title if reader.metadata else None) or stem)[:200]
    except BadDocument:
        raise
    except Exception as error:  # hostile files raise anything, RecursionError and KeyError included
        raise BadDocument(f"it is not a PDF that can be read ({type(error).__name__})") from None
    return Content(title, tuple(blocks))

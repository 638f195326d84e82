"""Files to blocks: plain text, Markdown and PDF. Nothing here knows the store or the embedder."""

import logging
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
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
_MARGIN_LINES: Final = 2  # of a running head or foot
_MARGIN_MAX: Final = 200  # characters of a line that are compared
_MARGIN_PAGES: Final = 3  # on two pages a line may well stand twice by chance
_HEADING: Final = re.compile(r"(#{1,6})\s+(.*?)\s*#*\s*")
_FENCE: Final = ("```", "~~~")


@dataclass(frozen=True)
class Content:
    title: str
    blocks: tuple[Block, ...]


def find_files(paths: Iterable[Path], skip: Callable[[Path], None] = lambda path: None) -> Iterator[Path]:
    """The given files, and below given folders those of a known kind; hidden ones are left out. Sorted by folder.

    `skip` hears of files below folders that are of another kind.
    A file named by the user is passed on whatever its kind, so that it is reported rather than ignored.
    """
    for path in paths:
        if not path.is_dir():
            yield path
            continue
        for found in sorted(path.rglob("*")):
            inner = found.relative_to(path).parts
            if any(part.startswith(".") for part in inner) or not found.is_file():
                continue
            if found.suffix.lower() in KINDS:
                yield found
            else:
                skip(found)


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
    pages: list[list[str]] = []
    try:
        reader = pypdf.PdfReader(io.BytesIO(data), strict=False)
        # Many PDFs are "encrypted" with an empty password, which only forbids printing: those open.
        if reader.is_encrypted and not reader.decrypt(""):
            raise BadDocument("it is protected by a password")
        if len(reader.pages) > _MAX_PAGES:
            raise BadDocument(f"it has {len(reader.pages)} pages, the limit is {_MAX_PAGES}")
        for page in reader.pages:
            pages.append(page.extract_text()[:_MAX_PAGE_TEXT].replace("\0", "").splitlines())
        title = str((reader.metadata.title if reader.metadata else None) or stem)[:200]
    except BadDocument:
        raise
    except Exception as error:  # hostile files raise anything, RecursionError and KeyError included
        raise BadDocument(f"it is not a PDF that can be read ({type(error).__name__})") from None
    blocks: list[Block] = []
    for number, lines in enumerate(_without_margins(pages), start=1):
        # A word divided at a line's end would be found by neither of its halves.
        text = re.sub(r"(?<=[a-z])-\n(?=[a-z])", "", "\n".join(lines))
        blocks.extend(_paragraphs(text, page=number))
    return Content(title, tuple(blocks))


def _without_margins(pages: Sequence[list[str]]) -> Iterator[list[str]]:
    """The pages without running heads and feet: lines at an edge that most pages have there, but for the page's number.

    A page that holds nothing else is left as it is.
    """
    heads, feet = Counter[str](), Counter[str]()
    for number, lines in enumerate(pages):
        heads.update(_forms_at_edge(lines, number))
        feet.update(_forms_at_edge(lines[::-1], number))
    for number, lines in enumerate(pages):
        kept = lines
        if len(pages) >= _MARGIN_PAGES:
            kept = _cut(_cut(lines, number, heads, len(pages))[::-1], number, feet, len(pages))[::-1]
        yield kept if any(line.strip() for line in kept) else lines


def _cut(lines: list[str], number: int, forms: Counter[str], pages: int) -> list[str]:
    """Without its first lines, of which more than half of the pages have one like it there."""
    left = _MARGIN_LINES
    for place, line in enumerate(lines):
        if line.strip():
            if left == 0 or max(forms[form] for form in _forms(line, number)) * 2 <= pages:
                return lines[place:]
            left -= 1
    return []


def _forms_at_edge(lines: Sequence[str], number: int) -> set[str]:
    edge = [line for line in lines if line.strip()][:_MARGIN_LINES]
    return {form for line in edge for form in _forms(line, number)}


def _forms(line: str, number: int) -> set[str]:
    """The line as it is, and with each number in it as what it is ahead of the page's: "Page 7 of 9" is "Page +1 of 9".

    Only a page's number counts up with the pages; "12 bar" on one and "16 bar" on the next are content.
    """
    text = " ".join(line.split())[:_MARGIN_MAX]
    return {text} | {
        f"{text[: found.start()]}\0{int(found[0]) - number}{text[found.end() :]}"
        for found in re.finditer(r"(?<![0-9])[0-9]{1,5}(?![0-9])", text)
    }

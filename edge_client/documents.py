"""Files to blocks, by their kind; PDF itself is read here. Nothing here knows the store or the embedder."""

import logging
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from edge_client.chunking import Block, Content
from edge_client.docx import read_docx
from edge_client.errors import BadDocument
from edge_client.html_text import encoding_of, read_html
from edge_client.text_formats import paragraphs, read_code, read_csv, read_markdown

__all__ = ["KINDS", "MAX_BYTES", "Content", "parse"]

_MARKDOWN: Final = frozenset({".md", ".markdown"})
_HTML: Final = frozenset({".html", ".htm", ".xhtml"})
_TABLES: Final = frozenset({".csv", ".tsv"})
_CODE_KINDS: Final = (
    ".py .pyi .js .mjs .ts .jsx .tsx .c .h .cc .cpp .hpp .cs .go .rs .java .kt .swift .rb .php .pl .lua .r .jl .scala"
    " .sh .bash .ps1 .sql .toml .yaml .yml .ini .cfg .conf .tf .proto .cmake .gradle .css .scss .vue .dart .ex .exs .hs"
    " .ml .f90 .st"
)
_CODE: Final = frozenset(_CODE_KINDS.split())
_PLAIN: Final = frozenset({".txt", ".text", ".log", ".rst"})
KINDS: Final = frozenset({".pdf", ".docx"}) | _MARKDOWN | _HTML | _TABLES | _CODE | _PLAIN
_SAID: Final = "text, Markdown, PDF, Word (docx), HTML, CSV and source code are"
MAX_BYTES: Final = 64 << 20
_MAX_PAGES: Final = 5_000
_MAX_PAGE_TEXT: Final = 1 << 20  # characters; a page of print has about 4,000
_MARGIN_LINES: Final = 2  # of a running head or foot
_MARGIN_MAX: Final = 200  # characters of a line that are compared
_MARGIN_PAGES: Final = 3  # on two pages a line may well stand twice by chance


def parse(name: str, data: bytes) -> Content:
    """The content of a file called `name`. Raises BadDocument with the reason; never anything else."""
    kind = Path(name).suffix.lower()
    if kind not in KINDS:
        raise BadDocument(f"files of kind {kind or '(none)'} are not supported", hint=_SAID)
    if len(data) > MAX_BYTES:
        raise BadDocument(f"the file has {len(data) >> 20} MiB, the limit is {MAX_BYTES >> 20}")
    stem = Path(name).stem
    if kind == ".pdf":
        content = _pdf(stem, data)
    elif kind == ".docx":
        content = read_docx(stem, data)
    else:
        text = _decoded(data, encoding_of(data) if kind in _HTML else "utf-8-sig")
        content = _read_text(kind, stem, text)
    if not content.blocks:
        raise BadDocument("it holds no text", hint="a scan needs text recognition first")
    return content


def _read_text(kind: str, stem: str, text: str) -> Content:
    if kind in _MARKDOWN:
        return read_markdown(stem, text)
    if kind in _HTML:
        return read_html(stem, text)
    if kind in _TABLES:
        return read_csv(stem, text)
    return read_code(stem, text) if kind in _CODE else Content(stem, tuple(paragraphs(text)))


def _decoded(data: bytes, encoding: str) -> str:
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        encoding = "utf-16"
    elif b"\0" in data:
        raise BadDocument("it is not text")
    try:
        return data.decode(encoding).replace("\0", "")
    except (UnicodeDecodeError, LookupError):
        raise BadDocument("it is not UTF-8 text", hint="convert it, for example with iconv") from None


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
        size = 0
        for page in reader.pages:
            text = page.extract_text()[:_MAX_PAGE_TEXT].replace("\0", "")
            size += len(text)
            if size > MAX_BYTES:  # thousands of pages may all show the same megabyte
                raise BadDocument(f"it holds more text than {MAX_BYTES >> 20} MiB")
            pages.append(text.splitlines())
        title = str((reader.metadata.title if reader.metadata else None) or stem)[:200]
    except BadDocument:
        raise
    except Exception as error:  # hostile files raise anything, RecursionError and KeyError included
        raise BadDocument(f"it is not a PDF that can be read ({type(error).__name__})") from None
    blocks: list[Block] = []
    for number, lines in enumerate(_without_margins(pages), start=1):
        # A word divided at a line's end would be found by neither of its halves.
        text = re.sub(r"(?<=[a-z])-\n(?=[a-z])", "", "\n".join(lines))
        blocks.extend(paragraphs(text, page=number))
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

"""Word documents (.docx, ECMA-376) to blocks: a ZIP with XML in it, both from strangers and both bounded.

Nothing is unpacked to disk, three members are read and no other, sizes are checked before and while they are
decompressed, and XML with a document type is refused, so that no entity can be declared, expanded or fetched.
"""

import io
import re
import struct
import zipfile
import zlib
from collections.abc import Callable
from typing import Final
from xml.parsers import expat

from edge_client.chunking import Block, Content
from edge_client.errors import BadDocument

__all__ = ["read_docx"]

_MAX_DIRECTORY: Final = 1 << 20  # bytes of the ZIP's list of members; each costs half a kilobyte of memory to read
_MAX_MEMBER: Final = 64 << 20
_MAX_RATIO: Final = 200  # prose in XML compresses to a twentieth; what is below 1 MiB may do as it likes
_STEP: Final = 1 << 16
_BODY: Final = "word/document.xml"
_HEADING: Final = re.compile(r"heading ([1-6])", re.IGNORECASE)
_DAMAGED: Final = "it is not a Word document that can be read"

Start = Callable[[str, dict[str, str]], None]
End = Callable[[str], None]


def read_docx(stem: str, data: bytes) -> Content:
    """Title and blocks, with pages where Word has left marks of them. Raises BadDocument."""
    try:
        with _archive(data) as archive:
            styles, body, core = _Styles(), _Body(), _Title()
            names = frozenset(archive.namelist())
            if _BODY not in names:
                raise BadDocument(_DAMAGED)
            if "word/styles.xml" in names:
                _read(archive, "word/styles.xml", styles.start, styles.end, lambda text: None)
            body.levels = styles.levels
            _read(archive, _BODY, body.start, body.end, body.text)
            if "docProps/core.xml" in names:
                _read(archive, "docProps/core.xml", core.start, core.end, core.text)
    except (zipfile.BadZipFile, zlib.error, expat.ExpatError, EOFError, NotImplementedError, RuntimeError,
            struct.error, ValueError, OSError, KeyError) as error:
        raise BadDocument(f"{_DAMAGED} ({type(error).__name__})") from None
    blocks = body.blocks
    if not body.pages:
        blocks = [Block(block.text, None, None, block.level) for block in blocks]
    first = next((block.text for block in blocks if block.level == 1), "")
    return Content(" ".join("".join(core.parts).split())[:200] or first or stem, tuple(blocks))


def _archive(data: bytes) -> zipfile.ZipFile:
    end = data.rfind(b"PK\x05\x06")
    if end < 0 or len(data) < end + 22:
        raise BadDocument(_DAMAGED)
    is_zip64 = data[max(0, end - 20) : end].startswith(b"PK\x06\x07")
    if is_zip64 or int.from_bytes(data[end + 12 : end + 16], "little") > _MAX_DIRECTORY:
        raise BadDocument("it holds too many parts for a Word document")
    return zipfile.ZipFile(io.BytesIO(data))


def _read(archive: zipfile.ZipFile, name: str, start: Start, end: End, text: Callable[[str], None]) -> None:
    info = archive.getinfo(name)
    if info.file_size > min(_MAX_MEMBER, max(1 << 20, _MAX_RATIO * info.compress_size)):
        raise BadDocument(f"it unpacks to {info.file_size >> 20} MiB, which is more than a document needs")
    parser = expat.ParserCreate(namespace_separator=" ")
    parser.buffer_text = True
    parser.StartElementHandler = lambda element, attributes: start(_local(element), attributes)
    parser.EndElementHandler = lambda element: end(_local(element))
    parser.CharacterDataHandler = text
    parser.StartDoctypeDeclHandler = _refuse
    with archive.open(info) as stream:
        while part := stream.read(_STEP):  # which unpacks no more than the member declares
            parser.Parse(part, False)
    parser.Parse(b"", True)


def _refuse(*declared: object) -> None:
    raise BadDocument("its XML declares a document type, which no Word document does")


def _local(name: str) -> str:
    return name.rpartition(" ")[2]


def _value(attributes: dict[str, str]) -> str:
    return next((value for name, value in attributes.items() if _local(name) == "val"), "")


class _Styles:
    """Heading levels by style id: ids follow Word's language, the names behind them do not."""

    def __init__(self) -> None:
        self.levels: dict[str, int] = {}
        self._id = ""

    def start(self, element: str, attributes: dict[str, str]) -> None:
        if element == "style":
            self._id = next((value for name, value in attributes.items() if _local(name) == "styleId"), "")
        elif element == "name" and self._id:
            found = _HEADING.fullmatch(_value(attributes))
            if found or _value(attributes).lower() == "title":
                self.levels[self._id] = int(found[1]) if found else 1

    def end(self, element: str) -> None:
        if element == "style":
            self._id = ""


class _Title:
    def __init__(self) -> None:
        self.parts: list[str] = []
        self._inside = False

    def start(self, element: str, attributes: dict[str, str]) -> None:
        self._inside = element == "title"

    def end(self, element: str) -> None:
        self._inside = False

    def text(self, text: str) -> None:
        if self._inside:
            self.parts.append(text)


class _Body:
    """Paragraphs in order; a table's row is one block. A paragraph in a text box ends the one around it."""

    def __init__(self) -> None:
        self.blocks: list[Block] = []
        self.levels: dict[str, int] = {}
        self.pages = False
        self._page = self._from = 1
        self._held: list[str] = []
        self._cells: list[str] = []
        self._level = self._rows = self._fallback = 0
        self._in_text = False

    def start(self, element: str, attributes: dict[str, str]) -> None:
        if element == "Fallback":  # says again, for older programs, what stands before it
            self._fallback += 1
        elif element == "p":
            self._flush()
        elif element == "pStyle":
            self._level = self.levels.get(_value(attributes), 0)
        elif element == "t":
            self._in_text = True
        elif element in ("tab", "br", "cr"):
            self._held.append(" " if element == "tab" else "\n")
        elif element == "lastRenderedPageBreak":
            self.pages = True
            self._page += 1
            if not "".join(self._held).strip():
                self._from = self._page
        elif element == "tr":
            self._flush()
            self._rows += 1

    def end(self, element: str) -> None:
        if element == "Fallback":
            self._fallback -= 1
        elif element == "t":
            self._in_text = False
        elif element == "p":
            self._flush()
        elif element == "tr":
            self._rows -= 1
            if self._rows == 0 and self._cells:
                self.blocks.append(Block(" | ".join(self._cells), self._from))
                self._cells = []

    def text(self, text: str) -> None:
        if self._in_text and not self._fallback:
            self._held.append(text)

    def _flush(self) -> None:
        lines = (" ".join(line.split()) for line in "".join(self._held).split("\n"))
        text = "\n".join(line for line in lines if line)
        if text and self._rows:
            self._cells.append(" ".join(text.split()))
        elif text:
            self.blocks.append(Block(text.replace("\n", " ") if self._level else text, self._from, None, self._level))
        self._held, self._level, self._from = [], 0, self._page

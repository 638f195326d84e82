"""Files and records into the store: read, cut, embed, add. The same content twice costs one lookup."""

import asyncio
import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final, Literal, TypeVar

import msgspec

from edge_client.chunking import Block, Piece, chunks
from edge_client.documents import MAX_BYTES, Content, parse
from edge_client.engine.base import EMBEDDER_TOKENS, Embedder
from edge_client.errors import BadDocument, BadUse
from store.documents import Chunk, Documents

__all__ = ["Ingest", "Outcome", "Record", "query_lines", "record_lines"]

T = TypeVar("T")

_LINE_MAX: Final = 16 << 20


@dataclass(frozen=True)
class Outcome:
    """What became of one document."""

    source: str
    state: Literal["added", "unchanged"]
    chunks: int


class Record(msgspec.Struct, frozen=True):
    """A document in a line of JSON. Other fields are ignored."""

    id: Annotated[str, msgspec.Meta(min_length=1, max_length=1024)] | int
    text: str
    title: str = ""


class _Query(msgspec.Struct, frozen=True):
    id: str | int
    text: str


class Ingest:
    """Adds to one store. Raises what the store and the embedder raise; BadDocument leaves the store as it was."""

    def __init__(self, documents: Documents, embedder: Embedder) -> None:
        self._documents = documents
        self._embedder = embedder

    async def file(self, path: Path, *, collection: str) -> Outcome:
        """One txt, md or pdf file; its absolute path is its name in the store. Raises BadDocument."""
        source, data = await asyncio.to_thread(_read, path)
        digest = hashlib.sha256(data).digest()
        known = await self._documents.find(collection, digest)
        if known is not None:
            return Outcome(source, "unchanged", known.chunks)
        content = await asyncio.to_thread(parse, path.name, data)
        return await self._add(collection, source, digest, content)

    async def record(self, record: Record, *, collection: str) -> Outcome:
        """One record under its id. Raises BadDocument if it holds no text."""
        # The id belongs to the content: two records may well hold the same text.
        digest = hashlib.sha256(msgspec.json.encode([str(record.id), record.title, record.text])).digest()
        known = await self._documents.find(collection, digest)
        if known is not None:
            return Outcome(str(record.id), "unchanged", known.chunks)
        paragraphs = [part for part in record.text.split("\n\n") if part.strip()]
        title = record.title.strip()
        blocks = [Block(part.strip()) for part in paragraphs]
        if title and not record.text.lstrip().startswith(title):
            blocks.insert(0, Block(title, level=1))
        if not blocks:
            raise BadDocument("it holds no text")
        return await self._add(collection, str(record.id), digest, Content(title or str(record.id), tuple(blocks)))

    async def _add(self, collection: str, source: str, digest: bytes, content: Content) -> Outcome:
        pieces: list[Piece] = await asyncio.to_thread(
            lambda: list(chunks(content.blocks, self._embedder.count, EMBEDDER_TOKENS))
        )
        vectors = await self._embedder.embed([piece.text for piece in pieces])
        await self._documents.add(
            collection=collection, source=source, title=content.title, sha256=digest,
            chunks=[Chunk(piece.text, piece.page, piece.line) for piece in pieces], vectors=vectors,
            model_id=self._embedder.model_id,
        )
        return Outcome(source, "added", len(pieces))


def _read(path: Path) -> tuple[str, bytes]:
    """The absolute path and the content."""
    try:
        if path.is_dir():
            raise BadDocument("it is a folder")
        if not path.is_file():  # opening a pipe or a device could block for ever
            raise BadDocument("there is no such file")
        with path.open("rb") as stream:
            data = stream.read(MAX_BYTES + 1)
    except OSError as error:
        raise BadDocument(f"it cannot be read: {error.strerror}") from None
    if len(data) > MAX_BYTES:
        raise BadDocument(f"it is larger than {MAX_BYTES >> 20} MiB")
    return str(path.absolute()), data


def record_lines(lines: Iterable[bytes]) -> Iterator[tuple[int, Record | BadUse]]:
    """(line number, record or what is wrong with the line); empty lines are left out."""
    decoder = msgspec.json.Decoder(Record)
    for number, line in enumerate(lines, start=1):
        if line.strip():
            record: Record | BadUse = _parsed(decoder, line)
            yield number, record


def query_lines(lines: Iterable[bytes]) -> Iterator[tuple[int, tuple[str | int, str] | BadUse]]:
    """(line number, (id, text) or what is wrong with the line); empty lines are left out."""
    decoder = msgspec.json.Decoder(_Query)
    for number, line in enumerate(lines, start=1):
        if line.strip():
            parsed = _parsed(decoder, line)
            yield number, parsed if isinstance(parsed, BadUse) else (parsed.id, parsed.text)


def _parsed(decoder: "msgspec.json.Decoder[T]", line: bytes) -> T | BadUse:
    if len(line) > _LINE_MAX:
        return BadUse(f"longer than {_LINE_MAX >> 20} MiB")
    try:
        return decoder.decode(line)
    except msgspec.ValidationError as error:
        return BadUse(str(error)[:1].lower() + str(error)[1:])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return BadUse("not JSON")

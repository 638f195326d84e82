"""Files and records into the store: read, cut, embed, add. The same content twice costs one lookup."""

import asyncio
import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Annotated, Final, Literal, TypeVar

import msgspec

from edge_client.chunking import Block, Content, Piece, chunks
from edge_client.documents import MAX_BYTES, parse
from edge_client.engine.base import EMBEDDER_TOKENS, Embedder
from edge_client.errors import BadDocument, BadUse
from edge_client.folders import whereabouts
from store.documents import LABELS, Chunk, Document, Documents, strictest

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["Ingest", "Outcome", "Record", "label_of_folders", "query_lines", "record_lines", "relabel"]

T = TypeVar("T")

_LINE_MAX: Final = 16 << 20
_EMBEDDED_AT_ONCE: Final = 64  # pieces, some seconds of work; between them a person hears how far it is

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Outcome:
    """What became of one document."""

    source: str
    state: Literal["added", "unchanged"]
    chunks: int
    label: str


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

    async def file(
        self, path: Path, *, collection: str, label: str | None = None,
        progress: Progress = lambda done, total: None,
    ) -> Outcome:
        """One file; its absolute path is its name in the store. Raises BadDocument.

        Its label is the strictest of the one given, its own from before and those of the folders it lies in. `progress`
        is told how many of its pieces are embedded, and how many there are.
        """
        source, data, changed_at = await asyncio.to_thread(_read, path)
        label = strictest(label, label_of_folders(source, await self._documents.folder_labels()))
        digest = hashlib.sha256(data).digest()
        known = await self._documents.again(
            collection=collection, source=source, sha256=digest, label=label, dated_at=changed_at
        )
        if known is not None:
            if known.source != source and await asyncio.to_thread(whereabouts, known.source) == "gone":
                named = known.title == Path(known.source).stem
                await self._documents.rename(known.id, source, path.stem if named else known.title)
            return Outcome(source, "unchanged", known.chunks, known.label)
        content = await asyncio.to_thread(parse, path.name, data)
        return await self._add(collection, source, digest, content, label, progress, dated_at=changed_at)

    async def dropped(self, name: str, data: bytes, *, collection: str, label: str | None = None) -> Outcome:
        """The bytes of a file that has no path here. The same name again replaces it. Raises BadDocument."""
        if label is not None and label not in LABELS:
            raise BadUse(f"a label is one of {', '.join(LABELS)}")
        source, digest = f"dropped/{name}", hashlib.sha256(data).digest()
        known = await self._documents.again(collection=collection, source=source, sha256=digest, label=label)
        if known is not None:
            return Outcome(source, "unchanged", known.chunks, known.label)
        return await self._add(collection, source, digest, await asyncio.to_thread(parse, name, data), label)

    async def record(self, record: Record, *, collection: str, label: str | None = None) -> Outcome:
        """One record under its id. Raises BadDocument if it holds no text."""
        # The id belongs to the content: two records may well hold the same text.
        source = str(record.id)
        digest = hashlib.sha256(msgspec.json.encode([source, record.title, record.text])).digest()
        known = await self._documents.again(collection=collection, source=source, sha256=digest, label=label)
        if known is not None:
            return Outcome(source, "unchanged", known.chunks, known.label)
        title = record.title.strip()
        # A text often begins with its title, which as a heading stands before each of its pieces, and not twice.
        text = record.text.strip().removeprefix(title)
        paragraphs = (record.text if text[:1].isalnum() else text).split("\n\n")
        blocks = [Block(title, level=1)] if title else []
        blocks += [Block(part.strip()) for part in paragraphs if part.strip()]
        if not blocks:
            raise BadDocument("it holds no text")
        return await self._add(collection, source, digest, Content(title or source, tuple(blocks)), label)

    async def folder(self, folder: str, label: str) -> None:
        """Remembers the label, or a stricter one from before, for all that the folder holds now and later.

        `folder` is its absolute path without links.
        """
        known = (await self._documents.folder_labels()).get(folder)
        await self._documents.label_folder(folder, strictest(label, known))

    async def forget_gone(self, folder: str, *, collection: str) -> tuple[list[str], list[str]]:
        """Removes the documents of files that were in the folder (its absolute path without links) and are gone.

        Sources of what was removed, and of what may be gone: see `whereabouts`.
        """
        held = [d for d in await self._documents.list(collection) if PurePath(folder) in PurePath(d.source).parents]
        found = await asyncio.to_thread(lambda: [(document, whereabouts(document.source)) for document in held])
        gone = [document for document, where in found if where == "gone"]
        for document in gone:
            await self._documents.delete(document.id)
        return [document.source for document in gone], [d.source for d, where in found if where == "unclear"]

    async def _add(
        self, collection: str, source: str, digest: bytes, content: Content, label: str | None,
        progress: Progress = lambda done, total: None, *, dated_at: int | None = None,
    ) -> Outcome:
        pieces: list[Piece] = await asyncio.to_thread(
            lambda: list(chunks(content.blocks, self._embedder.count, EMBEDDER_TOKENS))
        )
        vectors = await self._vectors(digest, [piece.text for piece in pieces], progress)
        # Embedding takes minutes, in which somebody may have labelled a folder.
        label = strictest(label, label_of_folders(source, await self._documents.folder_labels()))
        added = await self._documents.add(
            collection=collection, source=source, title=content.title, sha256=digest, label=label,
            chunks=[Chunk(piece.text, piece.page, piece.line) for piece in pieces], vectors=vectors,
            model_id=self._embedder.model_id, dated_at=dated_at,
        )
        return Outcome(source, "added", added.chunks, added.label)

    async def _vectors(self, digest: bytes, texts: list[str], progress: Progress) -> "NDArray[np.float32]":
        """A row for each text. Of a long document each part is kept at once, and found when this is called again."""
        drafts = self._documents.drafts(self._embedder.model_id)
        is_long = len(texts) > _EMBEDDED_AT_ONCE
        passages = [drafts.passage(text) for text in texts]
        known = await drafts.known(digest) if is_long else {}
        for start in range(0, len(texts), _EMBEDDED_AT_ONCE):
            progress(start, len(texts))
            at = slice(start, start + _EMBEDDED_AT_ONCE)
            part = {name: text for name, text in zip(passages[at], texts[at], strict=True) if name not in known}
            if part:
                vectors = await self._embedder.embed(list(part.values()))
                known.update(zip(part, vectors, strict=True))
                if is_long:
                    await drafts.keep(digest, list(part), vectors)
        return await asyncio.to_thread(_joined, [known[passage] for passage in passages])


def _joined(rows: "list[NDArray[np.float32]]") -> "NDArray[np.float32]":
    import numpy as np

    return np.stack(rows)


def label_of_folders(source: str, folders: Mapping[str, str]) -> str | None:
    """The strictest label of the folders that hold the file of this name."""
    parents = [str(parent) for parent in (PurePath(source), *PurePath(source).parents)]
    return strictest(*(folders.get(parent) for parent in parents))


async def relabel(documents: Documents, found: Iterable[Document], label: str, *, folder: str | None = None) -> None:
    """Sets the label, looser or stricter, of these documents and of the folder that holds them, if there is one.

    Raises BadUse, and changes nothing, where the label of a folder further up would tighten it again.
    """
    folders, inner = await documents.folder_labels(), list[str]()
    if folder is not None:
        inner = [name for name in folders if PurePath(folder) in (PurePath(name), *PurePath(name).parents)]
        folders = {name: folders[name] for name in folders.keys() - inner}
    chosen = list(found)
    for source in ([folder] if folder is not None else []) + [document.source for document in chosen]:
        if strictest(label, label_of_folders(source, folders)) != label:
            raise BadUse(f"{source} lies in a folder with a stricter label", hint="label that folder, or move it")
    for name in inner:
        await documents.label_folder(name, None)
    if folder is not None:
        await documents.label_folder(folder, label)
    for document in chosen:
        await documents.relabel(document.id, label)


def _read(path: Path) -> tuple[str, bytes, int]:
    """The absolute path, without links, by which folders' labels go, the content, and when it was last changed."""
    try:
        if path.is_dir():
            raise BadDocument("it is a folder that cannot be read")
        if not path.is_file():  # opening a pipe or a device could block for ever
            raise BadDocument("it is no file to read" if path.exists() else "there is no such file")
        with path.open("rb") as stream:
            data = stream.read(MAX_BYTES + 1)
            changed_at = os.fstat(stream.fileno()).st_mtime_ns // 1_000_000_000
    except OSError as error:
        raise BadDocument(f"it cannot be read: {error.strerror}") from None
    if len(data) > MAX_BYTES:
        raise BadDocument(f"it is larger than {MAX_BYTES >> 20} MiB")
    return str(path.resolve()), data, changed_at


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

"""Documents in the encrypted database: their passages, words and vectors, added and removed as a whole."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from store.database import Connection, Database
from store.drafts import Drafts
from store.errors import ModelMismatch, StoreMisuse

if TYPE_CHECKING:
    from store.filters import Filter
    from store.vectors import FloatArray

__all__ = ["LABELS", "Chunk", "Document", "Documents", "check_date", "other_model", "storable", "strictest"]

LABELS: Final = ("public", "internal", "local-only")  # from loose to strict
_SELECT: Final = (
    "SELECT d.id, c.name, d.source, d.title, d.sha256, d.label, d.chunks, d.dated_at"
    " FROM documents d JOIN collections c ON c.id = d.collection_id"
)
_BY_CONTENT: Final = " WHERE c.name = ? AND d.sha256 = ?"
_BY_SOURCE: Final = " WHERE c.name = ? AND d.source = ?"


@dataclass(frozen=True)
class Chunk:
    """A passage and where it stands: page from 1 (PDF), line from 1 (text), or neither."""

    text: str
    page: int | None = None
    line: int | None = None


@dataclass(frozen=True)
class Document:
    id: int
    collection: str
    source: str
    title: str
    sha256: bytes
    label: str
    chunks: int
    dated_at: int | None  # unix seconds


class Documents:
    """The documents of all collections. All methods raise what `Database.run` raises."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def drafts(self, model_id: str) -> Drafts:
        """Vectors by this embedder of documents that are not added yet."""
        return Drafts(self._database, model_id)

    async def add(
        self, *, collection: str, source: str, title: str, sha256: bytes, label: str | None = None,
        chunks: Sequence[Chunk], vectors: "FloatArray", model_id: str, dated_at: int | None = None,
    ) -> Document:
        """Stores a document with one vector a chunk (float32, (n, dimension), length 1), all or nothing.

        The same content again (collection and sha256) changes nothing but, possibly, label and date; new content of a
        known source replaces the old. Either way a label only becomes stricter: looser takes `relabel`. Without a label
        it keeps its own, and what is new is internal. `dated_at` (unix seconds) is what filters by date ask about, such
        as when a file was last changed. Raises ModelMismatch if the collection holds vectors of another
        model or dimension, StoreMisuse for what does not fit together.
        """
        from store import vectors as coding  # numpy takes 0.1 s to load, and listing documents does not need it

        _check_label(label)
        check_date(dated_at)
        if len(sha256) != 32 or not collection or not source:
            raise StoreMisuse("a document needs a collection, a source and a SHA-256")
        source, title, texts = storable(source), storable(title), [storable(chunk.text) for chunk in chunks]
        rows = coding.checked_rows(vectors, len(chunks))
        codes, values = coding.encode_codes(rows), coding.encode_rows(rows)

        def work(connection: Connection) -> Document:
            collection_id = _collection(connection, collection, model_id, rows.shape[1])
            same, tightened = _replaced(connection, collection, source, sha256, label, dated_at)
            connection.execute("DELETE FROM drafts WHERE document = ?", (sha256,))
            if same is not None:
                return same
            document_id = connection.execute(
                "INSERT INTO documents (collection_id, source, title, sha256, label, chunks, dated_at)"
                " VALUES (?, ?, ?, ?, ?, ?, ?)",
                (collection_id, source, title, sha256, tightened, len(chunks), dated_at),
            ).lastrowid
            assert document_id is not None
            last = connection.execute("SELECT seq FROM sqlite_sequence WHERE name = 'chunks'").fetchone()
            first = 1 + (last[0] if last else 0)
            ids = range(first, first + len(chunks))
            connection.executemany(
                "INSERT INTO chunks (id, document_id, text, page, line) VALUES (?, ?, ?, ?, ?)",
                ((id, document_id, text, c.page, c.line) for id, text, c in zip(ids, texts, chunks, strict=True)),
            )
            if codes:
                connection.execute("INSERT INTO codes VALUES (?, ?, ?, ?)", (document_id, collection_id, first, codes))
            connection.executemany("INSERT INTO vectors VALUES (?, ?)", zip(ids, values, strict=True))
            connection.executemany(
                "INSERT INTO words (rowid, title, text) VALUES (?, ?, ?)",
                ((id, title, text) for id, text in zip(ids, texts, strict=True)),
            )
            return _known(connection, document_id)

        return await self._database.run(work)

    async def again(
        self, *, collection: str, source: str, sha256: bytes, label: str | None = None, dated_at: int | None = None
    ) -> Document | None:
        """What `add` does where the content is stored already, without the work of embedding it; None where it is not.

        Then nothing is changed.
        """
        _check_label(label)
        check_date(dated_at)
        source = storable(source)

        def work(connection: Connection) -> Document | None:
            if _first(connection, _BY_CONTENT, collection, sha256) is None:
                return None
            return _replaced(connection, collection, source, sha256, label, dated_at)[0]

        return await self._database.run(work)

    async def find(self, collection: str, sha256: bytes) -> Document | None:
        """The document of that content."""
        return await self._database.run(lambda c: _first(c, _BY_CONTENT, collection, sha256), read_only=True)

    async def named(self, collection: str, source: str) -> Document | None:
        """The document of that source."""
        return await self._database.run(
            lambda c: _first(c, _BY_SOURCE, collection, storable(source)), read_only=True
        )

    async def has(self, collection: str, filter: "Filter") -> bool:
        """Whether the filter leaves any document of the collection."""
        condition, values = filter.condition()
        within = "SELECT 1 FROM documents WHERE collection_id = (SELECT id FROM collections WHERE name = ?)"
        return await self._database.run(
            lambda c: c.execute(f"{within} AND {condition} LIMIT 1", (collection, *values)).fetchone() is not None,
            read_only=True,
        )

    async def list(self, collection: str | None = None) -> list[Document]:
        """All documents, or those of one collection, by collection and source."""

        def work(connection: Connection) -> list[Document]:
            where = " WHERE c.name = ifnull(?, c.name) ORDER BY c.name, d.source"
            return [Document(*row) for row in connection.execute(_SELECT + where, (collection,))]

        return await self._database.run(work, read_only=True)

    async def delete(self, document_id: int) -> bool:
        """Removes a document with everything made from it. False if there is none."""
        return await self._database.run(lambda c: _delete(c, document_id))

    async def relabel(self, document_id: int, label: str) -> bool:
        """Sets the label, looser or stricter. False if there is no such document."""
        _check_label(label)
        statement = "UPDATE documents SET label = ? WHERE id = ?"
        return await self._database.run(lambda c: c.execute(statement, (label, document_id)).rowcount > 0)

    async def rename(self, document_id: int, source: str, title: str) -> None:
        """Says where a document is now; nothing happens where another one of its collection has that source."""
        statement = "UPDATE OR IGNORE documents SET source = ?, title = ? WHERE id = ?"
        row = storable(source), storable(title), document_id
        await self._database.run(lambda c: c.execute(statement, row).rowcount)

    async def label_folder(self, folder: str, label: str | None) -> None:
        """Remembers a label for what a folder will hold; None forgets it. Documents in it are relabelled by the caller.

        Which folder a source lies in is for whoever names the sources.
        """
        _check_label(label)

        def work(connection: Connection) -> None:
            connection.execute("DELETE FROM folder_labels WHERE folder = ?", (storable(folder),))
            if label is not None:
                connection.execute("INSERT INTO folder_labels VALUES (?, ?)", (storable(folder), label))

        await self._database.run(work)

    async def folder_labels(self) -> dict[str, str]:
        """The remembered labels by folder."""

        def work(connection: Connection) -> dict[str, str]:
            return dict(connection.execute("SELECT folder, label FROM folder_labels").fetchall())

        return await self._database.run(work, read_only=True)

    async def around(self, chunk_id: int) -> tuple[Document, Sequence[tuple[int, Chunk]]] | None:
        """The document of a passage, and (id, passage) of it and its neighbours in order. None if it is gone."""

        def work(connection: Connection) -> tuple[Document, Sequence[tuple[int, Chunk]]] | None:
            row = connection.execute("SELECT document_id FROM chunks WHERE id = ?", (chunk_id,)).fetchone()
            if row is None:
                return None
            # A document's passages are added at once, in order: its ids have no gaps.
            statement = "SELECT id, text, page, line FROM chunks WHERE document_id = ? AND abs(id - ?) <= 1 ORDER BY id"
            found = connection.execute(statement, (row[0], chunk_id))
            return _known(connection, row[0]), [(id, Chunk(text, page, line)) for id, text, page, line in found]

        return await self._database.run(work, read_only=True)

    async def count(self) -> tuple[int, int]:
        """(documents, chunks) over all collections."""

        def work(connection: Connection) -> tuple[int, int]:
            row = connection.execute("SELECT count(*), ifnull(sum(chunks), 0) FROM documents").fetchone()
            assert row is not None
            return int(row[0]), int(row[1])

        return await self._database.run(work, read_only=True)


def strictest(*labels: str | None) -> str | None:
    """None where there is none."""
    return max((label for label in labels if label is not None), key=LABELS.index, default=None)


def _check_label(label: str | None) -> None:
    if label is not None and label not in LABELS:
        raise StoreMisuse("a label is public, internal or local-only")


def check_date(moment: int | None) -> None:
    """Raises StoreMisuse for what SQLite has no room for."""
    if moment is not None and not -(2**63) <= moment < 2**63:
        raise StoreMisuse("a date is unix seconds of at most 64 bits")


def _replaced(
    connection: Connection, collection: str, source: str, sha256: bytes, label: str | None, dated_at: int | None
) -> tuple[Document | None, str]:
    """(the document of that content, labelled and dated, if there is one; the strictest label that applies).

    Other content of that source is deleted.
    """
    same = _first(connection, _BY_CONTENT, collection, sha256)
    old = _first(connection, _BY_SOURCE, collection, source)
    tightened = strictest(label, *(d.label for d in (same, old) if d)) or "internal"
    if old is not None and old.sha256 != sha256:
        _delete(connection, old.id)
    if same is None:
        return None, tightened
    statement = "UPDATE documents SET label = ?, dated_at = ifnull(?, dated_at) WHERE id = ?"
    connection.execute(statement, (tightened, dated_at, same.id))
    return _known(connection, same.id), tightened


def other_model() -> ModelMismatch:
    return ModelMismatch(
        "the collection was made with another embedding model",
        hint="`edge documents reembed` (store.reembedding) makes its vectors anew; or use the embedder of before",
    )


def storable(text: str) -> str:
    """Text with lone surrogates (odd file names, broken PDFs) spelled out, since they have no UTF-8."""
    return text.encode("utf-8", "backslashreplace").decode()


def _collection(connection: Connection, name: str, model_id: str, dimension: int) -> int:
    """The collection's id; one without vectors takes this model and dimension."""
    connection.execute(
        "INSERT INTO collections (name, model_id, dimension) VALUES (?, ?, ?) ON CONFLICT DO UPDATE"
        " SET model_id = excluded.model_id, dimension = excluded.dimension"
        " WHERE NOT EXISTS (SELECT 1 FROM documents WHERE collection_id = collections.id AND chunks > 0)",
        (name, model_id, dimension),
    )
    row = connection.execute("SELECT id, model_id, dimension FROM collections WHERE name = ?", (name,)).fetchone()
    assert row is not None
    if row[1:] != (model_id, dimension):
        raise other_model()
    return int(row[0])


def _first(connection: Connection, where: str, *parameters: Any) -> Document | None:
    row = connection.execute(_SELECT + where, parameters).fetchone()
    return None if row is None else Document(*row)


def _known(connection: Connection, document_id: int) -> Document:
    document = _first(connection, " WHERE d.id = ?", document_id)
    assert document is not None
    return document


def _delete(connection: Connection, document_id: int) -> bool:
    connection.execute(
        "DELETE FROM words WHERE rowid IN (SELECT id FROM chunks WHERE document_id = ?)", (document_id,)
    )
    # passages, vectors and codes follow by their foreign keys
    return connection.execute("DELETE FROM documents WHERE id = ?", (document_id,)).rowcount > 0

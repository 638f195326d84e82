"""An encrypted vector store for a program without an event loop: a script, a notebook. Every call blocks.

It is `Documents` and `Search` over one database, with a key file beside it; whoever has an event loop uses these.
"""

import contextlib
import hashlib
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self, TypeVar

import numpy as np
import numpy.typing as npt

from store.backups import finish
from store.database import STORE_SCHEMA, Connection, Database
from store.documents import Chunk, Document, Documents
from store.errors import StoreExists, StoreMisuse
from store.files import file_errors
from store.filters import Filter
from store.keys import DatabaseKey, Passphrase, Unlock, create_key, unlock
from store.reembedding import Progress, reembed
from store.search import Hit, Search
from store.vectors import FloatArray

__all__ = ["VectorStore"]

T = TypeVar("T")

_KEY: Final = "store.key"
_DATABASE: Final = "store.db"
_ALL: Final = Filter()


class _Blocking(Database):
    """Its coroutines never wait, so that `_outcome` can carry them out."""

    async def run(self, work: Callable[[Connection], T], *, read_only: bool = False) -> T:
        return self.run_sync(work, read_only=read_only)


class VectorStore:
    """The store in one folder, and the embedder whose vectors are in it. Made by `open`; any thread may use it.

    All methods raise StoreError: StoreBusy while another process writes for over 5 s, DiskFull, StoreCorrupt.
    """

    def __init__(self, database: Database, model_id: str) -> None:
        """Use `open`."""
        self._database, self._model_id = database, model_id
        self._documents, self._search = Documents(database), Search(database)

    @classmethod
    def open(cls, folder: str | Path, key: Unlock | DatabaseKey, *, model_id: str) -> Self:
        """Opens the store in `folder`, or makes folder (mode 0700), key file and database.

        `key` is a Passphrase (which takes 0.2 s), a HeldKey, or the DatabaseKey itself, without a key file. `model_id`
        names the embedder in any words: vectors of another one are refused. Raises WrongKey, StoreCorrupt, StoreTooNew,
        StoreMissing (a database without its key file; a HeldKey makes none), StoreBusy, DiskFull, StoreUnwritable.
        """
        home = Path(folder)
        with file_errors(home):
            home.mkdir(parents=True, exist_ok=True, mode=0o700)
        opened = key if isinstance(key, DatabaseKey) else _key(home, key)
        return cls(_Blocking.open(home / _DATABASE, opened, schema=STORE_SCHEMA), model_id)

    def add(
        self, source: str, passages: Sequence[str | Chunk], vectors: npt.ArrayLike, *, title: str | None = None,
        collection: str = "default", label: str | None = None, dated_at: int | None = None,
    ) -> Document:
        """Stores a document with one vector a passage, of any length but 0: only its direction counts. All or nothing.

        What had that source before is replaced; the same passages again change nothing. `label` is public, internal (as
        is what has none) or local-only, and only becomes stricter; `dated_at` is in unix seconds. Raises ModelMismatch,
        StoreMisuse.
        """
        chunks = [Chunk(passage) if isinstance(passage, str) else passage for passage in passages]
        name = repr((source, title, [(chunk.text, chunk.page, chunk.line) for chunk in chunks]))
        return _outcome(self._documents.add(
            collection=collection, source=source, title=source if title is None else title, chunks=chunks, label=label,
            sha256=hashlib.sha256(name.encode()).digest(), vectors=_units(vectors), model_id=self._model_id,
            dated_at=dated_at,
        ))

    def search(
        self, text: str, vector: npt.ArrayLike, *, top: int = 5, collection: str = "default", filter: Filter = _ALL
    ) -> list[Hit]:
        """The `top` best passages for a question and its vector, best first; with an empty text by the vector alone.

        Sees what any process has committed, and nothing that the filter leaves out. Raises ModelMismatch, StoreMisuse.
        """
        return _outcome(self._search.query(
            text=text, vector=_units(vector), collection=collection, top=top, model_id=self._model_id, filter=filter,
        ))

    def reembed(
        self, embed: Callable[[Sequence[str]], npt.ArrayLike], *, collection: str = "default",
        progress: Progress = lambda step, done, total: None,
    ) -> int:
        """Brings a collection of another embedder to this one: `embed` gives a vector for each text. How many passages.

        Searches by the former embedder go on until all are there. Whatever stops it, the next call goes on where it
        was. See store.reembedding.reembed for `progress` and the room it takes.
        """

        async def embedded(texts: Sequence[str]) -> FloatArray:
            return _units(embed(texts))

        return _outcome(reembed(
            self._database, embedded, collection=collection, model_id=self._model_id, progress=progress,
        ))

    def list(self, collection: str | None = None) -> list[Document]:
        """All documents, or those of one collection, by collection and source."""
        return _outcome(self._documents.list(collection))

    def delete(self, source: str, *, collection: str = "default") -> bool:
        """Removes a document with everything made from it. False if there is none."""
        found = _outcome(self._documents.named(collection, source))
        return found is not None and _outcome(self._documents.delete(found.id))

    def close(self) -> None:
        """Waits for work begun, and forgets the key. Idempotent."""
        self._database.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def _key(home: Path, by: Unlock) -> DatabaseKey:
    path = home / _KEY
    finish(home / _DATABASE, path)  # a restore that was cut short
    if isinstance(by, Passphrase) and not path.exists() and not (home / _DATABASE).exists():
        with contextlib.suppress(StoreExists):  # another process was first
            return create_key(path, by)
    return unlock(path, by)


def _outcome(coroutine: Coroutine[Any, Any, T]) -> T:
    """Carries out a coroutine over a `_Blocking` database, on any thread, also beside a running event loop."""
    try:
        coroutine.send(None)
    except StopIteration as end:
        outcome: T = end.value
        return outcome
    coroutine.close()
    raise AssertionError("a coroutine of the store waits for something else than the database")


def _units(vectors: npt.ArrayLike) -> FloatArray:
    """Vectors at length 1. What has no direction becomes NaN, which is refused further on."""
    try:
        rows = np.asarray(vectors, np.float64)  # float32 has no room for the squares of what is far from 1
        with np.errstate(invalid="ignore", over="ignore"):
            units: FloatArray = (rows / np.linalg.norm(rows, axis=-1, keepdims=True)).astype(np.float32)
    except (ValueError, TypeError):
        raise StoreMisuse("vectors must be rows of numbers, as many in each") from None
    return units

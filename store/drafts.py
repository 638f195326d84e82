"""Vectors of a document while it is being embedded, so that an interrupted ingest goes on where it was.

They are apart from documents, which are added as a whole: what is half done is never found, nor cited.
"""

import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from store.database import Connection, Database

if TYPE_CHECKING:
    from store.vectors import FloatArray

__all__ = ["Drafts"]

_DOCUMENTS_MAX: Final = 8  # of the last ones: a file that never comes again must not leave its vectors for ever


class Drafts:
    """For embedder `model_id`. `sha256` is a document's content. All methods raise what `Database.run` raises."""

    def __init__(self, database: Database, model_id: str) -> None:
        self._database = database
        self._model_id = model_id

    async def known(self, sha256: bytes) -> "dict[bytes, FloatArray]":
        """Vectors (float32 of one dimension) by passage, see `passage`."""
        import numpy as np

        def work(connection: Connection) -> list[tuple[bytes, bytes]]:
            return connection.execute("SELECT passage, value FROM drafts WHERE document = ?", (sha256,)).fetchall()

        rows = await self._database.run(work, read_only=True)
        return {passage: np.frombuffer(value, "<f4").astype(np.float32) for passage, value in rows}

    async def keep(self, sha256: bytes, passages: Sequence[bytes], vectors: "FloatArray") -> None:
        """Keeps a row of `vectors` for each of `passages`. Those of older documents go; `Documents.add` drops these."""
        rows = [(sha256, passage, row.astype("<f4").tobytes()) for passage, row in zip(passages, vectors, strict=True)]

        def work(connection: Connection) -> None:
            for row in rows:
                connection.execute("INSERT OR REPLACE INTO drafts (document, passage, value) VALUES (?, ?, ?)", row)
            connection.execute(
                "DELETE FROM drafts WHERE document NOT IN"
                " (SELECT document FROM drafts GROUP BY document ORDER BY max(id) DESC LIMIT ?)", (_DOCUMENTS_MAX,)
            )

        await self._database.run(work)

    def passage(self, text: str) -> bytes:
        """The name of a passage of this text."""
        return hashlib.sha256(f"{self._model_id}\0{text}".encode("utf-8", "backslashreplace")).digest()

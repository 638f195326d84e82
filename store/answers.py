"""Which answers were made from local-only documents, so that they stay here when a conversation brings them back.

Only digests are kept: the answers themselves live with whoever asked.
"""

import hashlib
from collections.abc import Iterable

from store.database import Connection, Database

__all__ = ["KeptAnswers"]


class KeptAnswers:
    """All methods raise what `Database.run` raises."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def add(self, text: str) -> None:
        """Remembers an answer, also if the caller is cancelled meanwhile. An empty one is nothing to remember."""
        if not text.strip():
            return
        row = (_digest(text),)
        await self._database.run(lambda c: c.execute("INSERT OR IGNORE INTO kept_answers VALUES (?)", row).rowcount)

    async def hold(self, texts: Iterable[str]) -> bool:
        """Whether any of the texts is one of them; how it is spaced does not matter."""
        digests = [_digest(text) for text in texts]

        def work(connection: Connection) -> bool:
            statement = "SELECT 1 FROM kept_answers WHERE digest = ?"
            return any(connection.execute(statement, (digest,)).fetchone() for digest in digests)

        return bool(digests) and await self._database.run(work, read_only=True)


def _digest(text: str) -> bytes:
    return hashlib.sha256(" ".join(text.split()).encode("utf-8", "backslashreplace")).digest()

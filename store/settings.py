"""Named values in the encrypted database: identity, configuration, floors that must not go back."""

from typing import Final

from store.database import Connection, Database
from store.errors import StoreMisuse

__all__ = ["MAX_VALUE", "Settings"]

MAX_VALUE: Final = 1024 * 1024


class Settings:
    """The values of one namespace. Each call is one transaction; all raise what `Database.run` raises."""

    def __init__(self, database: Database, namespace: str) -> None:
        self._database = database
        self._namespace = namespace

    async def get(self, key: str) -> bytes | None:
        def work(connection: Connection) -> bytes | None:
            row = connection.execute(
                "SELECT value FROM settings WHERE namespace = ? AND key = ?", (self._namespace, key)
            ).fetchone()
            return None if row is None else bytes(row[0])

        return await self._database.run(work, read_only=True)

    async def put(self, key: str, value: bytes) -> None:
        """Stores or replaces. Raises StoreMisuse over 1 MiB."""
        if len(value) > MAX_VALUE:
            raise StoreMisuse("a setting holds at most 1 MiB")
        statement = (
            "INSERT INTO settings (namespace, key, value) VALUES (?, ?, ?)"
            " ON CONFLICT DO UPDATE SET value = excluded.value"
        )
        await self._database.run(lambda c: c.execute(statement, (self._namespace, key, bytes(value))))

    async def delete(self, key: str) -> None:
        """Removes the value if there is one."""
        statement = "DELETE FROM settings WHERE namespace = ? AND key = ?"
        await self._database.run(lambda c: c.execute(statement, (self._namespace, key)))

    async def items(self) -> list[tuple[str, bytes]]:
        """All values by key."""

        def work(connection: Connection) -> list[tuple[str, bytes]]:
            statement = "SELECT key, value FROM settings WHERE namespace = ? ORDER BY key"
            return [(key, bytes(value)) for key, value in connection.execute(statement, (self._namespace,))]

        return await self._database.run(work, read_only=True)

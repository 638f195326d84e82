"""Settings: bytes by namespace and key, kept across openings."""

from pathlib import Path

import pytest

from store.errors import StoreMisuse
from store.settings import MAX_VALUE, Settings
from tests.support.stores import open_store


async def test_values_by_namespace(tmp_path: Path) -> None:
    with open_store(tmp_path / "store.db") as database:
        identity, other = Settings(database, "identity"), Settings(database, "other")
        assert await identity.get("key") is None
        await identity.put("key", b"one")
        await identity.put("key", b"two\x00")
        await other.put("key", b"")
    with open_store(tmp_path / "store.db") as database:
        identity, other = Settings(database, "identity"), Settings(database, "other")
        assert await identity.get("key") == b"two\x00"
        assert await other.get("key") == b""
        await identity.delete("key")
        await identity.delete("key")
        assert await identity.get("key") is None
        assert await other.get("key") == b""


async def test_a_value_is_bounded(tmp_path: Path) -> None:
    with open_store(tmp_path / "store.db") as database:
        settings = Settings(database, "n")
        await settings.put("k", bytes(MAX_VALUE))
        with pytest.raises(StoreMisuse):
            await settings.put("k", bytes(MAX_VALUE + 1))

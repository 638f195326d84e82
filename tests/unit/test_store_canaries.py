"""At rest, only ciphertext: plants canaries in everything the store holds and searches every byte it leaves on disk.

The control run stores the same without a key. It must find every canary, or the search proves nothing.
"""

import hashlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import store.database
from store.database import Database
from store.documents import Chunk, Documents
from store.queue import Queue
from store.search import Search
from store.settings import Settings
from store.vectors import encode_codes, encode_rows
from tests.support.stores import KEY, open_store, unit_vectors

WORDS = [hashlib.sha256(bytes([n])).hexdigest()[:24] for n in range(200)]
TEXTS, TITLES, SOURCES, VALUES, PAYLOADS, NOTES = (WORDS[n : n + 50] for n in (0, 50, 100, 150, 20, 70))


async def fill(database: Database, vectors: np.ndarray) -> None:
    documents, settings, queue = Documents(database), Settings(database, "history"), Queue(database, "outbox")
    for n in range(50):
        document = await documents.add(
            collection="c", source="source " + SOURCES[n], title="title " + TITLES[n], label="local-only",
            sha256=hashlib.sha256(SOURCES[n].encode()).digest(), model_id="m",
            chunks=[Chunk(f"text {TEXTS[n]} end", page=n + 1)], vectors=vectors[n : n + 1],
        )
        await settings.put("prompt", f"prompt {VALUES[n]}".encode())
        await queue.append(n.to_bytes(16, "big"), b"payload " + PAYLOADS[n][::-1].encode(), 1000, now=0)
        if n % 5 == 0:
            await queue.claim(now=0)
            await queue.settle(n.to_bytes(16, "big"), "failed", note="note " + NOTES[n][::-1], erase=True)
        if n % 7 == 0:
            await documents.delete(document.id)
    # A search large enough to sort and join, which is what temporary files would be for.
    await Search(database).query(text=" ".join(TEXTS), vector=vectors[0], collection="c", top=50)


def needles(vectors: np.ndarray) -> Iterator[bytes]:
    """What must not be seen; of rows deleted or erased on the way nothing is asked of the control run."""
    kept = [n for n in range(50) if n % 7]
    for n in kept:
        yield from (TEXTS[n].encode(), TITLES[n].encode(), SOURCES[n].encode())
    yield VALUES[49].encode()
    yield from (PAYLOADS[n][::-1].encode() for n in range(50) if n % 5)
    yield from (NOTES[n][::-1].encode() for n in range(0, 50, 5))
    for row, code in zip(encode_rows(vectors[kept]), encode_codes(vectors[kept]), strict=True):
        yield from (row, code, row[:32])


def seen(folder: Path, wanted: list[bytes]) -> int:
    files = {path.name: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert files["store.db"] and files["store.db-wal"] and files["store.db-shm"], "nothing was captured"
    return sum(any(needle in data for data in files.values()) for needle in wanted)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("TMPDIR", "SQLITE_TMPDIR"):
        monkeypatch.setenv(name, str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    return tmp_path


async def test_no_canary_on_disk(folder: Path) -> None:
    vectors = unit_vectors(50)
    everything = [*needles(vectors), *(word.encode() for word in WORDS), KEY.expose()[:32]]
    everything += [b"SQLite format", b"CREATE TABLE"]
    with open_store(folder / "store.db") as database:
        await fill(database, vectors)
        assert seen(folder, everything) == 0
    assert not any(needle in (folder / "store.db").read_bytes() for needle in everything)
    assert list((folder / "temporary").iterdir()) == []


async def test_the_search_for_canaries_can_find(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store.database, "_hand_over", lambda *_: None)
    vectors = unit_vectors(50)
    wanted = list(needles(vectors))
    with open_store(folder / "store.db") as database:
        await fill(database, vectors)
        assert seen(folder, wanted) == len(wanted) > 250

"""At rest, only ciphertext: plants canaries in everything the store holds and searches every byte it leaves on disk.

In the database, its log and index, its journal, and temporary files, which have no name, at each stage of a store's
life. The control run stores the same without a key. It must find every canary, or the search proves nothing.
"""

import contextlib
import hashlib
import os
import sys
from collections.abc import Callable, Collection
from pathlib import Path

import pytest

import store.database
from scripts.canaries import byte_forms, forms, seen
from store.database import Connection, Database
from store.documents import Chunk, Documents
from store.key_file import write
from store.keys import HeldKey, by_held
from store.queue import Queue
from store.rekey import rekey
from store.search import Search
from store.settings import Settings
from tests.support.stores import KEY, open_store, unit_vectors

COUNT, TOGETHER = 100, 10  # documents; so many of their other canaries in a row, since each row waits for the disk
EACH = {"text": 4, "title": 1, "source": 1, "setting": 2, "payload": 1, "note": 1}  # of a document
MODEL = "m"


def planted(kinds: Collection[str] = tuple(EACH), numbers: Collection[int] = range(COUNT)) -> list[str]:
    names = [f"{kind} {n} {at}" for kind in kinds for n in numbers for at in range(EACH[kind])]
    return [hashlib.sha256(name.encode()).hexdigest()[:24] for name in names]


VECTORS = unit_vectors(COUNT * EACH["text"] + 1)
VECTORS, DRAFT = VECTORS[:-1], VECTORS[-1:]


async def fill(database: Database) -> None:
    documents, settings, queue = Documents(database), Settings(database, "history"), Queue(database, "outbox")
    for n in range(COUNT):
        (source,), (title,), texts = planted(["source"], [n]), planted(["title"], [n]), planted(["text"], [n])
        await documents.add(
            collection="c", source=f"source {source}", title=f"title {title}", label="local-only",
            sha256=hashlib.sha256(b"%d" % n).digest(), model_id=MODEL,
            chunks=[Chunk(f"text {text} end", page=n + 1) for text in texts],
            vectors=VECTORS.reshape(COUNT, len(texts), -1)[n],
        )
    for n in range(0, COUNT, TOGETHER):
        these = range(n, n + TOGETHER)
        said, asked, noted = (" ".join(planted([kind], these)) for kind in ("setting", "payload", "note"))
        await settings.put(f"prompt {n}", f"prompt {said}".encode())
        await queue.append(n.to_bytes(16, "big"), f"payload {asked}".encode(), 1000, now=0)
        await queue.append(bytes([n + 1] * 16), b"nothing to see", 1000, now=0)
        await queue.settle(bytes([n + 1] * 16), "failed", note=f"note {noted}", erase=True)
    drafts = documents.drafts(MODEL)
    await drafts.keep(bytes(32), [drafts.passage("half done")], DRAFT)
    # A search large enough to sort and join, which is what temporary files would be for.
    await Search(database).query(text=" ".join(planted(["text"])), vector=VECTORS[0], collection="c", top=50)


def windows(blobs: Collection[bytes]) -> set[bytes]:
    return {blob[at : at + 32] for blob in blobs for at in (0, 64) if len(blob) >= at + 32}


def stored_vectors(database: Database) -> set[bytes]:
    """As the tables have them: codes, float16, and float32 of what is being embedded."""

    def read(connection: Connection) -> set[bytes]:
        tables = (("codes", "code"), ("vectors", "value"), ("drafts", "value"))
        return {row[0] for table, column in tables for row in connection.execute(f"SELECT {column} FROM {table}")}

    return windows(database.run_sync(read))


def in_any_form(database: Database) -> set[bytes]:
    """What must not be on disk."""
    found = {form for word in planted() for form in forms(word)}
    rows = [bytes(row) for kind in ("<f2", "<f4") for row in (*VECTORS.astype(kind), *DRAFT.astype(kind))]
    for blob in stored_vectors(database) | windows(rows):
        found |= byte_forms(blob)
    return found | byte_forms(KEY.expose()[:32]) | {b"SQLite format", b"CREATE TABLE"}


def captured(tmp_path: Path) -> dict[str, bytes]:
    """Every file, and SQLite's temporary ones, which are open and have no name any more."""
    files = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    for entry in Path("/proc/self/fd").iterdir() if sys.platform == "linux" else ():
        with contextlib.suppress(FileNotFoundError):  # the folder's own
            if "etilqs_" in os.readlink(entry):
                files[f"temporary {entry.name}"] = entry.read_bytes()
    return files


def spill(connection: Connection) -> None:
    """Work in the middle of its transaction: written and not committed, more than memory is to hold, and sorted."""
    connection.execute("PRAGMA cache_size = 4")
    for n in range(COUNT):
        connection.execute("UPDATE documents SET title = title || 'x' WHERE id = ?", (n + 1,))
        longer = "UPDATE settings SET value = CAST(value || zeroblob(300) AS BLOB) WHERE key = ?"
        connection.execute(longer, (f"prompt {n}",))
    connection.execute("SELECT text || zeroblob(2000) FROM chunks ORDER BY text || zeroblob(2000) DESC").fetchall()


async def live(tmp_path: Path, look: Callable[[str, dict[str, bytes], Database], None]) -> None:
    """A store's life; `look` sees what lies on the disk at each stage."""
    path = tmp_path / "store.db"
    with open_store(path) as database:
        await fill(database)
        look("written", captured(tmp_path), database)

        def half_way(connection: Connection) -> dict[str, bytes]:
            spill(connection)
            return captured(tmp_path)

        look("in a transaction", database.run_sync(half_way), database)
        await database.copy(tmp_path / "copy.db")
    with open_store(path) as database:
        look("closed and opened", captured(tmp_path), database)
        documents = Documents(database)
        for document in await documents.list():
            if document.id % 2 == 0:
                await documents.delete(document.id)
        look("deleted from", captured(tmp_path), database)
    with open_store(path) as database:
        look("deleted from, and closed", captured(tmp_path), database)


async def test_no_canary_on_disk(tmp_path: Path) -> None:
    wanted, stages = set[bytes](), list[str]()

    def look(stage: str, files: dict[str, bytes], database: Database) -> None:
        wanted.update(wanted or in_any_form(database))
        assert len(wanted) > 10_000 and set(files) - {"copy.db"} == {"store.db", "store.db-wal", "store.db-shm"}
        for name, content in files.items():
            assert seen(content, wanted) == set(), f"{name}, {stage}"
        stages.append(stage)

    await live(tmp_path, look)
    assert len(stages) == 5
    write(tmp_path / "store.key", bytes(16), [by_held(HeldKey(bytes(32)))(KEY, bytes(16))], replace=False)
    new = rekey(tmp_path / "store.db", tmp_path / "store.key", KEY, [by_held(HeldKey(bytes(range(32))))])
    wanted |= byte_forms(new.expose()[:32])
    for name, content in captured(tmp_path).items():
        assert seen(content, wanted) == set(), f"{name}, under another key"


async def test_no_canary_in_the_journal_of_a_change_of_the_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Looked at where the pages have been written over, and the journal is whole."""
    with open_store(tmp_path / "store.db") as database:
        await fill(database)
        wanted = in_any_form(database)
    hand_over, looked = store.database._hand_over, list[int]()

    def look(connection: object, pragma: str, key: object) -> None:
        hand_over(connection, pragma, key)  # type: ignore[arg-type]
        if pragma == "rekey":
            files = captured(tmp_path)
            looked.append(len(files["store.db-journal"]))
            assert all(seen(content, wanted) == set() for content in files.values())

    monkeypatch.setattr(store.database, "_hand_over", look)
    write(tmp_path / "store.key", bytes(16), [by_held(HeldKey(bytes(32)))(KEY, bytes(16))], replace=False)
    rekey(tmp_path / "store.db", tmp_path / "store.key", KEY, [by_held(HeldKey(bytes(32)))])
    assert looked and looked[0] > (tmp_path / "store.db").stat().st_size


async def test_the_search_for_canaries_can_find(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store.database, "_hand_over", lambda *_: None)
    stages = list[str]()

    def look(stage: str, files: dict[str, bytes], database: Database) -> None:
        whole = set(range(COUNT))
        kept = whole if "deleted" not in stage else {n for n in whole if n % 2 == 0}
        wanted = {word.encode() for word in planted(("text", "title", "source"), kept)}
        wanted |= {word.encode() for word in planted(("setting", "payload", "note"))}
        wanted |= {bytes(DRAFT[0])[:32], bytes(VECTORS[0].astype("<f2"))[:32], b"CREATE TABLE"}
        wanted |= stored_vectors(database)
        assert len(planted()) == 1000 and len(wanted) > 800
        files.pop("copy.db", None)  # which has more
        found = set[bytes]().union(*(seen(content, wanted) for content in files.values()))
        assert wanted - found == set(), stage
        if stage == "deleted from, and closed":  # what is deleted is written over; but for words, until they are merged
            gone = {f"source {word}".encode() for word in planted(["source"], whole - kept)}
            gone |= {f"text {word} end".encode() for word in planted(["text"], whole - kept)}
            gone |= {f"title {word}".encode() for word in planted(["title"], whole - kept)}
            gone |= windows([bytes(row) for n, row in enumerate(VECTORS.astype("<f2")) if n // EACH["text"] % 2])
            assert len(gone) == 700 and not [name for name, content in files.items() if seen(content, gone)]
        stages.append(stage)

    await live(tmp_path, look)
    assert len(stages) == 5


@pytest.mark.skipif(sys.platform != "linux", reason="only there a process sees its files that have no name")
def test_the_search_sees_temporary_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a key, and where SQLite may use temporary files, it does, and the word is in them."""
    monkeypatch.setattr(store.database, "_hand_over", lambda *_: None)
    word = planted(["text"], [1])[0]

    def sort(connection: Connection) -> dict[str, bytes]:
        connection.execute("CREATE TEMP TABLE t (x)")
        for number in range(8000):
            connection.execute("INSERT INTO t VALUES (?)", (f"{word} {number} " + "x" * 1000,))
        return captured(tmp_path)

    def count(files: dict[str, bytes]) -> int:
        return sum(word.encode() in content for name, content in files.items() if "temporary" in name)

    with open_store(tmp_path / "store.db") as database:
        assert count(database.run_sync(sort)) == 0
        database._executor.submit(lambda: database._connection.execute("PRAGMA temp_store = FILE")).result()
        assert count(database.run_sync(sort)) > 0


def test_many_needles_are_found_wherever_they_lie() -> None:
    needles = [hashlib.sha256(bytes([n])).digest()[: 8 + n % 20] for n in range(100)]
    for shift in range(9):
        content = bytes(shift) + b"".join(needle + bytes(n % 7) for n, needle in enumerate(needles[:50]))
        assert seen(content, needles) == set(needles[:50])
    assert seen(b"", needles) == seen(bytes(7), needles) == set()
    assert seen(needles[0][:-1], [needles[0]]) == set()

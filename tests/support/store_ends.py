"""Kills a process that works in a store, at every point or at some, and looks what it left behind.

    python -m tests.support.store_ends OPERATION FOLDER POINTS [SEED]

Prints what was tried as JSON, and ends with an error at the first store that lost something acknowledged, holds half of
a document, or does not go on. POINTS: so many calls are tried, spread evenly, and as many
at the end, where a change becomes visible; 0 for all.
"""

import asyncio
import json
import random
import shutil
import sys
import time
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from store.database import Database
from store.documents import Documents
from store.keys import HeldKey, by_held, unlock_held
from store.queue import Queue
from store.reembedding import Reembedding
from store.rekey import rekey
from store.search import Search
from store.settings import Settings
from store.upkeep import check
from store.vectors import FloatArray
from tests.support.killed import Ended, killed_after, killed_at_call
from tests.support.old_stores import DOCUMENTS as OLD_DOCUMENTS
from tests.support.old_stores import PASSAGES as OLD_PASSAGES
from tests.support.old_stores import STEPS, make_old
from tests.support.old_stores import passage as old_passage
from tests.support.stores import KEY, add_document, open_store, unit_vectors

HELD, OTHER = HeldKey(bytes(range(32))), HeldKey(bytes(range(1, 33)))
PASSAGES, PLANNED = 5, 4


def texts(number: int) -> list[str]:
    return [f"document{number} passage{at} " + "words that fill it " * 40 for at in range(PASSAGES)]


def source(number: int) -> str:
    return f"{number}.md"


class Operation:
    """What is done to a store, in acknowledged steps, and what has to be true after so many of them."""

    steps = 1

    def prepare(self, home: Path) -> None:
        raise NotImplementedError

    def work(self, home: Path, done: Callable[[], None]) -> None:
        raise NotImplementedError

    def look(self, home: Path, acknowledged: int) -> None:
        """Raises AssertionError; leaves the store finished."""
        raise NotImplementedError


def whole(path: Path, key: object = KEY) -> None:
    report = check(path, key)  # type: ignore[arg-type]
    assert report.problems == (), report.problems


async def sources(database: Database) -> dict[str, str]:
    """Each document's passages as they are in the store, and as a search by words finds them: the same."""
    found = {}
    for document in await Documents(database).list():
        rows = await database.run(
            lambda c, id=document.id: c.execute(
                "SELECT text FROM chunks WHERE document_id = ? ORDER BY id", (id,)
            ).fetchall()
        )
        assert len(rows) == document.chunks
        found[document.source] = "".join(text for (text,) in rows)
    words = await database.run(lambda c: c.execute("SELECT count(*) FROM words").fetchone())
    chunks = await database.run(lambda c: c.execute("SELECT count(*) FROM chunks").fetchone())
    vectors = await database.run(lambda c: c.execute("SELECT count(*) FROM vectors").fetchone())
    assert words == chunks == vectors
    return found


class Ingest(Operation):
    """New documents, one after the other, with a prompt in the queue for each."""

    steps = 2 * PLANNED

    def prepare(self, home: Path) -> None:
        async def two() -> None:
            with open_store(home / "store.db") as database:
                for number in (100, 101):
                    await add_document(Documents(database), texts(number), source=source(number))

        asyncio.run(two())

    def work(self, home: Path, done: Callable[[], None]) -> None:
        async def all_of_them() -> None:
            with open_store(home / "store.db") as database:
                for number in range(PLANNED):
                    await add_document(Documents(database), texts(number), source=source(number))
                    done()
                    await Queue(database, "outbox").append(bytes([number] * 16), b"prompt", 1000, now=0)
                    done()

        asyncio.run(all_of_them())

    def look(self, home: Path, acknowledged: int) -> None:
        async def look() -> None:
            with open_store(home / "store.db") as database:
                found = await sources(database)
                assert {source(100), source(101)} <= set(found)
                stored = sum(source(number) in found for number in range(PLANNED))
                assert (acknowledged + 1) // 2 <= stored <= (acknowledged + 2) // 2, (acknowledged, found.keys())
                for number in (*range(stored), 100, 101):
                    assert found[source(number)] == "".join(texts(number))
                queued = len(await Queue(database, "outbox").list())
                assert acknowledged // 2 <= queued <= (acknowledged + 1) // 2

        asyncio.run(look())
        whole(home / "store.db")
        self.work(home, lambda: None)
        with open_store(home / "store.db") as database:
            assert len(asyncio.run(sources(database))) == PLANNED + 2


class Delete(Operation):
    """Documents deleted one after the other, and the last one replaced by another version."""

    steps = PLANNED

    def prepare(self, home: Path) -> None:
        async def fill() -> None:
            with open_store(home / "store.db") as database:
                for number in range(PLANNED):
                    await add_document(Documents(database), texts(number), source=source(number))

        asyncio.run(fill())

    def work(self, home: Path, done: Callable[[], None]) -> None:
        async def all_of_them() -> None:
            with open_store(home / "store.db") as database:
                documents = Documents(database)
                ids = {document.source: document.id for document in await documents.list()}
                for number in range(PLANNED - 1):
                    await documents.delete(ids.get(source(number), 0))
                    done()
                await add_document(documents, texts(50), source=source(PLANNED - 1))
                done()

        asyncio.run(all_of_them())

    def look(self, home: Path, acknowledged: int) -> None:
        with open_store(home / "store.db") as database:
            found = asyncio.run(sources(database))
        gone = sum(source(number) not in found for number in range(PLANNED - 1))
        assert min(acknowledged, PLANNED - 1) <= gone <= acknowledged + 1
        for number in range(gone, PLANNED - 1):  # in their order
            assert found[source(number)] == "".join(texts(number))
        last = found[source(PLANNED - 1)]
        allowed = [50] if acknowledged == PLANNED else [PLANNED - 1, 50] if gone == PLANNED - 1 else [PLANNED - 1]
        assert last in ["".join(texts(number)) for number in allowed]
        whole(home / "store.db")
        self.work(home, lambda: None)
        with open_store(home / "store.db") as database:
            assert asyncio.run(sources(database)) == {source(PLANNED - 1): "".join(texts(50))}


class Rekey(Operation):
    """Another key, with another way in than the one of before."""

    def prepare(self, home: Path) -> None:
        from store import key_file

        Ingest().prepare(home)
        key_file.write(home / "store.key", bytes(16), [by_held(HELD)(KEY, bytes(16))], replace=False)

    def work(self, home: Path, done: Callable[[], None]) -> None:
        key = unlock_held(home / "store.key", HELD)
        rekey(home / "store.db", home / "store.key", key, [by_held(OTHER)])
        done()

    def look(self, home: Path, acknowledged: int) -> None:
        from store.errors import WrongKey

        opened = []
        for held in (HELD, OTHER):
            try:
                opened.append((held, unlock_held(home / "store.key", held)))
            except WrongKey:
                continue
        assert len(opened) == 1, "one way in, and not two"
        held, key = opened[0]
        assert (key.expose() == KEY.expose()) == (held is HELD)
        assert held is OTHER or not acknowledged
        with open_store(home / "store.db", key) as database:
            assert len(asyncio.run(sources(database))) == 2
        whole(home / "store.db", key)
        rekey(home / "store.db", home / "store.key", key, [by_held(OTHER)])
        key = unlock_held(home / "store.key", OTHER)
        with open_store(home / "store.db", key) as database:
            assert len(asyncio.run(sources(database))) == 2
        assert sorted(path.name for path in home.iterdir()) == ["store.db", "store.key"]


class Migrate(Operation):
    """Opened for the first time by a later version."""

    def prepare(self, home: Path) -> None:
        make_old(home / "store.db", 2, home.parent / "schemas")

    def work(self, home: Path, done: Callable[[], None]) -> None:
        with open_store(home / "store.db"):
            done()

    def look(self, home: Path, acknowledged: int) -> None:
        with open_store(home / "store.db") as database:
            version = database.run_sync(lambda c: c.execute("PRAGMA user_version").fetchone())
            assert version == (len(STEPS),)
            found = asyncio.run(sources(database))
            kept = [number for number in range(OLD_DOCUMENTS) if number != 4]
            assert list(found.values()) == [
                "".join(old_passage(number, at) for at in range(OLD_PASSAGES)) for number in kept
            ]
            assert asyncio.run(Settings(database, "history").get("key19")) == b"value 19"
        whole(home / "store.db")


class Reembed(Operation):
    """Documents for another embedder: some passages at a time, then all of its vectors in the place of the old ones."""

    steps = PLANNED + 1

    def prepare(self, home: Path) -> None:
        Delete().prepare(home)

    def work(self, home: Path, done: Callable[[], None]) -> None:
        async def all_of_them() -> None:
            with open_store(home / "store.db") as database:
                work = Reembedding(database, collection="manual", model_id="new")
                await work.begin()
                while passages := await work.missing(PASSAGES):
                    await work.keep([id for id, _ in passages], embedded([text for _, text in passages]))
                    done()
                assert await work.finish()
                done()

        asyncio.run(all_of_them())

    def look(self, home: Path, acknowledged: int) -> None:
        async def look() -> None:
            with open_store(home / "store.db") as database:
                assert len(await sources(database)) == PLANNED
                model, dimension = await database.run(
                    lambda c: c.execute("SELECT model_id, dimension FROM collections").fetchone()  # type: ignore[arg-type,return-value]
                )
                assert (model, dimension) == (("minilm", 384) if acknowledged < PLANNED else (model, dimension))
                assert acknowledged <= PLANNED or model == "new"
                begun = await Reembedding(database, collection="manual", model_id="new").begin()
                assert (begun is None) == (model == "new")
                if begun is not None:
                    gathered, total = begun
                    assert total == PASSAGES * PLANNED
                    assert gathered in (PASSAGES * acknowledged, PASSAGES * (acknowledged + 1))

        asyncio.run(look())
        whole(home / "store.db")
        self.work(home, lambda: None)
        with open_store(home / "store.db") as database:
            text = texts(2)[3]
            found = asyncio.run(Search(database).query(
                text="", vector=embedded([text])[0], collection="manual", top=1, model_id="new"
            ))
            assert found[0].text == text
        whole(home / "store.db")


def embedded(passages: Sequence[str]) -> FloatArray:
    rows = [unit_vectors(1, seed=zlib.crc32(text.encode()), dimension=32)[0] for text in passages]
    return np.array(rows, np.float32)


OPERATIONS: dict[str, Operation] = {
    "ingest": Ingest(), "delete": Delete(), "rekey": Rekey(), "migrate": Migrate(), "reembed": Reembed(),
}


def run(name: str, folder: Path, points: int, seed: int) -> dict[str, int]:
    operation = OPERATIONS[name]
    first = folder / "first"
    first.mkdir(parents=True)
    operation.prepare(first)
    counted: dict[str, int] = {"killed": 0, "finished": 0, "half way": 0}

    def end(kill: Callable[[Callable[[Callable[[], None]], None]], Ended], what: str) -> Ended:
        home = folder / "home"
        shutil.copytree(first, home)
        ended = kill(lambda done: operation.work(home, done))
        acknowledged = len(ended.said)
        assert not ended.finished or acknowledged == operation.steps
        try:
            operation.look(home, acknowledged)
        except Exception as error:
            raise AssertionError(f"{name}, killed {what}, after {acknowledged} steps: {error!r}") from error
        counted["finished" if ended.finished else "killed"] += 1
        counted["half way"] += 0 < acknowledged < operation.steps
        shutil.rmtree(home)
        return ended

    started = time.monotonic()
    calls = end(lambda work: killed_at_call(work, None), "not at all").calls
    took = time.monotonic() - started
    counted["calls"] = calls
    spread = {1 + at * (calls - 1) // points for at in range(points)}
    for number in sorted(spread | set(range(calls - points, calls + 1))) if points else range(1, calls + 1):
        ended = end(lambda work, number=number: killed_at_call(work, number), f"before call {number} of {calls}")
        assert not ended.finished or number > calls - 20, "it is to be the same each time, but for a few calls"
    chance = random.Random(seed)
    for _ in range(max(points // 4, 4)):
        seconds = chance.uniform(0, took)
        end(lambda work, seconds=seconds: killed_after(work, seconds), f"after {seconds * 1000:.3f} ms")
    return counted


if __name__ == "__main__":
    print(json.dumps(run(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), int((sys.argv[4:] or ["1"])[0]))))

"""Filtered search: nothing that the filter leaves out, and all that it leaves, however few."""

import importlib.resources
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import store.search
from store.database import STORE_SCHEMA, Connection, Database
from store.documents import Chunk, Documents
from store.errors import StoreMisuse
from store.filters import Filter, at_most
from store.search import Search
from tests.support.stores import KEY, add_document, open_store, unit_vectors

DAY = 86_400
HELD = [  # source, label, date
    ("/files/a/notes.md", "public", 1 * DAY),
    ("/files/a/deep/er/plan.txt", "internal", 2 * DAY),
    ("/files/a.md", "local-only", 3 * DAY),
    ("/files/ab/notes.md", "internal", None),
    ("C:\\docs\\one.txt", "public", -DAY),
]


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    with open_store(tmp_path / "store.db") as database:
        yield database


async def filled(database: Database) -> None:
    for n, (source, label, dated_at) in enumerate(HELD):
        await Documents(database).add(
            collection="manual", source=source, title="t", sha256=bytes([n]) * 32, label=label, model_id="m",
            chunks=[Chunk(f"word {n}"), Chunk("word")], vectors=unit_vectors(2, seed=n), dated_at=dated_at,
        )


@pytest.mark.parametrize(
    ("filter", "left"),
    [
        (Filter(), [0, 1, 2, 3, 4]),
        (Filter(labels=at_most("public")), [0, 4]),
        (Filter(labels=at_most("internal")), [0, 1, 3, 4]),
        (Filter(labels=frozenset({"local-only"})), [2]),
        (Filter(labels=frozenset()), []),
        (Filter(source="/files/a.md"), [2]),
        (Filter(source="/files/a"), []),
        (Filter(folder="/files/a"), [0, 1]),
        (Filter(folder="/files/a/"), [0, 1]),
        (Filter(folder="C:\\docs\\"), [4]),
        (Filter(folder="/files/b"), []),
        (Filter(glob="*/notes.md"), [0, 3]),
        (Filter(glob="/files/?/*"), [0, 1]),
        (Filter(glob="*.MD"), []),
        (Filter(since=2 * DAY), [1, 2]),
        (Filter(until=2 * DAY), [0, 4]),
        (Filter(since=-DAY, until=-DAY + 1), [4]),
        (Filter(folder="/files", labels=at_most("internal"), since=0, until=10 * DAY), [0, 1]),
        (Filter(source="\ud800", glob="\ud800' OR 1 --"), []),
    ],
)
async def test_what_a_filter_leaves(database: Database, filter: Filter, left: list[int]) -> None:
    await filled(database)
    search = Search(database)
    for text in ("", "word"):
        hits = await search.query(
            text=text, vector=unit_vectors(1, seed=9)[0], collection="manual", top=20, filter=filter
        )
        assert sorted(hit.source for hit in hits) == sorted(HELD[n][0] for n in left for _ in range(2))
    found = await search.documents(text="word", vector=unit_vectors(1)[0], collection="manual", filter=filter)
    assert sorted(source for source, _ in found) == sorted(HELD[n][0] for n in left)


def test_a_label_that_is_none() -> None:
    with pytest.raises(StoreMisuse):
        Filter(labels=frozenset({"secret"}))
    with pytest.raises(StoreMisuse):
        at_most("secret")


async def test_candidates_are_of_those_alone_that_are_left(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All others are nearer, by meaning and by words."""
    monkeypatch.setattr(store.search, "_candidates", lambda *_, **__: 2)
    near, far = unit_vectors(1), unit_vectors(2, seed=7)
    documents = Documents(database)
    for n in range(30):
        await add_document(documents, ["pump pump"], source=f"near{n}", vectors=near)
    await add_document(documents, ["a pump and many other words", "hose"], source="far", vectors=far, label="public")
    hits = await Search(database).query(
        text="pump", vector=near[0], collection="manual", filter=Filter(labels=at_most("public"))
    )
    assert [hit.text for hit in hits] == ["a pump and many other words", "hose"]


async def test_a_search_sees_what_another_process_labelled_dated_or_renamed(tmp_path: Path, database: Database) -> None:
    await filled(database)
    search, vector = Search(database), unit_vectors(1)[0]

    async def sources(filter: Filter) -> list[str]:
        hits = await search.query(text="", vector=vector, collection="manual", top=20, filter=filter)
        return sorted({hit.source for hit in hits})

    public, late, moved = Filter(labels=at_most("public")), Filter(since=9 * DAY), Filter(glob="*/moved")
    with open_store(tmp_path / "store.db") as other:
        theirs = Documents(other)
        held = await theirs.list()
        first = next(document for document in held if document.source == HELD[0][0])
        assert await sources(public) == sorted([HELD[0][0], HELD[4][0]])
        await theirs.relabel(first.id, "local-only")
        assert await sources(public) == [HELD[4][0]]
        assert await sources(late) == []
        again = await theirs.again(collection="manual", source=first.source, sha256=first.sha256, dated_at=9 * DAY)
        assert again is not None and (again.dated_at, again.label) == (9 * DAY, "local-only")
        assert await sources(late) == [HELD[0][0]]
        again = await theirs.again(collection="manual", source=first.source, sha256=first.sha256)
        assert again is not None and again.dated_at == 9 * DAY, "without a date it keeps its own"
        assert await sources(moved) == []
        await theirs.rename(first.id, "/moved", "t")
        assert await sources(moved) == ["/moved"]
        await theirs.delete(first.id)
        assert await sources(moved) == []


async def test_collections_count_by_themselves(database: Database) -> None:
    def counted() -> tuple[int, ...]:
        read = "SELECT added, removed, altered FROM collections ORDER BY id"
        return tuple(n for row in database.run_sync(lambda c: c.execute(read).fetchall()) for n in row)

    documents = Documents(database)
    first = await add_document(documents, ["x"])
    await add_document(documents, ["x"], collection="other")
    assert counted() == (1, 0, 0, 1, 0, 0)
    await documents.relabel(first.id, first.label)
    assert counted() == (1, 0, 0, 1, 0, 0), "nothing changed"
    await documents.relabel(first.id, "public")
    await documents.rename(first.id, "b.md", "t")
    await documents.delete(first.id)
    assert counted() == (1, 1, 2, 1, 0, 0)


async def test_a_store_of_before(tmp_path: Path) -> None:
    """Codes were a row for each passage; ids with gaps between documents and two collections in turn."""
    schema = tmp_path / "schema"
    schema.mkdir()
    with importlib.resources.as_file(STORE_SCHEMA) as steps:
        for step in steps.glob("000[1-6]_*.sql"):
            shutil.copy(step, schema)
    rows = unit_vectors(5, dimension=20)
    kept = [(1, 11, 3, 0), (1, 11, 4, 1), (2, 12, 6, 2), (1, 13, 8, 3), (1, 13, 9, 4)]

    def fill(connection: Connection) -> None:
        connection.execute("INSERT INTO collections VALUES (1, 'a', 'm', 20, 5, 3), (2, 'b', 'm', 20, 1, 0)")
        connection.execute(
            "INSERT INTO documents VALUES (11, 1, 'x', 't', zeroblob(32), 'public', 2), (13, 1, 'y', 't',"
            " randomblob(32), 'internal', 2), (12, 2, 'z', 't', zeroblob(32), 'internal', 1),"
            " (14, 2, 'empty', 't', randomblob(32), 'internal', 0)"
        )
        for collection, document, chunk, n in kept:
            connection.execute("INSERT INTO chunks VALUES (?, ?, ?, NULL, NULL)", (chunk, document, f"text {n}"))
            code, value = np.packbits(rows[n] > 0).tobytes(), rows[n].astype("<f2").tobytes()
            connection.execute("INSERT INTO codes VALUES (?, ?, ?)", (collection, chunk, code))
            connection.execute("INSERT INTO vectors VALUES (?, ?)", (chunk, value))
            connection.execute("INSERT INTO words (rowid, title, text) VALUES (?, 't', ?)", (chunk, f"text {n}"))

    with Database.open(tmp_path / "store.db", KEY, schema=schema) as database:
        database.run_sync(fill)
    with open_store(tmp_path / "store.db") as database:
        search = Search(database)
        for n, collection in ((0, "a"), (1, "a"), (2, "b"), (3, "a"), (4, "a")):
            hits = await search.query(text="", vector=rows[n], collection=collection, top=9)
            assert (hits[0].text, len(hits)) == (f"text {n}", 1 if collection == "b" else 4)
        added = await add_document(Documents(database), ["new"], collection="a", vectors=rows[:1], model_id="m")
        assert added.id == 15 and added.dated_at is None
        assert await Documents(database).delete(11)
        hits = await search.query(text="", vector=rows[0], collection="a", top=9)
        assert (hits[0].text, len(hits)) == ("new", 3)


@pytest.mark.parametrize("moment", [2**63, -(2**63) - 1])
async def test_dates_that_sqlite_has_no_room_for_are_misuse(database: Database, moment: int) -> None:
    for make in (Filter, lambda since: Filter(until=since)):
        with pytest.raises(StoreMisuse, match="64 bits"):
            make(since=moment)
    with pytest.raises(StoreMisuse, match="64 bits"):
        await Documents(database).again(collection="manual", source="a", sha256=bytes(32), dated_at=moment)
    with pytest.raises(StoreMisuse, match="64 bits"):
        await Documents(database).add(
            collection="manual", source="a", title="t", sha256=bytes(32), chunks=[Chunk("a")], model_id="m",
            vectors=unit_vectors(1), dated_at=moment,
        )

"""Search: meaning and words fused, always of the collection as it is now, whoever wrote it."""

import asyncio
import sys
import tracemalloc
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest

import store.search
from store.codes import CodeIndex
from store.database import Connection, Cursor, Database, SqlValue
from store.documents import Documents
from store.errors import ModelMismatch, StoreCorrupt, StoreMisuse
from store.search import Search, fts_words
from store.vectors import encode_codes
from tests.support.stores import add_document, open_store, unit_vectors

FAR = unit_vectors(1, seed=99)[0]


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    with open_store(tmp_path / "store.db") as database:
        yield database


def by_words(database: Database, text: str) -> list[int]:
    """Passages of the only collection by words alone, best first."""

    def work(connection: Connection) -> list[int]:
        index = CodeIndex(1, 384)
        index.refresh(connection, added=1, removed=0)
        return list(store.search._by_words(connection, index, None, text, count=99))

    return database.run_sync(work)


async def test_a_hit_says_everything_a_citation_needs(database: Database) -> None:
    vectors = unit_vectors(3)
    texts = ["red pump", "blue valve", "green hose"]
    document = await add_document(Documents(database), texts, label="local-only", title="Parts", vectors=vectors)
    hits = await Search(database).query(text="valves", vector=vectors[1], collection="manual", top=2)
    assert len(hits) == 2
    best = hits[0]
    assert (best.document_id, best.source, best.title, best.text) == (document.id, "a.md", "Parts", "blue valve")
    assert (best.page, best.line, best.label) == (2, None, "local-only")
    assert best.score == pytest.approx(1)
    assert best.similarity == pytest.approx(1, abs=1e-3)
    assert hits[1].similarity < 0.5


async def test_either_ranking_alone_finds(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store.search, "_candidates", lambda *_, **__: 3)
    vectors = unit_vectors(50)
    texts = [f"passage number{n}" for n in range(50)]
    await add_document(Documents(database), texts, vectors=vectors)
    search = Search(database)
    by_words = await search.query(text="where is number17?", vector=-vectors[17], collection="manual")
    assert "passage number17" in [hit.text for hit in by_words]
    assert min(hit.similarity for hit in by_words) == pytest.approx(-1, abs=1e-3)
    by_meaning = await search.query(text="", vector=vectors[23], collection="manual")
    assert by_meaning[0].text == "passage number23" and by_meaning[0].score == pytest.approx(0.7)
    assert len(by_meaning) == 3


async def test_the_best_passages_bring_what_is_like_them(database: Database) -> None:
    """Of two passages as far from the question, the one that is close to what answers it comes first."""
    question, first, like, other = np.linalg.qr(np.random.default_rng(3).standard_normal((384, 4)))[0].T
    answer = 0.8 * question + 0.6 * first
    near, far = 0.3 * question + 0.8 * first + 0.27**0.5 * like, 0.32 * question + 0.8976**0.5 * other
    rows = np.stack([answer, near, far])
    await add_document(Documents(database), ["answer", "like it", "unlike it"], vectors=rows.astype(np.float32))
    search, vector = Search(database), question.astype(np.float32)
    hits = await search.query(text="anything", vector=vector, collection="manual")
    assert [hit.text for hit in hits] == ["answer", "like it", "unlike it"]
    assert [round(hit.similarity, 2) for hit in hits] == [0.8, 0.3, 0.32], "close to the question itself"
    alone = await search.query(text="", vector=vector, collection="manual")
    assert [hit.text for hit in alone] == ["answer", "unlike it", "like it"], "a vector alone asks for what is nearest"


async def test_words_are_stemmed_and_titles_count(database: Database) -> None:
    await add_document(Documents(database), ["It was running dry", "P-101 leaks", "P-102 and 101"], title="Bilge")

    def ranked(text: str) -> list[int]:
        return by_words(database, text)

    assert ranked("RUNS") == [1]
    assert ranked("p-101")[0] == 2
    assert sorted(ranked("bilges")) == [1, 2, 3]
    assert ranked("nothing") == ranked("?") == []
    assert ranked("what is it about?") == [1], "without other words these must do"
    assert sorted(ranked("what was P-102 and how?")) == [2, 3], "with others they tell nothing"


@pytest.mark.parametrize(
    "text",
    [
        '"', "'", '""" OR *', "title:x", "NEAR(a b)", "a AND", "NOT", "(", "*", "x^2 -y +z {a b}:c", "\x00", "\ud800 x",
        "-", "_", "a" * 100_000, "w " * 5000, "\U0001f600", "؟ العربية 漢字",
    ],
)
async def test_no_question_is_syntax(database: Database, text: str) -> None:
    await add_document(Documents(database), ["x y z", "NEAR AND NOT"])
    hits = await Search(database).query(text=text, vector=FAR, collection="manual")
    assert len(hits) == 2


async def test_sees_what_was_added_replaced_and_removed(database: Database, tmp_path: Path) -> None:
    search = Search(database)
    vectors = unit_vectors(6)

    async def texts() -> list[str]:
        hits = await search.query(text="", vector=vectors[0], collection="manual", top=10)
        return sorted(hit.text for hit in hits)

    assert await texts() == []
    with open_store(tmp_path / "store.db") as other:  # a connection of its own, as another process has
        theirs = Documents(other)
        a = await add_document(theirs, ["a1", "a2"], source="a", vectors=vectors[:2])
        assert await texts() == ["a1", "a2"]
        b = await add_document(Documents(database), ["b1"], source="b", vectors=vectors[2:3])
        assert await texts() == ["a1", "a2", "b1"]
        await add_document(theirs, ["a3"], source="a", vectors=vectors[3:4])
        assert await texts() == ["a3", "b1"]
        await theirs.delete(b.id)
        await add_document(theirs, ["c1"], source="c", vectors=vectors[4:5])
        assert await texts() == ["a3", "c1"]
        assert a.id != b.id


ADD = """
import asyncio, sys
from pathlib import Path
from store.documents import Documents
from tests.support.stores import add_document, open_store
with open_store(Path(sys.argv[1])) as database:
    asyncio.run(add_document(Documents(database), ["from another process"], source="b"))
"""


async def test_sees_what_another_process_added(database: Database, tmp_path: Path) -> None:
    await add_document(Documents(database), ["ours"], source="a")
    search = Search(database)
    assert len(await search.query(text="", vector=FAR, collection="manual")) == 1
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", ADD, str(tmp_path / "store.db"))
    assert await asyncio.wait_for(process.wait(), 60) == 0
    assert len(await search.query(text="", vector=FAR, collection="manual")) == 2


async def test_collections_are_apart(database: Database) -> None:
    documents, search = Documents(database), Search(database)
    await add_document(documents, ["shared word"], collection="a")
    small = unit_vectors(1, dimension=100)
    await add_document(documents, ["shared word"], collection="b", vectors=small, model_id="small")
    assert [hit.document_id for hit in await search.query(text="word", vector=FAR, collection="a")] == [1]
    hits = await search.query(text="word", vector=small[0], collection="b", model_id="small")
    assert [hit.document_id for hit in hits] == [2]
    assert await search.query(text="word", vector=FAR, collection="none") == []
    assert await search.documents(text="word", vector=FAR, collection="none") == []


async def test_another_embedder_is_named(database: Database) -> None:
    await add_document(Documents(database), ["x"])
    search = Search(database)
    for vector, model in ((unit_vectors(1, dimension=100)[0], None), (FAR, "other")):
        with pytest.raises(ModelMismatch) as caught:
            await search.query(text="x", vector=vector, collection="manual", model_id=model)
        assert caught.value.hint
    for vector in (FAR * 2, unit_vectors(1), np.zeros(384, np.float32)):
        with pytest.raises(StoreMisuse):
            await search.query(text="x", vector=vector, collection="manual")


async def test_a_collection_that_changed_its_embedder(database: Database) -> None:
    documents, search = Documents(database), Search(database)
    first = await add_document(documents, ["x"])
    assert len(await search.query(text="", vector=FAR, collection="manual")) == 1
    await documents.delete(first.id)
    small = unit_vectors(1, dimension=100)
    await add_document(documents, ["y"], vectors=small, model_id="small")
    hits = await search.query(text="", vector=small[0], collection="manual")
    assert [hit.text for hit in hits] == ["y"]


async def test_documents_stand_where_their_best_chunk_does(database: Database) -> None:
    documents = Documents(database)
    base = unit_vectors(1)[0]
    noise = unit_vectors(6, seed=5)

    def near(weight: float, n: int) -> np.ndarray:
        row = base * weight + noise[n] * (1 - weight)
        return row / np.linalg.norm(row)

    await add_document(documents, ["m", "m"], source="many", vectors=np.stack([near(0.7, 0), near(0.69, 1)]))
    await add_document(documents, ["b", "far"], source="best", vectors=np.stack([near(0.9, 2), near(0.1, 3)]))
    await add_document(documents, ["f"], source="far", vectors=near(0.2, 4)[None])
    search = Search(database)
    ranked = await search.documents(text="", vector=base, collection="manual")
    assert [source for source, _ in ranked] == ["best", "many", "far"]
    scores = [score for _, score in ranked]
    assert scores[0] == pytest.approx(0.7) and scores == sorted(scores, reverse=True)
    top, _ = (await search.query(text="", vector=base, collection="manual", top=5))[:2]
    assert (top.source, top.score) == ranked[0], "a document has the score of its best chunk"
    assert await search.documents(text="", vector=base, collection="manual", top=1) == ranked[:1]
    by_both = dict(await search.documents(text="f", vector=base, collection="manual"))
    assert by_both["far"] > scores[2] + 0.25, "the only one with the word has all that words can give"


async def test_equals_go_by_id(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store.search, "_candidates", lambda *_, **__: 4)
    row = unit_vectors(1)
    for n in range(10):
        await add_document(Documents(database), ["same words"], source=f"s{9 - n}", vectors=row)
    for _ in range(2):
        hits = await Search(database).query(text="same words", vector=row[0], collection="manual", top=10)
        assert [hit.document_id for hit in hits] == [1, 2, 3, 4]
        ranked = await Search(database).documents(text="same words", vector=row[0], collection="manual")
        assert [source for source, _ in ranked] == ["s9", "s8", "s7", "s6"]


async def test_in_a_large_collection_the_rare_words_decide(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store.search, "_SCORED_ROWS", 10)
    texts = [f"the common {'pump' if n == 7 else 'hose'}" for n in range(40)]
    await add_document(Documents(database), texts, vectors=unit_vectors(40))

    def ranked(text: str) -> list[int]:
        return by_words(database, text)

    assert ranked("the common pump") == [8]
    assert len(ranked("common")) == 40  # at least one word stays
    assert ranked("absent") == []


async def test_words_are_scored_within_the_collection(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """A large collection beside a small one neither makes its searches slow nor takes common words from it."""
    monkeypatch.setattr(store.search, "_SCORED_ROWS", 10)
    documents = Documents(database)
    await add_document(documents, ["a common hose", "a rare pump"], vectors=unit_vectors(2))
    await add_document(documents, ["common hose"] * 40, collection="large", vectors=unit_vectors(40))
    scored: list[str] = []

    def work(connection: Connection) -> dict[int, float]:
        index = CodeIndex(1, 384)
        index.refresh(connection, added=1, removed=0)

        class Counting:
            def execute(self, sql: str, parameters: Sequence[SqlValue]) -> Cursor:
                found = connection.execute(sql, parameters)
                scored.extend(sql for _ in connection.execute(sql, parameters))
                return found

            executemany = connection.executemany

        return store.search._by_words(Counting(), index, None, "common pump", count=99)

    assert set(database.run_sync(work)) == {1, 2}
    assert len(scored) == 2


async def test_a_passage_without_a_vector_is_damage(database: Database) -> None:
    await add_document(Documents(database), ["one", "two", "three"])
    database.run_sync(lambda c: c.execute("DELETE FROM vectors WHERE chunk_id = 2").rowcount)
    for _ in range(2):  # codes that are there, and codes to be made
        with pytest.raises(StoreCorrupt) as caught:
            await Search(database).query(text="two", vector=FAR, collection="manual")
        assert "edge store check" in str(caught.value.hint)
        database.run_sync(lambda c: (c.execute("DELETE FROM codes"), c.execute("UPDATE collections SET coded = 0"))[0])


@pytest.mark.parametrize("dimension", [1, 7, 385])
async def test_odd_dimensions(database: Database, dimension: int) -> None:
    rows = np.random.default_rng(4).standard_normal((30, dimension))
    rows = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
    await add_document(Documents(database), ["same"] * 30, vectors=rows)
    hits = await Search(database).query(text="", vector=rows[7], collection="manual", top=1)
    first_of_equals = 1 + int(np.argmax(rows @ rows[7] > 0.999))
    assert [(hit.chunk_id, round(hit.similarity, 2)) for hit in hits] == [(first_of_equals, 1.0)]


def test_what_is_joined_without_end_is_no_phrase() -> None:
    assert fts_words("part 5.1.2") == ['"part"', '"5.1.2"', '"5"', '"1"', '"2"']
    assert fts_words(".".join(["x"] * 17)) == ['"x"']


def test_passages_that_are_all_alike_take_little_memory() -> None:
    index, count = CodeIndex(1, 384), 40_000
    index._columns = index._as_words(encode_codes(FAR[None]) * count).T.copy()
    index.documents, index._first, index._ends = np.array([1]), np.array([1]), np.array([count])
    tracemalloc.start()
    try:
        assert index.nearest(FAR, 3) == [1, 2, 3]
        assert tracemalloc.get_traced_memory()[1] < 20 << 20  # all bits as bytes would be 44 MiB
    finally:
        tracemalloc.stop()

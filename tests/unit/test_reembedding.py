"""Another embedder for a collection: searches by the old one until all is there, and no work twice."""

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest

from store.database import Database
from store.documents import Chunk, Documents
from store.errors import ModelMismatch, StoreMisuse
from store.reembedding import Reembedding, outdated, reembed
from store.search import Search
from store.upkeep import check
from store.vectors import FloatArray
from tests.support.stores import KEY, add_document, open_store, unit_vectors

TEXTS = [f"passage {n}" for n in range(150)]


class Embedder:
    """Fails at its call number `fails_at`, as if the process ended there."""

    def __init__(self, dimension: int = 32, fails_at: int = 0) -> None:
        self.dimension, self.fails_at = dimension, fails_at
        self.texts: list[str] = []
        self.calls = 0

    async def __call__(self, texts: Sequence[str]) -> FloatArray:
        self.calls += 1
        if self.calls == self.fails_at:
            raise KeyboardInterrupt
        self.texts += texts
        return self.rows(texts)

    def rows(self, texts: Sequence[str]) -> FloatArray:
        seeds = [int.from_bytes(hashlib.sha256(text.encode()).digest()[:8]) for text in texts]
        rows = np.array([np.random.default_rng(seed).standard_normal(self.dimension) for seed in seeds], np.float32)
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    with open_store(tmp_path / "store.db") as database:
        yield database
    report = check(tmp_path / "store.db", KEY)
    assert report.problems == ()


async def found(search: Search, vector: FloatArray, model_id: str) -> str:
    hits = await search.query(text="", vector=vector, collection="manual", top=1, model_id=model_id)
    return hits[0].text


async def test_searches_go_by_the_old_vectors_until_the_new_ones_are_all_there(database: Database) -> None:
    old, search, embedder = unit_vectors(150), Search(database), Embedder()
    await add_document(Documents(database), TEXTS, vectors=old)
    told: list[tuple[str, int, int]] = []
    seen: list[str] = []

    async def embed(texts: Sequence[str]) -> FloatArray:
        seen.append(await found(search, old[140], "minilm"))
        return await embedder(texts)

    assert await outdated(database, "new") == [("manual", 150)]
    count = await reembed(
        database, embed, collection="manual", model_id="new", progress=lambda *how: told.append(how)
    )
    assert count == 150 and seen == ["passage 140"] * 10 and embedder.texts == TEXTS
    assert told == [*(("embedding", n, 150) for n in (*range(0, 150, 16), 150)), ("replacing", 150, 150)]
    assert await found(search, embedder.rows(["passage 77"])[0], "new") == "passage 77"
    with pytest.raises(ModelMismatch) as caught:
        await found(search, old[0], "minilm")
    assert "`edge documents reembed`" in str(caught.value.hint)
    assert await outdated(database, "new") == [] and await outdated(database, "minilm") == [("manual", 150)]


async def test_what_was_gathered_is_not_embedded_again(database: Database, tmp_path: Path) -> None:
    await add_document(Documents(database), TEXTS)
    embedder = Embedder(fails_at=3)
    with pytest.raises(KeyboardInterrupt):
        await reembed(database, embedder, collection="manual", model_id="new")
    with open_store(tmp_path / "store.db") as other:
        told: list[int] = []
        await reembed(other, embedder, collection="manual", model_id="new", progress=lambda _, n, of: told.append(n))
    assert sorted(embedder.texts) == sorted(TEXTS) and told[0] == 32


async def test_documents_come_and_go_meanwhile(database: Database) -> None:
    documents, embedder = Documents(database), Embedder()
    first = await add_document(documents, TEXTS[:20], source="a")
    await add_document(documents, ["elsewhere"], source="b", collection="other")
    calls = 0

    async def embed(texts: Sequence[str]) -> FloatArray:
        nonlocal calls
        calls += 1
        if calls == 1:  # what this very call embeds goes in the middle of it
            await documents.delete(first.id)
            await add_document(documents, TEXTS[70:72], source="c", seed=1)
        elif calls == 2:
            await add_document(documents, TEXTS[72:75], source="d", seed=2)
            with pytest.raises(ModelMismatch):
                await add_document(documents, ["by the new one"], source="e", model_id="new")
        return await embedder(texts)

    assert await reembed(database, embed, collection="manual", model_id="new") >= 5
    search = Search(database)
    assert [await found(search, row, "new") for row in embedder.rows(TEXTS[70:75])] == TEXTS[70:75]
    assert [document.source for document in await documents.list()] == ["c", "d", "b"]
    assert await outdated(database, "new") == [("other", 1)]


async def test_an_added_document_keeps_the_old_embedder_in_its_place(database: Database) -> None:
    """Added after the last vector was gathered, and before they take over."""
    documents, embedder = Documents(database), Embedder()
    await add_document(documents, ["one"], source="a")
    work = Reembedding(database, collection="manual", model_id="new")
    assert await work.begin() == (0, 1)
    [(id, text)] = await work.missing()
    await work.keep([id], embedder.rows([text]))
    await add_document(documents, ["two"], source="b", seed=1)
    assert not await work.finish()
    assert await found(Search(database), unit_vectors(1, seed=1)[0], "minilm") == "two"
    [(id, text)] = await work.missing()
    assert text == "two"
    await work.keep([id], embedder.rows([text]))
    assert await work.finish() and await work.finish(), "done twice is done"
    assert await work.missing() == [] and await work.begin() is None


async def test_vectors_that_do_not_fit_are_refused(database: Database) -> None:
    await add_document(Documents(database), TEXTS[:2])
    work = Reembedding(database, collection="manual", model_id="new")
    await work.begin()
    (first, _), (second, _) = await work.missing()
    with pytest.raises(StoreMisuse):
        await work.keep([first], np.ones((1, 32), np.float32))
    await work.keep([first], unit_vectors(1, dimension=32))
    with pytest.raises(ModelMismatch):
        await work.keep([second], unit_vectors(1, dimension=16))
    assert await work.begin() == (1, 2)


async def test_there_may_be_nothing_to_do(database: Database) -> None:
    async def never(texts: Sequence[str]) -> FloatArray:
        raise AssertionError

    assert await reembed(database, never, collection="none", model_id="new") == 0
    await add_document(Documents(database), ["one"])
    assert await reembed(database, never, collection="manual", model_id="minilm") == 0
    empty = {"source": "e", "title": "", "sha256": bytes(32), "chunks": list[Chunk]()}
    await Documents(database).add(
        collection="empty", vectors=np.empty((0, 384), np.float32), model_id="minilm", **empty  # type: ignore[arg-type]
    )
    assert await outdated(database, "new") == [("manual", 1)]
    assert await reembed(database, never, collection="empty", model_id="new") == 0
    wide = unit_vectors(1, dimension=9)
    await add_document(Documents(database), ["x"], collection="empty", model_id="wide", vectors=wide)


async def test_who_was_overtaken_leaves_no_gap(database: Database) -> None:
    """Another embedder was begun in between, and then this one again, from the start."""
    await add_document(Documents(database), TEXTS[:40])
    embedder = Embedder()
    late = Reembedding(database, collection="manual", model_id="new")
    await late.begin()
    await late.keep(*await part(late, embedder))
    slow = await part(late, embedder)
    await Reembedding(database, collection="manual", model_id="third").begin()
    again = Reembedding(database, collection="manual", model_id="new")
    await again.begin()
    await late.keep(*slow)
    assert (await again.missing())[0][0] == 1
    assert await reembed(database, embedder, collection="manual", model_id="new") == 40


async def part(work: Reembedding, embedder: Embedder) -> tuple[list[int], FloatArray]:
    passages = await work.missing()
    return [id for id, _ in passages], await embedder([text for _, text in passages])

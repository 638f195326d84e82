"""Documents: whole or not there, one per content, labels that only tighten by themselves."""

import hashlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from store.database import Database
from store.documents import Chunk, Documents
from store.errors import ModelMismatch, StoreMisuse
from tests.support.stores import add_document, open_store, unit_vectors

TABLES = ("documents", "chunks", "codes", "vectors", "words")


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    with open_store(tmp_path / "store.db") as database:
        yield database


async def rows(database: Database) -> dict[str, int]:
    def work(connection):  # type: ignore[no-untyped-def]
        return {table: connection.execute(f"SELECT count(*) FROM {table}").fetchone()[0] for table in TABLES}

    return await database.run(work)


async def test_add_find_list_count_delete(database: Database) -> None:
    documents = Documents(database)
    added = await add_document(documents, ["one", "two"], label="public", title="Pumps")
    assert (added.collection, added.source, added.title) == ("manual", "a.md", "Pumps")
    assert (added.label, added.chunks) == ("public", 2)
    assert await documents.find("manual", added.sha256) == added
    assert await documents.find("other", added.sha256) is None
    other = await add_document(documents, ["three"], collection="other")
    assert await documents.list() == [added, other]
    assert await documents.list("other") == [other]
    assert await documents.count() == (2, 3)
    assert await documents.delete(added.id)
    assert not await documents.delete(added.id)
    assert await documents.count() == (1, 1)
    assert await documents.delete(other.id)
    assert set((await rows(database)).values()) == {0}


async def test_the_same_content_is_stored_once(database: Database) -> None:
    documents = Documents(database)
    first = await add_document(documents, ["one", "two"])
    again = await add_document(documents, ["one", "two"], vectors=unit_vectors(2, seed=9))
    assert again == first
    assert await rows(database) == {"documents": 1, "chunks": 2, "codes": 1, "vectors": 2, "words": 2}


async def test_new_content_replaces_the_old(database: Database) -> None:
    documents = Documents(database)
    old = await add_document(documents, ["one", "two"])
    new = await add_document(documents, ["one", "two", "three"])
    assert new.id != old.id
    assert await documents.list() == [new]
    assert await rows(database) == {"documents": 1, "chunks": 3, "codes": 1, "vectors": 3, "words": 3}


async def test_a_copy_under_another_name_joins_the_first(database: Database) -> None:
    documents = Documents(database)
    same = {"collection": "c", "title": "t", "chunks": [Chunk("x")], "vectors": unit_vectors(1), "model_id": "m"}
    a = await documents.add(source="a", sha256=b"A" * 32, **same)  # type: ignore[arg-type]
    b = await documents.add(source="b", sha256=b"B" * 32, **same)  # type: ignore[arg-type]
    assert await documents.add(source="b", sha256=b"A" * 32, label="local-only", **same) == (  # type: ignore[arg-type]
        type(a)(**{**vars(a), "label": "local-only"})
    )
    assert [document.id for document in await documents.list()] == [a.id] != [b.id]


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        ("public", "public", "public"), ("public", "internal", "internal"), ("internal", "local-only", "local-only"),
        ("internal", "public", "internal"), ("local-only", "public", "local-only"),
        ("local-only", "internal", "local-only"),
    ],
)
async def test_labels_only_tighten_by_adding(database: Database, before: str, after: str, expected: str) -> None:
    documents = Documents(database)
    first = await add_document(documents, ["one"], label=before)
    assert (await add_document(documents, ["one"], label=after)).label == expected
    assert (await add_document(documents, ["new content"], label=after)).label == expected
    assert await documents.relabel((await documents.list())[0].id, "public")
    assert [document.label for document in await documents.list()] == ["public"]
    assert not await documents.relabel(first.id, "public")


async def test_known_content_needs_no_vectors(database: Database) -> None:
    documents = Documents(database)
    first = await add_document(documents, ["one"])
    other = await add_document(documents, ["two"], source="b.md")
    nothing = await documents.again(collection="manual", source="b.md", sha256=b"N" * 32, label="local-only")
    assert nothing is None and await documents.list() == [first, other]
    again = await documents.again(collection="manual", source="b.md", sha256=first.sha256, label="local-only")
    assert again is not None and (again.id, again.label) == (first.id, "local-only")
    assert await documents.list() == [again], "what b.md held before is gone"
    loose = await documents.again(collection="manual", source="a.md", sha256=first.sha256, label="public")
    assert loose == again == await documents.again(collection="manual", source="a.md", sha256=first.sha256)
    assert await documents.again(collection="other", source="a.md", sha256=first.sha256) is None


async def test_folders_have_labels(database: Database) -> None:
    documents = Documents(database)
    await documents.label_folder("/a", "public")
    await documents.label_folder("/a", "local-only")
    await documents.label_folder("/b\udce9", "internal")
    assert await documents.folder_labels() == {"/a": "local-only", "/b\\udce9": "internal"}
    await documents.label_folder("/a", None)
    assert list(await documents.folder_labels()) == ["/b\\udce9"]
    with pytest.raises(StoreMisuse):
        await documents.label_folder("/a", "secret")


async def test_what_does_not_fit_is_refused_and_nothing_is_stored(database: Database) -> None:
    documents = Documents(database)
    good = unit_vectors(2)
    bad_vectors = [
        good[:1], good * 2, np.zeros_like(good), np.full_like(good, np.nan), np.full_like(good, np.inf), good[0],
        good[:, :0], good[None],
    ]
    for vectors in bad_vectors:
        with pytest.raises(StoreMisuse):
            await add_document(documents, ["one", "two"], vectors=vectors)
    with pytest.raises(StoreMisuse):
        await add_document(documents, ["one"], label="secret")
    with pytest.raises(StoreMisuse):
        await add_document(documents, ["one"], source="")
    with pytest.raises(StoreMisuse):
        await documents.relabel(1, "secret")
    with pytest.raises(StoreMisuse):
        await documents.again(collection="c", source="a", sha256=b"A" * 32, label="secret")
    assert set((await rows(database)).values()) == {0}


async def test_one_embedder_a_collection(database: Database) -> None:
    documents = Documents(database)
    first = await add_document(documents, ["one"])
    with pytest.raises(ModelMismatch) as caught:
        await add_document(documents, ["two"], source="b", model_id="other")
    assert caught.value.hint
    with pytest.raises(ModelMismatch):
        await add_document(documents, ["two"], source="b", vectors=unit_vectors(1, dimension=128))
    assert await documents.list() == [first]
    small = unit_vectors(1, dimension=100)
    await add_document(documents, ["two"], collection="second", vectors=small, model_id="other")
    await documents.delete(first.id)
    await add_document(documents, ["two"], model_id="other")  # an empty collection may take another


async def test_a_failure_in_the_middle_leaves_no_half_document(database: Database) -> None:
    documents = Documents(database)
    old = await add_document(documents, ["one"])
    before = await rows(database)
    with pytest.raises(OverflowError):
        await documents.add(
            collection="manual", source="a.md", title="t", sha256=b"N" * 32, model_id="minilm",
            chunks=[Chunk("fine"), Chunk("no such page", page=2**70)], vectors=unit_vectors(2),
        )
    assert await rows(database) == before
    assert await documents.list() == [old]


async def test_odd_text_is_stored(database: Database) -> None:
    documents = Documents(database)
    document = await documents.add(
        collection="c", source="caf\udce9.txt", title="\ud800", sha256=hashlib.sha256(b"").digest(), model_id="m",
        chunks=[Chunk("a\x00b \udfff \U0001f600", line=3), Chunk("")], vectors=unit_vectors(2),
    )
    assert document.source == "caf\\udce9.txt"
    empty = await add_document(documents, [], source="empty")
    assert empty.chunks == 0


async def test_vectors_of_a_draft_are_kept_until_its_document_is_added(database: Database) -> None:
    documents, vectors = Documents(database), unit_vectors(2)
    drafts = documents.drafts("minilm")
    digest, names = hashlib.sha256(b"content").digest(), [drafts.passage("one"), drafts.passage("two")]
    await drafts.keep(digest, names, vectors)
    await drafts.keep(digest, names[1:], vectors[1:])
    known = await drafts.known(digest)
    assert set(known) == set(names) and np.array_equal([known[name] for name in names], vectors)
    assert await rows(database) == dict.fromkeys(TABLES, 0)
    assert documents.drafts("other").passage("one") != names[0]
    await documents.add(
        collection="c", source="a.md", title="", sha256=digest, chunks=[Chunk("one"), Chunk("two")], vectors=vectors,
        model_id="minilm",
    )
    assert await drafts.known(digest) == {}


async def test_drafts_of_a_few_documents_are_kept(database: Database) -> None:
    drafts = Documents(database).drafts("minilm")
    digests = [hashlib.sha256(bytes([number])).digest() for number in range(10)]
    for digest in [*digests, digests[0], digests[3]]:
        await drafts.keep(digest, [drafts.passage(digest.hex())], unit_vectors(1))
    assert [bool(await drafts.known(digest)) for digest in digests] == [
        True, False, False, True, True, True, True, True, True, True
    ]


async def test_a_document_is_renamed_but_not_over_another(database: Database) -> None:
    documents = Documents(database)
    one, two = await add_document(documents, ["one"]), await add_document(documents, ["two"], source="b.md")
    await documents.rename(one.id, "c.md", "New")
    await documents.rename(two.id, "c.md", "New")
    assert [(d.source, d.title) for d in await documents.list()] == [("b.md", "Title"), ("c.md", "New")]

"""Schema steps only go forward: what each earlier version left is opened by today's code, with all that was in it."""

import hashlib
from pathlib import Path

import pytest

from store.database import STORE_SCHEMA, Database
from store.documents import Chunk, Documents
from store.drafts import Drafts
from store.errors import StoreTooNew
from store.queue import Queue
from store.search import Search
from store.settings import Settings
from store.upkeep import check
from tests.support.old_stores import (
    DIMENSION,
    DOCUMENTS,
    FIRST_WITH_DOCUMENTS,
    MODEL,
    PASSAGES,
    STEPS,
    digest,
    make_old,
    passage,
    schema_of,
    vectors,
)
from tests.support.stores import KEY, open_store, unit_vectors

# What stores out there have been through. A step is never changed again: another one follows it.
COMMITTED = {
    "0001_settings_queue.sql": "52c98be3c6c5ac9004e57e670f6415725531d2897f2e8d5cc344a573efbe5bb4",
    "0002_documents.sql": "6e6971d347b3e03891c74f26b068f55c91ccc49b44cea608bd7a502a0a254456",
    "0003_queue_mark.sql": "95a5d48d0f7543c06a72b779f9872a44713d0feb2fb5a147a39c0a98455f543c",
    "0004_folder_labels.sql": "19a6355836a2b63516012448aed62f8b3d62c337e372c802cfc2dd4956bf2be8",
    "0005_kept_answers.sql": "0bccef549a091b577359dea5bbdbab11993ad46cea8e6a8a3f4ebd37017d8bc0",
    "0006_drafts.sql": "7f196a4fa448f8a566900dfd6f9ccbfaabe64d21b42d68f309afbaa5c7f0e4b0",
    "0007_filters.sql": "d364eb6dbb04f984b5450ad77de65cd85effbccdaec24378f410d146bfd4cf11",
    "0008_pages_of_words.sql": "1f09d91a4b3d486cd0fd55d0e95c196cf31d9724194221e78ba7f56d8e35c3d5",
    "0009_reembedding.sql": "a2ff3d4cdcbf9793a1af54d1a8b7a07a9c4bb88f31623ada66e3795e70d459b6",
}
VERSIONS = range(1, len(STEPS) + 1)
WITH_DOCUMENTS = range(FIRST_WITH_DOCUMENTS, len(STEPS) + 1)
KEPT = [number for number in range(DOCUMENTS) if number != 4]


def test_a_committed_step_is_never_changed() -> None:
    """A new step is added to the list with the commit that brings it."""
    found = {name: hashlib.sha256((STORE_SCHEMA / name).read_bytes()).hexdigest() for name in STEPS}
    assert found == COMMITTED


@pytest.mark.parametrize("version", VERSIONS)
async def test_rows_of_each_version_are_there(version: int, tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    make_old(path, version, tmp_path)
    report = check(path, KEY)
    assert (report.problems, report.schema) == ((), len(STEPS))
    with open_store(path) as database:
        settings, queue = Settings(database, "history"), Queue(database, "outbox")
        assert [await settings.get(f"key{number}") for number in range(20)] == [b"value %d" % n for n in range(20)]
        rows = await queue.list()
        assert [(row.state, row.payload, row.note, row.attempts) for row in rows] == [
            ("waiting", b"prompt 0", "note 0", 0), ("sent", b"prompt 1", "note 1", 1), ("done", None, "note 2", 2),
            ("failed", None, "note 3", 3), ("interrupted", None, "note 4", 4), ("expired", None, "note 5", 5),
        ]
        assert rows[1].mark == (b"\xaa\xbb" if version >= 3 else None)
        assert await queue.release() == 1
        claimed = await queue.claim(now=20)
        assert claimed is not None and claimed.payload == b"prompt 0"
        documents = Documents(database)
        assert await documents.count() == ((len(KEPT), len(KEPT) * PASSAGES) if version in WITH_DOCUMENTS else (0, 0))
        assert await documents.folder_labels() == ({"/files/private": "local-only"} if version >= 4 else {})
        drafts = Drafts(database, MODEL)
        known = await drafts.known(digest("a draft"))
        assert list(known) == ([drafts.passage("half done")] if version >= 6 else [])
        answers = database.run_sync(lambda c: c.execute("SELECT digest FROM kept_answers").fetchall())
        assert answers == ([(digest("an answer"),)] if version >= 5 else [])


@pytest.mark.parametrize("version", WITH_DOCUMENTS)
async def test_documents_of_each_version_are_found(version: int, tmp_path: Path) -> None:
    path, asked = tmp_path / "store.db", vectors()
    make_old(path, version, tmp_path)
    with open_store(path) as database:
        documents, search = Documents(database), Search(database)
        listed = {document.source: document for document in await documents.list("manual")}
        assert sorted(listed) == [f"/files/{number}.md" for number in KEPT]
        for number in KEPT:
            document = listed[f"/files/{number}.md"]
            assert (document.title, document.chunks) == (f"Title{number}", PASSAGES)
            assert document.label == ("public", "internal", "local-only")[number % 3]
            for at in range(PASSAGES):
                wanted = passage(number, at)
                for words, vector in (("", asked[number * PASSAGES + at]), (f"word{number}x{at}", asked[0])):
                    hits = await search.query(text=words, vector=vector, collection="manual", top=20)
                    assert wanted in [hit.text for hit in hits], (words, at)
                best = await search.query(text=wanted, vector=asked[number * PASSAGES + at], collection="manual", top=1)
                assert [hit.text for hit in best] == [wanted]
        gone = await search.query(text="word4x1", vector=asked[4 * PASSAGES + 1], collection="manual", top=50)
        assert "word4x1" not in " ".join(hit.text for hit in gone)


@pytest.mark.parametrize("version", WITH_DOCUMENTS)
async def test_a_store_of_each_version_goes_on(version: int, tmp_path: Path) -> None:
    """What was stored then can be replaced, found as known, and deleted; what is new joins it."""
    path = tmp_path / "store.db"
    make_old(path, version, tmp_path)
    with open_store(path) as database:
        documents, search = Documents(database), Search(database)
        first = (await documents.list("manual"))[0]
        again = await documents.again(collection="manual", source=first.source, sha256=first.sha256)
        assert again is not None and again.id == first.id
        new = unit_vectors(2, seed=77, dimension=DIMENSION)
        for source in (first.source, "/files/new.md"):
            await documents.add(
                collection="manual", source=source, title="New", sha256=digest("new " + source),
                chunks=[Chunk(f"pears at {source}"), Chunk("plums")], vectors=new, model_id=MODEL,
            )
        assert await documents.delete(next(d.id for d in await documents.list() if d.source == "/files/5.md"))
        hits = await search.query(text="pears", vector=new[0], collection="manual", top=50)
        assert {hit.text for hit in hits if "pears" in hit.text} == {"pears at /files/0.md", "pears at /files/new.md"}
        assert not [hit for hit in hits if "word0x" in hit.text or "word5x" in hit.text]
    assert check(path, KEY).problems == ()


@pytest.mark.parametrize("version", VERSIONS)
def test_the_schema_is_the_same_from_wherever_it_came(version: int, tmp_path: Path) -> None:
    def schema(path: Path) -> list[tuple[str, str]]:
        with open_store(path) as database:
            made = "SELECT name, sql FROM sqlite_master WHERE sql IS NOT NULL ORDER BY name"
            return database.run_sync(lambda c: c.execute(made).fetchall())

    make_old(tmp_path / "old.db", version, tmp_path)
    assert schema(tmp_path / "old.db") == schema(tmp_path / "new.db")


def test_earlier_versions_refuse_what_later_ones_wrote(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    make_old(path, len(STEPS), tmp_path / "scratch")
    before = path.read_bytes()
    for version in VERSIONS[:-1]:
        with pytest.raises(StoreTooNew) as caught:
            Database.open(path, KEY, schema=schema_of(version, tmp_path / str(version)))
        assert caught.value.hint
    assert path.read_bytes() == before

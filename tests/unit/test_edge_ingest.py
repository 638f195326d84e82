"""Documents into a real store: idempotent, each bad one alone refused."""

import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from edge_client.errors import BadDocument, BadUse
from edge_client.ingest import Ingest, Record, label_of_folders, query_lines, record_lines, relabel
from edge_client.retrieval import Retrieval
from edge_client.scope import Scope
from store.documents import Documents
from store.search import Search
from tests.support.fake_engine import FakeEmbedder
from tests.support.stores import open_store


class Bench:
    def __init__(self, documents: Documents, search: Search) -> None:
        self.documents, self.search, self.embedder = documents, search, FakeEmbedder()
        self.ingest = Ingest(documents, self.embedder)
        self.retrieval = Retrieval(search, self.embedder)


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    with open_store(tmp_path / "store.db") as database:
        yield Bench(Documents(database), Search(database))


async def test_the_same_content_twice_is_embedded_once(bench: Bench, tmp_path: Path) -> None:
    path = tmp_path / "a.md"
    path.write_text("# Pumps\n\nThe pressure is 6 bar.\n")
    first = await bench.ingest.file(path, collection="c")
    embedded = bench.embedder.embedded
    again = await bench.ingest.file(path, collection="c")
    assert (first.state, again.state) == ("added", "unchanged")
    assert bench.embedder.embedded == embedded
    path.write_text("# Pumps\n\nThe pressure is 7 bar.\n")
    assert (await bench.ingest.file(path, collection="c")).state == "added"
    [document] = await bench.documents.list("c")
    assert document.source == str(path) and document.title == "Pumps"
    [passage] = await bench.retrieval.passages("pressure", within=Scope("c"))
    assert "7 bar" in passage.text and passage.line == 1 and passage.place == "Pumps, line 1"


async def labels(bench: Bench) -> dict[str, str]:
    return {Path(document.source).name: document.label for document in await bench.documents.list()}


async def test_a_label_given_once_stays(bench: Bench, tmp_path: Path) -> None:
    path = tmp_path / "a.md"
    path.write_text("one")
    assert (await bench.ingest.file(path, collection="c")).label == "internal"
    assert (await bench.ingest.file(path, collection="c", label="local-only")).label == "local-only"
    assert (await bench.ingest.file(path, collection="c", label="public")).label == "local-only"
    path.write_text("two")
    assert (await bench.ingest.file(path, collection="c")).label == "local-only"
    other = tmp_path / "b.md"
    other.write_text("three")
    assert (await bench.ingest.file(other, collection="c", label="public")).label == "public"
    other.write_text("four")
    assert (await bench.ingest.file(other, collection="c")).label == "public", "only what is new is internal"
    [passage] = [p for p in await bench.retrieval.passages("two", within=Scope("c")) if p.text == "two"]
    assert passage.label == "local-only"


async def test_a_folder_labels_what_appears_in_it_later(bench: Bench, tmp_path: Path) -> None:
    folder = tmp_path / "secret"
    (folder / "deep").mkdir(parents=True)
    await bench.ingest.folder(str(folder), "local-only")
    await bench.ingest.folder(str(folder), "public")
    for path in (folder / "deep" / "new.md", tmp_path / "secret-not.md", folder / "deep" / ".." / "also.md"):
        path.write_text(path.name)
        await bench.ingest.file(path, collection="c", label="public")
    (tmp_path / "link.md").symlink_to(folder / "deep" / "linked.md")
    (folder / "deep" / "linked.md").write_text("by another name")
    await bench.ingest.file(tmp_path / "link.md", collection="c", label="public")
    assert await labels(bench) == {
        "new.md": "local-only", "secret-not.md": "public", "also.md": "local-only", "linked.md": "local-only",
    }


async def test_labels_are_loosened_on_purpose_only(bench: Bench, tmp_path: Path) -> None:
    inner = tmp_path / "a" / "b"
    inner.mkdir(parents=True)
    for name in ("a/1.md", "a/b/2.md"):
        (tmp_path / name).write_text(name)
        await bench.ingest.file(tmp_path / name, collection="c")
    documents = bench.documents
    await relabel(documents, await documents.list(), "local-only", folder=str(tmp_path / "a"))
    assert await labels(bench) == {"1.md": "local-only", "2.md": "local-only"}
    for folder in (None, str(inner)):
        with pytest.raises(BadUse, match="stricter"):
            await relabel(documents, await documents.list(), "public", folder=folder)
    assert await labels(bench) == {"1.md": "local-only", "2.md": "local-only"}
    await documents.label_folder(str(inner), "local-only")
    await relabel(documents, await documents.list(), "public", folder=str(tmp_path / "a"))
    assert await labels(bench) == {"1.md": "public", "2.md": "public"}
    assert await documents.folder_labels() == {str(tmp_path / "a"): "public"}


def test_the_strictest_folder_decides() -> None:
    folders = {"/": "public", "/a": "local-only", "/a/b": "public", "relative": "local-only"}
    assert label_of_folders("/a/b/c.md", folders) == "local-only"
    assert label_of_folders("/ab/c.md", folders) == "public"
    assert label_of_folders("record-7", folders) is None


async def test_content_that_returns_under_a_known_name_replaces_what_stood_there(bench: Bench, tmp_path: Path) -> None:
    a, b = tmp_path / "a.md", tmp_path / "b.md"
    for path, text in ((a, "one"), (b, "two"), (b, "one")):
        path.write_text(text)
        await bench.ingest.file(path, collection="c")
    assert [(d.source, d.chunks) for d in await bench.documents.list()] == [(str(a), 1)]
    assert [p.text for p in await bench.retrieval.passages("two", within=Scope("c"))] == ["one"]


@pytest.mark.parametrize("name", ["missing.md", "folder", "link.md", "pipe.md"])
async def test_what_is_no_file_is_refused(bench: Bench, tmp_path: Path, name: str) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "link.md").symlink_to(tmp_path / "nowhere.md")
    os.mkfifo(tmp_path / "pipe.md")
    with pytest.raises(BadDocument):
        await bench.ingest.file(tmp_path / name, collection="c")
    assert await bench.documents.count() == (0, 0)


async def test_a_long_document_says_how_far_it_is(bench: Bench, tmp_path: Path) -> None:
    path, told = tmp_path / "long.md", list[tuple[int, int]]()
    path.write_text("".join(f"# Part {n}\n\nWhat part {n} says.\n\n" for n in range(130)))
    added = await bench.ingest.file(path, collection="c", progress=lambda done, total: told.append((done, total)))
    assert told == [(0, 130), (64, 130), (128, 130)] and added.chunks == 130
    passages = await bench.retrieval.passages("what part 129 says", within=Scope("c"), top=1)
    assert passages[0].line == 517 and passages[0].similarity > 0.9, "each piece has its own vector"


async def test_an_interrupted_run_goes_on_where_it_was(bench: Bench, tmp_path: Path) -> None:
    paths = [tmp_path / f"{n}.md" for n in range(3)]
    for path in paths:
        path.write_text(f"What {path.name} says.")
    assert (await bench.ingest.file(paths[0], collection="c")).state == "added"

    def interrupt(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        await bench.ingest.file(paths[1], collection="c", progress=interrupt)
    assert await bench.documents.count() == (1, 1), "no half document"
    states = [(await bench.ingest.file(path, collection="c")).state for path in paths]
    assert states == ["unchanged", "added", "added"] and bench.embedder.embedded == 3


# Embeds two of three parts of a document, then is killed.
KILLED = """
import asyncio, os, signal, sys
from pathlib import Path
from edge_client.ingest import Ingest
from store.documents import Documents
from tests.support.fake_engine import FakeEmbedder
from tests.support.stores import open_store

def progress(done, total):
    if done == 128:
        os.kill(os.getpid(), signal.SIGKILL)

with open_store(Path(sys.argv[1])) as database:
    ingest = Ingest(Documents(database), FakeEmbedder())
    asyncio.run(ingest.file(Path(sys.argv[2]), collection="c", progress=progress))
"""


@pytest.mark.skipif(os.name != "posix", reason="kills by signal")
async def test_a_killed_ingest_of_a_long_document_goes_on_where_it_was(tmp_path: Path) -> None:
    store, path = tmp_path / "store.db", tmp_path / "long.md"
    path.write_text("".join(f"# Part {n}\n\nWhat part {n} says.\n\n" for n in range(140)))
    repository = Path(__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": str(repository)}
    killed = subprocess.run(  # noqa: ASYNC221 - nothing else runs here
        [sys.executable, "-c", KILLED, str(store), str(path)], cwd=repository, env=environment, check=False, timeout=300
    )
    assert killed.returncode == -signal.SIGKILL
    with open_store(store) as database:
        bench = Bench(Documents(database), Search(database))
        assert await bench.documents.count() == (0, 0) and await bench.documents.list() == []
        assert await bench.retrieval.passages("what part 9 says", within=Scope("c")) == [], "nothing half done is cited"
        bench.embedder.embedded = 0
        added = await bench.ingest.file(path, collection="c")
        assert (added.state, added.chunks, bench.embedder.embedded) == ("added", 140, 12)
        for number in (9, 100, 139):
            [passage] = await bench.retrieval.passages(f"what part {number} says", within=Scope("c"), top=1)
            assert passage.line == 4 * number + 1 and passage.similarity > 0.9, "each piece has its own vector"
        assert await bench.documents.drafts("fake-embedder").known((await bench.documents.list())[0].sha256) == {}


async def test_other_content_or_another_embedder_begins_anew(bench: Bench, tmp_path: Path) -> None:
    class Interrupted(Exception):
        pass

    def interrupt(done: int, total: int) -> None:
        if done == 64:
            raise Interrupted

    path = tmp_path / "long.md"

    async def interrupted(text: str) -> int:
        path.write_text("".join(f"# Part {n}\n\n{text} {n}.\n\n" for n in range(70)))
        bench.embedder.embedded = 0
        with pytest.raises(Interrupted):
            await bench.ingest.file(path, collection="c", progress=interrupt)
        return bench.embedder.embedded

    assert [await interrupted("one"), await interrupted("one"), await interrupted("two")] == [64, 0, 64]
    bench.embedder.model_id = "another"
    assert await interrupted("one") == 64


def moved(folder: Path, **files: str) -> list[Path]:
    folder.mkdir(exist_ok=True)
    for name, text in files.items():
        (folder / f"{name}.md").write_text(text)
    return [folder / f"{name}.md" for name in files]


async def test_documents_whose_file_is_gone_are_forgotten(bench: Bench, tmp_path: Path) -> None:
    inner, outer = moved(tmp_path / "in", a="one", b="two"), moved(tmp_path / "out", c="three")
    for path in (*inner, *outer):
        await bench.ingest.file(path, collection="c")
    await bench.ingest.record(Record(str(tmp_path / "in" / "a.md"), "a record of another collection"), collection="d")
    for path in (inner[0], outer[0]):
        path.unlink()
    assert await bench.ingest.forget_gone(str(tmp_path / "in"), collection="c") == ([str(inner[0])], [])
    assert [d.source for d in await bench.documents.list("c")] == [str(inner[1]), str(outer[0])]
    assert len(await bench.documents.list("d")) == 1


async def test_what_may_come_back_is_not_forgotten(bench: Bench, tmp_path: Path) -> None:
    root = tmp_path / "in"
    paths = [*moved(root, a="one"), *moved(root / "medium", b="two")]
    for path in paths:
        await bench.ingest.file(path, collection="c")
    paths[1].unlink()  # as if a medium were no longer mounted there
    assert await bench.ingest.forget_gone(str(root), collection="c") == ([], [str(paths[1])])
    paths[0].unlink()
    (root / "medium").rmdir()
    assert await bench.ingest.forget_gone(str(root), collection="c") == ([], [str(path) for path in paths])
    assert await bench.documents.count() == (2, 2)
    (root / "other.txt").write_text("the folder holds something again")
    assert await bench.ingest.forget_gone(str(root), collection="c") == ([str(path) for path in paths], [])


async def test_a_moved_file_keeps_its_document_and_label(bench: Bench, tmp_path: Path) -> None:
    [old] = moved(tmp_path / "in", old="the pressure is 6 bar")
    await bench.ingest.file(old, collection="c", label="local-only")
    copy = old.with_name("copy.md")
    copy.write_text(old.read_text())
    await bench.ingest.file(copy, collection="c")
    assert [d.source for d in await bench.documents.list()] == [str(old)], "a copy changes nothing"
    old.unlink()
    embedded = bench.embedder.embedded
    assert (await bench.ingest.file(copy, collection="c")).state == "unchanged" and bench.embedder.embedded == embedded
    assert await bench.ingest.forget_gone(str(tmp_path / "in"), collection="c") == ([], [])
    [document] = await bench.documents.list()
    assert (document.source, document.title, document.label) == (str(copy), "copy", "local-only")


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="a file that not even root can read")
async def test_what_cannot_be_read_is_one_error(bench: Bench) -> None:
    unreadable = Path("/proc/self/mem")
    with pytest.raises(BadDocument, match="cannot be read"):
        await bench.ingest.file(unreadable, collection="c")


async def test_records_are_documents_under_their_ids(bench: Bench) -> None:
    for record in (Record("1", "flow in a pipe", "Flow"), Record(2, "flow in a pipe", "Flow"), Record("3", "heat")):
        assert (await bench.ingest.record(record, collection="c")).state == "added"
    assert (await bench.ingest.record(Record("1", "flow in a pipe", "Flow"), collection="c")).state == "unchanged"
    ranked = await bench.retrieval.documents("heat", within=Scope("c"), top=3)
    assert ranked[0][0] == "3" and {doc for doc, _ in ranked} == {"1", "2", "3"}
    with pytest.raises(BadDocument):
        await bench.ingest.record(Record("4", "  "), collection="c")


async def test_a_title_stands_once_before_each_piece(bench: Bench) -> None:
    long = "flow in pipes . " + "It goes on and on . " * 80
    for record in (Record("1", long, "flow in pipes ."), Record("2", "flowers grow", "flow"), Record("3", "", "only")):
        await bench.ingest.record(record, collection="c")
    texts = [p.text for p in await bench.retrieval.passages("flow", within=Scope("c"), top=9)]
    pieces = [text for text in texts if "goes on" in text]
    assert len(pieces) == 2 and all(text.startswith("flow in pipes .\nIt goes") for text in pieces)
    assert {"flow\nflowers grow", "only"} == set(texts) - set(pieces)


def test_bad_lines_are_told_by_number() -> None:
    lines = [b'{"id": "1", "text": "a"}', b"", b"nonsense", b'{"text": "a"}', b'{"id": "", "text": "b"}', b"[" * 5000,
             b'{"id": 5, "title": "t", "text": "b", "more": 1}', b"\xff"]
    found = [(number, isinstance(record, BadUse)) for number, record in record_lines(lines)]
    assert found == [(1, False), (3, True), (4, True), (5, True), (6, True), (7, False), (8, True)]
    assert [isinstance(query, BadUse) for _, query in query_lines([b'{"id": 1, "text": "q"}', b"{}"])] == [False, True]


async def test_a_long_question_is_asked_by_its_beginning(bench: Bench) -> None:
    await bench.ingest.record(Record("1", "the pump"), collection="c")
    passages = await bench.retrieval.passages("the pump " + "and more " * 500, within=Scope("c"))
    assert len(passages) == 1
    assert await bench.retrieval.passages(" ", within=Scope("c")) == []
    assert await bench.retrieval.passages("x", within=Scope("none")) == []


async def test_a_folder_that_is_labelled_while_its_file_is_embedded(bench: Bench, tmp_path: Path) -> None:
    class Slow(FakeEmbedder):
        async def embed(self, texts: Sequence[str]) -> "NDArray[np.float32]":
            await bench.ingest.folder(str(tmp_path), "local-only")
            return await super().embed(texts)

    path = tmp_path / "a.md"
    path.write_text("the plan")
    outcome = await Ingest(bench.documents, Slow()).file(path, collection="c")
    assert outcome.label == "local-only" and await labels(bench) == {"a.md": "local-only"}


@pytest.mark.parametrize("ns", [-1_500_000_000, 4_102_444_800_900_000_000])
async def test_files_of_other_centuries(bench: Bench, tmp_path: Path, ns: int) -> None:
    path = tmp_path / "a.md"
    path.write_text("old")
    os.utime(path, ns=(ns, ns))
    await bench.ingest.file(path, collection="c")
    assert [document.dated_at for document in await bench.documents.list()] == [ns // 10**9]

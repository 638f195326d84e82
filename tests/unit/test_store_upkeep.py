"""What `check` says of a store that is whole, and of each way in which it is not."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from store.database import Database
from store.documents import Documents
from store.errors import StoreMissing, WrongKey
from store.keys import DatabaseKey
from store.upkeep import check, who_may_read
from tests.support.stores import KEY, add_document, open_store

PAGE = 4096


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "store.db"


@pytest.fixture
async def database(path: Path) -> AsyncIterator[Database]:
    with open_store(path) as database:
        for number in range(12):
            texts = [f"the pump number {number} has the part {part}" for part in range(10)]
            await add_document(Documents(database), texts, source=f"{number:02}.md", seed=number)
        yield database


def test_a_whole_store(database: Database, path: Path) -> None:
    steps: list[str] = []
    report = check(path, KEY, steps.append)
    assert report.problems == () and (report.documents, report.chunks) == (12, 120)
    assert report.size == path.stat().st_size and report.schema >= 6 and len(steps) == 3


async def test_an_empty_one_and_one_that_lost_documents(path: Path) -> None:
    with open_store(path) as database:
        assert check(path, KEY).problems == ()
        documents = Documents(database)
        kept, gone = [await add_document(documents, ["a", "b"], source=source) for source in ("a.md", "b.md")]
        assert await documents.delete(gone.id)
        assert check(path, KEY).problems == () and check(path, KEY).documents == 1
        assert await documents.delete(kept.id)
        assert check(path, KEY).problems == ()


@pytest.mark.parametrize(("statement", "code", "named"), [
    ("UPDATE documents SET chunks = 11 WHERE source = '03.md'", "passages", "03.md"),
    ("DELETE FROM vectors WHERE chunk_id = 5", "vectors", "00.md"),
    ("UPDATE vectors SET value = x'00' WHERE chunk_id = 15", "vectors", "01.md"),
    ("DELETE FROM codes WHERE document_id = 3", "codes", "02.md"),
    ("UPDATE codes SET code = x'00' WHERE document_id = 3", "codes", "02.md"),
    ("UPDATE codes SET first_chunk = 22 WHERE document_id = 3", "codes", "02.md"),
    ("DELETE FROM words WHERE rowid = 35", "words", "03.md"),
    ("INSERT INTO words (rowid, title, text) VALUES (9999, 'a', 'b')", "words", "1 of them"),
    ("UPDATE words_data SET block = x'00112233' WHERE id = (SELECT max(id) FROM words_data)", "words", "fts5"),
])
def test_a_broken_promise_is_found(database: Database, path: Path, statement: str, code: str, named: str) -> None:
    database.run_sync(lambda c: c.execute(statement).rowcount)
    (problem,) = check(path, KEY).problems
    assert problem.code == code and named in problem.message and "`edge " in problem.hint


@pytest.mark.parametrize("statement", [
    "CREATE TRIGGER t AFTER INSERT ON documents BEGIN UPDATE documents SET label = 'public'; END",
    "CREATE VIEW endless AS WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT i FROM n",
    "ALTER TABLE documents ADD COLUMN more TEXT",
    "DROP INDEX chunks_by_document",
])
def test_what_this_program_never_made_is_found(database: Database, path: Path, statement: str) -> None:
    database.run_sync(lambda c: c.execute(statement).rowcount)
    (problem,) = check(path, KEY).problems
    assert problem.code == "schema"


def test_a_row_that_belongs_to_nothing_is_found(path: Path, database: Database) -> None:
    database.close()
    with open_store(path) as again:
        again._executor.submit(lambda: again._connection.execute("PRAGMA foreign_keys = OFF")).result()
        again.run_sync(lambda c: c.execute("UPDATE chunks SET document_id = 777 WHERE id = 1").rowcount)
        codes = [problem.code for problem in check(path, KEY).problems]
    assert "tables" in codes


def test_a_page_that_was_altered_is_found(database: Database, path: Path) -> None:
    database.close()
    for number in (2, path.stat().st_size // PAGE - 1):
        before = path.read_bytes()
        with path.open("r+b") as file:
            file.seek(number * PAGE + 17)
            file.write(b"\x00\xff\x00")
        report = check(path, KEY)
        assert [problem.code for problem in report.problems] == ["pages"] and report.documents == 0
        path.write_bytes(before)
    assert check(path, KEY).problems == (), "the control"


@pytest.mark.parametrize("harm", ["start", "cut in a page", "cut between pages"])
def test_what_cannot_be_opened_is_told_and_not_raised(database: Database, path: Path, harm: str) -> None:
    database.close()
    data = bytearray(path.read_bytes())
    if harm == "start":
        data[50:60] = bytes(10)
    else:
        del data[PAGE * 9 + (100 if harm == "cut in a page" else 0):]
    path.write_bytes(data)
    assert {problem.code for problem in check(path, KEY).problems} <= {"pages", "tables"} != set()
    assert check(path, KEY).problems


def test_another_key_and_no_database(database: Database, path: Path) -> None:
    database.close()
    with pytest.raises(WrongKey):
        check(path, DatabaseKey(bytes(48)))
    with pytest.raises(StoreMissing, match="does not exist"):
        check(path.with_name("other.db"), KEY)
    assert not path.with_name("other.db").exists()


async def test_beside_who_writes(database: Database, path: Path) -> None:
    documents = Documents(database)
    for number in range(5):
        added = await add_document(documents, ["one more", "and another"], source=f"new{number}.md", seed=number)
        assert check(path, KEY).problems == ()
        await documents.delete(added.id)


def test_files_that_others_may_read(tmp_path: Path) -> None:
    home, key = tmp_path / "home", tmp_path / "home" / "store.key"
    home.mkdir(mode=0o700)
    key.touch(mode=0o600)
    assert who_may_read([home, key, tmp_path / "none"]) == []
    key.chmod(0o640)
    home.chmod(0o755)
    told = who_may_read([home, key])
    assert [(one.code, one.hint) for one in told] == [
        ("permissions", f"chmod 700 {home}"), ("permissions", f"chmod 600 {key}")
    ]

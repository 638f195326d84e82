"""Real processes at one store: whoever reads is right at every moment and never refused, and nothing is damaged."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from store.database import Database
from store.keys import Passphrase, unlock_key
from store.upkeep import check
from tests.support.outside import ROOT
from tests.support.serve_process import ServeProcess
from tests.support.stores import KEY, open_store

LIMIT_S = 120  # for hanging alone

# Documents of three passages each, by number: added, replaced (every third), deleted (every fifth); then a last one.
WRITES = """
import asyncio, sys
from pathlib import Path
from store.documents import Documents
from tests.support.stores import add_document, open_store, unit_vectors

async def write():
    with open_store(Path(sys.argv[1])) as database:
        documents = Documents(database)
        for n in range(40):
            for version in range(1 + (n % 3 == 0)):
                texts = [f"{n} version{version} {at}" for at in range(3)]
                added = await add_document(documents, texts, source=f"{n}", vectors=unit_vectors(3, seed=n))
            if n % 5 == 0:
                await documents.delete(added.id)
        await add_document(documents, ["the last one"], source="last", vectors=unit_vectors(1, seed=999))

asyncio.run(write())
"""

# Searches until it has seen the last document, keeping its index over all changes; says how often.
READS = """
import asyncio, sys
from pathlib import Path
from store.search import Search
from tests.support.stores import open_store, unit_vectors

async def read():
    with open_store(Path(sys.argv[1])) as database:
        search, rounds, highest = Search(database), 0, -1
        while True:
            rounds += 1
            ended = await search.query(text="", vector=unit_vectors(1, seed=999)[0], collection="manual", top=1)
            n = rounds % 40
            hits = await search.query(text="", vector=unit_vectors(3, seed=n)[0], collection="manual", top=200)
            held = {}
            for hit in hits:
                if hit.source != "last":
                    held.setdefault(hit.source, set()).add(hit.text.rpartition(" ")[0])
            for source, versions in held.items():
                assert len(versions) == 1, versions  # never two versions of one document
                assert sum(hit.source == source for hit in hits) == 3, source  # never a part of one
            if str(n) in held:
                assert hits[0].source == str(n) and hits[0].similarity > 0.99
            newest = max(map(int, held), default=-1)
            assert newest >= highest  # what was seen once is not unseen; none of these is deleted later
            highest = newest if newest % 5 else highest
            if ended and ended[0].text == "the last one":
                assert set(held) == {str(n) for n in range(40) if n % 5}
                assert all(versions == {f"{n} version{int(int(n) % 3 == 0)}"} for n, versions in held.items())
                print(rounds)
                return

asyncio.run(read())
"""

Process = subprocess.Popen[str]
_started: list[Process] = []


@pytest.fixture(autouse=True)
def none_is_left() -> Iterator[None]:
    yield
    while _started:
        with _started.pop() as process:
            process.kill()


def start(program: str, path: Path) -> Process:
    return begun([sys.executable, "-W", "error", "-c", program, str(path)], dict(os.environ))


def begun(command: list[str], environment: dict[str, str]) -> Process:
    _started.append(subprocess.Popen(
        command, cwd=ROOT, env=environment, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ))
    return _started[-1]


def outcome(process: Process, said: str = "") -> str:
    out, err = process.communicate(said, timeout=LIMIT_S)
    assert process.returncode == 0, err[-3000:]
    return out


def test_searches_beside_a_writer_see_whole_documents(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    open_store(path).close()
    readers = [start(READS, path) for _ in range(2)]
    writer = start(WRITES, path)
    outcome(writer)
    assert min(int(outcome(reader)) for reader in readers) > 0
    assert check(path, KEY).problems == ()


def test_two_writers_take_turns(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    open_store(path).close()
    writers = [
        start(WRITES.replace('"{n}"', f'"{name}{{n}}"').replace("{n} version", f"{name} {{n}} version"), path)
        for name in "ab"
    ]
    for writer in writers:
        outcome(writer)
    report = check(path, KEY)
    assert report.problems == () and report.documents == 2 * 32 + 1


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    path = tmp_path / "passphrase"
    path.write_text("correct horse\n")
    path.chmod(0o600)
    return path


def edge(home: Path, *arguments: str, secret: Path | None = None) -> Process:
    """The command as a process of its own, with stand-ins for the models; without `secret` by a running serve alone."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("CAUSEWAY_")}
    environment["CAUSEWAY_HOME"] = str(home)
    if secret is not None:
        environment["CAUSEWAY_PASSPHRASE_FILE"] = str(secret)
    return begun([sys.executable, "-m", "tests.support.serve_process", *arguments], environment)


def test_commands_beside_edge_serve_and_an_ingest(tmp_path: Path, secret: Path) -> None:
    home, docs = tmp_path / "home", tmp_path / "docs"
    docs.mkdir()
    (docs / "first.md").write_text("The maximum pressure of the pump is 6 bar.")
    outcome(edge(home, "ingest", str(docs), secret=secret))
    for n in range(60):
        (docs / f"{n}.md").write_text(f"Part {n}.\n\n" + f"The strainer of part {n} is cleaned weekly. " * 40)
    with ServeProcess(home, passphrase_file=secret).ready() as serve:
        ingesting = edge(home, "ingest", str(docs), "--json")
        rounds = 0
        while rounds < 2 or ingesting.poll() is None:
            rounds += 1
            search = edge(home, "search", "--json", "maximum pressure of the pump")
            ask = edge(home, "ask", "--local", "--json", "What is the maximum pressure of the pump?")
            status, answer = serve.ask("auto", "What is the maximum pressure of the pump?")
            assert status == 200 and answer["causeway"]["citations"][0]["document"] == "first"
            assert json.loads(outcome(search))["hits"][0]["source"] == str(docs / "first.md")
            assert json.loads(outcome(ask))["citations"][0]["source"] == str(docs / "first.md")
        added = json.loads(outcome(ingesting))
        assert (added["added"], added["unchanged"], added["failed"]) == (60, 1, 0)
        status, answer = serve.ask("auto", "How often is the strainer of part 59 cleaned?")
        assert status == 200 and answer["causeway"]["citations"][0]["document"] == "59"
        forgotten = outcome(edge(home, "documents", "forget", str(docs / "59.md"), "--json"))
        assert len(json.loads(forgotten)["documents"]) == 1
        status, answer = serve.ask("auto", "How often is the strainer of part 59 cleaned?")
        assert status == 200 and "59" not in [one["document"] for one in answer["causeway"]["citations"]]
    report = check(home / "store.db", unlock_key(home / "store.key", Passphrase("correct horse")))
    assert report.problems == () and report.documents == 60


def test_who_reads_is_not_refused_while_another_process_writes(tmp_path: Path) -> None:
    """Held for as long as this takes: a writer in the middle of its transaction."""
    path = tmp_path / "store.db"
    program = """
import sys
from pathlib import Path
from tests.support.stores import open_store

def work(connection):
    connection.execute("INSERT INTO settings VALUES ('n', 'k', x'00')")
    print("writing", flush=True)
    sys.stdin.readline()

with open_store(Path(sys.argv[1])) as database:
    database.run_sync(work)
"""
    open_store(path).close()
    writer = start(program, path)
    assert writer.stdout is not None and writer.stdout.readline() == "writing\n"

    def count(database: Database) -> int:
        row = database.run_sync(lambda c: c.execute("SELECT count(*) FROM settings").fetchone(), read_only=True)
        assert row is not None
        return int(row[0])

    with open_store(path) as database:
        assert count(database) == 0, "it waits for nobody, and sees nothing half done"
        outcome(writer, "go on\n")
        assert count(database) == 1

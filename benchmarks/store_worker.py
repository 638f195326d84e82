"""A store in a process of its own, filled, asked and measured from inside: a line of JSON for each thing to do.

    python -m benchmarks.store_worker FOLDER encrypted|plain|peer [VEC0]

The folder holds what `save` put there. `encrypted` is the product. `plain` is the same code over the same library
without a key, which makes it SQLite: SQLCipher's page cipher is not in the way then, nor another version or other
compile options. (The interpreter's own `sqlite3` is often too old for the schema: contentless tables with deletion are
of 3.43.) `peer` is `sqlite-vec` with float vectors on SQLCipher. Nothing is opened before it is asked for.
"""

import asyncio
import cProfile
import gc
import json
import os
import pstats
import subprocess
import sys
import time
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any, Final, TypeVar

import numpy as np
from sqlcipher3 import dbapi2

import store.database
from benchmarks.store_data import BLOCK, Real, Rows, Varied
from store.database import STORE_SCHEMA, Database
from store.documents import Chunk, Documents
from store.keys import DatabaseKey
from store.search import Search
from store.settings import Settings

T = TypeVar("T")
ROOT: Final = Path(__file__).resolve().parent.parent
_KEY: Final = bytes(range(32))
_COLLECTION: Final = "benchmark"
_PAGE: Final = 4096


def save(folder: Path, made: Real) -> None:
    """For the workers: what stores are filled with and what they are asked."""
    np.save(folder / "vectors.npy", made.vectors)
    np.save(folder / "asked.npy", made.asked)
    (folder / "passages.json").write_text(json.dumps(made.passages), "utf-8")
    (folder / "questions.json").write_text(json.dumps(made.questions), "utf-8")


class Worker:
    """The other end: starts the process, and ends it."""

    def __init__(self, folder: Path, kind: str, *more: str, name: str = "") -> None:
        command = [sys.executable, "-m", "benchmarks.store_worker", str(folder), kind, name or kind, *more]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
        self.do("ready")

    def do(self, what: str, **arguments: Any) -> Any:
        """What the worker says. Raises RuntimeError if it has ended."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps({"do": what, **arguments}) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"the process that was to do {what!r} ended with {self._process.wait()}")
        return json.loads(line)

    def end(self) -> None:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.close()
        self._process.stdout.close()
        if self._process.wait() != 0:
            raise RuntimeError("the process did not end well")

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.end()


class _Spent:
    """Wall and CPU milliseconds (of the whole process) inside a `with`."""

    def __enter__(self) -> "_Spent":
        self._wall, self._cpu = time.perf_counter(), time.process_time()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.wall = (time.perf_counter() - self._wall) * 1000
        self.cpu = (time.process_time() - self._cpu) * 1000


class _Side:
    """What product and peer have in common."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._asked: Rows | None = None
        self._questions: list[str] = []
        self._made: Varied | None = None

    def ready(self) -> None:
        """Questions are in memory, the passages are not."""
        self._asked = np.load(self._folder / "asked.npy")
        self._questions = json.loads((self._folder / "questions.json").read_text("utf-8"))

    def block(self, number: int) -> tuple[Rows, list[str]]:
        if self._made is None:
            passages = json.loads((self._folder / "passages.json").read_text("utf-8"))
            self._made = Varied(passages, np.load(self._folder / "vectors.npy"))
        return self._made.block(number)

    def question(self, number: int) -> tuple[str, Rows]:
        assert self._asked is not None
        place = number % len(self._asked)
        return self._questions[place], self._asked[place]

    def memory(self) -> dict[str, float]:
        """Resident MiB: all of it, and with what is shared divided among those who share it."""
        gc.collect()
        found = dict(line.split(":") for line in Path("/proc/self/smaps_rollup").read_text().splitlines()[1:])
        return {name: int(found[name].split()[0]) / 1024 for name in ("Rss", "Pss")}

    def forget(self) -> None:
        self._made = None


class _Ours(_Side):
    def __init__(self, folder: Path, plain: bool, name: str) -> None:
        super().__init__(folder)
        self._key, self._plain = DatabaseKey(_KEY + bytes(16)), plain
        if plain:
            store.database._hand_over = lambda *_: None
        self._path = folder / f"{name}.db"
        self._loop = asyncio.new_event_loop()
        self._database: Database | None = None

    def _wait(self, awaited: Coroutine[Any, Any, T]) -> T:
        return self._loop.run_until_complete(awaited)

    def _open(self) -> Database:
        if self._database is None:
            self._database = Database.open(self._path, self._key, schema=STORE_SCHEMA)
            self._documents, self._search = Documents(self._database), Search(self._database)
            self._settings = Settings(self._database, "benchmark")
        return self._database

    def fill(self, first: int, count: int, each: int) -> dict[str, float]:
        """Adds blocks, in documents of `each` passages; milliseconds without what making them costs."""
        self._open()
        wall = cpu = 0.0
        for number in range(first, first + count):
            rows, texts = self.block(number)
            with _Spent() as spent:
                for at in range(0, BLOCK, each):
                    source = f"{number}/{at}"
                    self._wait(self._documents.add(
                        collection=_COLLECTION, source=source, title=f"Document {source}",
                        sha256=source.encode().ljust(32, b"-"), chunks=[Chunk(text) for text in texts[at : at + each]],
                        vectors=rows[at : at + each], model_id="benchmark",
                    ))
            wall, cpu = wall + spent.wall, cpu + spent.cpu
        return {"wall": wall, "cpu": cpu}

    def ask(self, first: int, count: int, words: bool, top: int = 10) -> dict[str, list[Any]]:
        """Each question's milliseconds, and the places of what was found."""
        self._open()
        wall, cpu, found = [], [], []
        for number in range(first, first + count):
            text, vector = self.question(number)
            with _Spent() as spent:
                hits = self._wait(self._search.query(
                    text=text if words else "", vector=vector, collection=_COLLECTION, top=top
                ))
            wall.append(spent.wall)
            cpu.append(spent.cpu)
            found.append([hit.chunk_id - 1 for hit in hits])  # ids count from 1, and nothing was deleted
        return {"wall": wall, "cpu": cpu, "found": found}

    def unlock(self, number: int) -> dict[str, float]:
        """Opening and one question."""
        text, vector = self.question(number)
        with _Spent() as spent:
            self._open()
            assert self._wait(self._search.query(text=text, vector=vector, collection=_COLLECTION))
        return {"wall": spent.wall, "cpu": spent.cpu}

    def read(self, first: int, count: int, of: int) -> dict[str, float]:
        """A passage with its neighbours and its document by its id, ids at random; milliseconds for all."""
        self._open()
        ids = np.random.default_rng([2, first]).integers(1, of + 1, count).tolist()
        with _Spent() as spent:
            for id in ids:
                assert self._wait(self._documents.around(id)) is not None
        return {"wall": spent.wall, "cpu": spent.cpu}

    def setting(self, first: int, count: int) -> dict[str, float]:
        """A value by its name, of a hundred."""
        self._open()
        if first == 0:
            for number in range(100):
                self._wait(self._settings.put(str(number), bytes(100)))
        with _Spent() as spent:
            for number in range(count):
                assert self._wait(self._settings.get(str(number % 100))) is not None
        return {"wall": spent.wall, "cpu": spent.cpu}

    def pages(self, first: int, count: int, words: bool) -> float:
        """Pages read from the system for a question, by what the kernel counts."""
        before = _bytes_read()
        self.ask(first, count, words)
        return (_bytes_read() - before) / _PAGE / count

    def profile(self, first: int, count: int, words: bool) -> dict[str, float]:
        """Where a question's CPU time goes on the thread that owns the connection, by what was called; shares of it."""
        database, profile = self._open(), cProfile.Profile(time.thread_time)
        database.run_sync(lambda _: profile.enable())
        self.ask(first, count, words)
        database.run_sync(lambda _: profile.disable())
        return shares(pstats.Stats(profile).stats)  # type: ignore[attr-defined]

    def close(self) -> None:
        if self._database is not None:
            self._database.close()
            self._database = None
            with self._path.open("rb") as file:
                if self._plain != file.read(16).startswith(b"SQLite format 3"):
                    raise RuntimeError("the key is handed over in another way now")


class _Peer(_Side):
    """Encrypted pages read by a scan in C, the plain way to have vectors in SQLCipher."""

    def __init__(self, folder: Path, extension: str) -> None:
        super().__init__(folder)
        self._connection = dbapi2.connect(str(folder / "peer.db"), isolation_level=None)
        self._connection.execute(f"PRAGMA key = \"x'{(_KEY + bytes(16)).hex()}'\"")
        self._connection.execute("PRAGMA journal_mode = WAL")
        self._connection.enable_load_extension(True)
        self._connection.load_extension(extension)
        self._connection.execute("CREATE VIRTUAL TABLE IF NOT EXISTS v USING vec0(e float[384])")

    def fill(self, first: int, count: int, each: int) -> dict[str, float]:
        for number in range(first, first + count):
            rows, _ = self.block(number)
            self._connection.execute("BEGIN")
            self._connection.executemany(
                "INSERT INTO v (rowid, e) VALUES (?, ?)",
                ((number * BLOCK + at + 1, row.tobytes()) for at, row in enumerate(rows)),
            )
            self._connection.execute("COMMIT")
        return {}

    def ask(self, first: int, count: int, words: bool = False, top: int = 10) -> dict[str, list[Any]]:
        wall, cpu, found = [], [], []
        for number in range(first, first + count):
            vector = self.question(number)[1].tobytes()
            with _Spent() as spent:
                rows = self._connection.execute(
                    "SELECT rowid, distance FROM v WHERE e MATCH ? AND k = ? ORDER BY distance", (vector, top)
                ).fetchall()
            wall.append(spent.wall)
            cpu.append(spent.cpu)
            found.append([row[0] - 1 for row in rows])
        return {"wall": wall, "cpu": cpu, "found": found}

    def close(self) -> None:
        self._connection.close()


def shares(stats: dict[Any, Any]) -> dict[str, float]:
    """Own time by place, from `pstats`: "SQLite", "codes" in memory and "the rest", which add up to 1.

    A profile does not see ufuncs nor the steps of a cursor: their time is their caller's, so modules are told apart.
    """
    spent = {"SQLite": 0.0, "codes": 0.0, "the rest": 0.0}
    for (file, _, name), (_, _, own, *_) in stats.items():
        if "sqlcipher" in name or file.endswith("store/vectors.py"):
            spent["SQLite"] += own
        elif "numpy" in name or "numpy" in file or file.endswith("store/codes.py"):
            spent["codes"] += own
        else:
            spent["the rest"] += own
    whole = sum(spent.values()) or 1.0
    return {kind: own / whole for kind, own in spent.items()}


def _bytes_read() -> int:
    return int(Path("/proc/self/io").read_text().split("rchar: ")[1].split()[0])


def main(arguments: Sequence[str]) -> None:
    folder, kind, name, *more = arguments
    side: Any = _Peer(Path(folder), more[0]) if kind == "peer" else _Ours(Path(folder), kind == "plain", name)
    for line in sys.stdin:
        command = json.loads(line)
        work: Callable[..., Any] = getattr(side, command.pop("do"))
        print(json.dumps(work(**command)), flush=True)
    side.close()


if __name__ == "__main__":
    main(sys.argv[1:])

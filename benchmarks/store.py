"""The encrypted store: search, ingest, reading, unlocking and memory, beside `sqlite-vec` and beside no encryption.

Everything that is compared has a process of its own (benchmarks/store_worker.py) and takes short turns with the others.
Milliseconds are by the wall clock; what is held against plain SQLite is CPU time of the whole process, system calls
included, since a few per cent drown in what other programs do to a clock. Passages and questions are of
benchmarks/store_data.py.

A question *by meaning* is its vector alone, which is what `sqlite-vec` is asked, too; *and words* is the whole of
`Search.query`, with full-text search, fusion and feedback. The questions of a run differ, so that what one has brought
into the page cache helps the next one as it does in life. Recall@10 is the share of the ten exactly nearest, by float32
of what was put in, that are among the ten found.
"""

import asyncio
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from statistics import median, quantiles
from typing import Any, Final

import numpy as np
from cryptography.hazmat.primitives import hashes, hmac
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from benchmarks.measure import Row, Times, arguments, cost_row, note, show
from benchmarks.peers import sqlite_vec
from benchmarks.store_data import BLOCK, Real, Varied, documentation, embedder, load, merged, nearest
from benchmarks.store_worker import Worker, save
from edge_client.chunking import chunks
from edge_client.documents import parse
from edge_client.engine.base import EMBEDDER_TOKENS
from edge_client.engine.llama import LlamaEmbedder
from edge_client.ingest import Ingest
from store.database import STORE_SCHEMA, Database
from store.documents import Documents
from store.keys import DatabaseKey

PLAIN: Final = "the same without a key"
_EACH: Final = 20  # passages of a document, each of which is a transaction
_EACH_LARGE: Final = 1_000
_CONTENT: Final = 4016  # of a page of 4,096 bytes: the rest are its initialisation vector and its HMAC


@dataclass(frozen=True)
class Size:
    """How much of everything; blocks are of 1,000 passages."""

    passages: int = 5_000
    questions: int = 200
    blocks: int = 100
    large: int = 1_000
    rounds: int = 12
    each: int = 10  # questions of a turn
    peer_each: int = 2
    reads: int = 500
    unlocks: int = 5
    ingested: int = 240


SMOKE: Final = Size(60, 20, 3, 4, 3, 5, 2, 50, 3, 8)


def recall(exact: Sequence[Sequence[int]], found: Sequence[Sequence[int]]) -> float:
    """Mean share of each exact answer that was found."""
    return float(np.mean([len({*one} & {*two}) / len(one) for one, two in zip(exact, found, strict=True)]))


def tail(values: Sequence[float]) -> float:
    """The 99th percentile."""
    return quantiles(values, n=100, method="inclusive")[98]


def paired(ours: Sequence[float], peers: Sequence[float]) -> float:
    """The peer's cost over ours, median of the turns taken together."""
    return median(peer / own for own, peer in zip(ours, peers, strict=True))


def exactly(made: Real, blocks: int) -> list[list[int]]:
    """Places of the ten nearest of so many blocks to each question, by exact float search."""
    varied, best = Varied(made.passages, made.vectors), None
    for number in range(blocks):
        best = merged(best, nearest(varied.block(number)[0], made.asked, 10, first=number * BLOCK))
    assert best is not None
    places: list[list[int]] = best[0].tolist()
    return places


def filled(ours: Worker, plain: Worker, peer: Worker | None, size: Size) -> list[Row]:
    """Fills all; a row for what adding documents costs."""
    spent: dict[Worker, list[dict[str, float]]] = {ours: [], plain: []}
    for number in range(size.blocks):
        for worker, times in spent.items():
            times.append(worker.do("fill", first=number, count=1, each=_EACH))
        if peer is not None:
            peer.do("fill", first=number, count=1, each=_EACH)
        if number % 10 == 9:
            note(f"filled with {(number + 1) * BLOCK:,} passages")
    for worker in spent:
        worker.do("forget")
    rows = []
    for clock, wanted in (("cpu", 1 / 1.15), ("wall", None)):
        mine, theirs = ([times[clock] for times in spent[worker]] for worker in (ours, plain))
        what = f"adding a passage with its vector, {'CPU' if clock == 'cpu' else 'wall'}"
        rows.append(_beside_plain(what, mine, theirs, BLOCK, wanted))
    return rows


def _beside_plain(
    what: str, mine: Sequence[float], theirs: Sequence[float], count: int, wanted: float | None
) -> Row:
    """Milliseconds of turns of `count` as microseconds of one."""
    return Row(
        what, median(mine) * 1000 / count, "us", median(theirs) * 1000 / count, PLAIN, paired(mine, theirs), wanted,
        Times(tuple(mine)).spread,
    )


def searched(
    ours: Worker, plain: Worker, peer: Worker | None, peer_name: str, exact: list[list[int]], size: Size
) -> list[Row]:
    """Questions in turns, beside the peer and beside plain SQLite."""
    total = f"{size.blocks * BLOCK:,}"
    sides: dict[str, tuple[Worker, bool, int]] = {
        "meaning": (ours, False, size.each), "plain meaning": (plain, False, size.each),
        "words": (ours, True, size.each), "plain words": (plain, True, size.each),
    }
    if peer is not None:
        sides["peer"] = peer, False, size.peer_each
    asked: dict[str, list[dict[str, list[Any]]]] = {name: [] for name in sides}
    for turn in range(-1, size.rounds):  # the first is for what a process loads once
        for name, (worker, words, count) in sides.items():
            said = worker.do("ask", first=max(turn, 0) * count, count=count, words=words)
            if turn >= 0:
                asked[name].append(said)
        if turn % 5 == 4:
            note(f"questions: turn {turn + 1} of {size.rounds}")

    def all_of(name: str, clock: str) -> list[float]:
        return [value for turn in asked[name] for value in turn[clock]]

    theirs = all_of("peer", "wall") if peer is not None else None
    rows = []
    for name, what, wanted in (("meaning", "by meaning", 150.0), ("words", "by meaning and words", None)):
        mine = all_of(name, "wall")
        for share, figure, bound in (("p50", median, wanted), ("p99", tail, None)):
            base = figure(theirs) if theirs is not None else None
            rows.append(Row(
                f"a search of {total} {what}, {share}", figure(mine), "ms", base, peer_name,
                base / figure(mine) if base is not None else None, bound,
                Times(tuple(mine)).spread if share == "p50" else None,
            ))
    rows.append(cost_row("the same by meaning, p50", rows[0].ours, "ms", 4.0, "limit", wanted=1.0))
    cpu, base = median(all_of("meaning", "cpu")), median(all_of("peer", "cpu")) if peer is not None else None
    ratio = base / cpu if base is not None else None
    rows.append(Row("the same by meaning, CPU, p50", cpu, "ms", base, peer_name, ratio))
    found = ours.do("ask", first=0, count=size.questions, words=False)["found"]
    recalled = recall(exact, found)
    rows.append(Row(f"recall@10 of {total}", recalled * 100, "%", 99.0, "limit", recalled / 0.99, 1.0))
    for name, what in (("meaning", "by meaning"), ("words", "by meaning and words")):
        mine, plains = ([sum(turn["cpu"]) for turn in asked[side]] for side in (name, f"plain {name}"))
        rows.append(_beside_plain(f"a search {what}, CPU", mine, plains, size.each, 1 / 1.05))
    return rows


def read(ours: Worker, plain: Worker, size: Size) -> list[Row]:
    """What is found by its key."""
    rows = []
    for what, name, more in (
        ("reading a passage with its neighbours, CPU", "read", {"of": size.blocks * BLOCK}),
        ("reading a setting, CPU", "setting", {}),
    ):
        spent: dict[Worker, list[float]] = {ours: [], plain: []}
        for turn in range(size.rounds + 1):
            for worker, times in spent.items():
                times.append(worker.do(name, first=turn, count=size.reads, **more)["cpu"])
        rows.append(_beside_plain(what, spent[ours][1:], spent[plain][1:], size.reads, 1 / 1.10))
    return rows


def profiled(ours: Worker, size: Size) -> list[Row]:
    """Where a question's CPU time goes."""
    rows = []
    page = _page_us()
    for words, what in ((False, "by meaning"), (True, "by meaning and words")):
        ours.do("ask", first=0, count=size.each, words=words)
        pages = ours.do("pages", first=size.each, count=size.questions - size.each, words=words)
        shares = ours.do("profile", first=0, count=size.questions, words=words)
        rows += [Row(f"a search {what}, of its CPU: {kind}", share * 100, "%", None, "", None)
                 for kind, share in shares.items()]
        rows += [
            Row(f"a search {what}, pages read", pages, "", None, "", None),
            Row(f"a search {what}, to decrypt and check them", pages * page, "us", None, "AES and HMAC alone", None),
        ]
    return rows


def _page_us() -> float:
    """What a page costs whoever decrypts it with AES-256-CBC and checks its HMAC-SHA512."""
    key, page, spent = bytes(32), bytes(_CONTENT), []
    for _ in range(2000):
        begun = time.thread_time()
        check = hmac.HMAC(key, hashes.SHA512())
        check.update(page)
        check.finalize()
        cipher = Cipher(algorithms.AES(key), modes.CBC(bytes(16))).decryptor()
        cipher.update(page)
        cipher.finalize()
        spent.append(time.thread_time() - begun)
    return median(spent) * 1e6


def million(folder: Path, exact: list[list[int]], size: Size) -> list[Row]:
    """The large store: filled, asked, and its memory."""
    total = f"{size.large * BLOCK:,}"
    with Worker(folder, "encrypted", name="large") as worker:
        for number in range(0, size.large, 10):
            worker.do("fill", first=number, count=min(10, size.large - number), each=_EACH_LARGE)
            if number % 100 == 90:
                note(f"filled with {(number + 10) * BLOCK:,} passages")
    rows = []
    with Worker(folder, "encrypted", name="large") as worker:
        before = worker.do("memory")["Pss"]
        for words, what, wanted in ((False, "by meaning", 1.0), (True, "by meaning and words", None)):
            worker.do("ask", first=0, count=size.each, words=words)
            said = worker.do("ask", first=0, count=size.questions, words=words)
            found = median(said["wall"])
            rows.append(cost_row(f"a search of {total} {what}, p50", found, "ms", 30.0, "limit", wanted=wanted,
                                 spread=Times(tuple(said["wall"])).spread))
            rows.append(Row(f"a search of {total} {what}, p99", tail(said["wall"]), "ms", None, "", None))
            if not words:
                rows.append(Row("the same, CPU, p50", median(said["cpu"]), "ms", None, "", None))
                share = recall(exact, said["found"])
                rows.append(Row(f"recall@10 of {total}", share * 100, "%", 98, "limit", share / 0.98, 1.0))
        rows.append(Row(f"memory for {total}", worker.do("memory")["Pss"] - before, "MiB", None, "", None))
    return rows


def unlocked(folder: Path, size: Size) -> list[Row]:
    """From the raw key to an answer, in fresh processes; and what memory there is more after many answers."""
    spent, more = [], []
    for number in range(size.unlocks):
        with Worker(folder, "encrypted") as worker:
            before = worker.do("memory")["Pss"]
            spent.append(worker.do("unlock", number=number))
            worker.do("ask", first=0, count=min(50, size.questions), words=True)
            more.append(worker.do("memory")["Pss"] - before)
    total = f"{size.blocks * BLOCK:,}"
    walls = [times["wall"] for times in spent]
    cpu = median(times["cpu"] for times in spent)
    return [
        cost_row(f"unlock to first answer, {total}, raw key", median(walls), "ms", 150.0, "limit", wanted=1.0,
                 spread=Times(tuple(walls)).spread),
        Row("the same, CPU", cpu, "ms", None, "", None),
        cost_row(f"memory for {total}, after {min(50, size.questions)} questions", median(more), "MiB", 40.0,
                 "limit over the process before", wanted=1.0, spread=Times(tuple(more)).spread),
    ]


async def ingested(folder: Path, embedding: LlamaEmbedder, size: Size) -> list[Row]:
    """The documentation's files through the product's ingest, and their passages through the embedder alone, in turns.
    """
    files, held = [], 0
    for path in sorted(documentation(), key=lambda path: path.stat().st_size):
        pieces = [
            piece.text
            for piece in chunks(parse(path.name, path.read_bytes()).blocks, embedding.count, EMBEDDER_TOKENS)
        ]
        files.append((path, pieces))
        held += len(pieces)
        if held >= size.ingested:
            break
    walls, cpus = [], []
    with Database.open(folder / "text.db", DatabaseKey.generate(), schema=STORE_SCHEMA) as database:
        ingest = Ingest(Documents(database), embedding)

        async def alone(pieces: list[str]) -> None:
            await embedding.embed(pieces)

        await alone(["warm"])
        for path, pieces in files:
            spent = []
            for work in (ingest.file(path, collection="benchmark"), alone(pieces)):
                wall, cpu = time.perf_counter(), time.process_time()
                await work
                spent.append((time.perf_counter() - wall, time.process_time() - cpu))
            walls.append((spent[0][0], spent[1][0], len(pieces)))
            cpus.append((spent[0][1], spent[1][1], len(pieces)))
    rows = []
    for what, turns, wanted in (("wall", walls, 0.9), ("CPU", cpus, None)):
        mine, theirs, count = (sum(column) for column in zip(*turns, strict=True))
        rows.append(Row(
            f"ingest of text, {count:,} passages in {len(files)} files, {what}", count / mine, "/s", count / theirs,
            "the embedder alone", theirs / mine, wanted,
        ))
    return rows


def run(made: Real, size: Size) -> list[Row]:
    extension, peer_name = sqlite_vec()
    with tempfile.TemporaryDirectory(prefix="causeway-bench-") as name:
        folder = Path(name)
        save(folder, made)
        note(f"exact search: {made.sources}")
        exact = exactly(made, size.blocks)
        with ExitStack() as stack:
            ours, plain = (stack.enter_context(Worker(folder, kind)) for kind in ("encrypted", "plain"))
            peer = stack.enter_context(Worker(folder, "peer", extension)) if extension is not None else None
            added = filled(ours, plain, peer, size)
            rows = searched(ours, plain, peer, f"{peer_name}, float, on SQLCipher", exact, size)
            rows += [*added, *read(ours, plain, size), *profiled(ours, size)]
        rows += unlocked(folder, size)
        for path in folder.glob("p*.db*"):
            path.unlink()
        note(f"exact search of {size.large * BLOCK:,}")
        rows += million(folder, exactly(made, size.large), size)
        note("ingest of text")
        return [*rows, *asyncio.run(ingested(folder, embedder(), size))]


if __name__ == "__main__":
    options = arguments("The encrypted store beside sqlite-vec and beside no encryption.")
    chosen = SMOKE if options.smoke else Size()
    show("store", run(load(passages=chosen.passages, questions=chosen.questions), chosen), as_json=options.json)

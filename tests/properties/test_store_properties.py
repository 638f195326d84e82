"""What must hold for all inputs: nearest codes, fusion, words without syntax, sealed files, and the queue's model."""

import asyncio
import tempfile
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from sqlcipher3 import dbapi2

import store.codes
import store.sealed
from store.codes import CodeIndex
from store.errors import StoreConflict, StoreCorrupt, StoreMisuse, WrongKey
from store.keys import Passphrase
from store.queue import FINAL_STATES, Queue
from store.search import fts_words, fuse
from store.vectors import PLANES, encode_codes, encode_rows, mixed
from tests.support.stores import open_store


def index_of(rows: np.ndarray, ids: list[int]) -> CodeIndex:
    """Each row a document of one passage, whose number is ten times less."""
    index = CodeIndex(1, rows.shape[1])
    connection, count = mock.Mock(), len(ids) // 2  # what is expected only makes room
    codes = [encode_codes(row[None]) for row in rows]
    found = [(id // 10, id, code) for id, code in zip(ids, codes, strict=True)]
    connection.execute.side_effect = lambda sql, _: found if "FROM codes" in sql else [(count,)]
    index.refresh(connection, added=1, removed=0)
    return index


@given(st.integers(0, 40), st.integers(1, 200), st.integers(1, 25), st.booleans(), st.integers(0, 2**32))
def test_nearest_is_by_levels_among_the_best_by_signs_among_the_least_hamming_distances(
    count: int, dimension: int, top: int, some: bool, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    step = 0.55 / dimension**0.5
    levels = rng.integers(-6, 6, (count, dimension))
    rows = ((levels + 0.5) * step).astype(np.float32)
    query = rng.standard_normal(dimension).astype(np.float32)
    ids = (10 * (1 + np.sort(rng.choice(1000, count, replace=False)))).tolist()
    among = rng.random(count) < 0.3 if some else np.ones(count, bool)
    distances = ((rows > 0) != (query > 0)).sum(axis=1)
    near = among & (distances <= max(sorted(distances[among])[:20], default=0))
    by_signs = (rows > 0) @ np.rint(query * (2.0 ** 21 / np.abs(query).sum()))
    near &= by_signs >= min(sorted(by_signs[near], reverse=True)[: top * 2], default=0)
    products = np.clip(levels, -4, 3).astype(np.float64) @ query
    with mock.patch.multiple(store.codes, _BY_DISTANCE=20, _BY_SIGNS=2):
        found = index_of(rows, ids).nearest(query, top, among if some else None)
    places = [ids.index(id) for id in found]
    assert len(set(found)) == len(found) == min(top, near.sum()) and all(near[place] for place in places)
    assert products[places] == pytest.approx(sorted(products[near], reverse=True)[:top], abs=1e-3)


@given(st.integers(0, 5), st.integers(1, 70))
def test_codes_and_rows_have_fixed_sizes(count: int, dimension: int) -> None:
    rows = np.ones((count, dimension), np.float32)
    assert len(encode_codes(rows)) == count * PLANES * ((dimension + 7) // 8)
    assert {len(row) for row in encode_rows(rows)} <= {2 * dimension}


SCORES = st.dictionaries(st.integers(0, 30), st.floats(-1, 50, allow_subnormal=False), max_size=20)


@given(SCORES, SCORES)
def test_fusion_keeps_everything_once_in_a_total_order(meaning: dict[int, float], words: dict[int, float]) -> None:
    fused = fuse(meaning, words)
    assert sorted(item for item, _ in fused) == sorted({*meaning, *words})
    assert [(-score, item) for item, score in fused] == sorted((-score, item) for item, score in fused)
    assert all(0 <= score <= 1 + 1e-9 for _, score in fused)
    larger = fuse({item: score * 4 for item, score in meaning.items()}, {i: score * 16 for i, score in words.items()})
    assert dict(larger) == pytest.approx(dict(fused)), "only how scores compare within their kind counts"


@given(SCORES)
def test_fusing_one_kind_keeps_its_order(scores: dict[int, float]) -> None:
    order = sorted(scores, key=lambda item: (-max(0.0, scores[item]), item))
    assert [item for item, _ in fuse(scores, {})] == order == [item for item, _ in fuse({}, scores)]


@given(st.integers(0, 4), st.floats(0, 2), st.integers(0, 2**32))
def test_what_is_mixed_has_length_1_and_lies_between(count: int, weight: float, seed: int) -> None:
    rows = np.random.default_rng(seed).standard_normal((count + 1, 8)).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    vector, others = rows[0], rows[1:]
    made = mixed(vector, others, weight)
    assert np.linalg.norm(made) == pytest.approx(1, abs=1e-5)
    if not count or not weight:
        assert made == pytest.approx(vector, abs=1e-6)
    else:
        assert made @ others.mean(axis=0) >= vector @ others.mean(axis=0) - 1e-5


@pytest.fixture(scope="module")
def words() -> dbapi2.Connection:
    connection = dbapi2.connect(":memory:")
    connection.execute("CREATE VIRTUAL TABLE words USING fts5 (title, text, tokenize='porter unicode61')")
    return connection


@given(text=st.text(max_size=200) | st.text('"*^:(){}+- ANDORTNEx\x00', max_size=60))
def test_no_text_is_syntax(words: dbapi2.Connection, text: str) -> None:
    found = fts_words(text)
    assert len(found) == len(set(found)) <= 64
    if found:
        words.execute("SELECT count(*) FROM words WHERE words MATCH ?", (" OR ".join(found),)).fetchone()


@given(data=st.data(), plaintext=st.binary(max_size=200))
def test_sealed_files_open_whole_or_not_at_all(data: st.DataObject, plaintext: bytes) -> None:
    passphrase = Passphrase("p")
    with (
        tempfile.TemporaryDirectory() as folder,
        mock.patch.object(store.sealed, "CHUNK_LEN", 32),
        mock.patch.object(store.sealed.os, "urandom", lambda n: bytes(n)),  # one salt, one derivation for all examples
    ):
        path = Path(folder) / "x"
        store.sealed.seal_file(path, plaintext, passphrase, purpose="p")
        assert store.sealed.open_file(path, passphrase, purpose="p") == plaintext
        sealed = path.read_bytes()
        start = data.draw(st.integers(30, len(sealed)))
        end = data.draw(st.integers(start, len(sealed)))
        altered = sealed[:start] + data.draw(st.binary(max_size=60)) + sealed[end:]
        path.write_bytes(altered)
        if altered != sealed:
            with pytest.raises((StoreCorrupt, WrongKey)):
                store.sealed.open_file(path, passphrase, purpose="p")


IDS = st.sampled_from([b"a", b"b", b"c", b"d"])
NOW = st.integers(0, 20)


class QueueModel(RuleBasedStateMachine):
    """The queue against a dictionary, with closing and opening in between."""

    @initialize()
    def start(self) -> None:
        self.folder = tempfile.TemporaryDirectory()
        self.runner = asyncio.Runner()
        self.model: dict[bytes, dict[str, object]] = {}
        self.open()

    def open(self) -> None:
        self.database = open_store(Path(self.folder.name) / "store.db")
        self.queue = Queue(self.database, "q")

    @rule()
    def reopen(self) -> None:
        self.database.close()
        self.open()

    @rule(id=IDS, payload=st.sampled_from([b"x", b"y"]), expires_at=NOW)
    def append(self, id: bytes, payload: bytes, expires_at: int) -> None:
        known = self.model.get(id)
        if known is not None and known["payload"] != payload:
            with pytest.raises(StoreConflict):
                self.runner.run(self.queue.append(id, payload, expires_at, now=0))
            return
        self.runner.run(self.queue.append(id, payload, expires_at, now=0))
        new = {"payload": payload, "expires_at": expires_at, "state": "waiting", "attempts": 0, "erased": False}
        self.model.setdefault(id, new)

    @rule(now=NOW, id=st.none() | IDS)
    def claim(self, now: int, id: bytes | None) -> None:
        ready = [
            key for key, row in self.model.items()
            if row["state"] == "waiting" and row["expires_at"] > now and id in (None, key)  # type: ignore[operator]
        ]
        claimed = self.runner.run(self.queue.claim(now=now, id=id))
        assert (claimed and claimed.id) == (ready[0] if ready else None)
        if ready:
            self.model[ready[0]]["state"] = "sent"
            self.model[ready[0]]["attempts"] += 1  # type: ignore[operator]

    @rule(id=st.none() | IDS)
    def release(self, id: bytes | None) -> None:
        sent = [row for key, row in self.model.items() if row["state"] == "sent" and id in (None, key)]
        assert self.runner.run(self.queue.release(id)) == len(sent)
        for row in sent:
            row["state"] = "waiting"

    @rule(id=IDS, state=st.sampled_from(FINAL_STATES), erase=st.booleans())
    def settle(self, id: bytes, state: str, erase: bool) -> None:
        if id not in self.model:
            with pytest.raises(StoreMisuse):
                self.runner.run(self.queue.settle(id, state))  # type: ignore[arg-type]
            return
        open_ = self.model[id]["state"] in ("waiting", "sent")
        assert self.runner.run(self.queue.settle(id, state, erase=erase)) == open_  # type: ignore[arg-type]
        if open_:
            self.model[id].update(state=state, erased=erase)

    @rule(now=NOW)
    def expire(self, now: int) -> None:
        past = [
            id for id, row in self.model.items()
            if row["state"] in ("waiting", "sent") and row["expires_at"] <= now  # type: ignore[operator]
        ]
        assert self.runner.run(self.queue.expire(now=now)) == past
        for id in past:
            self.model[id].update(state="expired", erased=True)

    @invariant()
    def same(self) -> None:
        if not hasattr(self, "queue"):
            return
        rows = self.runner.run(self.queue.list())
        assert [(r.id, r.state, r.attempts, r.payload, r.expires_at) for r in rows] == [
            (id, row["state"], row["attempts"], None if row["erased"] else row["payload"], row["expires_at"])
            for id, row in self.model.items()
        ]

    def teardown(self) -> None:
        if hasattr(self, "queue"):
            self.database.close()
            self.runner.close()
            self.folder.cleanup()


TestQueueModel = QueueModel.TestCase
TestQueueModel.settings = settings(stateful_step_count=25)

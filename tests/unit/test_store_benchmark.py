"""The store's benchmark: its own arithmetic against worked examples, and passages that are made the same each time."""

import cProfile
import pstats
import time
from pathlib import Path

import numpy as np
import pytest

from benchmarks.store import paired, recall, tail
from benchmarks.store_data import BLOCK, Real, Varied, documentation, merged, nearest, real
from benchmarks.store_worker import Worker, save, shares
from tests.support.fake_engine import FakeEmbedder


def rows(count: int, seed: int = 0) -> np.ndarray[tuple[int, int], np.dtype[np.float32]]:
    made = np.random.default_rng(seed).standard_normal((count, 384), np.float32)
    return made / np.linalg.norm(made, axis=1, keepdims=True)


def test_figures_of_worked_examples() -> None:
    assert recall([[1, 2], [3, 4]], [[2, 1], [4, 9]]) == 0.75
    assert recall([[1, 2]], [[]]) == 0
    assert tail([1.0] * 99 + [101.0]) == pytest.approx(2.0) and tail([3.0, 3.0]) == 3.0
    assert paired([2.0, 1.0, 4.0], [1.0, 1.0, 8.0]) == 1.0, "of turns taken together, and not of all"


def test_exact_neighbours_are_the_same_in_parts_and_at_once() -> None:
    held, asked = rows(3000), rows(7, seed=1)
    by_sorting = np.argsort(-(asked @ held.T), axis=1)[:, :10]
    found = None
    for start in range(0, 3000, BLOCK):
        found = merged(found, nearest(held[start : start + BLOCK], asked, 10, first=start))
    assert found is not None and (found[0] == by_sorting).all()
    assert (nearest(held, asked, 10)[0] == by_sorting).all()
    assert nearest(held[:4], asked, 10)[0].shape == (7, 4), "no more than there are"


def test_variations_begin_with_what_is_real_and_are_the_same_each_time() -> None:
    passages, held = [f"passage {n} " + "word " * n for n in range(1500)], rows(1500)
    made = [Varied(passages, held).block(number) for number in (0, 1, 7)]
    assert (made[0][0] == held[:1000]).all() and made[0][1] == passages[:1000]
    assert (made[1][0][:500] == held[1000:]).all() and not (made[1][0][500:] == held[:500]).all(axis=1).any()
    again, texts = Varied(passages, held).block(7)
    assert (again == made[2][0]).all() and texts == made[2][1] and set(texts) - set(passages)
    for vectors, _ in made:
        assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    own = (made[1][0][500:] * held[:500]).sum(axis=1)
    assert 0.5 < np.median(own) < 0.99, "near what they are made of"


async def test_without_shared_texts_documentation_serves(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = await real(FakeEmbedder(), passages=50, questions=9, folder=tmp_path / "absent")
    assert "is not there" in capsys.readouterr().err
    assert (len(made.passages), len(made.questions)) == (50, 9) and not set(made.passages) & set(made.questions)
    assert made.vectors.shape == (50, 384) and made.asked.shape == (9, 384)
    assert documentation()


def test_time_is_told_apart_by_who_took_it() -> None:
    assert shares({}) == {"SQLite": 0, "codes": 0, "the rest": 0}
    stats = {
        ("~", 0, "<method 'execute' of 'sqlcipher3.dbapi2.Connection' objects>"): (1, 1, 3.0, 3.0, {}),
        ("~", 0, "<method 'sum' of 'numpy.ndarray' objects>"): (1, 1, 1.0, 1.0, {}),
        ("/site-packages/numpy/linalg.py", 5, "norm"): (1, 1, 1.0, 1.0, {}),
        ("store/codes.py", 5, "nearest"): (1, 1, 2.0, 4.0, {}),
        ("store/vectors.py", 5, "fetch_rows"): (1, 1, 1.0, 1.0, {}),
        ("store/search.py", 9, "fuse"): (1, 1, 2.0, 10.0, {}),
    }
    assert shares(stats) == {"SQLite": 0.4, "codes": 0.4, "the rest": 0.2}
    profile = cProfile.Profile(time.thread_time)
    profile.enable()
    sorted(rows(100).tolist())
    profile.disable()
    assert sum(shares(pstats.Stats(profile).stats).values()) == pytest.approx(1)  # type: ignore[attr-defined]


def test_a_worker_s_plain_store_is_sqlite_and_its_encrypted_one_is_not(tmp_path: Path) -> None:
    passages = [f"the pump {n} has {n * 3} bar" for n in range(40)]
    save(tmp_path, Real(passages, rows(40), ["pump 3?", "pump 5?"], rows(40)[[3, 5]], ""))
    for kind in ("encrypted", "plain"):
        with Worker(tmp_path, kind) as worker:
            spent = worker.do("fill", first=0, count=1, each=500)
            assert spent["wall"] > 0 and spent["cpu"] > 0
            found = worker.do("ask", first=0, count=2, words=True, top=1)["found"]
            assert found == [[3], [5]], "places as they were put in"
            assert worker.do("read", first=0, count=3, of=1000)["cpu"] > 0
            assert worker.do("memory")["Pss"] > 1
    assert (tmp_path / "plain.db").read_bytes()[:16] == b"SQLite format 3\0"
    assert b"pump" in (tmp_path / "plain.db").read_bytes()
    encrypted = (tmp_path / "encrypted.db").read_bytes()
    assert encrypted[:6] != b"SQLite" and b"pump" not in encrypted

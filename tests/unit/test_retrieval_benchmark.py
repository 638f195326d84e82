"""The retrieval benchmark: its measure against worked examples, and a whole run on a collection made for it."""

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.retrieval import CachedEmbedder, load, ndcg, rows, run, smoke
from tests.support.fake_engine import FakeEmbedder

ROOT = Path(__file__).resolve().parent.parent.parent


@pytest.mark.parametrize(("ranked", "expected"), [
    (["a", "b", "c"], 1.0),
    (["b", "a", "c"], (1 + 2 / math.log2(3)) / (2 + 1 / math.log2(3))),
    (["x", "y", "a"], (2 / 2) / (2 + 1 / math.log2(3))),
    (["x"], 0.0),
    ([*"0123456789", "a"], 0.0),
])  # fmt: skip
def test_ndcg_of_worked_examples(ranked: list[str], expected: float) -> None:
    assert ndcg(ranked, {"a": 2, "b": 1}) == pytest.approx(expected)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    subjects = ["pump pressure", "valve noise", "hose length", "engine heat", "bilge water"]
    corpus = [{"id": str(n), "title": subject, "text": f"{subject} is measured here, case {n}."}
              for n, subject in enumerate(subjects)]
    corpus.append({"id": "empty", "title": "", "text": " "})
    asked = [{"id": n, "text": f"what of the {subject}?"} for n, subject in enumerate(subjects)]
    asked.append({"id": 9, "text": "nobody judged this"})
    for name, lines in (("corpus", corpus), ("queries", asked)):
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, lines)))
    judged = "\n".join(f"{n}\t{n}\t1\n{n}\tempty\t0" for n in range(5))
    (tmp_path / "qrels.tsv").write_text(f"query_id\tdoc_id\trelevance\n{judged}\n")
    return tmp_path


async def test_a_run_gives_every_way_its_figure(folder: Path) -> None:
    judged = load(folder)
    assert len(judged.questions) == 5 and judged.relevance["3"] == {"3": 1}
    told: list[str] = []
    outcome = await run(judged, FakeEmbedder(), told.append)
    assert told == ["line 6: it holds no text"]
    assert (outcome.documents, outcome.chunks, outcome.questions) == (5, 5, 5)
    assert outcome.scores.keys() == {"search", "words", "meaning", "ranks fused"}
    assert outcome.scores["search"] == 1.0, "each question has the words of one document alone"
    first, *others = rows(outcome, 2.0)
    assert (first.ratio, first.wanted) == (0.5, 1.0) and len(others) == 4
    assert smoke(judged) == judged


async def test_vectors_are_kept_between_runs(tmp_path: Path) -> None:
    path, inner = tmp_path / "kept.npz", FakeEmbedder()
    first = CachedEmbedder(inner, path)
    made = await first.embed(["one", "two", "one"])
    again = await first.embed(["two"])
    first.keep()
    kept = await CachedEmbedder(inner, path).embed(["one"])
    assert inner.embedded == 3 and (kept[0] == made[0]).all() and (again[0] == made[1]).all()


@pytest.mark.model
def test_the_command_in_its_smallest_size(folder: Path) -> None:
    def bench(*more: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "benchmarks.retrieval", "--data", str(folder), "--json", *more]
        return subprocess.run(command, capture_output=True, text=True, timeout=100, cwd=ROOT)

    done = bench("--smoke", "--cache", str(folder / "kept.npz"))
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)["rows"]
    assert len(found) == 5 and found[0]["ours"] == 100.0 and (folder / "kept.npz").exists()
    assert bench("--wanted", "1.01", "--cache", str(folder / "kept.npz")).returncode == 1

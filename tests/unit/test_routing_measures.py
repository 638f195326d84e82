"""The routing measures by hand, and a fit that finds what is there and nothing else."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks.routing import Measures, measures
from edge_client.router.difficulty import DifficultyModel
from scripts.train_router import Questions, across, calibrate, featurise, kept_gain, read

ROOT = Path(__file__).resolve().parent.parent.parent


def test_measures_of_ten_questions_by_hand() -> None:
    strong = np.ones(10)
    weak = np.array([0.0] * 5 + [1.0] * 5)
    perfect = measures(np.arange(10.0)[::-1], strong, weak)
    # Accuracy climbs from 50 to 100 % over the first half and stays: 25/100 * 1/2 + 1/2, less 1/2, over 1/2.
    assert perfect == Measures(pytest.approx(0.75), pytest.approx(25), pytest.approx(40))
    worst = measures(np.arange(10.0), strong, weak)
    assert worst == Measures(pytest.approx(0.25), pytest.approx(75), pytest.approx(90))


def test_equal_scores_share_a_threshold() -> None:
    strong, weak = np.ones(4), np.array([0.0, 0.0, 1.0, 1.0])
    assert measures(np.array([1.0, 1.0, 0.0, 0.0]), strong, weak).cpt50 == pytest.approx(25)


def test_a_random_score_is_worth_half() -> None:
    dice = np.random.default_rng(1)
    strong, weak = (dice.random(20_000) < chance for chance in (0.8, 0.6))
    found = [measures(dice.random(20_000), strong.astype(float), weak.astype(float)) for _ in range(5)]
    assert np.mean([one.apgr for one in found]) == pytest.approx(0.5, abs=0.03)


def planted(count: int = 600) -> Questions:
    """Of six subjects and one length, which has its fixed part; the weak model fails what names a lattice."""
    dice = np.random.default_rng(2)
    hard = dice.random(count) < 0.5
    filler = ["water", "stone", "river", "cloud", "field"]
    prompts = tuple(
        " ".join([*dice.choice(filler, 9), "lattice" if one else "gardens"]) for one in hard
    )
    tasks = np.array([f"subject{place % 6}" for place in range(count)])
    return Questions(prompts, tasks, np.ones(count), (~hard).astype(float))


def test_a_fit_finds_a_word_in_subjects_it_did_not_see() -> None:
    questions = planted()
    scores = across(questions, *featurise(questions.prompts))
    assert measures(scores, questions.strong, questions.weak).apgr > 0.7
    slope, intercept = calibrate(scores, 1 - questions.weak)
    chance = 1 / (1 + np.exp(-(slope * scores + intercept)))
    assert slope > 0 and chance.mean() == pytest.approx((1 - questions.weak).mean(), abs=1e-6)
    kept = kept_gain(scores, questions.strong, questions.weak)
    assert kept[0] == 0 and kept[-1] == 1 and kept == sorted(kept)


def test_the_script_writes_a_model_that_the_router_reads(tmp_path: Path) -> None:
    questions = planted(240)
    rows = [
        {"prompt": prompt, "task": task, "strong_correct": 1, "weak_correct": int(weak), "decontaminated": int(kept)}
        for prompt, task, weak, kept in zip(
            questions.prompts, questions.tasks.tolist(), questions.weak, [1] * 239 + [0], strict=True
        )
    ]
    (tmp_path / "mmlu_train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert len(read(tmp_path / "mmlu_train.jsonl").prompts) == 239
    out = tmp_path / "model.json"
    done = subprocess.run(
        [sys.executable, ROOT / "scripts" / "train_router.py", "--data", tmp_path, "--out", out],
        capture_output=True, text=True, timeout=100, check=True,
    )  # fmt: skip
    assert "239 questions of 6 subjects" in done.stdout
    model = DifficultyModel.parse(out.read_bytes())
    assert model.of("river stone water lattice field").score > model.of("river stone water gardens field").score


def test_without_its_data_the_benchmark_says_where_it_looked(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.routing", "--data", tmp_path], capture_output=True, text=True, timeout=100,
        cwd=ROOT,
    )  # fmt: skip
    assert done.returncode == 2 and str(tmp_path) in done.stderr and not done.stdout

"""The router's difficulty by RouteLLM's measures, always beside plain prompt length.

    scripts/bench routing [--smoke] [--json] [--data DIRECTORY]

Each question was answered by a strong and a weak model, and is sent to the strong one where its score reaches a
threshold. APGR is the area under accuracy over the share sent, as a part of the way from the weak model's to the strong
one's; CPT(p) is the share in percent that has to be sent for the part p of the gain. A random router has APGR 0.5 and
CPT(p) = 100 p. Subjects are never shared between what is fitted and what is measured here.
"""

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.measure import Row, cost_row, note, show
from edge_client.router.difficulty import shipped
from scripts.train_router import Floats, Questions, across, featurise, read

DATA = Path(__file__).resolve().parent.parent.parent / "shared" / "data" / "routing"
LEVELS = 10
LENGTH = "prompt length"
LAW = "mmlu/professional_law"


@dataclass(frozen=True)
class Measures:
    apgr: float
    cpt50: float
    cpt80: float


def measures(scores: Floats, strong: Floats, weak: Floats) -> Measures:
    """RouteLLM's evaluate.py: thresholds at the edges of ten equal counts, from all sent to none sent."""
    edges = np.unique(np.quantile(scores, np.linspace(0, 1, LEVELS + 1)))
    points = []
    for edge in edges:
        sent = scores > edge if edge == edges[-1] else scores >= edge
        points.append((100 * sent.mean(), 100 * np.where(sent, strong, weak).mean()))
    share, accuracy = np.array(sorted(points)).T
    low, high = 100 * weak.mean(), 100 * strong.mean()

    def area(heights: Floats) -> float:
        return float(np.trapezoid(heights, share / 100))

    none, everything = area(np.full_like(share, low)), area(np.full_like(share, high))
    cpt50, cpt80 = (float(np.interp(low + part * (high - low), accuracy, share)) for part in (0.5, 0.8))
    return Measures((area(accuracy) - none) / (everything - none), cpt50, cpt80)


def lengths(prompts: Sequence[str]) -> Floats:
    return np.array([len(prompt) for prompt in prompts], float)


def rows_of(what: str, ours: Sequence[Floats], questions: Questions) -> list[Row]:
    """Three rows; of several runs' scores the mean."""
    runs = [measures(scores, questions.strong, questions.weak) for scores in ours]
    mine = Measures(*(float(np.mean([getattr(run, name) for run in runs])) for name in ("apgr", "cpt50", "cpt80")))
    theirs = measures(lengths(questions.prompts), questions.strong, questions.weak)
    return [
        Row(f"APGR, {what}", mine.apgr, "", theirs.apgr, LENGTH, mine.apgr / theirs.apgr, 1.0),
        cost_row(f"CPT(50 %), {what}", mine.cpt50, "%", theirs.cpt50, LENGTH, wanted=1.0),
        cost_row(f"CPT(80 %), {what}", mine.cpt80, "%", theirs.cpt80, LENGTH, wanted=1.0),
    ]


def certainty(scores: Floats, questions: Questions, resamples: int) -> float:
    """The share of resamples of the questions in which the APGR of `scores` is above that of length."""
    dice = np.random.default_rng(0)
    length = lengths(questions.prompts)
    above = 0
    for _ in range(resamples):
        drawn = dice.integers(0, len(scores), len(scores))
        strong, weak = questions.strong[drawn], questions.weak[drawn]
        above += measures(scores[drawn], strong, weak).apgr > measures(length[drawn], strong, weak).apgr
    return above / resamples


def run(data: Path, *, smoke: bool) -> list[Row]:
    model = shipped()
    resamples = 40 if smoke else 1000
    dev = read(data / "mmlu_dev.jsonl")
    started = time.thread_time()
    scores = np.array([model.of(prompt).score for prompt in dev.prompts])
    cost = 1000 * (time.thread_time() - started) / len(scores)
    rows = rows_of("dev file, 6 other subjects", [scores], dev)
    rows.append(Row("resamples of the dev file in which APGR is above", 100 * certainty(scores, dev, resamples), "%",
                    None, LENGTH, None))
    error = 100 * abs(float(scores.mean() - (1 - dev.weak).mean()))
    rows.append(Row("mean difficulty against the weak model's errors, dev file", error, "points", None, "", None))
    rows.append(Row("CPU time for one prompt", cost, "ms", 1.0, "the bound", 1.0 / cost, 1.0))
    note("scoring subjects held out of the training file")
    train = read(data / "mmlu_train.jsonl")
    shapes, words = featurise(train.prompts)
    held = [across(train, shapes, words, seed=seed) for seed in range(1 if smoke else 5)]
    rows += rows_of("22 subjects, each held out of the fit", held, train)
    rows.append(Row("resamples of the 22 in which APGR is above", 100 * certainty(held[0], train, resamples), "%", None,
                    LENGTH, None))
    rest = train.tasks != LAW
    rows += rows_of("the same without professional_law", [scores[rest] for scores in held], train.where(rest))
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(prog="scripts/bench", description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--smoke", action="store_true", help="a short run, whose numbers are rough")
    parser.add_argument("--json", action="store_true", help="one JSON object on standard output")
    parser.add_argument("--data", type=Path, default=DATA, help="where mmlu_train.jsonl and mmlu_dev.jsonl are")
    given = parser.parse_args()
    if not (given.data / "mmlu_dev.jsonl").is_file():
        note(f"there is no routing data in {given.data}; name its directory with --data")
        return 2
    show("routing", run(given.data, smoke=given.smoke), as_json=given.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())

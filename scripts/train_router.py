"""Fits the router's difficulty model and writes edge_client/router/difficulty.json.

    python scripts/train_router.py [--data ../shared/data/routing] [--out FILE]

Two ridge regressions in one: what predicts that the weaker model is wrong, plus a fixed share of plain length. Wrong
answers of the weaker model alone would prefer questions that the stronger one fails, too; length finds those where it
does not. Everything that was chosen (penalties, that share, the features) was chosen on
whole subjects held out of the training file (benchmarks/routing.py shows them); the dev file takes no part in the fit.
"""

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from edge_client.router.difficulty import CLIP  # noqa: E402
from edge_client.router.features import BUCKETS, NAMES, shape_of, words_of  # noqa: E402

Floats = NDArray[np.float64]

SHAPE_PENALTY = 1000.0
WORDS_PENALTY = 10.0
LENGTH_SHARE = 1.5  # standard deviations of length for one of the fitted score
FOLDS = 7
LEVELS = 20  # steps of the quantiles that are kept


@dataclass(frozen=True)
class Questions:
    prompts: tuple[str, ...]
    tasks: NDArray[np.str_]
    strong: Floats
    weak: Floats

    def where(self, mask: NDArray[np.bool_]) -> "Questions":
        prompts = tuple(prompt for prompt, kept in zip(self.prompts, mask, strict=True) if kept)
        return Questions(prompts, self.tasks[mask], self.strong[mask], self.weak[mask])


@dataclass(frozen=True)
class Fitted:
    """Weights per standardised feature, then per bucket."""

    means: Floats
    scales: Floats
    weights: Floats

    def scores(self, shapes: Floats, words: Floats) -> Floats:
        standard = np.clip((shapes - self.means) / self.scales, -CLIP, CLIP)
        scores: Floats = standard @ self.weights[: len(NAMES)] + words @ self.weights[len(NAMES) :]
        return scores


def read(path: Path) -> Questions:
    """Rows of a routing file that its README lets count. Raises OSError, ValueError or KeyError."""
    with path.open(encoding="utf-8") as lines:
        rows: list[dict[str, Any]] = [row for row in map(json.loads, lines) if row["decontaminated"]]
    strong, weak = (np.array([row[name] for row in rows], float) for name in ("strong_correct", "weak_correct"))
    return Questions(tuple(row["prompt"] for row in rows), np.array([row["task"] for row in rows]), strong, weak)


def featurise(prompts: Sequence[str]) -> tuple[Floats, Floats]:
    """Shapes (n, len(NAMES)) and words (n, BUCKETS)."""
    words = np.zeros((len(prompts), BUCKETS))
    for row, prompt in enumerate(prompts):
        bag = words_of(prompt)
        words[row, list(bag)] = list(bag.values())
    return np.array([shape_of(prompt) for prompt in prompts]), words


def fit(questions: Questions, shapes: Floats, words: Floats) -> Fitted:
    means, scales = shapes.mean(0), np.maximum(shapes.std(0), 0.001)  # what never varies tells nothing
    columns = np.hstack([np.clip((shapes - means) / scales, -CLIP, CLIP), words])
    sizes = {task: int((questions.tasks == task).sum()) for task in set(questions.tasks.tolist())}
    # By the root of its size: the largest subject has fifteen times the questions of the smallest, and is one subject.
    weight = np.array([sizes[task] ** -0.5 for task in questions.tasks.tolist()])
    weight /= weight.mean()
    wrong = 1 - questions.weak
    centred = columns - np.average(columns, axis=0, weights=weight)
    penalty = np.r_[np.full(len(NAMES), SHAPE_PENALTY), np.full(BUCKETS, WORDS_PENALTY)]
    weighted = centred * weight[:, None]
    solved = np.linalg.solve(weighted.T @ centred + np.diag(penalty), weighted.T @ (wrong - wrong.mean()))
    weights = solved / (columns @ solved).std()
    weights[NAMES.index("length")] += LENGTH_SHARE
    return Fitted(means, scales, weights)


def across(questions: Questions, shapes: Floats, words: Floats, *, seed: int = 0) -> Floats:
    """A score for each question from a fit that saw none of its subject; in turns of whole subjects."""
    tasks = sorted(set(questions.tasks.tolist()))
    np.random.default_rng(seed).shuffle(tasks)
    scores = np.zeros(len(questions.tasks))
    for fold in range(FOLDS):
        held = np.isin(questions.tasks, tasks[fold::FOLDS])
        if held.any():
            fitted = fit(questions.where(~held), shapes[~held], words[~held])
            scores[held] = fitted.scores(shapes[held], words[held])
    return scores


def calibrate(scores: Floats, wrong: Floats) -> tuple[float, float]:
    """Slope and intercept of the logistic curve through held-out scores (Platt), by Newton's method."""
    inputs = np.column_stack([scores, np.ones_like(scores)])
    curve = np.zeros(2)
    for _ in range(50):
        chance = 1 / (1 + np.exp(-inputs @ curve))
        hessian = (inputs * (chance * (1 - chance))[:, None]).T @ inputs
        step = np.linalg.solve(hessian + 1e-9 * np.eye(2), inputs.T @ (wrong - chance))
        curve = curve + step
        if np.abs(step).max() < 1e-10:
            break
    return float(curve[0]), float(curve[1])


def kept_gain(scores: Floats, strong: Floats, weak: Floats) -> list[float]:
    """For shares 0, 1/LEVELS ... 1 sent away by `scores`: which share of the whole gain that keeps; never falling."""
    gains = np.cumsum((strong - weak)[np.argsort(-scores, kind="stable")]) / (strong - weak).sum()
    places = np.linspace(0, len(scores), LEVELS + 1).round().astype(int)
    kept = [0.0, *(float(gains[place - 1]) for place in places[1:])]
    return [min(1.0, float(value)) for value in np.maximum.accumulate(kept)]


def bare(prompt: str) -> str:
    """An exam question as somebody would ask it, without the choice of answers."""
    return prompt.partition("\nA. ")[0]


def model_of(questions: Questions) -> dict[str, Any]:
    """The model file's content."""
    shapes, words = featurise(questions.prompts)
    held_out = across(questions, shapes, words)
    slope, intercept = calibrate(held_out, 1 - questions.weak)
    fitted = fit(questions, shapes, words)
    weights = fitted.weights * slope
    unit = round(float(np.abs(weights[len(NAMES) :]).max() / 127), 7)
    asked = fitted.scores(*featurise([bare(prompt) for prompt in questions.prompts]))
    chances = 1 / (1 + np.exp(-(asked * slope + intercept)))
    return {
        "features": list(NAMES),
        "means": _rounded(fitted.means), "scales": _rounded(fitted.scales), "weights": _rounded(weights[: len(NAMES)]),
        "intercept": round(intercept, 5), "word_unit": unit,
        "words": np.round(weights[len(NAMES) :] / unit).astype(int).tolist(),
        "thresholds": _rounded(np.quantile(chances, np.linspace(1, 0, LEVELS + 1))),
        "kept": _rounded(np.array(kept_gain(held_out, questions.strong, questions.weak))),
    }


def _rounded(values: Floats) -> list[float]:
    return [round(float(value), 5) for value in values]


def main(tell: Callable[[str], None] = print) -> int:
    parser = argparse.ArgumentParser(description="fits the router's difficulty model")
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data" / "routing")
    parser.add_argument("--out", type=Path, default=ROOT / "edge_client" / "router" / "difficulty.json")
    given = parser.parse_args()
    questions = read(given.data / "mmlu_train.jsonl")
    model = model_of(questions)
    given.out.write_text(json.dumps(model, separators=(",", ":")) + "\n", encoding="utf-8")
    tell(f"{len(questions.prompts)} questions of {len(set(questions.tasks.tolist()))} subjects; {given.out.name} has "
         f"{given.out.stat().st_size} bytes")
    for name, weight in zip(NAMES, model["weights"], strict=True):
        tell(f"  {name:12} {weight:+.3f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

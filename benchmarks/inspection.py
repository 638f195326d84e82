"""What the injection classifier tells apart, and what it costs, beside word lists on the same data.

    scripts/bench inspection [--smoke] [--json] [--data DIRECTORY]

The peer is what most people would try first: TF-IDF over words, pairs of words and runs of 3 and 4 letters, with
logistic regression, fitted here on the same training file. Both are judged on the sets that took no part in either fit.
`dev` is of the training's own sources, and flatters both; docs/INSPECTION.md has more.
"""

import argparse
import json
import sys
import zlib
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.measure import Row, cost_row, in_turns, note, show
from relay.gateway.inspection.inspector import Inspector
from relay.gateway.inspection.model import shipped
from relay.gateway.inspection.normalise import cleaned
from relay.gateway.inspection.tokens import words_of
from scripts.injection_measures import auc, recall_at

DATA = Path(__file__).resolve().parent.parent.parent / "shared" / "data" / "injection"
PEER = "TF-IDF, logistic regression"
SIZE = 1 << 18
SENTENCE = "The committee met on Tuesday to go through the budget of the year, and the secretary took the minutes. "
QUESTION = "Could you please tell me how many litres of water the old pump in the cellar moves in one hour today?"

Counted = tuple[NDArray[np.int64], NDArray[np.float64]]


def counted(text: str) -> Counted:
    words = words_of(cleaned(text))
    found = [*words, *(f"{one} {two}" for one, two in pairwise(words))]
    for word in words:
        found += [f"<{word}>"[at : at + size] for size in (3, 4) for at in range(len(word) + 3 - size)]
    numbers = Counter(zlib.crc32(one.encode("utf-8", "replace")) % SIZE for one in found)
    return np.array(list(numbers), np.int64), 1 + np.log(np.array(list(numbers.values()), float))


class WordLists:
    """Fitted by Adam on all rows at once; balanced between the labels."""

    def __init__(self, texts: Sequence[str], labels: NDArray[np.float64], *, steps: int) -> None:
        rows = [counted(text) for text in texts]
        seen = np.bincount(np.concatenate([numbers for numbers, _ in rows]), minlength=SIZE)
        self._idf = np.log((1 + len(rows)) / (1 + seen)) + 1
        lines = np.repeat(np.arange(len(rows)), [len(numbers) for numbers, _ in rows])
        columns, values = np.concatenate([n for n, _ in rows]), np.concatenate([self._scaled(row) for row in rows])
        weights = np.where(labels == 1, 0.5 / labels.mean(), 0.5 / (1 - labels.mean()))
        self._weights, first, second, bias = np.zeros(SIZE), np.zeros(SIZE), np.zeros(SIZE), 0.0
        for step in range(1, steps + 1):
            logits = np.bincount(lines, self._weights[columns] * values, len(rows)) + bias
            error = weights * (1 / (1 + np.exp(-logits)) - labels)
            slope = np.bincount(columns, error[lines] * values, SIZE) + self._weights
            first += 0.1 * (slope - first)
            second += 0.01 * (slope * slope - second)
            rate = 0.2 * (1 - step / (steps + 1))
            self._weights -= rate * first / (1 - 0.9**step) / (np.sqrt(second / (1 - 0.99**step)) + 1e-8)
            bias -= rate * error.mean()

    def _scaled(self, row: Counted) -> NDArray[np.float64]:
        values: NDArray[np.float64] = row[1] * self._idf[row[0]]
        return values / np.sqrt((values * values).sum() + 1e-9)

    def score(self, text: str) -> float:
        row = counted(text)
        return float(self._weights[row[0]] @ self._scaled(row))


def run(data: Path, *, smoke: bool) -> list[Row]:
    def read(name: str) -> tuple[list[str], list[int]]:
        lines = [json.loads(line) for line in (data / f"{name}.jsonl").read_bytes().splitlines()]
        kept = lines[:: 8 if smoke else 1]
        return [line["text"] for line in kept], [line["label"] for line in kept]

    note("fitting the peer")
    texts, labels = read("train")
    peer = WordLists(texts, np.array(labels, float), steps=20 if smoke else 150)
    inspector = Inspector(shipped())
    rows: list[Row] = []
    for name in ("dev", "dev_ood"):
        texts, labels = read(name)
        ours, theirs = [inspector.of(text).score for text in texts], [peer.score(text) for text in texts]
        for what, one, other in (
            ("AUC", auc(labels, ours), auc(labels, theirs)),
            ("recall at 1 % false alarms", recall_at(labels, ours, 0.01), recall_at(labels, theirs, 0.01)),
        ):
            rows.append(Row(f"{name}: {what}", 100 * one, "%", 100 * other, PEER, one / other if other else None))
        if name == "dev_ood":
            limit = np.quantile(np.array(theirs)[np.array(labels) == 0], 0.99)
            texts, _ = read("dev_overdefense")
            let = sum(inspector.of(text).verdict != "block" for text in texts) / len(texts)
            rows.append(Row("harmless with trigger words, not blocked", 100 * let, "%",
                            100 * sum(peer.score(text) <= limit for text in texts) / len(texts), PEER, None))
    long = (SENTENCE * 200)[: 16 << 10]
    for what, text, wanted in (
        ("20 words", QUESTION, None), ("512 tokens", SENTENCE * 24, 1000.0), ("16 KB", long, None),
    ):
        times = in_turns(
            {"ours": lambda text=text: inspector.judged(text), "peer": lambda text=text: peer.score(text)},  # type: ignore[misc]
            rounds=3 if smoke else 9, turn_s=0.02 if smoke else 0.3,
        )
        mine = 1e6 * times["ours"].median
        rows.append(cost_row(f"{what}: CPU", mine, "us", 1e6 * times["peer"].median, PEER, wanted=None,
                             spread=times["ours"].spread))
        if wanted is not None:
            rows.append(Row(f"{what}: of the 1 ms it may take", 100 * mine / wanted, "%", None, "", None))
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(prog="scripts/bench", description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--smoke", action="store_true", help="a short run, whose numbers are rough")
    parser.add_argument("--json", action="store_true", help="one JSON object on standard output")
    parser.add_argument("--data", type=Path, default=DATA, help="where train.jsonl and dev_ood.jsonl are")
    given = parser.parse_args()
    if not (given.data / "dev_ood.jsonl").is_file():
        note(f"there is no injection data in {given.data}; name its directory with --data")
        return 2
    show("inspection", run(given.data, smoke=given.smoke), as_json=given.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())

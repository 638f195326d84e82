"""`scripts/bench whisper`: what do sizes and times of streamed answers tell a hop? Classifiers against each mode.

Traces are those of benchmarks/streamed.py: the same answers in `off`, `bucket` and `constant`, and by TLS + SSE.

**Attacks.** `topic`: prose or code. `length within a rung`: is an answer longer, in tokens, than the median of those
whose cells in `bucket` come to the same rung; classifiers are told the rung (features are scaled within it, as in the
traces they learn from), and the AUC is taken within each rung and averaged by pairs, for every mode over the same
answers. `constant` has no rungs: there `length in a lifetime` asks for longer or shorter than the median
of all, within sessions of one fixed lifetime. `any length`, for `bucket`, is the same question, and shows what the
rungs themselves tell.

**Views.** `sizes`: the record sizes in their order, with directions and without times. `bursts`: the same of the bytes
that leave at one moment. `times`: the moments and directions of records, without sizes. `all`: everything.

**Classifiers.** Counts, totals, histograms, quantiles, autocorrelations and the first 24 values of what the view has,
and where a tail may begin (the numbers become even, or bring nothing new), into gradient boosting and logistic
regression; the better of the two means counts. 70 % of the traces train and 30 %
test, over five divisions (two in a smoke run). A watcher knows the protocol, the software and both topics. Where no
feature differs between traces there is nothing to train, and the AUC is 0.5.

**Ratio.** (peer's AUC - 0.5) / max(|our AUC - 0.5|, 0.005): how many times more the peer gives away. `spread` is the
interquartile range of the divisions over their median.
"""

import math
import os
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from statistics import mean, median, quantiles
from typing import Final

os.environ.setdefault("OMP_NUM_THREADS", "1")  # one process a core, one thread a process

import numpy as np

from benchmarks import peers
from benchmarks.measure import Row, arguments, cost_row, note, show
from benchmarks.streamed import DOWN, LIFETIME_S, UP, Script, Stage, Trace, over_tls, script
from transport.messages import Padding
from transport.pacing import BUCKET_CELL, TICK_S, rung

SEED: Final = 3
TLS: Final = "TLS + SSE"
MODES: Final = (Padding.OFF, Padding.BUCKET, Padding.CONSTANT)
FIRST: Final = 24
CELL: Final = BUCKET_CELL + 18  # bytes on the wire
FLOOR: Final = 0.005
TEST_SHARE: Final = 0.3
STRATUM_MIN: Final = 4  # test traces of each class in a rung, to be counted
SIZE_EDGES: Final = (0, 50, 60, 80, 100, 147, 180, 200, 204, 206, 208, 210, 212, 214, 218, 240, 300, 450, 531, 1e9)
GAP_EDGES: Final = (-1, 1e-4, 1e-3, 5e-3, 0.01, 0.015, 0.02, 0.03, 0.04, 0.06, 0.09, 0.11, 0.15, 0.25, 0.5, 1, 1e9)
WANTED_BUCKET: Final = 0.1  # at most so far from chance, from sizes
WANTED_CONSTANT: Final = 0.02

Features = list[float]


# --- features -------------------------------------------------------------------------------------------------------


def _series(values: np.ndarray, edges: tuple[float, ...]) -> Features:
    """What one series of numbers has to say."""
    if not len(values):
        values = np.zeros(1)
    centred = values - values.mean()
    power = float((centred**2).sum())
    lags = [float((centred[:-k] * centred[k:]).sum()) / power if power > 1e-12 and len(values) > k else 0.0
            for k in range(1, 6)]
    first = np.zeros(FIRST)
    first[: min(FIRST, len(values))] = values[:FIRST]
    shares = np.histogram(values, edges)[0] / len(values)
    return [
        float(len(values)), math.log(len(values)), float(values.sum()), float(values.mean()), float(values.std()),
        *np.quantile(values, (0, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 1)).tolist(), *lags, *shares.tolist(),
        *first.tolist(),
    ]


def _moments(trace: Trace) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(time, records, bytes) of each moment at which the gateway sends."""
    down = trace.way == DOWN
    at, where = np.unique(trace.at[down], return_inverse=True)
    return at, np.bincount(where).astype(float), np.bincount(where, weights=trace.size[down])


def _sizes(trace: Trace) -> Features:
    up = trace.size[trace.way == UP]
    return [*_series(trace.size[trace.way == DOWN], SIZE_EDGES), float(len(up)), float(up.sum()), *_padded(up, 6)]


def _bursts(trace: Trace) -> Features:
    _, _, sent = _moments(trace)
    edges = (0, 147, 293, 439, 585, 731, 877, 1023, 1169, 1315, 1461, 1e9)
    return [*_series(sent, edges), *_tail(sent, CELL), *_repeats(_at_each_tick(trace, sent))]


def _times(trace: Trace) -> Features:
    at, records, _ = _moments(trace)
    up, tail = trace.at[trace.way == UP], _tail(records, 1.0)
    along = np.histogram(trace.at[trace.way == DOWN], 16, (0, LIFETIME_S))[0]
    return [
        *_series(np.diff(trace.at[trace.way == DOWN]), GAP_EDGES), *_series(np.diff(at), GAP_EDGES),
        *_series(records, (0, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 13, 1e9)), *tail, float(at[0]), float(at[-1]),
        float(at[-1] - at[0]), float(at[max(0, int(tail[2]) - 1)]), float(len(up)),
        *_repeats(_at_each_tick(trace, records)),
        *_padded(up, 6), *along.tolist(),
    ]


def _all(trace: Trace) -> Features:
    return [*_sizes(trace), *_bursts(trace), *_times(trace)]


def _tail(values: np.ndarray, cell: float) -> Features:
    """Where a series becomes even, but for its last value: dummy cells come as many a tick until the rung is reached.

    (evenness in values, what came before it, in how many moments, and the text in that if half a cell a tick is empty)
    """
    body = values[:-1] if len(values) > 1 else values
    others = np.flatnonzero(body != body[-1])
    before = int(others[-1]) + 1 if len(others) else 0
    sent = float(values[:before].sum())
    return [float(len(values) - before), sent, float(before), sent - before * cell / 2, float(body[-1])]


def _at_each_tick(trace: Trace, values: np.ndarray) -> np.ndarray:
    """The same with zeros for the ticks between, as far as the moments are at ticks."""
    at, _, _ = _moments(trace)
    ticks = np.round((at - at[0]) / TICK_S).astype(int)
    out = np.zeros(ticks[-1] + 1)
    np.add.at(out, ticks, values)
    return out


def _repeats(values: np.ndarray) -> Features:
    """Where a series ceases to bring anything new: a tail is made of stretches of what came before it.

    For one, two and three values in a row: the last place where they come for the first time, as a number of values and
    as what was sent by then; and the share of such rows that came before, in all and in the last third.
    """
    out: Features = []
    body = values[:-1].tolist()  # what is left for the last tick is anything
    for n in (1, 2, 3):
        seen: set[tuple[float, ...]] = set()
        last, known = 0, []
        for start in range(len(body) - n + 1):
            row = tuple(body[start : start + n])
            known.append(row in seen)
            if row not in seen:
                seen.add(row)
                last = start + n
        late = known[2 * len(known) // 3 :]
        out += [float(last), float(sum(body[:last])), mean(known or [0]), mean(late or [0])]
    return out


def _padded(values: np.ndarray, count: int) -> Features:
    return [*values[:count].tolist(), *[0.0] * (count - len(values))]


VIEWS: Final[dict[str, Callable[[Trace], Features]]] = {
    "sizes": _sizes, "bursts": _bursts, "times": _times, "all": _all,
}


# --- attacks --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Attack:
    """Features, labels and strata of the same traces."""

    features: np.ndarray
    labels: np.ndarray
    strata: np.ndarray

    def run(self, divisions: int) -> list[float]:
        """The AUC of each division, of the classifier that is better on the whole."""
        differs = np.ptp(self.features, axis=0) > 0
        if not differs.any():
            return [0.5] * divisions
        kept = Attack(self.features[:, differs], self.labels, self.strata)
        each = [kept._divided(seed) for seed in range(divisions)]
        return max(([pair[k] for pair in each] for k in range(2)), key=mean)

    def _divided(self, seed: int) -> tuple[float, float]:
        from sklearn.ensemble import HistGradientBoostingClassifier
        from sklearn.linear_model import LogisticRegression
        from sklearn.model_selection import train_test_split

        train, test = train_test_split(
            np.arange(len(self.labels)), test_size=TEST_SHARE, random_state=seed, stratify=self.labels
        )
        features = self._scaled(train)
        aucs = []
        for model in (
            HistGradientBoostingClassifier(max_iter=60, max_leaf_nodes=12, min_samples_leaf=10, random_state=seed),
            LogisticRegression(C=0.1, max_iter=300),
        ):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                model.fit(features[train], self.labels[train])
            aucs.append(self._auc(model.predict_proba(features[test])[:, 1], test))
        return aucs[0], aucs[1]

    def _scaled(self, train: np.ndarray) -> np.ndarray:
        """To mean 0 and deviation 1 within each stratum, as far as the training traces tell."""
        features = np.zeros_like(self.features)
        for stratum in np.unique(self.strata):
            known = self.features[train][self.strata[train] == stratum]
            if len(known):
                here = self.strata == stratum
                deviation = known.std(axis=0)
                # A feature that never differed in training is kept within bounds if it does in the test.
                scaled = (self.features[here] - known.mean(axis=0)) / np.where(deviation > 0, deviation, 1.0)
                features[here] = np.clip(scaled, -10, 10)
        return features

    def _auc(self, scores: np.ndarray, test: np.ndarray) -> float:
        """Within strata, weighted by the pairs they have."""
        from sklearn.metrics import roc_auc_score

        total = weight = 0.0
        for stratum in np.unique(self.strata[test]):
            here = self.strata[test] == stratum
            labels = self.labels[test][here]
            ones = int(labels.sum())
            if min(ones, len(labels) - ones) >= STRATUM_MIN:
                pairs = ones * (len(labels) - ones)
                total += pairs * roc_auc_score(labels, scores[here])
                weight += pairs
        return float(total / weight)


def _longer(lengths: np.ndarray, strata: np.ndarray) -> np.ndarray:
    """Whether each is longer than the median of its stratum."""
    return np.array([
        length > np.median(lengths[strata == stratum]) for length, stratum in zip(lengths, strata, strict=True)
    ]).astype(int)


# --- work for several processes -------------------------------------------------------------------------------------

_stage: Stage | None = None


@dataclass(frozen=True)
class Played:
    """One answer in every mode."""

    answer: Script
    traces: dict[str, Trace]


def _play(number: int) -> Played:
    global _stage
    _stage = _stage or Stage()
    answer = script(number, SEED)
    traces = {padding.name.lower(): _stage.play(answer, padding) for padding in MODES}
    return Played(answer, {**traces, TLS: over_tls(answer)})


def _run(attack: Attack, divisions: int) -> list[float]:
    peers.scikit_learn()
    return attack.run(divisions)


# --- rows -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Question:
    """A row to be: what is asked of which mode."""

    about: str
    view: str
    mode: str
    allowed: float | None = None


def questions() -> list[Question]:
    views = tuple(VIEWS)
    out = []
    for mode, seen in (("off", ("sizes", "times", "all")), ("bucket", views), ("constant", views)):
        for about in ("topic", "length in a lifetime" if mode == "constant" else "length within a rung"):
            for view in seen:
                allowed = WANTED_CONSTANT if mode == "constant" else None
                if mode == "bucket" and view == "sizes":
                    allowed = WANTED_BUCKET
                out.append(Question(about, view, mode, allowed))
    return [*out, Question("any length", "sizes", "bucket")]


def attacks(played: list[Played], asked: Iterable[Question]) -> dict[tuple[str, str, str], Attack]:
    """One for each (about, view, who), ours and the peer's."""
    topics = np.array([one.answer.topic for one in played])
    lengths = np.array([one.answer.length for one in played])
    rungs = np.array([rung(one.traces["bucket"].cells) for one in played])
    alike = np.zeros(len(played), dtype=int)
    features: dict[tuple[str, str], np.ndarray] = {}
    out = {}
    for question in asked:
        for who in (question.mode, TLS):
            if (question.view, who) not in features:
                view = VIEWS[question.view]
                features[question.view, who] = np.array([view(one.traces[who]) for one in played])
            labels, strata = topics, alike
            if question.about != "topic":
                strata = rungs if question.about == "length within a rung" else alike
                labels = _longer(lengths, strata)
            out[question.about, question.view, who] = Attack(features[question.view, who], labels, strata)
    return out


def auc_row(question: Question, ours: list[float], peer: list[float]) -> Row:
    told = mean(peer) - 0.5
    first, _, third = quantiles(ours, n=4)
    return Row(
        f"{question.about} from {question.view}, {question.mode}", mean(ours), "AUC", mean(peer), TLS,
        told / max(abs(mean(ours) - 0.5), FLOOR),
        None if question.allowed is None else round(told / question.allowed, 2), (third - first) / median(ours),
    )


def bits(values: Iterable[int]) -> float:
    """Entropy of what was counted."""
    counts = Counter(values)
    total = sum(counts.values())
    return -sum(n / total * math.log2(n / total) for n in counts.values())


def cost_rows(played: list[Played]) -> list[Row]:
    exact = bits(one.traces[TLS].cells for one in played)
    told = bits(rung(one.traces["bucket"].cells) for one in played)
    rows = [Row("what the rung itself tells of the length", told, "bits", exact, f"{TLS}: number of tokens",
                exact / told)]
    peer = mean(one.traces[TLS].bytes for one in played) / 1000
    for padding in MODES:
        name = padding.name.lower()
        what = f"a session of {LIFETIME_S:.0f} s, " if padding is Padding.CONSTANT else "an answer with its request, "
        rows.append(cost_row(what + name, mean(one.traces[name].bytes for one in played) / 1000, "kB", peer, TLS,
                             wanted=None))
    for what, seconds in (("first token later by", "first_token_s"), ("end later by", "whole_s")):
        for padding in MODES:
            name = padding.name.lower()
            waits = [max(0.0, 1000 * getattr(one.traces[name], seconds)) for one in played]
            rows.append(Row(f"{what}, median, {name}", median(waits), "ms", None, "", None))
    return rows


def main() -> int:
    options = arguments("Classifiers against what a hop sees of streamed answers.")
    try:
        note(f"classifiers: scikit-learn {peers.scikit_learn()}")
    except RuntimeError as error:
        print(f"whisper: {error}", file=sys.stderr)
        return 2
    answers, divisions = (160, 2) if options.smoke else (2400, 5)
    started = time.monotonic()
    with ProcessPoolExecutor(os.cpu_count()) as workers:
        played = list(workers.map(_play, range(answers), chunksize=10))
        note(f"{answers} answers, {sum(one.answer.topic for one in played)} of them code: "
             f"{time.monotonic() - started:.0f} s")
        asked = questions()
        jobs = attacks(played, asked)
        found = dict(zip(jobs, workers.map(partial(_run, divisions=divisions), jobs.values()), strict=True))
    note(f"{len(jobs)} attacks of {divisions} divisions each: {time.monotonic() - started:.0f} s in all")
    rows = [auc_row(q, found[q.about, q.view, q.mode], found[q.about, q.view, TLS]) for q in asked]
    show("whisper", [*rows, *cost_rows(played)], as_json=options.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())

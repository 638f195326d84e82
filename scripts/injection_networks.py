"""The two judges of the injection classifier, as they are fitted; relay/gateway/inspection/model.py is how they serve.

Plain numpy, one thread, seeded: the same data give the same weights.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from relay.gateway.inspection.features import PAIRS, REACH, STRIDE, WINDOW, pairs

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]
SPELLINGS: Final = 1 << 15  # numbers that a piece of a token's spelling may get
IDF_MAX: Final = 8.0
_BATCH: Final = 64


def window_starts(n: int) -> list[int]:
    """Of windows over n tokens, half over each other; one for what fits into one."""
    return [0] if n <= WINDOW else list(range(0, n - STRIDE, STRIDE))


def window(tokens: Ints, start: int, size: int = WINDOW) -> Ints:
    return tokens[start : start + size]


@dataclass
class Linear:
    """Logistic regression over tokens, their spelling and pairs of near ones; weights per occurrence, by length."""

    spelling: list[Ints]  # of each token
    penalty: float
    steps: int = 120
    weights: NDArray[np.float64] = field(default_factory=lambda: np.zeros(0))
    idf: NDArray[np.float64] = field(default_factory=lambda: np.zeros(0))
    bias: float = 0.0

    def features(self, tokens: Ints) -> Ints:
        vocabulary = len(self.spelling)
        found = [tokens, vocabulary + pairs(np.concatenate([tokens, np.zeros(REACH, np.int64)])).ravel()]
        found += [vocabulary + PAIRS + self.spelling[token] for token in tokens.tolist()]
        return np.concatenate(found)

    def fit(self, texts: Sequence[Ints], labels: Floats, weights: Floats) -> None:
        counted = [np.unique(self.features(text), return_counts=True) for text in texts]
        seen = np.zeros(len(self.spelling) + PAIRS + SPELLINGS)
        for found, _ in counted:
            seen[found] += 1
        self.idf = np.minimum(np.log((1 + len(texts)) / (1 + seen)) + 1, IDF_MAX)
        self.idf[seen < 2] = 0
        rows = np.repeat(np.arange(len(texts)), [len(found) for found, _ in counted])
        values = np.concatenate([self._values(*one) for one in counted]).astype(np.float32)
        used, columns = np.unique(np.concatenate([found for found, _ in counted]), return_inverse=True)
        w, m, v = np.zeros(len(used)), np.zeros(len(used)), np.zeros(len(used))
        b = mb = vb = 0.0
        for step in range(1, self.steps + 1):
            logits = np.bincount(rows, w[columns] * values, len(texts)) + b
            error = weights * (1 / (1 + np.exp(-logits)) - labels)
            slope = np.bincount(columns, error[rows] * values, len(used)) + self.penalty * w
            m += 0.1 * (slope - m)
            v += 0.01 * (slope * slope - v)
            mb += 0.1 * (error.sum() - mb)
            vb += 0.01 * (error.sum() ** 2 - vb)
            rate, first, second = 0.2 * (1 - step / (self.steps + 1)), 1 - 0.9**step, 1 - 0.99**step
            w -= rate * (m / first) / (np.sqrt(v / second) + 1e-8)
            b -= rate * (mb / first) / (np.sqrt(vb / second) + 1e-8)
        self.weights = np.zeros(len(seen))
        self.weights[used] = w
        self.bias = float(b)

    def _values(self, found: Ints, counts: Ints) -> NDArray[np.float64]:
        idf = self.idf[found]
        values: NDArray[np.float64] = counts * idf / np.sqrt((counts * idf * idf).sum() + 1e-9)
        return values

    def tables(self) -> tuple[Floats, Floats, Floats, Floats]:
        """Per token, then per pair: what it adds to the sum, and to the square of what that is divided by."""
        n = len(self.spelling)
        weights, squares = (self.weights * self.idf).astype(np.float32), (self.idf**2).astype(np.float32)
        single, norm = weights[:n].copy(), squares[:n].copy()
        for token, spelled in enumerate(self.spelling):
            single[token] += weights[n + PAIRS + spelled].sum()
            norm[token] += squares[n + PAIRS + spelled].sum()
        return single, norm, weights[n : n + PAIRS], squares[n : n + PAIRS]

    def windows(self, tokens: Ints, tables: tuple[Floats, Floats, Floats, Floats]) -> Floats:
        """A logit for each window."""
        single, norm, pair, pair_norm = tables
        near = pairs(np.concatenate([tokens, np.zeros(REACH, np.int64)]))
        sums = np.stack([single[tokens] + pair[near].sum(0), norm[tokens] + pair_norm[near].sum(0)])
        starts = window_starts(len(tokens))
        total = np.stack([sums[:, start : start + WINDOW].sum(1) for start in starts])
        found: Floats = (total[:, 0] / np.sqrt(total[:, 1] + 1e-9) + self.bias).astype(np.float32)
        return found


class Filters:
    """Filters over vectors of tokens, the strongest answer of each, a hidden layer; Adam, dropout, weight decay."""

    def __init__(
        self, table: Floats, widths: Sequence[tuple[int, int]], hidden: int, seed: int, *, decay: float, dropout: float,
        blanked: float, rate: float,
    ) -> None:
        """`blanked`: the share of tokens that are left out of a training text."""
        self.table, self.widths = table, widths
        self._decay, self._dropout, self._blanked, self._rate = decay, dropout, blanked, rate
        self._dice = dice = np.random.default_rng(seed)
        size, count = table.shape[1], sum(filters for _, filters in widths)

        def drawn(*shape: int, spread: float) -> Floats:
            return (dice.standard_normal(shape) * spread).astype(np.float32)

        self.parts: dict[str, Floats] = {
            f"filters{number}": drawn(size, width * filters, spread=(2 / (width * size)) ** 0.5)
            for number, (width, filters) in enumerate(widths)
        }
        self.parts |= {f"bias{number}": np.zeros(filters, np.float32) for number, (_, filters) in enumerate(widths)}
        self.parts |= {
            "hidden": drawn(count + size, hidden, spread=(2 / (count + size)) ** 0.5),
            "hidden_bias": np.zeros(hidden, np.float32), "out": drawn(hidden, spread=hidden**-0.5),
            "out_bias": np.zeros(1, np.float32),
        }
        self._first = {name: np.zeros_like(part) for name, part in self.parts.items()}
        self._second = {name: np.zeros_like(part) for name, part in self.parts.items()}
        self._step = 0

    def forward(self, batch: Ints, *, training: bool = False) -> tuple[Floats, tuple[Any, ...]]:
        """Logits of (n, t) tokens, 0 where a text has ended; and what `learn` needs."""
        n, t = batch.shape
        there = batch != 0
        vectors = self.table[batch]
        if training:
            vectors = vectors * (self._dice.random((n, t, 1)) > self._blanked)
        flat = vectors.reshape(n * t, -1)
        seen, places = [], []
        for number, (width, filters) in enumerate(self.widths):
            answers = (flat @ self.parts[f"filters{number}"]).reshape(n, t, width, filters)
            length = t - width + 1
            total = answers[:, :length, 0].copy()
            for step in range(1, width):
                total += answers[:, step : step + length, step]
            beyond = ~there[:, :length]
            beyond[:, 0] = False
            total[beyond] = -1e9
            place = total.argmax(1)
            places.append(place)
            strongest = np.take_along_axis(total, place[:, None], 1)[:, 0] + self.parts[f"bias{number}"]
            seen.append(np.maximum(strongest, 0))
        seen.append(vectors.sum(1) / np.maximum(there.sum(1, keepdims=True), 1))
        whole = np.concatenate(seen, 1)
        kept = (self._dice.random(whole.shape) > self._dropout) / (1 - self._dropout) if training else None
        given = whole if kept is None else whole * kept.astype(np.float32)
        hidden = given @ self.parts["hidden"] + self.parts["hidden_bias"]
        logits: Floats = np.maximum(hidden, 0) @ self.parts["out"] + self.parts["out_bias"][0]
        return logits, (vectors, places, whole, kept, given, hidden)

    def learn(self, batch: Ints, labels: Floats, weights: Floats, rate: float) -> None:
        logits, (vectors, places, whole, kept, given, hidden) = self.forward(batch, training=True)
        error = (weights * (1 / (1 + np.exp(-logits)) - labels) / weights.sum()).astype(np.float32)
        back = (error[:, None] * self.parts["out"]) * (hidden > 0)
        slopes = {
            "out": np.maximum(hidden, 0).T @ error, "out_bias": error.sum(keepdims=True),
            "hidden": given.T @ back, "hidden_bias": back.sum(0),
        }
        down = (back @ self.parts["hidden"].T) * kept
        at, lines = 0, np.arange(len(batch))[:, None]
        for number, (width, filters) in enumerate(self.widths):
            part = (down[:, at : at + filters] * (whole[:, at : at + filters] > 0)).astype(np.float32)
            at += filters
            slopes[f"bias{number}"] = part.sum(0)
            steps = [(part[:, :, None] * vectors[lines, places[number] + step]).sum(0).T for step in range(width)]
            slopes[f"filters{number}"] = np.stack(steps, 1).reshape(self.table.shape[1], width * filters)
        self._step += 1
        for name, slope in slopes.items():
            self._first[name] += 0.1 * (slope - self._first[name])
            self._second[name] += 0.001 * (slope * slope - self._second[name])
            ahead = self._first[name] / (1 - 0.9**self._step)
            spread = np.sqrt(self._second[name] / (1 - 0.999**self._step)) + 1e-8
            self.parts[name] -= (self._rate * rate * ahead / spread).astype(np.float32)
            if "bias" not in name:
                self.parts[name] *= np.float32(1 - self._rate * rate * self._decay)

    def windows(self, texts: Sequence[Ints]) -> list[Floats]:
        """A logit for each window of each text."""
        found = [np.zeros(len(window_starts(len(text))), np.float32) for text in texts]
        places = sorted(
            (min(len(text) - start, WINDOW), number, index)
            for number, text in enumerate(texts) for index, start in enumerate(window_starts(len(text)))
        )
        for begin in range(0, len(places), 256):
            group = places[begin : begin + 256]
            batch = _batch([window(texts[number], index * STRIDE) for _, number, index in group], self._widest())
            for (_, number, index), logit in zip(group, self.forward(batch)[0], strict=True):
                found[number][index] = logit
        return found

    def batches(
        self, texts: Sequence[Ints], starts: Ints, dice: np.random.Generator
    ) -> Iterator[tuple[Ints, Ints]]:
        """Numbers of texts, and a window of each: that which begins at its start, or where -1 is, anywhere."""
        order = dice.permutation(len(texts))
        lengths = np.array([min(len(text), WINDOW) for text in texts])
        for begin in range(0, len(order), _BATCH * 16):
            group = order[begin : begin + _BATCH * 16]
            group = group[np.argsort(lengths[group], kind="stable")]
            batches = [group[at : at + _BATCH] for at in range(0, len(group), _BATCH)]
            for number in dice.permutation(len(batches)):
                chosen = []
                for index in batches[number]:
                    spare = len(texts[index]) - WINDOW
                    start = 0 if spare <= 0 else int(starts[index]) if starts[index] >= 0 else int(
                        dice.integers(0, spare + 1)
                    )
                    chosen.append(window(texts[index], start))
                yield batches[number], _batch(chosen, self._widest())

    def _widest(self) -> int:
        return max(width for width, _ in self.widths)


def _batch(windows: Sequence[Ints], least: int) -> Ints:
    batch = np.zeros((len(windows), max(least, *map(len, windows))), np.int64)
    for row, tokens in zip(batch, windows, strict=True):
        row[: len(tokens)] = tokens
    return batch

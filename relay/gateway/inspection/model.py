"""The classifier: how likely a text is to be an attempt to take over the model that reads it.

Two judges of each window of tokens, added up. The one is linear: weights of tokens and of pairs of near tokens, by
their number. The other sees a vector for each token, of a table that knows words of like meaning, through filters a few
tokens wide, and keeps of each filter the strongest answer. The file is made by scripts/train_injection.py.
"""

import hashlib
import json
import math
import os
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, Final

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # these products are small: threads would cost more than they give
import numpy as np
from numpy.typing import NDArray

from relay.gateway.inspection.features import REACH, STRIDE, WINDOW, pairs
from relay.gateway.inspection.tokens import PAD, Vocabulary

__all__ = ["FILE", "MAGIC", "Model", "ModelUnusable", "Window", "packed", "shipped"]

Floats = NDArray[np.float32]
FILE: Final = "injection.model"
MAGIC: Final = b"causeway injection 1\n"
_HASH: Final = 32
_KEPT: Final = 4_096  # tokens whose gifts to the filters are kept
_PIECE: Final = 16 * STRIDE  # tokens that are looked at together: more would only take more memory
_PADDING: Final = (PAD,) * 4  # so many tokens see the widest filter and the farthest pair behind the last one


class ModelUnusable(Exception):
    """The file is missing, cut short, altered, or of another version."""


@dataclass(frozen=True)
class Window:
    """The worst of a text: its chance to be an attack (0..1), and where it begins, in tokens."""

    score: float
    at: int


def packed(tokens: Sequence[str], arrays: dict[str, NDArray[Any]], settings: dict[str, Any]) -> bytes:
    """A model file: magic, length and header in JSON, tokens, arrays, SHA-256 of all that."""
    text = "\n".join(tokens).encode()
    header = {
        "settings": settings, "tokens": len(text),
        "arrays": [[name, array.dtype.str, list(array.shape)] for name, array in arrays.items()],
    }
    head = json.dumps(header, sort_keys=True, separators=(",", ":")).encode()
    body = MAGIC + len(head).to_bytes(4, "little") + head + text + b"".join(
        np.ascontiguousarray(array).tobytes() for array in arrays.values()
    )
    return body + hashlib.sha256(body).digest()


class Model:
    """Scores tokens. `version` is the beginning of the file's hash; `flag` and `block` are thresholds of a score."""

    def __init__(self, data: bytes) -> None:
        """Raises ModelUnusable."""
        body, digest = data[:-_HASH], data[-_HASH:]
        if not body.startswith(MAGIC) or hashlib.sha256(body).digest() != digest:
            raise ModelUnusable("the injection model is damaged or of another version")
        self.version = hashlib.sha256(data).hexdigest()[:12]
        try:
            at = len(MAGIC) + 4 + int.from_bytes(body[len(MAGIC) : len(MAGIC) + 4], "little")
            header = json.loads(body[len(MAGIC) + 4 : at])
            self.vocabulary = Vocabulary(body[at : at + header["tokens"]].decode().split("\n"))
            at += header["tokens"]
            found: dict[str, NDArray[Any]] = {}
            for name, kind, shape in header["arrays"]:
                found[name] = np.frombuffer(body, kind, math.prod(shape), at).reshape(shape).copy()  # the body goes
                at += found[name].nbytes
            self._take(found, header["settings"])
        except (KeyError, ValueError, TypeError) as error:
            raise ModelUnusable("the injection model is of another version") from error

    def _take(self, found: dict[str, NDArray[Any]], settings: dict[str, Any]) -> None:
        self.flag, self.block = float(settings["flag"]), float(settings["block"])
        self._slope, self._offset = float(settings["slope"]), float(settings["offset"])
        widths = [(int(width), int(filters)) for width, filters in settings["widths"]]
        count = sum(filters for _, filters in widths)
        # What a token gives to a filter does not depend on its neighbours, so it is reckoned once, when it first comes.
        parts = _by_step(found["filters"], widths)
        self._steps = [count - part.shape[1] for part in parts[1:]]
        self._every = np.concatenate([*parts, found["hidden"][count:]], 1) * found["table_scale"][:, None]
        chunks = np.array_split(found["table"], 128)  # piece by piece: what is given back stays with the process
        most = np.max([np.abs(chunk @ self._every).max(0) for chunk in chunks], 0) / 127
        *ones, self._mean_unit = np.split(most, np.cumsum([part.shape[1] for part in parts]))
        self._unit = np.max([np.pad(one, (count - len(one), 0)) for one in ones], 0)
        self._units = np.concatenate([*(self._unit[count - part.shape[1] :] for part in parts), self._mean_unit])
        self._given, self._table, self._kept = np.zeros((_KEPT, len(self._units)), np.int8), found["table"], 0
        self._places, self._lock = np.full(len(self._table), -1), threading.Lock()
        self._bias, self._hidden, self._hidden_bias = found["bias"], found["hidden"][:count], found["hidden_bias"]
        self._out, self._out_bias = found["out"], float(found["out_bias"][0])
        scale = found["linear_scale"].astype(np.float32)  # of single weights, their squares, pairs' weights, squares
        self._single = (np.stack([found["single"], found["single_norm"]], 1) * scale[:2]).astype(np.float32)
        self._pair, self._pair_scale = np.stack([found["pair"], found["pair_norm"]], 1), scale[2:4]
        self._linear_bias, self._linear_share = float(scale[4]), float(settings["linear"])

    def worst(self, numbers: Sequence[int]) -> Window:
        """Of the windows over these tokens."""
        if not numbers:
            return Window(0.0, 0)
        tokens, n = np.array([*numbers, *_PADDING]), len(numbers)
        pieces = [self._folded(tokens[at : at + _PIECE + len(_PADDING)], n > WINDOW) for at in range(0, n, _PIECE)]
        weights, answers, shares = map(_over_windows, (np.add, np.maximum, np.add), zip(*pieces, strict=True))
        linear = weights[:, 0] / np.sqrt(weights[:, 1] + 1e-9) + self._linear_bias
        means = shares * self._mean_unit / _lengths(n)
        hidden = np.maximum(answers * self._unit + self._bias, 0) @ self._hidden + means + self._hidden_bias
        logits = self._linear_share * linear + (np.maximum(hidden, 0) @ self._out + self._out_bias)
        at = int(logits.argmax())
        logit = self._slope * float(logits[at]) + self._offset
        return Window(1 / (1 + math.exp(-max(-60.0, min(60.0, logit)))), at * STRIDE)

    def _folded(self, tokens: NDArray[np.int64], halves: bool) -> tuple[NDArray[Any], ...]:
        """Of all, or of each half of a window: weights and squares, each filter's strongest answer, sums of shares."""
        n, count = len(tokens) - len(_PADDING), len(self._unit)
        cuts = np.arange(0, n, STRIDE) if halves else None
        first, second, third = self._pair.take(pairs(tokens[: n + REACH]), 0).astype(np.int16)
        weights = self._single.take(tokens[:n], 0) + (first + second + third) * self._pair_scale
        given = self._given_by(tokens)
        answers, at = given[:n, :count].astype(np.int16), count
        for step, first in enumerate(self._steps, 1):
            end = at + count - first
            answers[:, first:] += given[step : n + step, at:end]
            at = end
        shares = given[:n, at:].astype(np.int16)
        return _fold(np.add, weights, cuts), _fold(np.maximum, answers, cuts), _fold(np.add, shares, cuts)

    def _given_by(self, tokens: NDArray[np.int64]) -> NDArray[np.int8]:
        """What each gives to each filter, to those that see it first, second and so on, and to the mean."""
        with self._lock:  # a thread judges, too
            while np.minimum.reduce(places := self._places.take(tokens)) < 0:
                new = np.unique(tokens[places < 0])
                if (end := self._kept + len(new)) > _KEPT:
                    self._places.fill(-1)
                    self._kept = 0
                else:
                    rows = self._table[np.resize(new, max(32, len(new)))]  # fewer are reckoned otherwise
                    self._given[self._kept : end] = np.rint(rows @ self._every / self._units)[: len(new)]
                    self._places[new] = np.arange(self._kept, end)
                    self._kept = end
            return self._given.take(places, 0)


def _by_step(filters: Floats, widths: Sequence[tuple[int, int]]) -> list[Floats]:
    """The filters' matrices for the first token they see, for the second, and so on: of those that are so wide."""
    columns: list[list[Floats]] = [[] for _ in range(max(width for width, _ in widths))]
    at = 0
    for width, count in widths:  # from narrow to wide: each step is of the last filters of the one before
        for step in range(width):
            columns[step].append(filters[:, at : at + count])
            at += count
    return [np.concatenate(part, 1) for part in columns]


def _fold(fold: "np.ufunc", rows: NDArray[Any], cuts: NDArray[Any] | None) -> Any:
    """(n, f) by token to (cuts or 1, f). Sums of bytes over a window fit into two bytes."""
    return fold.reduce(rows, 0, rows.dtype, keepdims=True) if cuts is None else fold.reduceat(rows, cuts, 0, rows.dtype)


def _over_windows(fold: "np.ufunc", parts: Sequence[NDArray[Any]]) -> Any:
    """Two halves make a window, but where all is one."""
    halves = parts[0] if len(parts) == 1 else np.concatenate(parts)
    return halves if len(halves) == 1 else fold(halves[:-1], halves[1:])


def _lengths(n: int) -> Floats:
    return np.minimum(WINDOW, n - np.arange(0, max(1, n - STRIDE), STRIDE)).astype(np.float32)[:, None]


def shipped(path: Path | None = None) -> Model:
    """The model of this package. Raises ModelUnusable."""
    try:
        data = path.read_bytes() if path else resources.files("relay.gateway.inspection").joinpath(FILE).read_bytes()
    except OSError:
        raise ModelUnusable("the injection model is missing from this installation") from None
    return Model(data)

"""The classifier: how likely a text is to be an attempt to take over the model that reads it.

Two judges of each window of tokens, added up. The one is linear: weights of tokens and of pairs of near tokens, by
their number. The other sees a vector for each token, of a table that knows words of like meaning, through filters a few
tokens wide, and keeps of each filter the strongest answer. The file is made by scripts/train_injection.py.
"""

import hashlib
import json
import math
import os
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
        # What a token gives to a filter does not depend on its neighbours, so it is reckoned here, for all tokens.
        parts = _by_step(found["filters"], widths)
        self._steps = [count - part.shape[1] for part in parts[1:]]
        every = np.concatenate([*parts, found["hidden"][count:]], 1) * found["table_scale"][:, None]
        chunks = np.array_split(found["table"], 128)  # piece by piece: what is given back stays with the process
        most = np.max([np.abs(chunk @ every).max(0) for chunk in chunks], 0) / 127
        *ones, self._mean_unit = np.split(most, np.cumsum([part.shape[1] for part in parts]))
        self._unit = np.max([np.pad(one, (count - len(one), 0)) for one in ones], 0)
        units = np.concatenate([*(self._unit[count - part.shape[1] :] for part in parts), self._mean_unit])
        self._given = np.empty((len(found["table"]), len(units)), np.int8)
        for chunk, given in zip(chunks, np.array_split(self._given, 128), strict=True):
            np.rint(chunk @ every / units, given, casting="unsafe")
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
        tokens = np.array([*numbers, *_PADDING])
        logits = self._linear_share * self._linear(tokens) + self._filtered(tokens)
        at = int(logits.argmax())
        logit = self._slope * float(logits[at]) + self._offset
        return Window(1 / (1 + math.exp(-max(-60.0, min(60.0, logit)))), at * STRIDE)

    def _linear(self, tokens: NDArray[np.int64]) -> NDArray[Any]:
        n = len(tokens) - len(_PADDING)
        first, second, third = self._pair.take(pairs(tokens[: n + REACH]), 0).astype(np.int16)
        sums = _over_windows(np.add, self._single.take(tokens[:n], 0) + (first + second + third) * self._pair_scale)
        linear: NDArray[Any] = sums[:, 0] / np.sqrt(sums[:, 1] + 1e-9) + self._linear_bias
        return linear

    def _filtered(self, tokens: NDArray[np.int64]) -> Floats:
        n, count = len(tokens) - len(_PADDING), len(self._unit)
        given = self._given.take(tokens, 0).astype(np.int16)
        answers, at = given[:n, :count], count
        for step, first in enumerate(self._steps, 1):
            end = at + count - first
            answers[:, first:] += given[step : n + step, at:end]
            at = end
        strongest = _over_windows(np.maximum, answers) * self._unit + self._bias
        means = _over_windows(np.add, given[:n, at:]) * self._mean_unit / _lengths(n)
        hidden = np.maximum(strongest, 0) @ self._hidden + means + self._hidden_bias
        filtered: Floats = np.maximum(hidden, 0) @ self._out + self._out_bias
        return filtered


def _by_step(filters: Floats, widths: Sequence[tuple[int, int]]) -> list[Floats]:
    """The filters' matrices for the first token they see, for the second, and so on: of those that are so wide."""
    columns: list[list[Floats]] = [[] for _ in range(max(width for width, _ in widths))]
    at = 0
    for width, count in widths:  # from narrow to wide: each step is of the last filters of the one before
        for step in range(width):
            columns[step].append(filters[:, at : at + count])
            at += count
    return [np.concatenate(part, 1) for part in columns]


def _over_windows(fold: "np.ufunc", rows: NDArray[Any]) -> NDArray[Any]:
    """(n, f) by token to (windows, f): two halves make a window. Sums of bytes over one fit into two bytes."""
    n = len(rows)
    if n <= WINDOW:
        one: NDArray[Any] = fold.reduce(rows, 0, rows.dtype, keepdims=True)
        return one
    halves = fold.reduceat(rows, np.arange(0, n, STRIDE), 0, rows.dtype)
    both: NDArray[Any] = fold(halves[:-1], halves[1:])
    return both


def _lengths(n: int) -> Floats:
    if n <= WINDOW:
        return np.array([[n]], np.float32)
    starts = np.arange(0, n - STRIDE, STRIDE)
    return np.minimum(WINDOW, n - starts).astype(np.float32)[:, None]


def shipped(path: Path | None = None) -> Model:
    """The model of this package. Raises ModelUnusable."""
    try:
        data = path.read_bytes() if path else resources.files("relay.gateway.inspection").joinpath(FILE).read_bytes()
    except OSError:
        raise ModelUnusable("the injection model is missing from this installation") from None
    return Model(data)

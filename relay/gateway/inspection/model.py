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
                found[name] = np.frombuffer(body, kind, math.prod(shape), at).reshape(shape)
                at += found[name].nbytes
            self._take(found, header["settings"])
        except (KeyError, ValueError, TypeError) as error:
            raise ModelUnusable("the injection model is of another version") from error

    def _take(self, found: dict[str, NDArray[Any]], settings: dict[str, Any]) -> None:
        self.flag, self.block = float(settings["flag"]), float(settings["block"])
        self._slope, self._offset = float(settings["slope"]), float(settings["offset"])
        self._widths = [(int(width), int(filters)) for width, filters in settings["widths"]]
        self._table = found["table"].astype(np.float32) * found["table_scale"]
        self._filters, self._bias = found["filters"].astype(np.float32), found["bias"].astype(np.float32)
        self._hidden, self._hidden_bias = found["hidden"].astype(np.float32), found["hidden_bias"].astype(np.float32)
        self._out, self._out_bias = found["out"].astype(np.float32), float(found["out_bias"][0])
        scale = found["linear_scale"].astype(np.float32)  # of single weights, their squares, pairs' weights, squares
        self._single = np.stack([found["single"] * scale[0], found["single_norm"] * scale[1]]).astype(np.float32)
        self._pair, self._pair_norm = found["pair"], found["pair_norm"]
        self._pair_scale = scale[2:4]
        self._linear_bias, self._linear_share = float(scale[4]), float(settings["linear"])

    def worst(self, numbers: Sequence[int]) -> Window:
        """Of the windows over these tokens."""
        if not numbers:
            return Window(0.0, 0)
        tokens = np.array([*numbers, *[PAD] * REACH])
        logits = self._linear_share * self._linear(tokens) + self._filtered(tokens)
        at = int(logits.argmax()) if len(logits) > 1 else 0
        logit = self._slope * float(logits[at]) + self._offset
        return Window(1 / (1 + math.exp(-max(-60.0, min(60.0, logit)))), at * STRIDE)

    def _linear(self, tokens: NDArray[np.int64]) -> Floats:
        numbers, n = pairs(tokens), len(tokens) - REACH
        sums = self._single[:, tokens[:n]]
        sums[0] += self._pair[numbers].sum(0, dtype=np.float32) * self._pair_scale[0]
        sums[1] += self._pair_norm[numbers].sum(0, dtype=np.float32) * self._pair_scale[1]
        weight, norm = _over_windows(np.add, sums.T).T
        linear: Floats = weight / np.sqrt(norm + 1e-9) + self._linear_bias
        return linear

    def _filtered(self, tokens: NDArray[np.int64]) -> Floats:
        n = len(tokens) - REACH
        widest = max(width for width, _ in self._widths)
        vectors = np.zeros((n + widest - 1, self._table.shape[1]), np.float32)
        self._table.take(tokens[:n], 0, vectors[:n])
        answers = vectors @ self._filters
        columns, at = [], 0
        for width, filters in self._widths:
            total = answers[:n, at : at + filters]
            for step in range(1, width):
                at += filters
                total = total + answers[step : step + n, at : at + filters]
            at += filters
            columns.append(total)
        strongest = _over_windows(np.maximum, np.concatenate(columns, 1)) + self._bias
        lengths = _lengths(n)
        means = _over_windows(np.add, vectors[:n]) / lengths[:, None]
        seen = np.concatenate([np.maximum(strongest, 0), means], 1)
        hidden = np.maximum(seen @ self._hidden + self._hidden_bias, 0)
        filtered: Floats = hidden @ self._out + self._out_bias
        return filtered


def _over_windows(fold: "np.ufunc", rows: Floats) -> Floats:
    """(n, f) by token to (windows, f): two halves make a window."""
    n = len(rows)
    if n <= WINDOW:
        one: Floats = fold.reduce(rows, 0, keepdims=True)
        return one
    halves = fold.reduceat(rows, np.arange(0, n, STRIDE), 0)
    both: Floats = fold(halves[:-1], halves[1:])
    return both


def _lengths(n: int) -> Floats:
    if n <= WINDOW:
        return np.array([n], np.float32)
    starts = np.arange(0, n - STRIDE, STRIDE)
    return np.minimum(WINDOW, n - starts).astype(np.float32)


def shipped(path: Path | None = None) -> Model:
    """The model of this package. Raises ModelUnusable."""
    try:
        data = path.read_bytes() if path else resources.files("relay.gateway.inspection").joinpath(FILE).read_bytes()
    except OSError:
        raise ModelUnusable("the injection model is missing from this installation") from None
    return Model(data)

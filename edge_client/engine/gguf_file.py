"""What a GGUF file says of itself: its architecture, how large it should be, and what its context costs in memory.

Read without the engine, which says of any file it cannot load only that it cannot. The format (version 2 and 3) is
magic, version, two counts, key-value pairs, tensor descriptions, padding, tensors; all little-endian.
"""

import mmap
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from edge_client.errors import ModelUnusable

__all__ = ["GgufFile", "read_gguf"]

_SCALARS: Final = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
_KEYS_MAX: Final = 65_536
_TENSORS_MAX: Final = 65_536
_ITEMS_MAX: Final = 4 << 20  # of one array; the largest vocabularies have a quarter of a million words
_KEPT: Final = 256  # longer values, such as vocabularies, are passed over


@dataclass(frozen=True)
class GgufFile:
    """`whole` is the size in bytes that the tensors need, None where one has an unknown type; `size` what is there."""

    architecture: str
    size: int
    whole: int | None
    values: dict[str, Any]

    @property
    def cut_short(self) -> bool:
        return self.whole is not None and self.size < self.whole

    def context_bytes(self, tokens: int) -> int:
        """What keys and values of a context take, as float16; 0 where the file does not say."""
        heads = self._number("attention.head_count")
        if not heads:
            return 0
        width = self._number("attention.key_length") or self._number("embedding_length") // heads
        kv_heads = self._number("attention.head_count_kv") or heads
        return 2 * 2 * tokens * self._number("block_count") * kv_heads * width

    def _number(self, key: str) -> int:
        value = self.values.get(f"{self.architecture}.{key}")
        return value if isinstance(value, int) and 0 <= value < 1 << 24 else 0


def read_gguf(path: Path) -> GgufFile:
    """Raises ModelUnusable for what is no GGUF file, or ends within its own description; OSError."""
    try:
        with path.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return _Reader(data).file()
    except (ValueError, struct.error, UnicodeDecodeError):  # an empty file cannot be mapped: ValueError, too
        raise ModelUnusable(
            f"{path.name} is not a model: no GGUF, or cut short", hint="fetch it again, or name another file"
        ) from None


class _Reader:
    def __init__(self, data: mmap.mmap) -> None:
        self._data, self._at = data, 0

    def file(self) -> GgufFile:
        if self._data[:4] != b"GGUF" or self._take("I", at=4) not in (2, 3):
            raise ValueError("magic")
        self._at = 8
        tensors, keys = self._take("Q"), self._take("Q")
        if tensors > _TENSORS_MAX or keys > _KEYS_MAX:
            raise ValueError("counts")
        values = {self._text(): self._value(self._take("I")) for _ in range(keys)}
        whole = self._tensors(tensors, values.get("general.alignment") or 32)
        architecture = values.get("general.architecture")
        return GgufFile(architecture if isinstance(architecture, str) else "", len(self._data), whole, values)

    def _tensors(self, count: int, alignment: int) -> int | None:
        from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

        end: int | None = 0
        for _ in range(count):
            self._text()
            items = 1
            for _ in range(min(self._take("I"), 8)):
                items *= self._take("Q")
            kind, offset = self._take("I"), self._take("Q")
            try:
                block, size = GGML_QUANT_SIZES[GGMLQuantizationType(kind)]
            except (ValueError, KeyError):
                end = None
            if end is not None:
                end = max(end, offset + items // block * size)
        start = -(-self._at // alignment) * alignment
        return None if end is None else start + end

    def _value(self, kind: int) -> Any:
        if kind in _SCALARS:
            return self._take(_SCALARS[kind])
        if kind == _STRING:
            return self._text()
        if kind != _ARRAY:
            raise ValueError("type")
        inner, count = self._take("I"), self._take("Q")
        if count > _ITEMS_MAX or (inner not in _SCALARS and inner != _STRING):
            raise ValueError("array")
        if inner == _STRING:
            for _ in range(count):
                self._at += 8 + self._take("Q", at=self._at)
        else:
            self._at += count * struct.calcsize("<" + _SCALARS[inner])
        return None

    def _text(self) -> str:
        length = self._take("Q")
        raw = self._data[self._at : self._at + min(length, _KEPT)]
        self._at += length
        if self._at > len(self._data):
            raise ValueError("length")
        return raw.decode("utf-8", "replace")

    def _take(self, form: str, *, at: int | None = None) -> Any:
        """One number; moves on unless `at` says where to look."""
        (value,) = struct.unpack_from("<" + form, self._data, self._at if at is None else at)
        if at is None:
            self._at += struct.calcsize("<" + form)
        return value

"""Vectors as 1-bit codes in memory and float16 rows on disk.

A scan over float rows goes through the page cipher and is twelve times slower than memory; the sign bits of a chunk are
48 bytes for 384 dimensions and stay here. They only pick candidates: the order comes from the float16 rows.
"""

from collections.abc import Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

from store.database import Connection
from store.errors import ModelMismatch, StoreMisuse

__all__ = ["CodeIndex", "FloatArray", "checked_rows", "encode_codes", "encode_rows", "fetch_rows", "mixed"]

FloatArray = npt.NDArray[np.float32]
_NORM_TOLERANCE: Final = 0.01
_FETCH: Final = 500  # bound parameters of one statement


def checked_rows(vectors: FloatArray, count: int) -> FloatArray:
    """`vectors` as a contiguous float32 (count, dimension) array of finite rows of length 1. Raises StoreMisuse."""
    rows = np.ascontiguousarray(vectors, dtype=np.float32)
    if rows.ndim != 2 or rows.shape[0] != count or rows.shape[1] == 0:
        raise StoreMisuse("vectors must be one row for each text")
    norms = np.linalg.norm(rows, axis=1)
    if not bool(np.all(np.abs(norms - 1) <= _NORM_TOLERANCE)):  # NaN compares false
        raise StoreMisuse("vectors must be finite and of length 1")
    return rows


def encode_codes(rows: FloatArray) -> list[bytes]:
    """The sign bits of each row, dimension / 8 bytes rounded up, first component in the highest bit."""
    return [bytes(code) for code in np.packbits(rows > 0, axis=1)]


def encode_rows(rows: FloatArray) -> list[bytes]:
    """Each row as little-endian float16."""
    return [bytes(row) for row in rows.astype("<f2").view(np.uint8)]


class CodeIndex:
    """The codes of one collection in memory. Belongs to the owner thread of its database.

    Takes 56 bytes a chunk at 384 dimensions. `refresh` inside a transaction makes it equal to what that transaction
    sees, whichever process wrote it: additions are read alone, after a removal everything is read again.
    """

    def __init__(self, collection_id: int, dimension: int) -> None:
        self._collection_id = collection_id
        self.dimension = dimension
        self._code_len = (dimension + 7) // 8
        self._clear()

    def __len__(self) -> int:
        return len(self._ids)

    def _clear(self) -> None:
        self._seen: tuple[int, int] = (-1, -1)  # collections.added, .removed
        self._ids = np.empty(0, dtype=np.int64)
        self._codes = np.empty((0, (self._code_len + 7) // 8), dtype=np.uint64)

    def refresh(self, connection: Connection, *, added: int, removed: int) -> None:
        """Reads what is missing; `added` and `removed` are the collection's counters in this transaction."""
        if (added, removed) == self._seen:
            return
        if removed != self._seen[1]:
            self._clear()
        last = int(self._ids[-1]) if len(self._ids) else 0
        new = connection.execute(
            "SELECT chunk_id, code FROM codes WHERE collection_id = ? AND chunk_id > ? ORDER BY chunk_id",
            (self._collection_id, last),
        ).fetchall()
        ids = np.fromiter((row[0] for row in new), dtype=np.int64, count=len(new))
        codes = self._words(b"".join(row[1] for row in new))
        self._ids, self._codes = np.concatenate([self._ids, ids]), np.concatenate([self._codes, codes])
        self._seen = (added, removed)

    def nearest(self, vector: FloatArray, count: int) -> list[int]:
        """Ids of the `count` chunks with the smallest Hamming distance, nearest first, ties by id."""
        query = self._words(np.packbits(vector > 0).tobytes())
        distances = np.bitwise_count(self._codes ^ query).sum(axis=1, dtype=np.int32)
        if count < len(distances):
            # All up to the count-th smallest distance, so that which of several equals get in depends on ids alone.
            bound = np.partition(distances, count - 1)[count - 1]
            chosen = np.flatnonzero(distances <= bound)
        else:
            chosen = np.arange(len(distances))
        order = np.argsort(distances[chosen], kind="stable")[:count]
        ids: list[int] = self._ids[chosen[order]].tolist()
        return ids

    def _words(self, codes: bytes) -> npt.NDArray[np.uint64]:
        """Codes as rows of 64-bit words, filled up with zeros."""
        rows = np.frombuffer(codes, dtype=np.uint8).reshape(-1, self._code_len)
        missing = self._codes.shape[1] * 8 - self._code_len
        return np.ascontiguousarray(np.pad(rows, ((0, 0), (0, missing)))).view(np.uint64)


def fetch_rows(connection: Connection, ids: Sequence[int], dimension: int) -> FloatArray:
    """The rows of these chunks, ids ascending, as float32 (len(ids), dimension). Raises ModelMismatch on another width.

    Every id must be there.
    """
    found: list[bytes] = []
    for start in range(0, len(ids), _FETCH):
        part = ids[start : start + _FETCH]
        marks = ", ".join("?" * len(part))
        statement = f"SELECT value FROM vectors WHERE chunk_id IN ({marks}) ORDER BY chunk_id"  # noqa: S608
        found += [row[0] for row in connection.execute(statement, part)]
    if any(len(value) != 2 * dimension for value in found):
        raise ModelMismatch("vectors of different embedders do not compare")
    return np.frombuffer(b"".join(found), dtype="<f2").reshape(len(ids), dimension).astype(np.float32)


def mixed(vector: FloatArray, rows: FloatArray, weight: float) -> FloatArray:
    """The vector with `weight` times the mean of the rows, at length 1; the vector itself without rows."""
    if not len(rows):
        return vector
    sum_ = vector + weight * rows.mean(axis=0)
    length = float(np.linalg.norm(sum_))
    return np.asarray(sum_ / length, np.float32) if length > 0 else vector

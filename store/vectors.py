"""Vectors as they are stored: codes, which a search holds in memory, and float16 rows for rescoring.

A code has three bits for each component: 1-bit codes, by which all are scanned, and then two bits more, by which those
that seem near are told apart. Each row that is fetched instead costs the decryption of a page.
"""

from collections.abc import Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

from store.database import Connection
from store.errors import ModelMismatch, StoreCorrupt, StoreMisuse

__all__ = ["PLANES", "FloatArray", "checked_rows", "encode_codes", "encode_rows", "fetch_rows", "mixed"]

FloatArray = npt.NDArray[np.float32]
PLANES: Final = 3  # bits of a component
_STEP: Final = 0.55  # between levels, over the root mean square of a component: best of 0.4 .. 0.7
_NORM_TOLERANCE: Final = 0.01
_DIMENSION_MAX: Final = 1 << 15  # distances in memory are of 16 bits
_FETCH: Final = 500  # bound parameters of one statement


def checked_rows(vectors: FloatArray, count: int) -> FloatArray:
    """`vectors` as a contiguous float32 (count, dimension) array of finite rows of length 1. Raises StoreMisuse."""
    rows = np.ascontiguousarray(vectors, dtype=np.float32)
    if rows.ndim != 2 or rows.shape[0] != count or not 0 < rows.shape[1] <= _DIMENSION_MAX:
        raise StoreMisuse("vectors must be one row for each text")
    norms = np.linalg.norm(rows, axis=1)
    if not bool(np.all(np.abs(norms - 1) <= _NORM_TOLERANCE)):  # NaN compares false
        raise StoreMisuse("vectors must be finite and of length 1")
    return rows


def encode_codes(rows: FloatArray) -> bytes:
    """For each row its components at eight levels, as planes of bits: first all the highest (whether it is negative),
    then the next. A plane has dimension / 8 bytes, rounded up, the first component in the highest bit.
    """
    half = 1 << (PLANES - 1)
    levels = np.clip(np.floor(rows * (rows.shape[1] ** 0.5 / _STEP)), -half, half - 1).astype(np.int8) + half
    planes = [np.packbits(levels >> plane & 1, axis=1) for plane in reversed(range(PLANES))]
    return np.concatenate(planes, axis=1).tobytes()


def encode_rows(rows: FloatArray) -> list[bytes]:
    """Each row as little-endian float16."""
    return [bytes(row) for row in rows.astype("<f2").view(np.uint8)]


def fetch_rows(connection: Connection, ids: Sequence[int], dimension: int) -> FloatArray:
    """The rows of these chunks, ids ascending, as float32 (len(ids), dimension). Raises ModelMismatch on another width.

    Raises StoreCorrupt where one is missing.
    """
    found: list[bytes] = []
    for start in range(0, len(ids), _FETCH):
        part = ids[start : start + _FETCH]
        marks = ", ".join("?" * len(part))
        statement = f"SELECT value FROM vectors WHERE chunk_id IN ({marks}) ORDER BY chunk_id"  # noqa: S608
        found += [row[0] for row in connection.execute(statement, part)]
    if len(found) != len(ids):
        raise StoreCorrupt("passages have no vector", hint="`edge store check` tells of which documents")
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

"""Stores for tests: a database without the cost of Argon2, vectors with known neighbours, and counted derivations."""

import functools
import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

import store.keys
from store.database import STORE_SCHEMA, Database
from store.documents import Chunk, Document, Documents
from store.keys import DatabaseKey, KdfCost, Passphrase

KEY = DatabaseKey(bytes(range(48)))
DIMENSION = 384
_STRETCH = store.keys.stretch  # before any test puts the cached one in its place


def open_store(path: Path, key: DatabaseKey = KEY) -> Database:
    return Database.open(path, key, schema=STORE_SCHEMA)


def unit_vectors(count: int, *, seed: int = 0, dimension: int = DIMENSION) -> npt.NDArray[np.float32]:
    rows = np.random.default_rng(seed).standard_normal((count, dimension)).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


async def add_document(
    documents: Documents, texts: Sequence[str], *, collection: str = "manual", source: str = "a.md",
    label: str = "internal", title: str = "Title", vectors: npt.NDArray[np.float32] | None = None,
    model_id: str = "minilm", seed: int = 0,
) -> Document:
    return await documents.add(
        collection=collection, source=source, title=title, label=label,
        sha256=hashlib.sha256(repr((source, list(texts))).encode()).digest(),
        chunks=[Chunk(text, page=number) for number, text in enumerate(texts, 1)],
        vectors=unit_vectors(len(texts), seed=seed) if vectors is None else vectors, model_id=model_id,
    )


class CachedStretch:
    """The real Argon2id, computed once for the same input: for tests that open one file a thousand times."""

    def __init__(self) -> None:
        self._derive = functools.cache(
            lambda secret, cost, salt: _STRETCH(Passphrase(secret.decode()), cost, salt)
        )

    def __call__(self, passphrase: Passphrase, cost: KdfCost, salt: bytes) -> bytes:
        return self._derive(passphrase.expose(), cost, salt)


def quick_stretch(passphrase: Passphrase, cost: KdfCost, salt: bytes) -> bytes:
    """In the place of Argon2id where a test tries each byte of a file: every input counts, and it takes no time."""
    return hashlib.sha256(passphrase.expose() + cost.encode() + salt).digest()

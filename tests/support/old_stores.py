"""Databases as earlier versions of this program left them: the schema of that time, and rows in the form of that time.

What they wrote is spelled out here and not left to today's code, which may have come to write it otherwise.
"""

import hashlib
import shutil
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

import numpy as np

from store.database import STORE_SCHEMA, Connection, Database
from store.keys import DatabaseKey
from tests.support.stores import KEY, unit_vectors

STEPS = sorted(step.name for step in STORE_SCHEMA.iterdir() if step.name.endswith(".sql"))
FIRST_WITH_DOCUMENTS = 2
DOCUMENTS, PASSAGES, DIMENSION = 6, 3, 64
MODEL = "minilm"


def digest(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()


def passage(document: int, number: int) -> str:
    return f"passage {number} of document {document} tells of word{document}x{number} and of apples"


def vectors() -> Any:
    return unit_vectors(DOCUMENTS * PASSAGES, seed=9, dimension=DIMENSION)


def schema_of(version: int, folder: Path) -> Traversable:
    """The steps up to this one."""
    folder.mkdir(parents=True)
    for name in STEPS[:version]:
        shutil.copy(str(STORE_SCHEMA / name), folder / name)
    return folder


def make_old(path: Path, version: int, scratch: Path, key: DatabaseKey = KEY) -> None:
    """A closed database of that version with rows in every table it has. Document 4 was deleted again.

    Versions after the sixth are a store of the sixth that was opened by them.
    """
    known = min(version, 6)
    with Database.open(path, key, schema=schema_of(known, scratch / f"made{known}")) as database:
        database.run_sync(lambda connection: _fill(connection, known))
    if version > known:
        Database.open(path, key, schema=schema_of(version, scratch / f"opened{version}")).close()


def _fill(connection: Connection, version: int) -> None:
    for number in range(20):
        connection.execute("INSERT INTO settings VALUES ('history', ?, ?)", (f"key{number}", b"value %d" % number))
    for number, state in enumerate(("waiting", "sent", "done", "failed", "interrupted", "expired")):
        ended, payload = (None, b"prompt %d" % number) if number < 2 else (50, None)
        connection.execute(
            "INSERT INTO queue (name, id, payload, digest, state, attempts, note, created_at, expires_at, settled_at)"
            " VALUES ('outbox', ?, ?, ?, ?, ?, ?, 10, 100000, ?)",
            (number.to_bytes(16, "big"), payload, digest(f"prompt {number}"), state, number, f"note {number}", ended),
        )
    if version >= 3:
        connection.execute("UPDATE queue SET mark = x'aabb' WHERE state = 'sent'")
    if version >= FIRST_WITH_DOCUMENTS:
        _documents(connection)
    if version >= 4:
        connection.execute("INSERT INTO folder_labels VALUES ('/files/private', 'local-only')")
    if version >= 5:
        connection.execute("INSERT INTO kept_answers VALUES (?)", (digest("an answer"),))
    if version >= 6:
        connection.execute(
            "INSERT INTO drafts (document, passage, value) VALUES (?, ?, ?)",
            (digest("a draft"), digest(f"{MODEL}\0half done"), vectors()[0].astype("<f4").tobytes()),
        )


def _documents(connection: Connection) -> None:
    collection, rows = ("manual", MODEL, DIMENSION), vectors()
    connection.execute("INSERT INTO collections (name, model_id, dimension) VALUES (?, ?, ?)", collection)
    for document in range(DOCUMENTS):
        source, title = f"/files/{document}.md", f"Title{document}"
        connection.execute(
            "INSERT INTO documents (id, collection_id, source, title, sha256, label, chunks)"
            " VALUES (?, 1, ?, ?, ?, ?, ?)",
            (document + 1, source, title, digest(source), ("public", "internal", "local-only")[document % 3], PASSAGES),
        )
        for number in range(PASSAGES):
            row, text = rows[document * PASSAGES + number], passage(document, number)
            chunk = connection.execute(
                "INSERT INTO chunks (document_id, text, page) VALUES (?, ?, ?)", (document + 1, text, number + 1)
            ).lastrowid
            connection.execute("INSERT INTO codes VALUES (1, ?, ?)", (chunk, np.packbits(row > 0).tobytes()))
            connection.execute("INSERT INTO vectors VALUES (?, ?)", (chunk, row.astype("<f2").tobytes()))
            connection.execute("INSERT INTO words (rowid, title, text) VALUES (?, ?, ?)", (chunk, title, text))
        connection.execute("UPDATE collections SET added = added + 1")
    connection.execute("DELETE FROM words WHERE rowid IN (SELECT id FROM chunks WHERE document_id = 5)")
    connection.execute("UPDATE collections SET removed = removed + 1")
    connection.execute("DELETE FROM documents WHERE id = 5")

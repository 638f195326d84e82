"""A collection on its way to another embedder, against a model: whatever comes and goes meanwhile, each vector is of
its own passage and of the collection's embedder, searches find all of it, and nothing gathered is embedded twice.
"""

import hashlib
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from store.database import STORE_SCHEMA, Connection, Database
from store.documents import Chunk, Documents
from store.errors import ModelMismatch, StoreConflict
from store.reembedding import Reembedding
from store.search import Search
from store.vector_store import _Blocking, _outcome  # an event loop for each step would be most of the time
from store.vectors import FloatArray, encode_codes, encode_rows
from tests.support.stores import KEY

MODELS = {"a": 24, "b": 16, "c": 24}  # with the dimension of each


def embedded(model: str, texts: Sequence[str]) -> FloatArray:
    seeds = [int.from_bytes(hashlib.sha256(f"{model} {text}".encode()).digest()[:8]) for text in texts]
    rows = np.array([np.random.default_rng(seed).standard_normal(MODELS[model]) for seed in seeds], np.float32)
    rows = rows.reshape(len(texts), MODELS[model])
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


class Reembeddings(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.path = Path(self.folder.name) / "store.db"
        self.database: Database = _Blocking.open(self.path, KEY, schema=STORE_SCHEMA)
        self.search = Search(self.database)  # keeps its index over all changes
        self.model = {"one": "a", "two": "a"}
        self.held: dict[tuple[str, str], list[str]] = {}
        self.work: Reembedding | None = None
        self.target = ("", "")  # collection and embedder of the work that counts
        self.under_way: dict[str, str] = {}
        self.gathered: set[int] = set()
        self.number = 0

    def teardown(self) -> None:
        self.database.close()
        self.folder.cleanup()

    @initialize()
    def some_documents(self) -> None:
        for collection in ("one", "two", "one"):
            self.add(collection, f"first {self.number}", 5)

    @rule(collection=st.sampled_from(["one", "two"]), source=st.sampled_from("xyz"), passages=st.integers(0, 9))
    def add(self, collection: str, source: str, passages: int) -> None:
        """New, or in the place of what had that source."""
        self.number += 1
        texts = [f"{self.number} {n}" for n in range(passages)]
        if not any(held and name == collection for (name, _), held in self.held.items()):
            self.model[collection] = "a"
        model = self.model[collection]
        _outcome(Documents(self.database).add(
            collection=collection, source=source, title="", sha256=hashlib.sha256(bytes([self.number])).digest(),
            chunks=[Chunk(text) for text in texts], vectors=embedded(model, texts), model_id=model,
        ))
        self.held[collection, source] = texts

    @rule(collection=st.sampled_from(["one", "two"]), place=st.integers(0, 5))
    def delete(self, collection: str, place: int) -> None:
        documents = _outcome(Documents(self.database).list(collection))
        if place < len(documents):
            assert _outcome(Documents(self.database).delete(documents[place].id))
            del self.held[collection, documents[place].source]

    @rule(collection=st.sampled_from(["one", "two"]), model=st.sampled_from("abc"))
    def begin(self, collection: str, model: str) -> None:
        work = Reembedding(self.database, collection=collection, model_id=model)
        begun = _outcome(work.begin())
        if self.model[collection] == model:
            assert begun is None
            self.under_way.pop(collection, None)
            if self.target[0] == collection:
                self.target, self.work = ("", ""), None
            return
        assert begun is not None
        assert begun[1] == sum(len(texts) for (name, _), texts in self.held.items() if name == collection)
        if self.target != (collection, model):
            if self.target[0] == collection and self.work is not None:
                with pytest.raises(StoreConflict):  # the former work is told that it does not count any more
                    _outcome(self.work.missing())
            assert begun[0] == 0 or self.target[0] != collection
            self.gathered = set()
        self.work, self.target = work, (collection, model)
        self.under_way[collection] = model

    @precondition(lambda self: self.work is not None)
    @rule(count=st.sampled_from([1, 3, 50]))
    def gather(self, count: int) -> None:
        assert self.work is not None
        passages = _outcome(self.work.missing(count))
        assert not self.gathered & {id for id, _ in passages}
        if passages:
            vectors = embedded(self.target[1], [text for _, text in passages])
            _outcome(self.work.keep([id for id, _ in passages], vectors))
            self.gathered |= {id for id, _ in passages}

    @precondition(lambda self: self.work is not None)
    @rule()
    def finish(self) -> None:
        assert self.work is not None
        collection, model = self.target
        done = _outcome(self.work.finish())
        assert done == (_outcome(self.work.missing(1)) == [])
        if done:
            if self.model[collection] != model:
                del self.under_way[collection]
            self.model[collection] = model
            self.work, self.target = None, ("", "")

    @precondition(lambda self: self.work is not None)
    @rule()
    def finish_at_once(self) -> None:
        self.gather(1000)
        self.finish()
        assert self.work is None

    @rule()
    def die(self) -> None:
        """The process, and another one takes up the work."""
        self.database.close()
        self.database = _Blocking.open(self.path, KEY, schema=STORE_SCHEMA)
        self.search = Search(self.database)
        if self.work is not None:
            self.work = Reembedding(self.database, collection=self.target[0], model_id=self.target[1])

    @invariant()
    def each_passage_is_found_by_its_collections_embedder_and_no_other(self) -> None:
        for name, model in self.model.items():
            texts = sorted(text for (collection, _), held in self.held.items() if collection == name for text in held)
            if not texts:
                continue
            for text, vector in zip(texts[:3], embedded(model, texts[:3]), strict=True):
                hits = _outcome(self.search.query(text="", vector=vector, collection=name, top=100, model_id=model))
                assert sorted(hit.text for hit in hits) == texts
                assert hits[0].text == text and hits[0].similarity == pytest.approx(1, abs=1e-2)
            other = next(one for one in MODELS if one != model)
            with pytest.raises(ModelMismatch):
                vector = embedded(other, ["x"])[0]
                _outcome(self.search.query(text="", vector=vector, collection=name, model_id=other))

    @invariant()
    def every_row_is_what_its_embedder_gives(self) -> None:
        def work(connection: Connection) -> list[tuple[str, list[str], bytes, bytes]]:
            found = []
            for id, model in connection.execute(
                "SELECT d.id, c.model_id FROM documents d JOIN collections c ON c.id = d.collection_id"
            ).fetchall():
                rows = connection.execute(
                    "SELECT k.text, v.value FROM chunks k JOIN vectors v ON v.chunk_id = k.id WHERE k.document_id = ?"
                    " ORDER BY k.id", (id,),
                ).fetchall()
                code = connection.execute("SELECT code FROM codes WHERE document_id = ?", (id,)).fetchone()
                found.append((model, [text for text, _ in rows], b"".join(value for _, value in rows), code))
            return found

        for model, texts, values, code in self.database.run_sync(work, read_only=True):
            rows = embedded(model, texts)
            assert values == b"".join(encode_rows(rows))
            assert not texts or code == (encode_codes(rows),)

    @invariant()
    def nothing_is_left_over(self) -> None:
        def count(connection: Connection) -> tuple[int, int]:
            rows = connection.execute("SELECT count(*) FROM new_vectors").fetchone()
            works = connection.execute("SELECT count(*) FROM reembeddings").fetchone()
            assert rows is not None and works is not None
            return rows[0], works[0]

        rows, works = self.database.run_sync(count, read_only=True)
        assert works == len(self.under_way) and (works or not rows)


class TestReembeddings(Reembeddings.TestCase):  # type: ignore[name-defined,misc]
    settings = settings(max_examples=12, stateful_step_count=20, deadline=None)

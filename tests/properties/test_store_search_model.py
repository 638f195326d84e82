"""Search against a list that is gone through: two databases over one file add, replace, delete, label and date."""

import asyncio
import hashlib
import tempfile
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

import store.codes
import store.search
from store.documents import LABELS, Chunk, Documents, strictest
from store.filters import Filter, at_most
from store.search import Search
from tests.support.stores import open_store, unit_vectors

DIMENSION = 70
SOURCES = ("a/1", "a/2", "ab/1", "b")
WHO = st.integers(0, 1)
SOURCE, LABEL, DATE = st.sampled_from(SOURCES), st.sampled_from(LABELS), st.none() | st.integers(0, 5)
FILTERS = st.builds(
    Filter, labels=st.none() | st.frozensets(LABEL), source=st.none() | SOURCE, since=DATE, until=DATE,
    folder=st.sampled_from([None, "a", "b"]), glob=st.sampled_from([None, "*/1", "a*"]),
)

PUBLIC = Filter(labels=at_most("public"))


@dataclass
class Known:
    id: int
    label: str
    dated_at: int | None
    texts: list[str]
    vectors: np.ndarray

    def passes(self, source: str, filter: Filter) -> bool:
        return (
            (filter.labels is None or self.label in filter.labels)
            and filter.source in (None, source)
            and (filter.folder is None or source.startswith(filter.folder + "/"))
            and {None: True, "*/1": source.endswith("/1"), "a*": source[0] == "a"}[filter.glob]
            and (filter.since is None or (self.dated_at is not None and self.dated_at >= filter.since))
            and (filter.until is None or (self.dated_at is not None and self.dated_at < filter.until))
        )


class SearchModel(RuleBasedStateMachine):
    @initialize()
    def start(self) -> None:
        self.folder = tempfile.TemporaryDirectory()
        self.runner = asyncio.Runner()
        path = Path(self.folder.name) / "store.db"
        self.databases = [open_store(path), open_store(path)]
        self.documents = [Documents(database) for database in self.databases]
        self.searches = [Search(database) for database in self.databases]
        self.model: dict[str, Known] = {}
        self.made = 0

    @rule(who=WHO, source=SOURCE, label=st.none() | LABEL, dated_at=DATE, count=st.integers(0, 4))
    def add(self, who: int, source: str, label: str | None, dated_at: int | None, count: int) -> None:
        """Or replaces what the source held; new content each time."""
        self.made += 1
        texts = [f"word w{self.made}x{n}" for n in range(count)]
        vectors = unit_vectors(max(count, 1), seed=self.made, dimension=DIMENSION)[:count]
        before = self.model.pop(source, None)
        added = self.runner.run(self.documents[who].add(
            collection="c", source=source, title="t", sha256=hashlib.sha256(b"%d" % self.made).digest(), label=label,
            chunks=[Chunk(text) for text in texts], vectors=vectors, model_id="m", dated_at=dated_at,
        ))
        tightened = strictest(label, before and before.label) or "internal"
        self.model[source] = Known(added.id, tightened, dated_at, texts, vectors)

    @rule(who=WHO, source=SOURCE, listed=st.booleans())
    def delete(self, who: int, source: str, listed: bool) -> None:
        """Or so many that the list of removals does not hold this one any more."""
        if known := self.model.pop(source, None):
            assert self.runner.run(self.documents[who].delete(known.id))
            if not listed:
                self.databases[who].run_sync(lambda c: c.execute("DELETE FROM removals").rowcount)

    @rule(who=WHO, source=SOURCE, label=LABEL)
    def relabel(self, who: int, source: str, label: str) -> None:
        if known := self.model.get(source):
            self.runner.run(self.documents[who].relabel(known.id, label))
            known.label = label

    @rule(who=WHO, source=SOURCE, to=SOURCE)
    def rename(self, who: int, source: str, to: str) -> None:
        if source in self.model and to not in self.model:
            self.runner.run(self.documents[who].rename(self.model[source].id, to, "t"))
            self.model[to] = self.model.pop(source)

    @rule()
    def codes_are_to_be_made(self) -> None:
        def work(connection: store.search.Connection) -> None:
            connection.execute("DELETE FROM codes WHERE document_id % 2 = 0")
            connection.execute("UPDATE collections SET coded = 0, removed = removed + 2000")

        self.databases[1].run_sync(work)

    @rule(who=WHO, filter=st.just(Filter()) | FILTERS, seed=st.integers(0, 9))
    def ask_by_vector(self, who: int, filter: Filter, seed: int) -> None:
        question = unit_vectors(1, seed=1000 + seed, dimension=DIMENSION)[0]
        hits = self.runner.run(
            self.searches[who].query(text="", vector=question, collection="c", top=99, filter=filter)
        )
        wanted = [
            (float(vector.astype("<f2").astype(np.float32) @ question), text, source, known.label)
            for source, known in self.model.items() if known.passes(source, filter)
            for text, vector in zip(known.texts, known.vectors, strict=True)
        ]
        wanted.sort(reverse=True)
        assert [(hit.text, hit.source, hit.label) for hit in hits] == [row[1:] for row in wanted]

    @rule(who=WHO, filter=FILTERS, text=st.sampled_from(["", "word"]), seed=st.integers(0, 9))
    def ask_with_few_candidates(self, who: int, filter: Filter, text: str, seed: int) -> None:
        question = unit_vectors(1, seed=1000 + seed, dimension=DIMENSION)[0]
        with (
            mock.patch.object(store.search, "_candidates", lambda *_, **__: 2),
            mock.patch.multiple(store.codes, _BY_DISTANCE=2, _BY_SIGNS=1),
        ):
            hits = self.runner.run(
                self.searches[who].query(text=text, vector=question, collection="c", top=2, filter=filter)
            )
            ranked = self.runner.run(
                self.searches[who].documents(text=text, vector=question, collection="c", top=9, filter=filter)
            )
        left = {source: known for source, known in self.model.items() if known.passes(source, filter)}
        assert len(hits) == min(2, sum(len(known.texts) for known in left.values()))
        assert all(hit.text in left[hit.source].texts for hit in hits)
        assert {hit.source for hit in hits} <= {source for source, _ in ranked} <= set(left)

    @invariant()
    def all_that_is_held_is_found_and_first_what_is_asked_for(self) -> None:
        for search in getattr(self, "searches", []):
            for filter in (Filter(), PUBLIC):  # the same each time, as what is kept in memory is of the last one
                left = [known for source, known in self.model.items() if known.passes(source, filter)]
                held = [pair for known in left for pair in zip(known.texts, known.vectors, strict=True)]
                vector = held[-1][1] if held else unit_vectors(1, dimension=DIMENSION)[0]
                ask = search.query(text="", vector=vector, collection="c", top=99, filter=filter)
                assert sorted(hit.text for hit in self.runner.run(ask)) == sorted(text for text, _ in held)
                with (
                    mock.patch.object(store.search, "_candidates", lambda *_, **__: 1),
                    mock.patch.multiple(store.codes, _BY_DISTANCE=1, _BY_SIGNS=1),
                ):
                    hits = self.runner.run(search.query(text="", vector=vector, collection="c", filter=filter))
                assert [hit.text for hit in hits] == [text for text, _ in held[-1:]]

    def teardown(self) -> None:
        if hasattr(self, "databases"):
            for database in self.databases:
                database.close()
            self.runner.close()
            self.folder.cleanup()


TestSearchModel = SearchModel.TestCase
TestSearchModel.settings = settings(stateful_step_count=20, max_examples=25, deadline=None)

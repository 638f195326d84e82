"""Search by meaning and by words, fused: candidates by codes rescored by float16 rows, and FTS5 with Porter stemming.

A chunk's score is a convex combination of its cosine and its BM25, each over the best one's (Bruch, Gai, Ingber 2023:
such a sum keeps how far apart two hits are, which a fusion of ranks throws away). Then the question is asked once more
with the meaning of the best few chunks mixed in (Rocchio 1971), which finds what says the same in other words. All
orders are total; what is equal goes by id. A question without a text asks by its vector alone.
"""

import functools
import itertools
import re
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from typing import Final, TypeVar

import numpy as np

from store.answers import KeptAnswers
from store.codes import CodeIndex, Mask, make_codes
from store.database import Connection, Database
from store.documents import other_model
from store.errors import StoreMisuse
from store.filters import Filter
from store.vectors import FloatArray, checked_rows, fetch_rows, mixed

__all__ = ["STOP_WORDS", "Filter", "Hit", "Search", "fts_words", "fuse"]

T = TypeVar("T")
K = TypeVar("K", bound=Hashable)
_Ranked = list[tuple[int, float, float]]  # id of a passage, score, cosine to the question itself; best first

_CANDIDATES: Final = 56  # by a vector alone: recall@10 is 0.993 for 56 of 100,000 ...
_CANDIDATE_SHARE: Final = 7_000  # ... and 0.987 for 143 of a million
_CANDIDATES_FUSED: Final = 100  # of each ranking; twice as many raise nDCG@10 by 0.001
_MEANING: Final = 0.7  # of a score; the rest is words. From 0.6 to 0.75 the outcome is nearly the same
_FEEDBACK: Final = 3  # best chunks that join the question ...
_FEEDBACK_WEIGHT: Final = 0.7  # ... with so much of its own weight
_TITLE_WEIGHT: Final = 2.0  # of a word in the title, over one in the text
_MAX_WORDS: Final = 64
_PHRASE_PARTS: Final = 16
_SCORED_ROWS: Final = 20_000
_WORD: Final = re.compile(r"\w+(?:[-./]\w+)*")
# What makes a sentence a question rather than telling what it is about. Such words are rare in documents that are no
# dialogue, so BM25 would take them for telling ones.
_STOPPED: Final = (
    "a about am an and any anyone are as at be been being but by can could did do does for from had has have how i if"
    " in into is it its may me might more most must my no not of on or our shall should so some such than that the"
    " their then there these they this those to too us very was we were what when where which who whom whose why will"
    " with would you your"
)
STOP_WORDS: Final = frozenset(_STOPPED.split())
_ALL: Final = Filter()


@dataclass(frozen=True)
class Hit:
    chunk_id: int
    document_id: int
    source: str
    title: str
    text: str
    page: int | None
    line: int | None
    label: str
    score: float  # 0 .. 1, compares within one answer alone
    similarity: float  # cosine to the question itself, -1 .. 1


@dataclass
class _Held:
    """What is in memory of one collection: for which vectors, and the documents that the last filter left."""

    made_with: tuple[int, str, int]
    index: CodeIndex
    filtered: tuple[object, Mask | None] = (None, None)


class Search:
    """Searches one database; keeps the codes of each collection it was asked about in memory."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._held: dict[str, _Held] = {}  # by collection, touched on the owner thread only

    @property
    def kept_answers(self) -> KeptAnswers:
        """What was answered from the same database's local-only documents."""
        return KeptAnswers(self._database)

    async def query(
        self, *, text: str, vector: FloatArray, collection: str, top: int = 5, model_id: str | None = None,
        filter: Filter = _ALL,
    ) -> list[Hit]:
        """The `top` best passages for a question and its vector (float32, length 1); none if there is no collection.

        Sees all documents committed before, by any process, and none that the filter leaves out. Raises ModelMismatch
        if the vector's dimension, or `model_id` where given, is not the collection's; StoreMisuse for a vector that is
        not of length 1.
        """

        def work(connection: Connection, index: CodeIndex, ranked: _Ranked) -> list[Hit]:
            statement = (
                "SELECT k.id, d.id, d.source, d.title, k.text, k.page, k.line, d.label, ?2, ?3"
                " FROM chunks k JOIN documents d ON d.id = k.document_id WHERE k.id = ?1"
            )
            return [Hit(*row) for found in ranked[:top] for row in connection.execute(statement, found)]

        return await self._with_candidates(text, vector, collection, model_id, filter, top, work)

    async def documents(
        self, *, text: str, vector: FloatArray, collection: str, top: int = 10, model_id: str | None = None,
        filter: Filter = _ALL,
    ) -> list[tuple[str, float]]:
        """(source, score) of the `top` best documents, each with the score of its best chunk. Raises as `query`."""

        def work(connection: Connection, index: CodeIndex, ranked: _Ranked) -> list[tuple[str, float]]:
            holders = index.holders(np.array([id for id, _, _ in ranked], np.int64))
            best: dict[int, float] = {}
            for place, (_, score, _) in zip(holders.tolist(), ranked, strict=True):
                best.setdefault(place, score)
            first = [(int(index.documents[place]), score) for place, score in list(best.items())[:top]]
            sources = "SELECT source FROM documents WHERE id = ?"
            return [(str(row[0]), score) for id, score in first for row in connection.execute(sources, (id,))]

        return await self._with_candidates(text, vector, collection, model_id, filter, top, work)

    async def _with_candidates(
        self, text: str, vector: FloatArray, collection: str, model_id: str | None, filter: Filter, top: int,
        work: Callable[[Connection, CodeIndex, _Ranked], list[T]],
    ) -> list[T]:
        if vector.ndim != 1:
            raise StoreMisuse("a question has one vector")
        unit = checked_rows(vector[None, :], 1)[0]

        def transaction(connection: Connection) -> list[T] | tuple[int, int]:
            row = connection.execute(
                "SELECT id, model_id, dimension, added, removed, altered, coded FROM collections WHERE name = ?",
                (collection,),
            ).fetchone()
            if row is None:
                return []
            id, model, dimension, added, removed, altered, coded = row
            if dimension != len(unit) or (model_id is not None and model_id != model):
                raise other_model()
            if not coded:
                return id, dimension
            held = self._held.get(collection)
            if held is None or held.made_with != (id, model, dimension):
                held = self._held[collection] = _Held((id, model, dimension), CodeIndex(id, dimension))
            index = held.index
            index.refresh(connection, added=added, removed=removed)
            if filter != _ALL and held.filtered[0] != (filter, added, removed, altered):
                held.filtered = (filter, added, removed, altered), _left(connection, id, filter, index)
            left = None if filter == _ALL else held.filtered[1]
            count = _candidates(len(index), top, fused=bool(text))
            by_words = _by_words(connection, index, left, text, count=count)
            among = None if left is None else index.of_documents(left)
            ids = sorted({*index.nearest(unit, count, among), *by_words})
            rows = fetch_rows(connection, ids, dimension)
            similarity = _cosines(ids, rows, unit)
            ranked = fuse(similarity, by_words)
            if text:
                asked = mixed(unit, rows[[ids.index(id) for id, _ in ranked[:_FEEDBACK]]], _FEEDBACK_WEIGHT)
                ranked = fuse(_cosines(ids, rows, asked), by_words)
            hits = [(id, score, similarity[id]) for id, score in ranked]
            return work(connection, index, sorted(hits, key=lambda hit: (-hit[1], -hit[2], hit[0])))

        while isinstance(found := await self._database.run(transaction, read_only=True), tuple):
            await self._database.run(functools.partial(make_codes, collection_id=found[0], dimension=found[1]))
        return found


def _candidates(size: int, top: int, *, fused: bool) -> int:
    return max(_CANDIDATES_FUSED if fused else _CANDIDATES, 4 * top, size // _CANDIDATE_SHARE)


def _cosines(ids: list[int], rows: FloatArray, vector: FloatArray) -> dict[int, float]:
    """Rounded, as the last bits of equal ones depend on where in the array they stand."""
    return dict(zip(ids, np.round(np.einsum("ij,j->i", rows, vector).astype(float), 6).tolist(), strict=True))


def _left(connection: Connection, collection_id: int, filter: Filter, index: CodeIndex) -> Mask:
    """Which of the index's documents the filter leaves."""
    condition, values = filter.condition()
    statement = f"SELECT id FROM documents WHERE collection_id = ? AND {condition}"  # noqa: S608
    found = connection.execute(statement, (collection_id, *values)).fetchall()
    return np.isin(index.documents, np.array(found, np.int64).ravel())


def fuse(meaning: Mapping[K, float], words: Mapping[K, float]) -> list[tuple[K, float]]:
    """(item, 0..1), best first, equal scores by item: each score over the best of its kind, then the weighted sum.

    What is negative counts as nothing, and so does what is missing.
    """
    by_meaning, by_words = _shares(meaning), _shares(words)
    scores = {
        item: _MEANING * by_meaning.get(item, 0.0) + (1 - _MEANING) * by_words.get(item, 0.0)
        for item in by_meaning.keys() | by_words.keys()
    }
    return sorted(scores.items(), key=lambda pair: (-pair[1], pair[0]))


def _shares(scores: Mapping[K, float]) -> dict[K, float]:
    best = max([0.0, *scores.values()]) or 1.0
    return {item: max(0.0, score) / best for item, score in scores.items()}


def fts_words(text: str) -> list[str]:
    """The words of `text` as FTS5 expressions, distinct, at most 64, without stop words if others are left.

    Each is a quoted string, so nothing in it is syntax. What is joined by - . / (a part number) counts in parts and
    once more as a phrase, up to 16 of them: a phrase costs as much for each part as a word.
    """
    words: list[str] = []
    for match in _WORD.findall(text.lower()):
        parts = re.split(r"[-./]", match)
        words += [match, *parts] if len(parts) <= _PHRASE_PARTS else parts
    telling = [word for word in words if word not in STOP_WORDS]
    return [f'"{word}"' for word in dict.fromkeys(telling or words) if word][:_MAX_WORDS]


def _by_words(
    connection: Connection, index: CodeIndex, left: Mask | None, text: str, *, count: int
) -> dict[int, float]:
    """BM25 of the `count` best passages that hold any of the words, best first."""
    words, (first, last) = fts_words(text), index.span
    if last - first >= _SCORED_ROWS:
        words = _telling(connection, words, first, last)
    if not words:
        return {}
    # Whose passages these are is known in memory; the tables would have to be read for each.
    found = connection.execute(
        "SELECT rowid, -bm25(words, ?, 1.0) FROM words WHERE words MATCH ? AND rowid BETWEEN ? AND ?",
        (_TITLE_WEIGHT, " OR ".join(words), first, last),
    ).fetchall()
    ids, scores = np.array([row[0] for row in found], np.int64), np.array([row[1] for row in found])
    places = index.holders(ids)
    ours = places >= 0
    if left is not None and len(left):
        ours &= left[places]
    ids, scores = ids[ours], scores[ours]
    best = np.lexsort((ids, -scores))[:count]
    return dict(zip(ids[best].tolist(), scores[best].tolist(), strict=True))


def _telling(connection: Connection, words: list[str], first: int, last: int) -> list[str]:
    """The rarest words among these ids, as many as keep the rows to score in bounds, at least one that occurs.

    Scoring a row costs 8 us, and a word that is everywhere (whatever the language) adds rows but hardly any order.
    """
    statement = "SELECT count(*) FROM (SELECT 1 FROM words WHERE words MATCH ? AND rowid BETWEEN ? AND ? LIMIT ?)"
    counted = sorted(
        (rows, word) for word in words
        for (rows,) in connection.execute(statement, (word, first, last, _SCORED_ROWS)) if rows
    )
    totals = itertools.accumulate(rows for rows, _ in counted)
    within = [word for (_, word), total in zip(counted, totals, strict=True) if total <= _SCORED_ROWS]
    return within or [word for _, word in counted[:1]]

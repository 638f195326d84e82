"""Search by meaning and by words, fused: 1-bit candidates rescored by float16 rows, and FTS5 with Porter stemming.

A chunk's score is a convex combination of its cosine and its BM25, each over the best one's (Bruch, Gai, Ingber 2023:
such a sum keeps how far apart two hits are, which a fusion of ranks throws away). Then the question is asked once more
with the meaning of the best few chunks mixed in (Rocchio 1971), which finds what says the same in other words. All
orders are total; what is equal goes by id.
"""

import re
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from typing import Final, TypeVar

from store.answers import KeptAnswers
from store.database import Connection, Database
from store.errors import ModelMismatch, StoreMisuse
from store.vectors import CodeIndex, FloatArray, checked_rows, fetch_rows, mixed

__all__ = ["STOP_WORDS", "Hit", "Search", "fts_words", "fuse"]

T = TypeVar("T")
K = TypeVar("K", bound=Hashable)

_CANDIDATES: Final = 200  # of each ranking; recall@10 was 1.0 for 200 of 100,000 ...
_CANDIDATE_SHARE: Final = 1000  # ... and for 1 in 1,000 beyond
_MEANING: Final = 0.7  # of a score; the rest is words. From 0.6 to 0.75 the outcome is nearly the same
_FEEDBACK: Final = 3  # best chunks that join the question ...
_FEEDBACK_WEIGHT: Final = 0.7  # ... with so much of its own weight
_TITLE_WEIGHT: Final = 2.0  # of a word in the title, over one in the text
_MAX_WORDS: Final = 64
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


@dataclass(frozen=True)
class _Candidates:
    """(chunk id, score), best first, and the cosine of each to the question itself."""

    ranked: list[tuple[int, float]]
    similarity: dict[int, float]


class Search:
    """Searches one database; keeps the codes of each collection it was asked about in memory."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._indexes: dict[str, tuple[tuple[int, str, int], CodeIndex]] = {}  # touched on the owner thread only

    @property
    def kept_answers(self) -> KeptAnswers:
        """What was answered from the same database's local-only documents."""
        return KeptAnswers(self._database)

    async def query(
        self, *, text: str, vector: FloatArray, collection: str, top: int = 5, model_id: str | None = None
    ) -> list[Hit]:
        """The `top` best passages for a question and its vector (float32, length 1); none if there is no collection.

        Sees all documents committed before, by any process. Raises ModelMismatch if the vector's dimension, or
        `model_id` where given, is not the collection's; StoreMisuse for a vector that is not of length 1.
        """

        def work(connection: Connection, found: _Candidates) -> list[Hit]:
            return [_hit(connection, id, score, found.similarity[id]) for id, score in found.ranked[:top]]

        return await self._with_candidates(text, vector, collection, model_id, work)

    async def documents(
        self, *, text: str, vector: FloatArray, collection: str, top: int = 10, model_id: str | None = None
    ) -> list[tuple[str, float]]:
        """(source, score) of the `top` best documents, each with the score of its best chunk. Raises as `query`."""

        def work(connection: Connection, found: _Candidates) -> list[tuple[str, float]]:
            best: dict[str, float] = {}
            for id, score in found.ranked:
                if len(best) == top:
                    break
                best.setdefault(_source(connection, id), score)
            return list(best.items())

        return await self._with_candidates(text, vector, collection, model_id, work)

    async def _with_candidates(
        self, text: str, vector: FloatArray, collection: str, model_id: str | None,
        work: Callable[[Connection, _Candidates], list[T]],
    ) -> list[T]:
        if vector.ndim != 1:
            raise StoreMisuse("a question has one vector")
        unit = checked_rows(vector[None, :], 1)[0]

        def transaction(connection: Connection) -> list[T]:
            row = connection.execute(
                "SELECT id, model_id, dimension, added, removed FROM collections WHERE name = ?", (collection,)
            ).fetchone()
            if row is None:
                return []
            id, model, dimension, added, removed = row
            if dimension != len(unit) or (model_id is not None and model_id != model):
                raise ModelMismatch(
                    "the collection was made with another embedding model",
                    hint="use the embedder it was made with, or delete its documents and ingest them again",
                )
            index = self._index(collection, (id, model, dimension))
            index.refresh(connection, added=added, removed=removed)
            count = max(_CANDIDATES, len(index) // _CANDIDATE_SHARE)
            by_words = _by_words(connection, id, text, count=count, size=len(index))
            ids = sorted({*index.nearest(unit, count), *by_words})
            rows = fetch_rows(connection, ids, dimension)
            similarity = dict(zip(ids, (rows @ unit).tolist(), strict=True))
            best = [id for id, _ in fuse(similarity, by_words)[:_FEEDBACK]]
            asked = mixed(unit, rows[[ids.index(id) for id in best]], _FEEDBACK_WEIGHT)
            again = dict(zip(ids, (rows @ asked).tolist(), strict=True))
            return work(connection, _Candidates(fuse(again, by_words), similarity))

        return await self._database.run(transaction, read_only=True)

    def _index(self, collection: str, made_with: tuple[int, str, int]) -> CodeIndex:
        known, index = self._indexes.get(collection, (None, None))
        if index is None or known != made_with:
            index = CodeIndex(made_with[0], made_with[2])
            self._indexes[collection] = (made_with, index)
        return index


def fuse(meaning: Mapping[K, float], words: Mapping[K, float]) -> list[tuple[K, float]]:
    """(item, 0..1), best first, equal scores by item: each score over the best of its kind, then the weighted sum.

    What is negative counts as nothing, and so does what is missing.
    """
    best_meaning, best_words = max([0.0, *meaning.values()]), max([0.0, *words.values()])
    scores = {
        item: _MEANING * _share(meaning.get(item, 0.0), best_meaning)
        + (1 - _MEANING) * _share(words.get(item, 0.0), best_words)
        for item in meaning.keys() | words.keys()
    }
    return sorted(scores.items(), key=lambda pair: (-pair[1], pair[0]))


def _share(score: float, best: float) -> float:
    return max(0.0, score) / best if best > 0 else 0.0


def fts_words(text: str) -> list[str]:
    """The words of `text` as FTS5 expressions, distinct, at most 64, without stop words if others are left.

    Each is a quoted string, so nothing in it is syntax. What is joined by - . / (a part number) counts in parts and
    once more as a phrase.
    """
    words: list[str] = []
    for match in _WORD.findall(text.lower()):
        words.append(match)
        words += re.split(r"[-./]", match)
    telling = [word for word in words if word not in STOP_WORDS]
    return [f'"{word}"' for word in dict.fromkeys(telling or words) if word][:_MAX_WORDS]


def _by_words(connection: Connection, collection_id: int, text: str, *, count: int, size: int) -> dict[int, float]:
    """BM25 of the `count` best chunks that hold any of the words, best first."""
    words = fts_words(text)
    if size > _SCORED_ROWS:
        words = _telling(connection, words)
    if not words:
        return {}
    rows = connection.execute(
        "SELECT w.rowid, -bm25(words, ?, 1.0) AS score"
        " FROM words w JOIN codes k ON k.chunk_id = w.rowid AND k.collection_id = ?"
        " WHERE words MATCH ? ORDER BY score DESC, w.rowid LIMIT ?",
        (_TITLE_WEIGHT, collection_id, " OR ".join(words), count),
    )
    return {row[0]: row[1] for row in rows}


def _telling(connection: Connection, words: list[str]) -> list[str]:
    """The rarest words, as many as keep the rows to score in bounds, at least one that occurs.

    Scoring a row costs 8 us, and a word that is everywhere (whatever the language) adds rows but hardly any order.
    """
    statement = "SELECT count(*) FROM (SELECT 1 FROM words WHERE words MATCH ? LIMIT ?)"
    counted = []
    for word in words:
        row = connection.execute(statement, (word, _SCORED_ROWS)).fetchone()
        assert row is not None
        if row[0]:
            counted.append((row[0], word))
    kept: list[str] = []
    total = 0
    for rows, word in sorted(counted):
        total += rows
        if kept and total > _SCORED_ROWS:
            break
        kept.append(word)
    return kept


def _source(connection: Connection, chunk_id: int) -> str:
    """A collection has each source once, so it names the document."""
    row = connection.execute(
        "SELECT d.source FROM chunks k JOIN documents d ON d.id = k.document_id WHERE k.id = ?", (chunk_id,)
    ).fetchone()
    assert row is not None
    return str(row[0])


def _hit(connection: Connection, chunk_id: int, score: float, similarity: float) -> Hit:
    row = connection.execute(
        "SELECT k.id, d.id, d.source, d.title, k.text, k.page, k.line, d.label, ?, ?"
        " FROM chunks k JOIN documents d ON d.id = k.document_id WHERE k.id = ?",
        (score, similarity, chunk_id),
    ).fetchone()
    assert row is not None
    return Hit(*row)

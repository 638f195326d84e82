"""Search by meaning and by words, fused: 1-bit candidates rescored by float16 rows, and FTS5 with Porter stemming.

The two rankings are joined by reciprocal rank fusion (Cormack, Clarke, Buettcher 2009): a score is the sum of
1 / (60 + rank) over the rankings that hold the item, ranks from 1. All orders are total; what is equal goes by id.
"""

import re
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import Final, TypeVar

from store.database import Connection, Database
from store.errors import ModelMismatch, StoreMisuse
from store.vectors import CodeIndex, FloatArray, checked_rows, similarities

__all__ = ["Hit", "Search", "fts_words", "fuse"]

T = TypeVar("T")
K = TypeVar("K", bound=Hashable)

_CANDIDATES: Final = 200  # of each ranking; recall@10 was 1.0 for 200 of 100,000 ...
_CANDIDATE_SHARE: Final = 1000  # ... and for 1 in 1,000 beyond
_FUSION: Final = 60
_MAX_WORDS: Final = 64
_SCORED_ROWS: Final = 20_000
_WORD: Final = re.compile(r"\w+(?:[-./]\w+)*")


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
    score: float  # reciprocal rank fusion, 0 .. 2/61
    similarity: float  # cosine, -1 .. 1


@dataclass(frozen=True)
class _Rankings:
    """Chunk ids, best first, and the cosine of every chunk in either."""

    by_meaning: Sequence[int]
    by_words: Sequence[int]
    similarity: dict[int, float]


class Search:
    """Searches one database; keeps the codes of each collection it was asked about in memory."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._indexes: dict[str, tuple[tuple[int, str, int], CodeIndex]] = {}  # touched on the owner thread only

    async def query(
        self, *, text: str, vector: FloatArray, collection: str, top: int = 5, model_id: str | None = None
    ) -> list[Hit]:
        """The `top` best passages for a question and its vector (float32, length 1); none if there is no collection.

        Sees all documents committed before, by any process. Raises ModelMismatch if the vector's dimension, or
        `model_id` where given, is not the collection's; StoreMisuse for a vector that is not of length 1.
        """

        def work(connection: Connection, rankings: _Rankings) -> list[Hit]:
            fused = fuse([rankings.by_meaning, rankings.by_words])[:top]
            return [_hit(connection, id, score, rankings.similarity[id]) for id, score in fused]

        return await self._with_rankings(text, vector, collection, model_id, work)

    async def documents(
        self, *, text: str, vector: FloatArray, collection: str, top: int = 10, model_id: str | None = None
    ) -> list[tuple[str, float]]:
        """(source, score) of the `top` best documents; in each ranking a document stands where its best chunk does.

        Raises as `query`.
        """

        def work(connection: Connection, rankings: _Rankings) -> list[tuple[str, float]]:
            owners = _owners(connection, rankings.similarity)
            best = [_distinct(owners[id] for id in ranking) for ranking in (rankings.by_meaning, rankings.by_words)]
            return [(source, score) for (_, source), score in fuse(best)[:top]]

        return await self._with_rankings(text, vector, collection, model_id, work)

    async def _with_rankings(
        self, text: str, vector: FloatArray, collection: str, model_id: str | None,
        work: Callable[[Connection, _Rankings], list[T]],
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
            candidates = index.nearest(unit, count)
            similarity = similarities(connection, sorted({*candidates, *by_words}), unit)
            by_meaning = sorted(candidates, key=lambda id: (-similarity[id], id))
            return work(connection, _Rankings(by_meaning, by_words, similarity))

        return await self._database.run(transaction, read_only=True)

    def _index(self, collection: str, made_with: tuple[int, str, int]) -> CodeIndex:
        known, index = self._indexes.get(collection, (None, None))
        if index is None or known != made_with:
            index = CodeIndex(made_with[0], made_with[2])
            self._indexes[collection] = (made_with, index)
        return index


def fuse(rankings: Sequence[Sequence[K]]) -> list[tuple[K, float]]:
    """Reciprocal rank fusion: (item, score), best first, equal scores by item. Items are distinct in each ranking."""
    scores: dict[K, float] = {}
    for ranking in rankings:
        for rank, item in enumerate(ranking, 1):
            scores[item] = scores.get(item, 0.0) + 1 / (_FUSION + rank)
    return sorted(scores.items(), key=lambda pair: (-pair[1], pair[0]))


def fts_words(text: str) -> list[str]:
    """The words of `text` as FTS5 expressions, distinct, at most 64.

    Each is a quoted string, so nothing in it is syntax. What is joined by - . / (a part number) counts in parts and
    once more as a phrase.
    """
    words: list[str] = []
    for match in _WORD.findall(text.lower()):
        words.append(match)
        words += re.split(r"[-./]", match)
    return [f'"{word}"' for word in dict.fromkeys(words) if word][:_MAX_WORDS]


def _by_words(connection: Connection, collection_id: int, text: str, *, count: int, size: int) -> list[int]:
    words = fts_words(text)
    if size > _SCORED_ROWS:
        words = _telling(connection, words)
    if not words:
        return []
    rows = connection.execute(
        "SELECT w.rowid FROM words w JOIN codes k ON k.chunk_id = w.rowid AND k.collection_id = ?"
        " WHERE words MATCH ? ORDER BY bm25(words), w.rowid LIMIT ?",
        (collection_id, " OR ".join(words), count),
    )
    return [row[0] for row in rows]


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


def _owners(connection: Connection, chunk_ids: Iterable[int]) -> dict[int, tuple[int, str]]:
    owners = {}
    for id in chunk_ids:
        row = connection.execute(
            "SELECT d.id, d.source FROM chunks k JOIN documents d ON d.id = k.document_id WHERE k.id = ?", (id,)
        ).fetchone()
        assert row is not None
        owners[id] = (row[0], row[1])
    return owners


def _distinct(items: Iterable[K]) -> list[K]:
    return list(dict.fromkeys(items))


def _hit(connection: Connection, chunk_id: int, score: float, similarity: float) -> Hit:
    row = connection.execute(
        "SELECT k.id, d.id, d.source, d.title, k.text, k.page, k.line, d.label, ?, ?"
        " FROM chunks k JOIN documents d ON d.id = k.document_id WHERE k.id = ?",
        (score, similarity, chunk_id),
    ).fetchone()
    assert row is not None
    return Hit(*row)

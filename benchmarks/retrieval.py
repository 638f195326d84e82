"""How well the product's own search ranks documents: nDCG@10 on a collection with judged questions.

The collection is a folder as BEIR lays them out: corpus.jsonl (id, title, text), queries.jsonl (id, text) and qrels.tsv
(question, document, relevance; a header line). Each record goes through `Ingest`, each question through `Retrieval`,
with the embedder people use, into an encrypted store that is thrown away. Beside it, on the same pieces: words alone
(BM25 with Porter stemming), meaning alone (the embedder's cosine) and reciprocal rank fusion of these two.

Embedding takes most of the time; `--cache FILE` keeps the vectors by text and embedder, for another run.
"""

import argparse
import asyncio
import hashlib
import json
import math
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.measure import Row, note, show
from edge_client.config import Config
from edge_client.engine.base import Embedder
from edge_client.engine.llama import LlamaEmbedder
from edge_client.engine.models import embedder_file
from edge_client.errors import BadDocument, BadUse
from edge_client.ingest import Ingest, query_lines, record_lines
from edge_client.retrieval import Retrieval
from edge_client.scope import Scope
from store.database import STORE_SCHEMA, Database
from store.documents import Documents
from store.keys import DatabaseKey
from store.search import Search
from store.vectors import fetch_rows

DATA = Path(__file__).resolve().parent.parent.parent / "shared" / "data" / "retrieval" / "cranfield"
_COLLECTION = "benchmark"
_SMOKE_QUESTIONS = 12
_SMOKE_OTHERS = 100  # documents nobody asked for
_RRF = 60


@dataclass(frozen=True)
class Judged:
    """`relevance` by question and document; questions without any relevant document are left out."""

    corpus: Sequence[bytes]
    questions: Mapping[str, str]
    relevance: Mapping[str, Mapping[str, int]]


@dataclass(frozen=True)
class Outcome:
    """nDCG@10 by way of ranking, and milliseconds for one question by the product, without embedding it."""

    scores: Mapping[str, float]
    documents: int
    chunks: int
    questions: int
    search_ms: float


class CachedEmbedder:
    """An embedder that remembers, in one file, what it has embedded."""

    def __init__(self, inner: Embedder, path: Path | None) -> None:
        self._inner, self._path = inner, path
        self._known: dict[str, NDArray[np.float32]] = {}
        if path is not None and path.exists():
            with np.load(path) as kept:
                self._known = dict(zip(kept["keys"].tolist(), kept["rows"], strict=True))

    @property
    def model_id(self) -> str:
        return self._inner.model_id

    def count(self, text: str) -> int:
        return self._inner.count(text)

    async def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        keys = [hashlib.sha256(f"{self.model_id}\0{text}".encode()).hexdigest() for text in texts]
        new = [(key, text) for key, text in zip(keys, texts, strict=True) if key not in self._known]
        if new:
            rows = await self._inner.embed([text for _, text in new])
            self._known.update({key: row for (key, _), row in zip(new, rows, strict=True)})
        return np.stack([self._known[key] for key in keys]) if keys else np.empty((0, 384), np.float32)

    def keep(self) -> None:
        if self._path is not None and self._known:
            np.savez(self._path, keys=np.array(list(self._known)), rows=np.stack(list(self._known.values())))


def load(folder: Path) -> Judged:
    relevance: dict[str, dict[str, int]] = defaultdict(dict)
    for line in (folder / "qrels.tsv").read_text().splitlines()[1:]:
        question, document, judged = line.split("\t")
        if int(judged) > 0:
            relevance[question][document] = int(judged)
    with (folder / "queries.jsonl").open("rb") as lines:
        asked = dict(query for _, query in query_lines(lines) if not isinstance(query, BadUse))
    questions = {str(id): text for id, text in asked.items() if str(id) in relevance}
    return Judged((folder / "corpus.jsonl").read_bytes().splitlines(), questions, relevance)


def smoke(judged: Judged) -> Judged:
    """A few questions, the documents that answer them, and some others."""
    questions = dict(list(judged.questions.items())[:_SMOKE_QUESTIONS])
    wanted = {document for question in questions for document in judged.relevance[question]}
    others = 0
    kept = []
    for line in judged.corpus:
        if str(json.loads(line)["id"]) not in wanted:
            others += 1
            if others > _SMOKE_OTHERS:
                continue
        kept.append(line)
    return Judged(kept, questions, judged.relevance)


def ndcg(ranked: Sequence[str], relevance: Mapping[str, int], top: int = 10) -> float:
    """Normalised discounted cumulative gain (Järvelin and Kekäläinen 2002), gains as judged, as trec_eval counts it."""
    gained = sum(relevance.get(document, 0) / math.log2(place + 1) for place, document in enumerate(ranked[:top], 1))
    ideal = sorted(relevance.values(), reverse=True)[:top]
    return gained / sum(gain / math.log2(place + 1) for place, gain in enumerate(ideal, 1))


async def run(judged: Judged, embedder: Embedder, tell: Callable[[str], None] = note) -> Outcome:
    """Ingests, asks everything each way and forgets it all."""
    with (
        tempfile.TemporaryDirectory() as folder,
        Database.open(Path(folder) / "store.db", DatabaseKey.generate(), schema=STORE_SCHEMA) as database,
    ):
        documents = Documents(database)
        ingest = Ingest(documents, embedder)
        for number, record in record_lines(judged.corpus):
            if number % 200 == 0:
                tell(f"{number} of {len(judged.corpus)} documents")
            try:
                if isinstance(record, BadUse):
                    raise record
                await ingest.record(record, collection=_COLLECTION)
            except BadDocument as error:  # a collection may hold empty texts
                tell(f"line {number}: {error}")
        product, alone = Retrieval(Search(database), embedder), _Baselines(database)
        within = Scope(_COLLECTION)
        found: dict[str, list[float]] = defaultdict(list)
        seconds = 0.0
        for id, text in judged.questions.items():
            vector = (await embedder.embed([text]))[0]
            await product.documents(text, within=within)  # fills caches that every later question finds full
            begun = time.perf_counter()
            ranked = [source for source, _ in await product.documents(text, within=within)]
            seconds += time.perf_counter() - begun
            words, meaning = alone.by_words(text), alone.by_meaning(vector)
            for name, ranking in (
                ("search", ranked), ("words", words), ("meaning", meaning), ("ranks fused", _fused(words, meaning)),
            ):
                found[name].append(ndcg(ranking, judged.relevance[id]))
        held, chunks = await documents.count()
        scores = {name: float(np.mean(values)) for name, values in found.items()}
        return Outcome(scores, held, chunks, len(judged.questions), seconds * 1000 / len(judged.questions))


class _Baselines:
    """The plainest form of each half, over all pieces; a document stands where its best piece does."""

    def __init__(self, database: Database) -> None:
        self._database = database
        rows = database.run_sync(
            lambda c: c.execute(
                "SELECT k.id, d.source FROM chunks k JOIN documents d ON d.id = k.document_id ORDER BY k.id"
            ).fetchall(),
            read_only=True,
        )
        self._owner = dict(rows)
        ids = list(self._owner)
        self._rows = database.run_sync(lambda c: fetch_rows(c, ids, 384), read_only=True)

    def by_words(self, text: str) -> list[str]:
        words = " OR ".join(f'"{word}"' for word in dict.fromkeys("".join(
            character if character.isalnum() else " " for character in text
        ).split()))
        found = self._database.run_sync(
            lambda c: c.execute(
                "SELECT rowid FROM words WHERE words MATCH ? ORDER BY bm25(words), rowid", (words,)
            ).fetchall(),
            read_only=True,
        ) if words else []
        return _distinct(self._owner[row[0]] for row in found)

    def by_meaning(self, vector: NDArray[np.float32]) -> list[str]:
        owners = list(self._owner.values())
        return _distinct(owners[place] for place in np.argsort(-(self._rows @ vector), kind="stable"))


def _distinct(items: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(items))


def _fused(*rankings: Sequence[str]) -> list[str]:
    scores: dict[str, float] = defaultdict(float)
    for ranking in rankings:
        for place, item in enumerate(ranking[:200], 1):
            scores[item] += 1 / (_RRF + place)
    return sorted(scores, key=lambda item: (-scores[item], item))


def rows(outcome: Outcome, wanted: float | None) -> list[Row]:
    """Each baseline beside the search; the first row is held against the wanted figure. nDCG in hundredths."""
    ours = outcome.scores["search"] * 100
    peers = [(name, score * 100) for name, score in outcome.scores.items() if name != "search"]
    of = f"{outcome.questions} questions, {outcome.documents:,} documents, {outcome.chunks:,} pieces"
    found = [Row(f"nDCG@10, {of}", ours, "%", None, "", None)]
    if wanted is not None:
        found = [Row(f"nDCG@10, {of}", ours, "%", wanted * 100, "wanted", ours / (wanted * 100), 1.0)]
    found += [Row("nDCG@10", ours, "%", score, f"{name} alone" if name != "ranks fused" else name, ours / score, 1.0)
              for name, score in peers]
    return [*found, Row("one question", outcome.search_ms, "ms", None, "with its embedding cached", None)]


def main() -> None:
    parser = argparse.ArgumentParser(prog="scripts/bench retrieval", description=__doc__)
    parser.add_argument("--data", type=Path, default=DATA, help="where corpus.jsonl, queries.jsonl and qrels.tsv are")
    parser.add_argument("--wanted", type=float, help="nDCG@10 to reach")
    parser.add_argument("--cache", type=Path, help="file (.npz) that keeps vectors between runs")
    parser.add_argument("--smoke", action="store_true", help="a few questions, whose figures say little")
    parser.add_argument("--json", action="store_true", help="one JSON object on standard output")
    chosen = parser.parse_args()
    judged = load(chosen.data)
    file = embedder_file(Config.load())
    embedder = CachedEmbedder(LlamaEmbedder(file.path, model_id=file.model_id), chosen.cache)
    try:
        outcome = asyncio.run(run(smoke(judged) if chosen.smoke else judged, embedder))
    finally:
        embedder.keep()
    show("retrieval", rows(outcome, None if chosen.smoke else chosen.wanted), as_json=chosen.json)
    if chosen.wanted and not chosen.smoke and outcome.scores["search"] < chosen.wanted:
        sys.exit(1)


if __name__ == "__main__":
    main()

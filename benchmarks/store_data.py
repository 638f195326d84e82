"""What the store is measured with: real passages and their MiniLM vectors, and as many more as are wanted around them.

Passages are cut as the product cuts them from texts that come with the project (its documentation) and, where
`../shared/data` is there, from judged abstracts (Cranfield), prompts and examination questions. Questions are texts
that are among no passages. Embedding 5,000 of them takes some minutes once; `.bench-cache` keeps the vectors by text
and embedder.
"""

import asyncio
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from benchmarks.measure import note
from benchmarks.retrieval import CachedEmbedder
from edge_client.chunking import Block, chunks
from edge_client.config import Config
from edge_client.documents import parse
from edge_client.engine.base import EMBEDDER_TOKENS, Embedder
from edge_client.engine.llama import LlamaEmbedder
from edge_client.engine.models import embedder_file

ROOT: Final = Path(__file__).resolve().parent.parent
SHARED: Final = Path(os.environ.get("CAUSEWAY_SHARED", ROOT.parent / "shared")) / "data"
CACHE: Final = ROOT / ".bench-cache"
PASSAGES: Final = 5_000
QUESTIONS: Final = 200
_AT_ONCE: Final = 128  # embedded between two notes
BLOCK: Final = 1_000
_NEAR: Final = 16
_DRIFT: Final = 0.3
_NOISE: Final = 0.2  # length of the noise, the passage's own being 1

Rows = NDArray[np.float32]


@dataclass(frozen=True)
class Real:
    """Distinct passages and questions with one vector of length 1 each; `sources` says what they are from."""

    passages: Sequence[str]
    vectors: Rows
    questions: Sequence[str]
    asked: Rows
    sources: str


def texts(folder: Path = SHARED) -> tuple[dict[str, Sequence[str]], Sequence[str]]:
    """(texts by where they are from, questions); nothing where there is no such folder."""
    found: dict[str, Sequence[str]] = {}
    if not folder.is_dir():
        return found, []
    retrieval = folder / "retrieval" / "cranfield"
    found["Cranfield"] = [f"{r['title']}\n\n{r['text']}" for r in _json_lines(retrieval / "corpus.jsonl")]
    found["prompts"] = [r["text"] for r in _json_lines(folder / "injection" / "train.jsonl")]
    found["MMLU"] = [r["prompt"] for r in _json_lines(folder / "routing" / "mmlu_train.jsonl")]
    asked = [
        [r["text"] for r in _json_lines(retrieval / "queries.jsonl")],
        [r["text"] for r in _json_lines(folder / "injection" / "dev.jsonl")],
        [r["prompt"].split("\nA. ")[0] for r in _json_lines(folder / "routing" / "mmlu_dev.jsonl")],
    ]
    picked = [_evenly([t for t in part if 3 < len(t.split()) < 100], share)
              for part, share in zip(asked, (QUESTIONS // 2, QUESTIONS // 4, QUESTIONS // 4), strict=True)]
    return found, [text for part in picked for text in part]


def documentation() -> Sequence[Path]:
    """The texts that come with the project."""
    return sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "examples").rglob("*.md")])


async def real(
    embedder: Embedder, *, passages: int = PASSAGES, questions: int = QUESTIONS, folder: Path = SHARED
) -> Real:
    """At most so many of each, the same ones each time, spread evenly over all texts."""
    found, asked = texts(folder)
    shipped = dict.fromkeys(
        piece.text for path in documentation()
        for piece in chunks(parse(path.name, path.read_bytes()).blocks, embedder.count, EMBEDDER_TOKENS)
    )
    parts = {"documentation": _evenly(list(shipped), passages // 4 if asked else passages + questions)}
    if not asked:
        note(f"{folder} is not there: passages and questions are of the project's own documentation alone")
        asked = _evenly(parts["documentation"], questions)
    share = passages // (len(found) + 1)  # each, so that a change of one text leaves the choice among the others
    for name, whole in found.items():
        parts[name] = list(dict.fromkeys(
            piece.text for text in _evenly(whole, share)
            for piece in chunks([Block(part) for part in text.split("\n\n")], embedder.count, EMBEDDER_TOKENS)
        ))[:share]
    asked = _evenly([t for t in dict.fromkeys(asked) if embedder.count(t) <= EMBEDDER_TOKENS], questions)
    pieces = [text for text in dict.fromkeys(t for part in parts.values() for t in part) if text not in set(asked)]
    pieces = _evenly(pieces, passages)
    sources = ", ".join(f"{len(part):,} of {name}" for name, part in parts.items())
    return Real(pieces, await _embedded(embedder, pieces), asked, await _embedded(embedder, asked), sources)


class Varied:
    """As many passages as are wanted, in blocks, around the real ones: those come first, as they are.

    Each further one stands between a real passage and one of its nearest, at up to half of the way, moved by a share of
    the difference of two passages that are near each other (so in directions in which real ones differ) and by a little
    noise in all directions. Its words are the first one's up to there and then the other's.
    """

    def __init__(self, passages: Sequence[str], vectors: Rows, *, seed: int = 1) -> None:
        self._passages, self._vectors, self._seed = passages, vectors, seed
        self._near = nearest(vectors, vectors, min(_NEAR + 1, len(vectors)))[0][:, 1:]

    def block(self, number: int) -> tuple[Rows, list[str]]:
        """Vectors (BLOCK, dimension) of length 1 and texts; the same ones whenever it is asked for."""
        first = number * BLOCK
        dice = np.random.default_rng([self._seed, number])
        real, near = len(self._vectors), self._near
        of = (first + np.arange(BLOCK)) % real
        other, apart = (near[of, dice.integers(0, near.shape[1], BLOCK)] for _ in range(2))
        beyond = near[other, dice.integers(0, near.shape[1], BLOCK)]
        way = dice.uniform(0, 0.5, (BLOCK, 1)).astype(np.float32)
        dimension = self._vectors.shape[1]
        rows = (
            (1 - way) * self._vectors[of] + way * self._vectors[other]
            + _DRIFT * (self._vectors[apart] - self._vectors[beyond])
            + _NOISE / dimension**0.5 * dice.standard_normal((BLOCK, dimension), np.float32)
        )
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)
        as_they_are = np.arange(first, first + BLOCK) < real
        rows[as_they_are] = self._vectors[of[as_they_are]]
        texts = [
            self._passages[one] if is_real else _spliced(self._passages[one], self._passages[two], share)
            for one, two, share, is_real in zip(of, other, way[:, 0], as_they_are, strict=True)
        ]
        return rows, texts


def _spliced(one: str, two: str, share: float) -> str:
    """The beginning of one text and, for `share` of its length, the end of another."""
    words, others = one.split(" "), two.split(" ")
    return " ".join(words[: round(len(words) * (1 - share))] + others[len(others) - round(len(others) * share) :])


def nearest(rows: Rows, asked: Rows, count: int, *, first: int = 0) -> tuple[NDArray[np.int64], Rows]:
    """(places, from `first` on, and cosines) of the `count` nearest of `rows` to each of `asked`, nearest first."""
    places, cosines = [], []
    for start in range(0, len(asked), 512):
        scores = asked[start : start + 512] @ rows.T
        best = np.argpartition(-scores, count - 1, axis=1)[:, :count] if count < len(rows) else (
            np.broadcast_to(np.arange(len(rows)), scores.shape)
        )
        order = np.argsort(-np.take_along_axis(scores, best, 1), axis=1, kind="stable")
        places.append(np.take_along_axis(best, order, 1))
        cosines.append(np.take_along_axis(scores, places[-1], 1))
    return np.concatenate(places) + first, np.concatenate(cosines)


def merged(
    one: tuple[NDArray[np.int64], Rows] | None, two: tuple[NDArray[np.int64], Rows]
) -> tuple[NDArray[np.int64], Rows]:
    """The best of two outcomes of `nearest`, as many as each has."""
    if one is None:
        return two
    places, cosines = np.concatenate([one[0], two[0]], axis=1), np.concatenate([one[1], two[1]], axis=1)
    order = np.argsort(-cosines, axis=1, kind="stable")[:, : one[0].shape[1]]
    return np.take_along_axis(places, order, 1), np.take_along_axis(cosines, order, 1)


async def _embedded(embedder: Embedder, pieces: Sequence[str]) -> Rows:
    rows = []
    for start in range(0, len(pieces), _AT_ONCE):
        rows.append(await embedder.embed(pieces[start : start + _AT_ONCE]))
        if len(pieces) > _AT_ONCE and start % (4 * _AT_ONCE) == 0:
            note(f"vectors of real passages: {start + len(rows[-1]):,} of {len(pieces):,}")
    return np.concatenate(rows)


def embedder(threads: int | None = None) -> LlamaEmbedder:
    """The one people use."""
    file = embedder_file(Config.load())
    return LlamaEmbedder(file.path, model_id=file.model_id, threads=threads)


def _json_lines(path: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in path.read_bytes().split(b"\n") if line]


def _evenly(items: Sequence[str], count: int) -> list[str]:
    if count >= len(items):
        return list(items)
    return [items[number * len(items) // count] for number in range(count)]


def load(*, passages: int = PASSAGES, questions: int = QUESTIONS) -> Real:
    """What `real` gives with people's embedder. Kept, so that the next time takes a second."""
    CACHE.mkdir(exist_ok=True)
    cached = CachedEmbedder(embedder(threads=1), CACHE / f"{passages}.npz")  # a second thread waits where others work
    try:
        return asyncio.run(real(cached, passages=passages, questions=questions))
    finally:
        cached.keep()


if __name__ == "__main__":
    made = load()
    print(len(made.passages), len(made.questions), made.sources)

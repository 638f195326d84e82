"""Documents for another embedder, as after a change of `[embedder] path`: their vectors are made anew, collection by
collection. Until one is done its searches go by the former embedder, for whoever has that still, such as a server that
runs since before.
"""

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from edge_client.chunking import head
from edge_client.engine.base import EMBEDDER_TOKENS, Embedder
from store.database import Database
from store.reembedding import outdated, reembed

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["State", "reembed_all"]


@dataclass(frozen=True)
class State:
    """How far one collection is. `step` is "embedding" or "replacing"; `seconds_left` None while nobody can know."""

    collection: str
    step: str
    done: int
    total: int
    seconds_left: float | None

    @property
    def percent(self) -> int:
        """Rounded down."""
        return 100 if self.done >= self.total else 100 * self.done // self.total


async def reembed_all(
    database: Database, embedder: Embedder, *, collection: str | None = None,
    tell: Callable[[State], None] = lambda state: None, clock: Callable[[], float] = time.monotonic,
) -> list[tuple[str, int]]:
    """(collection, passages) of what had vectors of another embedder, all or the one named, and has this one's now.

    Raises what the store and the embedder raise. Called again it goes on where it was.
    """
    changed: list[tuple[str, int]] = []
    for name, _ in await outdated(database, embedder.model_id):
        if collection in (None, name):
            passages = await reembed(
                database, partial(_embedded, embedder), collection=name, model_id=embedder.model_id,
                progress=_Pace(name, tell, clock),
            )
            changed.append((name, passages))
    return changed


class _Pace:
    """Tells how long what is left will take, by how long what was done has taken."""

    def __init__(self, collection: str, tell: Callable[[State], None], clock: Callable[[], float]) -> None:
        self._collection, self._tell, self._clock = collection, tell, clock
        self._begun: tuple[int, float] | None = None

    def __call__(self, step: str, done: int, total: int) -> None:
        now = self._clock()
        self._begun = self._begun or (done, now)
        before, since = self._begun
        left = None if done == before else (now - since) / (done - before) * (total - done)
        self._tell(State(self._collection, step, done, total, left))


async def _embedded(embedder: Embedder, texts: Sequence[str]) -> "NDArray[np.float32]":
    """Passages were cut for the embedder before; of one that is too long for this one, its beginning counts."""

    def fitting(text: str) -> str:
        return text if embedder.count(text) <= EMBEDDER_TOKENS else head(text, embedder.count, EMBEDDER_TOKENS)

    return await embedder.embed(await asyncio.to_thread(lambda: [fitting(text) for text in texts]))

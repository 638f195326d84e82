"""Which model names this server answers to, and who answers: the local model, the assistant, the gateway's models."""

import contextlib
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Final, Protocol

from edge_client.answering import Assistant, Question
from edge_client.engine.base import Embedder
from edge_client.errors import EdgeError, UnknownModel
from edge_client.inference import Infer
from store.errors import StoreLocked
from transport.errors import TransportError

__all__ = ["Models", "Names"]

_FRESH_S: Final = 60.0  # a list of what the gateway grants is not asked for again


class Models(Protocol):
    """See `Names`."""

    async def names(self) -> list[str]: ...

    async def assistant(self, model: str) -> tuple[Assistant, Question]:
        """The assistant for a model name, and a question to copy its flag, model and documents from.

        Raises UnknownModel.
        """
        ...

    async def embedder(self, model: str) -> Embedder:
        """Raises UnknownModel, ModelMissing or ModelUnusable."""
        ...

    @property
    def infer(self) -> Infer: ...


async def _nothing() -> list[str]:
    return []


async def _no_embedder() -> Embedder:
    raise UnknownModel("there is no embedder here")


async def _no_inference(model: str, body: bytes) -> bytes:
    raise UnknownModel("there is no gateway here")


class Names:
    """`local` and its alias: the model alone, so are `others` by their names. `auto`: documents, router and, when
    joined, the gateway. What the gateway grants, by its name there: relayed, without the documents.
    """

    def __init__(
        self, *, alone: Assistant, auto: Callable[[], Awaitable[Assistant]], alias: str | None = None,
        others: Mapping[str, Assistant] | None = None, granted: Callable[[], Awaitable[list[str]]] = _nothing,
        embedder: Callable[[], Awaitable[Embedder]] = _no_embedder, clock: Callable[[], float] = time.monotonic,
        infer: Infer = _no_inference,
    ) -> None:
        """`auto` is an async function that makes an assistant: documents and membership may change while serving.

        `granted` asks the gateway; where it cannot be reached, what it said last holds.
        """
        self._auto, self._embedder, self._granted, self._clock = auto, embedder, granted, clock
        self._infer = infer
        self._local = {**(others or {}), **({alias: alone} if alias else {}), "local": alone}
        self._order = ["local", *([alias] if alias else []), *(others or {}), "auto"]
        self._last: list[str] = []
        self._asked: float | None = None

    @property
    def infer(self) -> Infer:
        return self._infer

    async def names(self) -> list[str]:
        relayed = self._last
        with contextlib.suppress(StoreLocked):  # what answers without the store goes on being listed
            relayed = await self._relayed()
        return list(dict.fromkeys([*self._order, *relayed]))

    async def assistant(self, model: str) -> tuple[Assistant, Question]:
        if model in self._local:
            return self._local[model], Question((), "local")
        if model == "auto":
            return await self._auto(), Question(())
        if model in await self._relayed():
            return await self._auto(), Question((), "relay", model, documents=False)
        raise UnknownModel("no such model; /v1/models lists them")

    async def embedder(self, model: str) -> Embedder:
        if model not in ("local", "auto"):
            raise UnknownModel("no such embedding model; `local` is the one")
        return await self._embedder()

    async def _relayed(self) -> list[str]:
        now = self._clock()
        if self._asked is None or now - self._asked >= _FRESH_S:
            # With no way there now the last list holds, and asking for one of its models says what is wrong.
            with contextlib.suppress(EdgeError, TransportError, TimeoutError):
                self._last = await self._granted()
            self._asked = now
        return self._last

"""The one place that holds providers' keys: calls a provider with the bytes that passed the checks.

Where a model has several providers they are asked in order, but another only if the one before provably did not accept
the request: it could not be reached or sent nothing, its breaker is open, or it answered 401, 403, 429, 503 or 529.
Once an answer has begun, or where nobody can know, there is no other attempt (guarantee 4). Each attempt is on record.
"""

import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from types import TracebackType
from typing import Self

import msgspec

from relay.gateway.audit.log import AuditLog
from relay.gateway.errors import ProviderFailure
from relay.gateway.pipeline import Answer, RequestContext
from relay.gateway.routes import ROUTES
from relay.gateway.upstream.attempt import Attempt
from relay.gateway.upstream.base import Upstream
from relay.gateway.upstream.keys import ProviderKey
from relay.gateway.upstream.providers import Provided
from relay.gateway.upstream.routing import Routing
from transport.primitives import Secret
from transport.telemetry import Telemetry


class Forward:
    """Answers by asking providers. `routing` may be exchanged while it runs."""

    def __init__(
        self, providers: Mapping[str, Provided], routing: Routing, audit: AuditLog, telemetry: Telemetry, *,
        ticking: Callable[[], float] = time.monotonic,
    ) -> None:
        """`ticking`: seconds by a clock that nobody sets."""
        self.routing = routing
        self._providers, self._audit, self._telemetry, self._ticking = providers, audit, telemetry, ticking

    @classmethod
    def to_one(cls, upstream: Upstream, key: ProviderKey | None, audit: AuditLog, telemetry: Telemetry) -> Self:
        """Everything goes to `upstream`."""
        every = {one.operation: upstream.name for one in ROUTES.values()}
        return cls({upstream.name: Provided(upstream, key)}, Routing({}, every), audit, telemetry)

    def answer(self, context: RequestContext) -> "_Asking":
        assert context.parsed  # nothing gets here that schema has not passed
        assert context.model
        return _Asking(self, context)

    async def first(self, context: RequestContext) -> tuple[Attempt, Answer]:
        """An attempt that has been entered, and its answer."""
        assert context.target is not None
        ways = deque(self.routing.targets(context.target.operation, context.model))
        if not ways:
            raise ProviderFailure(
                "this gateway has no provider for that model on this route", kind="model_not_on_route", status=404
            )
        tried: Secret | None = None
        while True:
            way = ways.popleft()
            provided, context.provider = self._providers[way.provider], way.provider
            key = None if provided.key is None else provided.key.current()
            try:
                attempt = Attempt(provided, way, key, context, self._telemetry, self._ticking)
                return attempt, await attempt.__aenter__()
            except ProviderFailure as failure:
                if not (failure.again or failure.kind == "provider_auth"):
                    raise
                if failure.kind == "provider_auth" and provided.key is not None and key is not None and tried is None:
                    tried = key  # a new one is tried once; `another` also has it read, for the next request
                    if await provided.key.another(key) is not None:
                        ways.appendleft(way)
                if not ways:
                    raise
                await self._audit.append(
                    "request.attempt", request=context.request_id.hex(), trace=context.trace_id,
                    id=str(context.peer.id), route=context.route, model=context.model, provider=way.provider,
                    there=way.model, code=failure.kind,
                )


class _Asking:
    """The answer of the first provider that gives one. Once it is entered nobody else is asked, whatever happens."""

    __slots__ = ("_attempt", "_context", "_forward")

    def __init__(self, forward: Forward, context: RequestContext) -> None:
        self._forward, self._context = forward, context

    async def __aenter__(self) -> Answer:
        self._attempt, answer = await self._forward.first(self._context)
        return answer

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._attempt.__aexit__(kind, error, trace)


class ModelList:
    """Answers `/v1/models` by what authorise has found: what the device may use, not what the provider has."""

    @asynccontextmanager
    async def answer(self, context: RequestContext) -> AsyncIterator[Answer]:
        body = msgspec.json.encode({
            "object": "list",
            "data": [{"id": name, "object": "model", "created": 0, "owned_by": "causeway"} for name in context.models],
        })
        yield Answer(200, "application/json", False, _once(body))


async def _once(body: bytes) -> AsyncIterator[bytes]:
    yield body

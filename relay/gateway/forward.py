"""The one place that holds providers' keys: calls a provider with the bytes that passed the checks.

Where a model has several providers they are asked in order, but another only if the one before provably did not accept
the request: it could not be reached or sent nothing, its breaker is open, or it answered 401, 403, 429, 503 or 529.
Once an answer has begun, or where nobody can know, there is no other attempt (guarantee 4). Each attempt is on record.
"""

import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, AbstractContextManager, asynccontextmanager
from types import TracebackType
from typing import Final, Self

import msgspec
from opentelemetry.trace import Span, SpanKind

from relay.gateway.audit.log import AuditLog
from relay.gateway.errors import ProviderFailure
from relay.gateway.pipeline import Answer, RequestContext
from relay.gateway.routes import ROUTES
from relay.gateway.upstream.base import Upstream
from relay.gateway.upstream.breaker import Breaker
from relay.gateway.upstream.keys import ProviderKey
from relay.gateway.upstream.providers import Provided
from relay.gateway.upstream.rename import renamed
from relay.gateway.upstream.routing import Routing, Target
from transport import telemetry as names
from transport.primitives import Secret
from transport.telemetry import Telemetry

_UNREACHED: Final = ("provider_unreachable", "provider_timeout")  # if it may be asked again
_NOT_WELL: Final = frozenset(("provider_unreachable", "provider_timeout", "provider_error", "provider_garbled"))


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

    async def first(self, context: RequestContext) -> tuple["_Attempt", Answer]:
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
                attempt = self._attempt(context, way, provided, key)
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

    def _attempt(self, context: RequestContext, way: Target, provided: Provided, key: Secret | None) -> "_Attempt":
        assert context.target is not None
        body = context.body
        if not context.target.model and way.model != context.model:
            body = renamed(body, way.model)
        turn = provided.breaker.ask(self._ticking())  # whoever has asked reports; nothing may fail in between
        if turn is None:
            raise ProviderFailure(
                "the provider has failed several times and is not asked for now; try again later",
                kind="provider_unavailable", status=503, again=True,
            )
        upstream, operation = provided.upstream, context.target.operation
        span = self._telemetry.span(f"{operation} call", parent=context.span, kind=SpanKind.CLIENT, attributes={
            names.ROLE: "provider", names.GEN_AI_OPERATION: operation,
            names.GEN_AI_PROVIDER: upstream.name, names.GEN_AI_REQUEST_MODEL: way.model,
            names.SERVER_ADDRESS: upstream.host, names.BYTES_OUT: len(body),
        })
        return _Attempt(context, span, provided.breaker, turn, self._ticking, key, upstream.call(
            context.route, body, form=context.target.format, model=way.model, stream=context.stream, key=key
        ))


class _Attempt:
    """A provider asked once, with a span; its breaker hears what came of it. Gives the answer's pieces, too."""

    __slots__ = (
        "_breaker", "_call", "_chunks", "_context", "_key", "_received", "_span", "_spanning", "_ticking", "_turn",
    )

    def __init__(
        self, context: RequestContext, span: AbstractContextManager[Span], breaker: Breaker, turn: int,
        ticking: Callable[[], float], key: Secret | None, call: AbstractAsyncContextManager[Answer],
    ) -> None:
        self._context, self._spanning, self._breaker, self._turn = context, span, breaker, turn
        self._ticking, self._key, self._call, self._received = ticking, key, call, 0

    async def __aenter__(self) -> Answer:
        self._span = self._spanning.__enter__()
        self._context.attempts += 1
        try:
            answer = await self._call.__aenter__()
        except BaseException as error:
            self._over(error)
            raise
        self._breaker.began(self._turn)
        self._span.set_attribute(names.HTTP_STATUS, answer.status)
        self._chunks = answer.chunks
        return Answer(answer.status, answer.content_type, answer.streamed, self)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            await self._call.__aexit__(kind, error, trace)
        finally:
            self._over(error)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        chunk = await self._chunks.__anext__()
        if self._key is not None and self._key.expose() in chunk:  # who quotes the key is not passed on
            raise ProviderFailure(
                "the provider's answer held what it must not", kind="provider_garbled", status=502
            )
        self._received += len(chunk)
        return chunk

    def _over(self, error: BaseException | None) -> None:
        span, breaker, usage = self._span, self._breaker, self._context.usage
        if error is None:
            breaker.ended(self._turn)
        elif isinstance(error, ProviderFailure):
            self._context.attempts -= error.again and error.kind in _UNREACHED
            if error.kind in _NOT_WELL and not error.well:
                breaker.failed(self._turn, self._ticking())
            else:
                breaker.began(self._turn)  # it answers, if only to refuse
        breaker.gone(self._turn)
        span.set_attribute(names.BYTES_IN, self._received)
        if usage.model:
            span.set_attribute(names.GEN_AI_RESPONSE_MODEL, usage.model)
        if usage.input_tokens is not None:
            span.set_attribute(names.GEN_AI_INPUT_TOKENS, usage.input_tokens)
        if usage.output_tokens is not None:
            span.set_attribute(names.GEN_AI_OUTPUT_TOKENS, usage.output_tokens)
        self._spanning.__exit__(None if error is None else type(error), error, None)


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

"""One call of a provider, whatever comes of it: with a span, and told to the provider's breaker."""

from collections.abc import Callable
from types import TracebackType
from typing import Final, Self

from opentelemetry.trace import SpanKind

from relay.gateway.errors import ProviderFailure
from relay.gateway.pipeline import Answer, RequestContext
from relay.gateway.upstream.providers import Provided
from relay.gateway.upstream.rename import renamed
from relay.gateway.upstream.routing import Target
from transport import telemetry as names
from transport.primitives import Secret
from transport.telemetry import Telemetry

_UNREACHED: Final = ("provider_unreachable", "provider_timeout")  # if it may be asked again
_NOT_WELL: Final = frozenset(("provider_unreachable", "provider_timeout", "provider_error", "provider_garbled"))


class Attempt:
    """Entered, it gives the answer, of whose pieces it is the iterator as well."""

    __slots__ = ("_breaker", "_call", "_chunks", "_context", "_key", "_received", "_span", "_ticking", "_turn")

    def __init__(
        self, provided: Provided, way: Target, key: Secret | None, context: RequestContext, telemetry: Telemetry,
        ticking: Callable[[], float],
    ) -> None:
        """To be entered at once. Raises ProviderFailure where its breaker is open."""
        assert context.target is not None
        self._context, self._key, self._received = context, key, 0
        self._breaker, self._ticking = provided.breaker, ticking
        body, upstream, operation = context.body, provided.upstream, context.target.operation
        if not context.target.model and way.model != context.model:
            body = renamed(body, way.model)
        turn = self._breaker.ask(ticking())  # whoever has asked reports; nothing may fail in between
        if turn is None:
            raise ProviderFailure(
                "the provider has failed several times and is not asked for now; try again later",
                kind="provider_unavailable", status=503, again=True,
            )
        self._turn = turn
        self._span = telemetry.begin(f"{operation} call", parent=context.span, kind=SpanKind.CLIENT, attributes={
            names.ROLE: "provider", names.GEN_AI_OPERATION: operation,
            names.GEN_AI_PROVIDER: upstream.name, names.GEN_AI_REQUEST_MODEL: way.model,
            names.SERVER_ADDRESS: upstream.host, names.BYTES_OUT: len(body),
        })
        self._call = upstream.call(
            context.route, body, form=context.target.format, model=way.model, stream=context.stream, key=key
        )

    async def __aenter__(self) -> Answer:
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
            span.set_attribute(names.ERROR_TYPE, error.kind)
            self._context.attempts -= error.again and error.kind in _UNREACHED
            if error.kind in _NOT_WELL and not error.well:
                breaker.failed(self._turn, self._ticking())
            else:
                breaker.began(self._turn)  # it answers, if only to refuse
        else:
            span.set_attribute(names.ERROR_TYPE, str(getattr(error, "code", type(error).__name__)))
        breaker.gone(self._turn)
        span.set_attribute(names.BYTES_IN, self._received)
        if usage.model:
            span.set_attribute(names.GEN_AI_RESPONSE_MODEL, usage.model)
        if usage.input_tokens is not None:
            span.set_attribute(names.GEN_AI_INPUT_TOKENS, usage.input_tokens)
        if usage.output_tokens is not None:
            span.set_attribute(names.GEN_AI_OUTPUT_TOKENS, usage.output_tokens)
        span.end()

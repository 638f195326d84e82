"""The one place that holds a provider's key: calls the provider with the bytes that passed the checks."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import msgspec
from opentelemetry.trace import SpanKind

from relay.gateway.errors import ProviderFailure
from relay.gateway.pipeline import Answer, RequestContext
from relay.gateway.upstream.base import Upstream
from relay.gateway.upstream.keys import ProviderKey
from transport import telemetry as names
from transport.telemetry import Telemetry


class Forward:
    """Answers by asking the provider. One attempt: another could be a second call that was accepted."""

    def __init__(self, upstream: Upstream, key: ProviderKey | None, telemetry: Telemetry) -> None:
        self._upstream = upstream
        self._key = key
        self._telemetry = telemetry

    @asynccontextmanager
    async def answer(self, context: RequestContext) -> AsyncIterator[Answer]:
        assert context.parsed  # nothing gets here that schema has not passed
        assert context.model
        target = context.target
        assert target is not None
        attributes: dict[str, str | int | float] = {
            names.ROLE: "provider", names.GEN_AI_OPERATION: target.operation,
            names.GEN_AI_PROVIDER: self._upstream.name, names.GEN_AI_REQUEST_MODEL: context.model,
            names.SERVER_ADDRESS: self._upstream.host,
            names.BYTES_OUT: len(context.body),
        }
        received, key = 0, None if self._key is None else self._key.current()
        with self._telemetry.span(f"{target.operation} call", kind=SpanKind.CLIENT, attributes=attributes) as span:

            async def watched(chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
                nonlocal received
                async for chunk in chunks:
                    if key is not None and key.expose() in chunk:  # who quotes the key is not passed on
                        raise ProviderFailure(
                            "the provider's answer held what it must not", kind="provider_garbled", status=502
                        )
                    received += len(chunk)
                    yield chunk

            try:
                async with self._upstream.call(
                    context.route, context.body, stream=context.stream, key=key
                ) as answer:
                    span.set_attribute(names.HTTP_STATUS, answer.status)
                    yield Answer(answer.status, answer.content_type, answer.streamed, watched(answer.chunks))
            except ProviderFailure as failure:
                span.set_attribute(names.ERROR_TYPE, failure.kind)
                if failure.kind == "provider_auth" and self._key is not None and key is not None:
                    self._key.refused(key)
                raise
            finally:
                usage = context.usage
                span.set_attribute(names.BYTES_IN, received)
                if usage.model:
                    span.set_attribute(names.GEN_AI_RESPONSE_MODEL, usage.model)
                if usage.input_tokens is not None:
                    span.set_attribute(names.GEN_AI_INPUT_TOKENS, usage.input_tokens)
                if usage.output_tokens is not None:
                    span.set_attribute(names.GEN_AI_OUTPUT_TOKENS, usage.output_tokens)


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

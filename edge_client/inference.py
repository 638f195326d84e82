"""Tensors to a model behind the gateway, by the open inference protocol: passed on as they are, both ways."""

from collections.abc import Awaitable, Callable

from edge_client.answering import Relay
from edge_client.completions import failure
from edge_client.errors import NotJoined
from transport import telemetry
from transport.telemetry import Telemetry

__all__ = ["Infer", "Inference"]

Infer = Callable[[str, bytes], Awaitable[bytes]]  # a model's name and a request's body; the answer's body


class Inference:
    """See `Infer`. `relay` gives the way to the gateway, None before joining."""

    def __init__(self, relay: Callable[[], Awaitable[Relay | None]], tracing: Telemetry) -> None:
        self._relay, self._tracing = relay, tracing

    async def __call__(self, model: str, body: bytes) -> bytes:
        """Raises NotJoined, ProviderFailed, PromptTooLong over 1 MiB, StoreLocked, and what a relayed request does."""
        relay = await self._relay()
        if relay is None:
            raise NotJoined
        attributes: dict[str, str | int | float] = {
            telemetry.GEN_AI_OPERATION: "infer", telemetry.GEN_AI_REQUEST_MODEL: model, telemetry.BYTES_OUT: len(body),
        }
        with self._tracing.span("edge.relay", attributes=attributes) as span:
            remote = await relay.request("POST", f"/v2/models/{model}/infer", body)
            if remote.status != 200:
                raise await failure(remote.status, remote.chunks())
            answer = b"".join([chunk async for chunk in remote.chunks()])
            span.set_attribute(telemetry.VIA, remote.via)
        relay.report(telemetry.trace_id_of(span))
        return answer

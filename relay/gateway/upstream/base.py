"""What the gateway needs of a provider, whatever its API looks like."""

from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Protocol

from relay.gateway.pipeline import Answer
from transport.primitives import Secret


@dataclass(frozen=True)
class Timeouts:
    """Seconds: to have a connection, until the first byte of an answer, between two pieces of it."""

    connect: float = 10.0
    first_byte: float = 120.0
    idle: float = 60.0


class Upstream(Protocol):
    """One configured provider. `name` is for spans (gen_ai.provider.name), `host` the one host it ever talks to."""

    name: str
    host: str

    def call(self, route: str, body: bytes, *, stream: bool, key: Secret | None) -> AbstractAsyncContextManager[Answer]:
        """Posts `body` as it is. Leaving the context early ends the call at the provider.

        A streamed answer comes in whole lines. Raises ProviderFailure, also while chunks are read; nothing of what the
        provider says on failure gets into it.
        """
        ...

    async def close(self) -> None: ...

"""Two ways of asking for when there may be no gateway: look first whether there is one, or do not even look.

Both stand where `answering` expects a relay, so that what may leave and what travels is decided and built as ever.
"""

import asyncio
from typing import Final

from edge_client.errors import BadUse, Unreached
from edge_client.gateway_client import GatewayClient
from edge_client.outbox import short
from edge_client.promises import Promises
from edge_client.remote_answer import RemoteAnswer
from transport.errors import TransportError
from transport.reconnect import worth_retrying

__all__ = ["IfReachable", "Later", "Queued"]

LOOK_S: Final = 10.0


class Queued(Exception):
    """Instead of an answer, and no error: the question is in the outbox under this id."""

    code = "queued"  # as traces call it

    def __init__(self, request_id: bytes, expires_at: int) -> None:
        super().__init__(f"queued as {short(request_id)}")
        self.request_id, self.expires_at = request_id, expires_at


class IfReachable:
    """Asks the gateway if one attempt at each endpoint, for at most 10 s in all, finds it. Else raises Unreached.

    It costs a round trip where no session stands: what is not sent need not be called back.
    """

    def __init__(self, client: GatewayClient) -> None:
        self._client = client

    async def request(self, method: str, route: str, body: bytes) -> RemoteAnswer:
        await self._look()
        return await self._client.request(method, route, body)

    async def models(self) -> list[str]:
        await self._look()
        return await self._client.models()

    def report(self, trace_id: str) -> None:
        self._client.report(trace_id)

    async def _look(self) -> None:
        try:
            async with asyncio.timeout(LOOK_S):
                await self._client.reach()
        except TransportError as error:
            if not worth_retrying(error):
                raise
            raise Unreached from None
        except TimeoutError:
            raise Unreached from None


class Later:
    """Puts a request into the outbox with a promise, and raises Queued. Nothing is dialled."""

    def __init__(self, client: GatewayClient, promises: Promises, now: int) -> None:
        self._client, self._promises, self._now = client, promises, now

    async def request(self, method: str, route: str, body: bytes) -> RemoteAnswer:
        async def promise(request_id: bytes) -> None:
            await self._promises.promise(request_id, now=self._now)

        raise Queued(*await self._client.leave(method, route, body, promise))

    async def models(self) -> list[str]:
        """Those of last time. Raises BadUse if none are known."""
        names = await self._client.known_models()
        if not names:
            raise BadUse("which models the gateway grants is not known yet", hint="name one with --model")
        return names

    def report(self, trace_id: str) -> None:
        """Nobody is there to be told."""

"""Calls of the Workload API as raw as gRPC allows: by a path, with metadata and bytes of one's own choice."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from grpclib.client import Channel, Stream
from grpclib.const import Cardinality
from grpclib.exceptions import StreamTerminatedError
from h2.exceptions import StreamClosedError

from relay.gateway.identity.workloads.messages import MESSAGES

HEADER = {"workload.spiffe.io": "true"}
STREAMS = ("FetchX509SVID", "FetchX509Bundles", "FetchJWTBundles")
OF = {"FetchX509SVID": "X509SVID", "FetchX509Bundles": "X509Bundles", "FetchJWTBundles": "JWTBundles",
      "FetchJWTSVID": "JWTSVID", "ValidateJWTSVID": "ValidateJWTSVID"}


class Caller:
    """One connection."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel

    @asynccontextmanager
    async def call(
        self, name: str, *, metadata: Mapping[str, str] = HEADER, **fields: Any
    ) -> AsyncIterator[Stream[Any, Any]]:
        """A call whose request is sent; leave it to cancel."""
        kind = Cardinality.UNARY_STREAM if name in STREAMS else Cardinality.UNARY_UNARY
        asked = MESSAGES[f"{OF[name]}Request"]
        async with self._channel.request(
            f"/SpiffeWorkloadAPI/{name}", kind, asked, MESSAGES[f"{OF[name]}Response"], metadata=dict(metadata)
        ) as stream:
            await stream.send_message(asked(**fields), end=True)
            yield stream
            with contextlib.suppress(StreamClosedError, StreamTerminatedError):  # by the answer's end, the connection's
                await stream.cancel()
            stream._cancel_done = True

    async def first(self, name: str, **given: Any) -> Any:
        """The first message of the answer. Raises GRPCError."""
        async with self.call(name, **given) as stream:
            message = await stream.recv_message()
            if message is None:
                await stream.recv_trailing_metadata()
            return message


@asynccontextmanager
async def connected(path: Path) -> AsyncIterator[Caller]:
    channel = Channel(path=str(path))
    try:
        yield Caller(channel)
    finally:
        channel.close()
        await asyncio.sleep(0)  # the transport is given back by the loop

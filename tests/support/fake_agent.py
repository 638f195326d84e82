"""A SPIFFE agent that says what it is told to: the Workload API's X.509 stream on a Unix socket, for the stock client.

    async with FakeAgent(path) as agent:
        agent.give(ca.issue("gateway/main"), ca.bundle())     # to who listens, and who comes
"""

import asyncio
import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives import serialization
from grpclib.const import Cardinality, Handler, Status
from grpclib.exceptions import GRPCError
from grpclib.server import Server, Stream
from spiffe._proto import workload_pb2

from transport.identity.source import Offer
from transport.identity.svid import Svid, TrustBundle


def offer(*svids: Svid, bundle: TrustBundle) -> Offer:
    """What an agent that has these says, without an agent."""
    return Offer([(svid.chain, svid.key.to_pkcs8()) for svid in svids], {bundle.trust_domain: bundle.roots})


class _Server(Server):
    """Remembers its connections: grpclib ends no more than the calls on them."""

    def __init__(self, handlers: "Sequence[Any]") -> None:
        super().__init__(handlers)
        self.protocols: list[Any] = []

    def _protocol_factory(self) -> Any:
        self.protocols.append(protocol := super()._protocol_factory())
        return protocol


class FakeAgent:
    """`refuse` is the gRPC status that a call ends with while there is nothing to give."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.socket = f"unix://{path}"
        self.refuse = Status.PERMISSION_DENIED
        self.calls = 0
        self._answer: Any = None
        self._news = asyncio.Event()
        self._server: _Server | None = None

    def give(self, *svids: Svid, bundle: TrustBundle, keys: Sequence[bytes] = ()) -> None:
        """Pushes these SVIDs; `keys` replaces theirs (PKCS#8)."""
        answer = workload_pb2.X509SVIDResponse()
        for number, svid in enumerate(svids):
            key = keys[number] if keys else svid.key.private_key.private_bytes(
                serialization.Encoding.DER, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
            answer.svids.add(
                spiffe_id=str(svid.id), x509_svid=b"".join(svid.chain), x509_svid_key=key, bundle=b"".join(bundle.roots)
            )
        self._answer = answer
        self._tell()

    def take_back(self) -> None:
        """Nothing for anybody from now on; streams that run end by `refuse`."""
        self._answer = None
        self._tell()

    async def __aenter__(self) -> "FakeAgent":
        self._server = _Server([self])
        await self._server.start(path=str(self.path))
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def stop(self) -> None:
        """The agent is gone, and its socket."""
        server, self._server = self._server, None
        if server is not None:
            self._tell()
            server.close()
            await server.wait_closed()
            for protocol in server.protocols:
                protocol.connection.close()
            with contextlib.suppress(FileNotFoundError):
                self.path.unlink()

    def _tell(self) -> None:
        self._news.set()
        self._news = asyncio.Event()

    async def _fetch(self, stream: "Stream[Any, Any]") -> None:
        self.calls += 1
        await stream.recv_message()
        assert (stream.metadata or {}).get("workload.spiffe.io") == "true"
        while self._server is not None:
            news = self._news
            if self._answer is None:
                raise GRPCError(self.refuse)
            await stream.send_message(self._answer)
            await news.wait()

    def __mapping__(self) -> dict[str, Handler]:
        return {"/SpiffeWorkloadAPI/FetchX509SVID": Handler(
            self._fetch, Cardinality.UNARY_STREAM, workload_pb2.X509SVIDRequest, workload_pb2.X509SVIDResponse
        )}

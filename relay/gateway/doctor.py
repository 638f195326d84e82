"""`relay doctor`: tests the whole chain of one gateway, link by link, and says at which it breaks.

What only the gateway knows it is asked over its control socket; what devices see is tried as they would, from outside,
at the addresses that gateway.toml gives them. Once a stage has failed those behind it are not run: they would fail for
the same reason.
"""

import asyncio
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

from relay.gateway.answers import pack, unpack
from relay.gateway.config import Config, load
from relay.gateway.control import call
from relay.gateway.errors import ConfigError, GatewayError, NotReady
from relay.gateway.examination import Finding, source_of
from relay.gateway.identity.ca import Authority
from relay.gateway.keys import custody_of
from relay.gateway.state.sqlcipher import KEY_FILE
from relay.local_socket import FOLDER, SOCKET
from store.errors import StoreError
from store.keys import Passphrase
from transport.edge_session import EdgeSession
from transport.errors import IdentityRefused, PeerRefused, TransportError
from transport.identity.svid import Svid, TrustBundle, make_csr
from transport.identity.tls import client_context, peer_of, refusal_in
from transport.identity.verify import VerifiedPeer, verify_svid
from transport.initiator import SvidLogin
from transport.links.base import Endpoint, connect
from transport.primitives import SigningKey

STAGES: Final = ("source", "issuance", "handshake", "authorisation", "provider")
TIMEOUT_MAX_S: Final = 25.0  # of a stage; the control socket's own is 30
_IMPOSTOR: Final = "another process listens there, or something in between ends the connection"


@dataclass(frozen=True)
class Stage:
    """What came of one: `status` is that of its finding, or "not run"; `ms` is how long it took."""

    stage: str
    status: str
    ms: float | None = None
    finding: str = ""
    hint: str | None = None


class Doctor:
    """One examination of the gateway that `config` is of."""

    def __init__(self, config: Path, *, passphrase: Passphrase | None, timeout_s: float) -> None:
        """`passphrase`: to look into the authority of a gateway that does not run. Raises ConfigError."""
        self._file, self._passphrase = config, passphrase
        self._timeout_s = min(timeout_s, TIMEOUT_MAX_S)
        self._directory = config.parent.resolve()
        self._config: Config | None = None
        try:
            self._config = load(config)
        except ConfigError:
            if not (self._directory / FOLDER / SOCKET).exists():
                raise  # else the one that runs has an older one, and says what is wrong with this
        self._keys = {role: SigningKey.generate() for role in ("edge", "hop")}
        self._probes: dict[str, Any] = {}
        self.node = ""

    async def stages(self) -> AsyncIterator[Stage]:
        """Each as it is done, all of them in any case."""
        failed = False
        for name in STAGES:
            if failed:
                yield Stage(name, "not run")
                continue
            began = time.monotonic()
            found = await self._found(name)
            yield Stage(name, found.status, round((time.monotonic() - began) * 1e3, 1), found.finding, found.hint)
            failed = found.status == "failed"

    async def _found(self, name: str) -> Finding:
        try:
            async with asyncio.timeout(self._timeout_s):
                if name == "handshake":
                    return await self._handshake()
                if name == "issuance":
                    return await self._issuance()
                answer = await self._ask(name)
        except TimeoutError:
            return Finding("failed", f"nothing came of it in {self._timeout_s:g} s",
                           "is the machine overloaded? --timeout gives it longer")
        except NotReady as error:
            return await self._does_not_run(error)
        except (GatewayError, TransportError, StoreError) as error:
            return Finding("failed", str(error), error.hint or "the gateway's log says more; is its disk full?")
        self.node = answer.pop("id", self.node)
        return Finding(**answer)

    async def _ask(self, stage: str, **arguments: Any) -> dict[str, Any]:
        arguments |= {"stage": stage, "timeout_s": self._timeout_s * 0.9}  # so that it can say itself what is late
        return await call(self._directory, "examine", arguments)

    async def _does_not_run(self, error: NotReady) -> Finding:
        """What can be said of its source nevertheless; with the passphrase that is most of it."""
        if error.hint is not None:  # it runs, and does not talk to us
            return Finding("failed", str(error), error.hint)
        start = f"run `relay gateway serve --config {self._file}`"
        try:
            authority = None if self._config is None else await asyncio.to_thread(self._authority, self._config)
        except (GatewayError, StoreError) as failure:
            return Finding("failed", f"no gateway runs here; {failure}", failure.hint or start)
        if authority is None:
            return Finding("failed", f"no gateway runs in {self._directory}", start)
        found = source_of(authority, time.time())
        hint = start if found.status == "ok" else f"{found.hint}; then {start}"
        return Finding("failed", f"no gateway runs here; {found.finding}", hint)

    def _authority(self, config: Config) -> Authority | None:
        """Opened by whoever holds its keys, or the passphrase. Raises GatewayError, StoreError."""
        custody, key_file = custody_of(config.keys), self._directory / KEY_FILE
        unlocks = (custody.unlock(self._directory, key_file) if key_file.is_file() else None) or self._passphrase
        if unlocks is None:
            return None
        authority = Authority.open(self._directory, unlocks, config.identity.lifetimes(), custody=custody)
        authority.try_key()
        return authority

    async def _issuance(self) -> Finding:
        requests = {role: pack(make_csr(key)) for role, key in self._keys.items()}
        self._probes = await self._ask("issuance", requests=requests)
        svid = self._svid("edge")
        return Finding("ok", f"a probe got its identity, good for {svid.not_after - time.time():.0f} s and one session")

    def _svid(self, role: str) -> Svid:
        return Svid.from_chain([unpack(der) for der in self._probes["chains"][role]], self._keys[role])

    def _bundle(self) -> TrustBundle:
        roots = tuple(unpack(der) for der in self._probes["roots"])
        return TrustBundle(self._svid("edge").id.trust_domain, roots, self._probes["sequence"])

    # --- as devices do ----------------------------------------------------------------------------------------------

    async def _handshake(self) -> Finding:
        told_session, told_https = self._probes["session"], self._probes["https"]
        session = Endpoint.parse(told_session) if told_session else None
        https = Endpoint.parse(f"tcp:{told_https}").host_port() if told_https else None
        if self._config is not None:  # where devices are sent to, even if the one that runs has not read it
            if self._config.session is not None and not _any_port(self._config.session):
                session = self._config.session
            if self._config.https is not None and self._config.https[1]:
                https = self._config.https
        ways: list[tuple[str, Callable[[], Awaitable[None]]]] = []
        if session is not None:
            ways.append((f"session by {session}", partial(self._session, session)))
        if https is not None:
            ways.append((f"TLS by {https[0]}:{https[1]}", partial(self._tls, https)))
        done = []
        for what, work in ways:
            began = time.monotonic()
            if (broken := await _broken(what, work)) is not None:
                return broken
            done.append(f"{what} in {(time.monotonic() - began) * 1e3:.0f} ms")
        return Finding("ok", f"{self.node.partition('//')[2]}: " + ", ".join(done))

    async def _session(self, place: Endpoint) -> None:
        """A whole handshake, up to the gateway's welcome."""
        svid = self._svid("edge")

        def verify(chain: Sequence[bytes], now: float) -> VerifiedPeer:
            return self._same(verify_svid(chain, self._bundle(), role="gateway", now=now))

        link = await connect(_from_here(place), timeout_s=self._timeout_s)
        session = EdgeSession(link, SvidLogin(svid.chain, svid.not_after), svid.key, verify)
        await (await session.open()).close()

    async def _tls(self, place: tuple[str, int]) -> None:
        """A handshake with certificates both ways; that ours was taken only an answer shows, in TLS 1.3."""
        context = client_context(self._bundle(), self._svid("hop"))
        host = _LOOPBACK.get(place[0], place[0])
        try:
            reader, writer = await asyncio.open_connection(host, place[1], ssl=context)
            try:
                self._same(peer_of(writer.transport))
                writer.write(b"GET /v1/bundle HTTP/1.1\r\nHost: gateway\r\nConnection: close\r\n\r\n")
                await writer.drain()
                line = await reader.readline()
            finally:
                writer.transport.abort()
        except (ssl.SSLError, OSError) as error:
            refusal = refusal_in(error)
            if refusal is not None:
                raise refusal from None
            raise
        if not line.startswith(b"HTTP/1.1 200 "):
            raise ConnectionError(0, "it does not answer as a gateway")

    def _same(self, peer: VerifiedPeer | None) -> VerifiedPeer:
        if peer is None or str(peer.id) != self.node:
            raise IdentityRefused("it has the identity of another gateway", rule="own ID")
        return peer


async def _broken(what: str, work: Callable[[], Awaitable[None]]) -> Finding | None:
    try:
        await work()
    except PeerRefused:
        return Finding("failed", f"{what}: the gateway refuses the identity that it has just issued",
                       "does a gateway of another folder listen there? its audit says why it refused")
    except IdentityRefused as refusal:
        return Finding("failed", f"{what} does not lead to this gateway: {refusal}", refusal.hint or _IMPOSTOR)
    except (TransportError, OSError) as error:
        why = error if isinstance(error, TransportError) else (error.strerror or type(error).__name__).lower()
        return Finding("failed", f"{what}: {why}", "has [listen] changed since the gateway was started? start it anew")
    return None


_LOOPBACK: Final = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - whom a listener on all addresses is asked by


def _from_here(place: Endpoint) -> Endpoint:
    if place.scheme != "tcp":
        return place
    host, port = place.host_port()
    there = _LOOPBACK.get(host, host)
    return Endpoint("tcp", f"[{there}]:{port}" if ":" in there else f"{there}:{port}")


def _any_port(place: Endpoint) -> bool:
    return place.scheme == "tcp" and place.host_port()[1] == 0

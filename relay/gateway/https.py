"""HTTPS: joining and renewal of hops and gateways, the trust bundle, tunnels that edges' links come through, and edges.

TLS 1.3 with SVIDs (`transport.identity.tls`). Joining and renewal need no client certificate, since who joins has none
and who renews may have an expired one; they are proven by an invitation and by the device key's signature over a nonce.
A tunnel needs the SVID of a hop; an edge that comes straight needs none, since its session has one inside. Health is
plain HTTP on a loopback listener of its own.
"""

import asyncio
import base64
import binascii
import logging
import os
import ssl
import struct
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any, Final, TypeVar

import msgspec
from aiohttp import web

from relay.gateway.audit.refusals import Refusals
from relay.gateway.errors import AuditUnavailable, EnrolmentRefused, GatewayError
from relay.gateway.identity.ca import Authority
from relay.gateway.identity.enrolment import Enrolment, Joined
from relay.gateway.identity.revocation import Revocation
from relay.gateway.identity.spiffe_bundle import spiffe_bundle
from relay.gateway.listening import Connection, Gate, HttpsLimits
from relay.gateway.sessions import Sessions
from relay.gateway.trace import HopNote, TraceStore, parse_note
from store.errors import StoreError
from transport.errors import BadInput, CloseReason, IdentityRefused, LinkLost, ProtocolViolation
from transport.identity.join import DEVICE_LABEL, HttpsOperation, https_transcript, signed_input
from transport.identity.tls import own_leaf_of, peer_of
from transport.links.websocket import WebSocketLink, accept_websocket
from transport.primitives import Secret, VerifyKey, hmac_sha256, random_bytes, same_bytes, sha256

JOIN_ROLES: Final = ("hop", "gateway", "workload")
TUNNEL_ROLE: Final = "hop"
BODY_MAX: Final = 16_384
NONCE_S: Final = 60
USED_MAX: Final = 65_536
_log = logging.getLogger(__name__)
_quiet = logging.getLogger(f"{__name__}.server")  # what the server would say about strangers' bytes, with tracebacks
_quiet.disabled = True
T = TypeVar("T")


class _JoinBody(msgspec.Struct, forbid_unknown_fields=True):
    token_id: str
    secret: str
    csr: str
    device_key: str
    nonce: str
    signature: str

    def __repr__(self) -> str:  # it holds the secret
        return "<JoinBody>"


class _RenewBody(msgspec.Struct, forbid_unknown_fields=True):
    device_id: str
    csr: str
    nonce: str
    signature: str


class _ListBody(msgspec.Struct, forbid_unknown_fields=True):
    list: str


class _Refused(Exception):
    """Becomes a neutral answer."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status, self.code = status, code


class Nonces:
    """One-use nonces of 60 s. Giving one out costs no memory, so nobody can push another's out; using one does."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._key = random_bytes(32)
        self._used: OrderedDict[bytes, float] = OrderedDict()

    def give(self) -> bytes:
        """32 bytes: time, random, and a MAC over both."""
        stem = struct.pack(">Q", int(self._clock())) + random_bytes(8)
        return stem + hmac_sha256(self._key, stem)[:16]

    def fresh(self, nonce: bytes) -> bool:
        """Whether it is ours, young and unused."""
        if len(nonce) != 32 or not same_bytes(nonce[16:], hmac_sha256(self._key, nonce[:16])[:16]):
            return False
        age = self._clock() - struct.unpack(">Q", nonce[:8])[0]
        return -1 <= age <= NONCE_S and nonce not in self._used

    def use(self, nonce: bytes) -> bool:
        """Marks a fresh nonce; False where too many are in use. To be called once a signature over it is verified."""
        now = self._clock()
        while self._used and next(iter(self._used.values())) < now - NONCE_S - 1:
            self._used.popitem(last=False)
        if len(self._used) >= USED_MAX:
            return False
        self._used[nonce] = now
        return True


class _TunnelNotes:
    """Keeps what a hop says about one tunnel, once the tunnel's link id is known to be the same."""

    def __init__(self, hop: str, traces: TraceStore) -> None:
        self._hop, self._traces = hop, traces
        self._link_id = ""
        self._latest: HopNote | None = None

    def bind(self, link_id: str) -> None:
        self._link_id = link_id

    def take(self, text: str) -> None:
        self._latest = parse_note(text) or self._latest

    @property
    def bound(self) -> bool:
        """Whether the tunnel's session came through its handshake."""
        return self._link_id != ""

    async def save(self) -> None:
        note = self._latest
        if note is not None and note.link == self._link_id:
            await self._traces.note(self._hop, note)


class _Tunnel:
    """A hop's tunnel; it ends as an error if its session never came about, so that the hop slows that stranger down."""

    def __init__(self, link: WebSocketLink, notes: _TunnelNotes) -> None:
        self.peer = link.peer
        self.send, self.receive = link.send, link.receive
        self._link, self._notes = link, notes

    async def close(self, reason: CloseReason = "done") -> None:
        await self._link.close(reason if self._notes.bound else "error")


def make_app(
    *, authority: Authority, enrolment: Enrolment, sessions: Sessions, traces: TraceStore, refusals: Refusals,
    gate: Gate, revocation: Revocation, clock: Callable[[], float] = time.time,
) -> web.Application:
    """The application behind the TLS listener, whose connections come through `gate`."""
    nonces = Nonces(clock)
    body_s = gate.limits.body_s

    async def bundle(_: web.Request) -> web.Response:
        return _json(200, _bundle_of(authority) | spiffe_bundle(authority.bundle))

    async def nonce(_: web.Request) -> web.Response:
        return _json(200, {"nonce": _pack(nonces.give())})

    def proven(
        request: web.Request, operation: HttpsOperation, body: _JoinBody | _RenewBody, subject: bytes,
        device_key: Callable[[], VerifyKey],
    ) -> VerifyKey:
        """The device's key, which signed exactly this with a fresh nonce of ours on this connection.

        The nonce is looked at first and costs nothing to refuse. Raises _Refused, IdentityRefused, ProtocolViolation.
        """
        given, leaf = _unpack(body.nonce), own_leaf_of(request.transport)
        if leaf is None or not nonces.fresh(given):
            raise _Refused(403, "nonce", "the nonce is not valid; ask for a new one")
        try:
            h = https_transcript(operation, given, _unpack(body.csr), subject, leaf)
        except BadInput:
            raise _Refused(400, "bad_request", "the request is not valid") from None
        key = device_key()
        key.verify(_unpack(body.signature), signed_input(DEVICE_LABEL, h, sha256(key.spki)))
        if not nonces.use(given):
            raise _Refused(503, "overloaded", "try again later")
        return key

    async def join(request: web.Request) -> web.Response:
        body = await _body(request, _JoinBody, body_s)
        token_id, secret, spki = _unpack(body.token_id), Secret(_unpack(body.secret)), _unpack(body.device_key)
        try:
            proven(request, HttpsOperation.JOIN, body, token_id, lambda: VerifyKey.from_spki(spki))
        except (IdentityRefused, ProtocolViolation) as error:
            await refusals.append("join.refused", reason=str(error), peer=request.remote)
            raise _Refused(403, "invitation", "the gateway does not accept this") from None
        return _json(200, _issued(authority, await enrolment.join(
            token_id, secret, _unpack(body.csr), spki, roles=JOIN_ROLES
        )))

    async def renew(request: web.Request) -> web.Response:
        body = await _body(request, _RenewBody, body_s)
        device_id = _unpack(body.device_id)
        try:
            proven(request, HttpsOperation.RENEW, body, device_id, lambda: enrolment.device_key(device_id))
        except IdentityRefused as refusal:
            await refusals.append("renew.refused", reason=refusal.rule, device=device_id.hex(), peer=request.remote)
            raise _Refused(403, "refused", "the gateway does not accept this") from None
        return _json(200, _issued(authority, await enrolment.renew(device_id, _unpack(body.csr), roles=JOIN_ROLES)))

    async def tunnel(request: web.Request) -> web.StreamResponse:
        peer = peer_of(request.transport)
        try:
            if peer is None:
                raise IdentityRefused("a tunnel needs a certificate", rule="certificate")
            if peer.id.role != TUNNEL_ROLE:
                raise IdentityRefused("a tunnel needs the SVID of a hop", rule="role")
            number = enrolment.enrolment_of(peer)
        except IdentityRefused as refusal:
            await refusals.append(
                "tunnel.refused", reason=refusal.rule, id="" if peer is None else str(peer.id), peer=request.remote
            )
            raise _Refused(403, "refused", "the gateway does not accept this") from None
        gate.settled(request.protocol)
        await enrolment.seen(number)
        hop = str(peer.id)
        notes = _TunnelNotes(hop, traces)
        link = await accept_websocket(request, f"{hop} {request.remote}", on_note=notes.take)
        try:
            enrolment.admit(peer)  # it may have ended meanwhile
        except IdentityRefused:
            await link.close("shutdown")
            return link.response
        await sessions.serve_link(_Tunnel(link, notes), via=hop, known=notes.bind, settled=notes.save)
        await notes.save()
        return link.response

    async def revocations(request: web.Request) -> web.Response:
        """A hop's list for ours. It need not be on record here: a gateway that was restored knows few SVIDs of today,
        and it is then that it has to learn. What the list says is believed for its signature alone.
        """
        peer = peer_of(request.transport)
        if peer is None or peer.id.role != TUNNEL_ROLE:
            raise _Refused(403, "refused", "the gateway does not accept this")
        body = await _body(request, _ListBody, body_s)
        if carried := _unpack(body.list):
            try:
                await revocation.learn(carried, str(peer.id))
            except IdentityRefused as refusal:
                await refusals.append("revocations.refused", reason=refusal.rule, id=str(peer.id), peer=request.remote)
        return _json(200, {"list": _pack(revocation.list.data)})

    async def edge(request: web.Request) -> web.StreamResponse:
        """A session straight from an edge, whose identity shows inside it alone: a stranger's place until then."""
        protocol = request.protocol
        link = await accept_websocket(request, _tcp_peer(request))
        await sessions.serve_link(link, known=lambda _: gate.settled(protocol))
        return link.response

    app = web.Application(client_max_size=BODY_MAX, middlewares=[_neutral])
    app.router.add_get("/v1/bundle", bundle)
    app.router.add_post("/v1/join/nonce", nonce)
    app.router.add_post("/v1/join", join)
    app.router.add_post("/v1/renew", renew)
    app.router.add_post("/v1/revocations", revocations)
    app.router.add_get("/v1/tunnel", tunnel)
    app.router.add_get("/v1/edge", edge)
    return app


def make_health_app(healthy: Callable[[], bool]) -> web.Application:
    """`/healthz`: 200 while the gateway serves, else 503."""

    async def healthz(_: web.Request) -> web.Response:
        return _json(200, {"status": "ok"}) if healthy() else _json(503, {"status": "unavailable"})

    app = web.Application(client_max_size=1_024)
    app.router.add_get("/healthz", healthz)
    return app


async def listen_https(
    stack: AsyncExitStack, app: web.Application, address: tuple[str, int], context: ssl.SSLContext | None,
    gate: Gate | None = None,
) -> str:
    """Serves `app` until `stack` closes, in the clear if `context` is None; returns HOST:PORT. Raises LinkLost."""
    gate = gate or Gate(HttpsLimits())
    # The time for keep-alive runs from the start, so it is that for the head of the first request as well.
    runner = web.AppRunner(
        app, access_log=None, handle_signals=False, shutdown_timeout=2.0, logger=_quiet,
        keepalive_timeout=gate.limits.idle_s, lingering_time=min(1.0, gate.limits.body_s),
    )
    await runner.setup()
    make = runner.server
    assert make is not None
    stack.push_async_callback(runner.cleanup)
    host, port = address
    try:
        server = await asyncio.get_running_loop().create_server(lambda: Connection(gate, make, context), host, port)
    except OSError as error:
        raise LinkLost(
            f"cannot listen on {host}:{port}: {os.strerror(error.errno or 0).lower()}",
            hint="choose another address, or end what uses it",
        ) from None
    stack.callback(gate.close)
    stack.callback(server.close)  # first of these three
    bound = server.sockets[0].getsockname()[1]
    return f"{f'[{host}]' if ':' in host else host}:{bound}"


@web.middleware
async def _neutral(
    request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
) -> web.StreamResponse:
    """Every failure becomes a short JSON error that tells a stranger nothing."""
    try:
        return await handler(request)
    except _Refused as refusal:
        answer = _error(refusal.status, refusal.code, str(refusal))
        if refusal.status == 408:
            answer.force_close()
        return answer
    except EnrolmentRefused:
        code = "invitation" if request.path == "/v1/join" else "refused"
        return _error(403, code, "the gateway does not accept this")
    except AuditUnavailable:
        return _error(503, "overloaded", "try again later")
    except (GatewayError, StoreError) as error:
        _log.error("%s failed: %s", request.path, error)
        return _error(503, "unavailable", "try again later")
    except web.HTTPException as error:
        return _error(error.status, "bad_request" if error.status < 500 else "unavailable", "not possible")
    except (OSError, web.RequestPayloadError):  # it went away in the middle; nobody will read this answer
        return _error(400, "bad_request", "the request is not whole")
    except Exception as error:  # no traceback: its values could be an invitation's
        _log.error("%s failed with %s", request.path, type(error).__name__)
        return _error(500, "unavailable", "not possible")


def _tcp_peer(request: web.Request) -> str:
    """As a TCP link names its peer, so that an address has one share of the places, whichever door it comes by."""
    name = request.transport.get_extra_info("peername") if request.transport is not None else None
    return f"tcp:{name[0]}:{name[1]}" if isinstance(name, tuple) else "tcp:unknown:0"


async def _body(request: web.Request, kind: type[T], seconds: float) -> T:
    try:
        async with asyncio.timeout(seconds):
            data = await request.read()
    except TimeoutError:
        raise _Refused(408, "timeout", "the request came too slowly") from None
    try:
        return msgspec.json.decode(data, type=kind)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError):
        raise _Refused(400, "bad_request", "the request is not valid") from None


def _issued(authority: Authority, joined: Joined) -> dict[str, Any]:
    return {
        "id": str(joined.issued.id), "chain": [_pack(der) for der in joined.issued.chain],
        "bundle": _bundle_of(authority), "enrolment": joined.enrolment,
    }


def _bundle_of(authority: Authority) -> dict[str, Any]:
    bundle = authority.bundle
    return {
        "trust_domain": bundle.trust_domain, "roots": [_pack(der) for der in bundle.roots],
        "sequence": bundle.sequence,
    }


def _json(status: int, value: object) -> web.Response:
    return web.Response(status=status, body=msgspec.json.encode(value), content_type="application/json")


def _error(status: int, code: str, message: str) -> web.Response:
    return _json(status, {"error": {"code": code, "message": message}})


def _pack(data: bytes) -> str:
    """base64url without padding (RFC 4648 section 5)."""
    return base64.urlsafe_b64encode(data).decode("ascii").rstrip("=")


def _unpack(text: str) -> bytes:
    try:
        return base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
    except (binascii.Error, ValueError):
        raise _Refused(400, "bad_request", "the request is not valid") from None

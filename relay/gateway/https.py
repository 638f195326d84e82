"""HTTPS: joining and renewal, the trust bundle, tunnels that edges' links come through, edges; clients are `api`'s.

TLS 1.3 with SVIDs (`transport.identity.tls`). Joining and renewal need no client certificate, since who joins has none
and who renews may have an expired one; they are proven by an invitation and by the device key's signature over a nonce.
A tunnel needs the SVID of a hop; an edge that comes straight needs none, since its session has one inside. Health is
plain HTTP on a loopback listener of its own.
"""

import logging
import os
import socket
import ssl
import time
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from typing import Any, Final, Protocol

import msgspec
from aiohttp import web

from relay.gateway.answers import BODY_MAX, Refused, body_of, json_answer, neutral, pack, straight, tcp_peer, unpack
from relay.gateway.audit.refusals import Refusals
from relay.gateway.identity.ca import Authority
from relay.gateway.identity.callers import ROLES as CLIENT_ROLES
from relay.gateway.identity.enrolment import Enrolment, Joined
from relay.gateway.identity.invitations import PROBE_NAME
from relay.gateway.identity.nonces import Nonces
from relay.gateway.identity.revocation import Revocation
from relay.gateway.identity.spiffe_bundle import spiffe_bundle
from relay.gateway.identity.token_keys import TokenKeys
from relay.gateway.listening import Door, Gate, HttpsLimits
from relay.gateway.sessions import Sessions
from relay.gateway.trace import TraceStore
from relay.gateway.tunnels import TunnelNotes, carry
from relay.places import source_of
from transport.errors import BadInput, IdentityRefused, LinkLost, ProtocolViolation
from transport.identity.join import DEVICE_LABEL, HttpsOperation, https_transcript, signed_input
from transport.identity.tls import own_leaf_of, peer_of
from transport.links.websocket import accept_websocket
from transport.primitives import Secret, VerifyKey, sha256

JOIN_ROLES: Final = ("hop", "gateway", "workload")
TUNNEL_ROLE: Final = "hop"
ROLES: Final = (TUNNEL_ROLE, *CLIENT_ROLES)  # whose SVIDs this listener takes; each door looks for its own
_quiet = logging.getLogger(f"{__name__}.server")  # what the server would say about strangers' bytes, with tracebacks
_quiet.disabled = True


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


class Doors(Protocol):
    """Routes that are somebody else's."""

    def offer(self, app: web.Application) -> None: ...


class _ListBody(msgspec.Struct, forbid_unknown_fields=True):
    list: str


def make_app(
    *, authority: Authority, enrolment: Enrolment, sessions: Sessions, traces: TraceStore, refusals: Refusals,
    gate: Gate, revocation: Revocation, doors: Sequence[Doors] = (), jwt_svid_keys: TokenKeys | None = None,
    clock: Callable[[], float] = time.time,
) -> web.Application:
    """The application behind the TLS listener, whose connections come through `gate`. `doors`: what else it offers."""
    nonces = Nonces(clock)
    body_s = gate.limits.body_s

    async def bundle(_: web.Request) -> web.Response:
        return json_answer(200, _bundle_of(authority) | spiffe_bundle(authority.bundle, jwt_svid_keys))

    async def nonce(_: web.Request) -> web.Response:
        return json_answer(200, {"nonce": pack(nonces.give())})

    def proven(
        request: web.Request, operation: HttpsOperation, body: _JoinBody | _RenewBody, subject: bytes,
        device_key: Callable[[], VerifyKey],
    ) -> VerifyKey:
        """The device's key, which signed exactly this with a fresh nonce of ours on this connection.

        The nonce is looked at first and costs nothing to refuse. Raises Refused, IdentityRefused, ProtocolViolation.
        """
        given, leaf = unpack(body.nonce), own_leaf_of(request.transport)
        if leaf is None or not nonces.fresh(given):
            raise Refused(403, "nonce", "the nonce is not valid; ask for a new one")
        try:
            h = https_transcript(operation, given, unpack(body.csr), subject, leaf)
        except BadInput:
            raise Refused(400, "bad_request", "the request is not valid") from None
        key = device_key()
        key.verify(unpack(body.signature), signed_input(DEVICE_LABEL, h, sha256(key.spki)))
        if not nonces.use(given):
            raise Refused(503, "overloaded", "try again later")
        return key

    async def join(request: web.Request) -> web.Response:
        body = await body_of(request, _JoinBody, body_s)
        token_id, secret, spki = unpack(body.token_id), Secret(unpack(body.secret)), unpack(body.device_key)
        try:
            proven(request, HttpsOperation.JOIN, body, token_id, lambda: VerifyKey.from_spki(spki))
        except (IdentityRefused, ProtocolViolation) as error:
            await refusals.append("join.refused", reason=str(error), peer=request.remote)
            raise Refused(403, "invitation", "the gateway does not accept this") from None
        return json_answer(200, _issued(authority, await enrolment.join(
            token_id, secret, unpack(body.csr), spki, roles=JOIN_ROLES
        )))

    async def renew(request: web.Request) -> web.Response:
        body = await body_of(request, _RenewBody, body_s)
        device_id = unpack(body.device_id)
        try:
            proven(request, HttpsOperation.RENEW, body, device_id, lambda: enrolment.device_key(device_id))
        except IdentityRefused as refusal:
            await refusals.append("renew.refused", reason=refusal.rule, device=device_id.hex(), peer=request.remote)
            raise Refused(403, "refused", "the gateway does not accept this") from None
        joined = await enrolment.renew(device_id, unpack(body.csr), roles=JOIN_ROLES)
        return json_answer(200, _issued(authority, joined))

    async def tunnel(request: web.Request) -> web.StreamResponse:
        peer = peer_of(request.transport)
        try:
            if peer is None:
                raise IdentityRefused("a tunnel needs a certificate", rule="certificate")
            if peer.id.role != TUNNEL_ROLE:
                raise IdentityRefused("a tunnel needs the SVID of a hop", rule="role")
            await enrolment.meet(peer)
            number = enrolment.enrolment_of(peer)
        except IdentityRefused as refusal:
            await refusals.append(
                "tunnel.refused", reason=refusal.rule, id="" if peer is None else str(peer.id), peer=request.remote
            )
            raise Refused(403, "refused", "the gateway does not accept this") from None
        gate.settled(request.protocol)
        await enrolment.seen(number)
        await sessions.watch.shown(peer, number, source_of(request.remote or ""))
        notes = TunnelNotes(str(peer.id), traces)
        link = await accept_websocket(request, f"{notes.hop} {request.remote}", on_note=notes.take)
        try:
            enrolment.admit(peer)  # it may have ended meanwhile
        except IdentityRefused:
            await link.close("shutdown")
            return link.response
        await carry(link, notes, sessions)
        return link.response

    async def revocations(request: web.Request) -> web.Response:
        """A hop's list for ours. It need not be on record here: a gateway that was restored knows few SVIDs of today,
        and it is then that it has to learn. What the list says is believed for its signature alone.
        """
        peer = peer_of(request.transport)
        if peer is None or peer.id.role != TUNNEL_ROLE or peer.id.name == PROBE_NAME:
            raise Refused(403, "refused", "the gateway does not accept this")
        body = await body_of(request, _ListBody, body_s)
        if carried := unpack(body.list):
            try:
                await revocation.learn(carried, str(peer.id))
            except IdentityRefused as refusal:
                await refusals.append("revocations.refused", reason=refusal.rule, id=str(peer.id), peer=request.remote)
        return json_answer(200, {"list": pack(revocation.list.data)})

    async def edge(request: web.Request) -> web.StreamResponse:
        """A session straight from an edge, whose identity shows inside it alone: a stranger's place until then."""
        protocol = request.protocol
        link = await accept_websocket(request, tcp_peer(request))
        await sessions.serve_link(link, known=lambda _: gate.settled(protocol))
        return link.response

    app = web.Application(client_max_size=BODY_MAX, middlewares=[neutral])
    app.router.add_get("/v1/bundle", bundle)
    app.router.add_post("/v1/join/nonce", nonce)
    app.router.add_post("/v1/join", join)
    app.router.add_post("/v1/renew", renew)
    app.router.add_post("/v1/revocations", revocations)
    app.router.add_get("/v1/tunnel", tunnel)
    app.router.add_get("/v1/edge", edge)
    for one in doors:
        one.offer(app)
    return app


def make_plain_app(doors: Doors) -> web.Application:
    """`doors` alone, for a listener on loopback."""
    app = web.Application(client_max_size=BODY_MAX, middlewares=[neutral])
    doors.offer(app)
    return app


def make_health_app(healthy: Callable[[], bool]) -> web.Application:
    """`/healthz`: 200 while the gateway serves, else 503."""

    async def healthz(_: web.Request) -> web.Response:
        return json_answer(200, {"status": "ok"}) if healthy() else json_answer(503, {"status": "unavailable"})

    app = web.Application(client_max_size=1_024)
    app.router.add_get("/healthz", healthz)
    return app


async def listen_https(
    stack: AsyncExitStack, app: web.Application, address: tuple[str, int] | socket.socket,
    context: ssl.SSLContext | Callable[[], ssl.SSLContext] | None, gate: Gate | None = None,
) -> str:
    """Serves `app` until `stack` closes, in the clear if `context` is None; returns HOST:PORT. Raises LinkLost.

    A `context` that may be replaced is asked for at each connection.
    """
    gate = gate or Gate(HttpsLimits())
    # The time for keep-alive runs from the start, so it is that for the head of the first request as well.
    runner = web.AppRunner(
        app, access_log=None, handle_signals=False, shutdown_timeout=2.0, logger=_quiet,
        keepalive_timeout=gate.limits.idle_s, lingering_time=min(1.0, gate.limits.body_s),
    )
    await runner.setup()
    make = runner.server
    assert make is not None
    make.request_handler = straight(app, make.request_handler)
    stack.push_async_callback(runner.cleanup)
    if isinstance(address, socket.socket):
        listening, shown = address, _written(str(address.getsockname()[0]), address.getsockname()[1])
    else:
        listening, shown = bind(address)
    door = Door(gate, make, context if callable(context) else lambda: context, listening)
    stack.callback(gate.close)
    stack.callback(door.close)  # first of these three
    return shown


def bind(address: tuple[str, int]) -> tuple[socket.socket, str]:
    """A socket for `listen_https` whose address must be known before it serves, and HOST:PORT. Raises LinkLost."""
    try:
        bound = socket.create_server(address, family=socket.AF_INET6 if ":" in address[0] else socket.AF_INET)
    except OSError as error:
        raise _no_listener(address, error) from None
    return bound, _written(address[0], bound.getsockname()[1])


def _written(host: str, port: int) -> str:
    return f"{f'[{host}]' if ':' in host else host}:{port}"


def _no_listener(address: tuple[str, int], error: OSError) -> LinkLost:
    return LinkLost(
        f"cannot listen on {address[0]}:{address[1]}: {os.strerror(error.errno or 0).lower()}",
        hint="choose another address, or end what uses it",
    )


def _issued(authority: Authority, joined: Joined) -> dict[str, Any]:
    return {
        "id": str(joined.issued.id), "chain": [pack(der) for der in joined.issued.chain],
        "bundle": _bundle_of(authority), "enrolment": joined.enrolment,
    }


def _bundle_of(authority: Authority) -> dict[str, Any]:
    bundle = authority.bundle
    return {
        "trust_domain": bundle.trust_domain, "roots": [pack(der) for der in bundle.roots],
        "sequence": bundle.sequence,
    }

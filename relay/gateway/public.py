"""The public listener: the page that makes a phone a hop, and what that page alone asks for.

A browser shows no SVID, so the page proves a key of its own with each request (RFC 9449, `identity.dpop`). It gets that
key registered by an invitation, which it finds in its address's fragment, and then tokens that are good for a short
while and with that key alone. All this is against abuse, as hops are not trusted; sessions inside prove themselves.
"""

import asyncio
import contextlib
import importlib.resources
import time
from collections.abc import Callable
from typing import Any, Final

import aiohttp
import msgspec
from aiohttp import WSMsgType, web

from relay.gateway.admin import PAGE_PATH, PAGE_ROLE
from relay.gateway.answers import BODY_MAX, Refused, body_of, json_answer, neutral
from relay.gateway.audit.log import AuditLog
from relay.gateway.audit.refusals import Refusals
from relay.gateway.errors import AuditUnavailable
from relay.gateway.identity.callers import only
from relay.gateway.identity.dpop import TOKEN_S, Proof, ProofRefused, Proofs, Tokens
from relay.gateway.identity.enrolment import Enrolment
from relay.gateway.identity.nonces import Nonces
from relay.gateway.identity.registrations import Registration
from relay.gateway.listening import Gate
from relay.gateway.sessions import Sessions
from relay.gateway.trace import TraceStore
from relay.gateway.tunnels import TunnelNotes, carry
from store.errors import StoreError
from transport.errors import BadInput, IdentityRefused, LinkLost
from transport.identity.join import Invitation
from transport.identity.svid import SpiffeId
from transport.links.base import CLOSE_TIMEOUT_S, RECEIVE_MAX
from transport.links.websocket import WebSocketLink

JOIN_PATH: Final = "/hop/join"
TOKEN_PATH: Final = "/hop/token"
TUNNEL_PATH: Final = "/hop/tunnel"
FIRST_MAX: Final = 4_096  # characters of a tunnel's first message
REFUSED_CODE: Final = 4401  # a WebSocket's close code
_TYPES: Final = {
    "html": "text/html", "css": "text/css", "js": "text/javascript", "svg": "image/svg+xml",
}
_CODES: Final = {"nonce": "use_dpop_nonce", "time": "clock", "token": "token"}  # by rule; all others are "proof"
_ANSWERS: Final = {
    "bad_request": (400, "the request is not valid"),
    "timeout": (408, "the request came too slowly"),
    "overloaded": (503, "try again later"),
    "unavailable": (503, "try again later"),
    "use_dpop_nonce": (401, "a proof needs the nonce of our last answer"),
    "clock": (401, "this device's clock is off by more than a minute"),
    "proof": (401, "the proof of the key is not valid"),
    "token": (401, "the token is not valid; ask for a new one"),
    "invitation": (403, "the gateway does not accept this"),
    "refused": (403, "the gateway does not accept this"),
}


class _JoinBody(msgspec.Struct, forbid_unknown_fields=True):
    invitation: str

    def __repr__(self) -> str:  # it is a secret
        return "<JoinBody>"


class _TokenBody(msgspec.Struct, forbid_unknown_fields=True):
    pass


class _First(msgspec.Struct, forbid_unknown_fields=True):
    token: str
    proof: str

    def __repr__(self) -> str:
        return "<First>"


def _headers(origin: str) -> dict[str, str]:
    """What goes with each of the page's files: it may load and reach nothing but its own origin, make no text markup,
    and use the radio.
    """
    socket = origin.replace("http", "ws", 1)
    policy = (
        f"default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self' {socket}; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; manifest-src 'self'; "
        "require-trusted-types-for 'script'; trusted-types 'none'"
    )
    return {
        "Content-Security-Policy": policy, "Cache-Control": "no-cache", "Referrer-Policy": "no-referrer",
        "Cross-Origin-Opener-Policy": "same-origin", "Cross-Origin-Resource-Policy": "same-origin",
        "Permissions-Policy": "bluetooth=(self), serial=(self), screen-wake-lock=(self)",
    }


def make_public_app(
    *, origin: str, enrolment: Enrolment, sessions: Sessions, traces: TraceStore, audit: AuditLog, refusals: Refusals,
    gate: Gate, clock: Callable[[], float] = time.time,
) -> web.Application:
    """The application behind the public listener, whose connections come through `gate`; browsers see `origin`."""
    proofs, tokens = Proofs(origin, Nonces(clock), clock), Tokens(clock)
    headers, files = _headers(origin), _files()

    async def unproven(event: str, rule: str, request: web.Request, **fields: str) -> Refused:
        """To be raised. A nonce that is missing or old leaves no record: so every page begins."""
        if rule != "nonce":
            await refusals.append(event, reason=rule, peer=request.remote, **fields)
        return _refusal(_CODES.get(rule, "proof"))

    async def proven(event: str, request: web.Request, text: str, token: str | None = None) -> Proof:
        """The proof, which is for this request and was shown with `token`. Raises Refused."""
        try:
            return proofs.check(text, method=request.method, path=request.path, token=token)
        except ProofRefused as refusal:
            raise await unproven(event, refusal.rule, request) from None

    async def registered(event: str, request: web.Request, proof: Proof) -> Registration:
        """Whose key it is. Raises Refused."""
        try:
            registration = enrolment.registration(proof.device_id)
            if SpiffeId.parse(registration.id).role != PAGE_ROLE:
                raise IdentityRefused("a page is a hop and nothing else", rule="role")
        except IdentityRefused as refusal:
            await refusals.append(event, reason=refusal.rule, device=proof.device_id.hex(), peer=request.remote)
            raise _refusal("refused") from None
        return registration

    async def spent(event: str, request: web.Request, proof: Proof) -> None:
        """Uses a proof up, of a key that is known. Raises Refused."""
        try:
            proofs.use(proof)
        except ProofRefused as refusal:
            if refusal.rule == "overloaded":
                raise _refusal("overloaded") from None
            raise await unproven(event, refusal.rule, request) from None

    async def token_for(proof: Proof, registration: Registration) -> web.Response:
        await audit.append(
            "token.issued", id=registration.id, enrolment=registration.enrolment, device=proof.device_id.hex()
        )
        return json_answer(200, {
            "id": registration.id, "access_token": tokens.give(proof.device_id, registration.enrolment),
            "token_type": "DPoP", "expires_in": TOKEN_S,
        })

    async def join(request: web.Request) -> web.Response:
        event = "join.refused"
        body = await body_of(request, _JoinBody, gate.limits.body_s)
        proof = await proven(event, request, only(request, "DPoP"))
        try:
            invitation = Invitation.parse(body.invitation)
        except BadInput:
            raise _refusal("invitation") from None
        registration = await enrolment.register(
            invitation.token_id, invitation.secret, proof.key, roles=(PAGE_ROLE,)
        )
        await spent(event, request, proof)
        return await token_for(proof, registration)

    async def token(request: web.Request) -> web.Response:
        event = "token.refused"
        await body_of(request, _TokenBody, gate.limits.body_s)
        proof = await proven(event, request, only(request, "DPoP"))
        registration = await registered(event, request, proof)
        await spent(event, request, proof)
        await enrolment.seen(registration.enrolment)
        return await token_for(proof, registration)

    async def admitted(socket: web.WebSocketResponse[Any], request: web.Request) -> Registration:
        """By the first message, for which a stranger has a while. Raises Refused, AuditUnavailable, StoreError."""
        event = "tunnel.refused"
        first = await _first(socket, gate.limits.body_s)
        proof = await proven(event, request, first.proof, first.token)
        registration = await registered(event, request, proof)
        if not tokens.good(first.token, proof.device_id, registration.enrolment):
            raise await unproven(event, "token", request, id=registration.id)
        await spent(event, request, proof)
        await enrolment.seen(registration.enrolment)
        return registration

    async def tunnel(request: web.Request) -> web.StreamResponse:
        if only(request, "Origin") != origin:
            await refusals.append("tunnel.refused", reason="origin", peer=request.remote)
            raise _refusal("refused")
        # Browsers send no pings, and a quarter of a megabyte of them would be answered at one go while all others wait.
        socket = web.WebSocketResponse(
            timeout=CLOSE_TIMEOUT_S, max_msg_size=RECEIVE_MAX + 1, compress=False, autoping=False
        )
        await socket.prepare(request)
        try:
            registration = await admitted(socket, request)
        except (Refused, AuditUnavailable, StoreError) as error:
            code = error.code if isinstance(error, Refused) else "unavailable"
            await _turn_away(socket, code, proofs.nonce())
            return socket
        gate.settled(request.protocol)
        notes = TunnelNotes(registration.id, traces)
        link = WebSocketLink(socket, f"{notes.hop} {request.remote}", on_note=notes.take)
        with contextlib.suppress(LinkLost):  # then the session finds it lost, too
            await link.send_note(msgspec.json.encode({"id": registration.id}).decode())
        try:
            enrolment.registration(registration.device_id)
        except IdentityRefused:  # it has ended meanwhile
            await link.close("shutdown")
            return socket
        await carry(link, notes, sessions)
        return socket

    async def file(request: web.Request) -> web.Response:
        body, kind = files[request.path]
        return web.Response(body=body, content_type=kind, charset="utf-8", headers=headers)

    async def prepared(request: web.Request, response: web.StreamResponse) -> None:
        response.headers["X-Content-Type-Options"] = "nosniff"
        if request.path in (JOIN_PATH, TOKEN_PATH, TUNNEL_PATH):
            response.headers.update({"DPoP-Nonce": proofs.nonce(), "Cache-Control": "no-store"})

    app = web.Application(client_max_size=BODY_MAX, middlewares=[neutral])
    app.on_response_prepare.append(prepared)
    for path in files:
        app.router.add_get(path, file)
    app.router.add_post(JOIN_PATH, join)
    app.router.add_post(TOKEN_PATH, token)
    app.router.add_get(TUNNEL_PATH, tunnel)
    return app


def _refusal(code: str) -> Refused:
    status, message = _ANSWERS[code]
    return Refused(status, code, message)


async def _first(socket: web.WebSocketResponse[Any], seconds: float) -> _First:
    """A tunnel's first message. Raises Refused."""
    try:
        async with asyncio.timeout(seconds):
            message = await socket.receive()
    except TimeoutError:
        raise _refusal("timeout") from None
    try:
        if message.type is WSMsgType.TEXT and len(message.data) <= FIRST_MAX:
            return msgspec.json.decode(message.data, type=_First)
    except (msgspec.MsgspecError, RecursionError, UnicodeError):
        pass
    raise _refusal("bad_request")


async def _turn_away(socket: web.WebSocketResponse[Any], code: str, nonce: str) -> None:
    answer = {"error": {"code": code, "message": _ANSWERS[code][1]}, "nonce": nonce}
    with contextlib.suppress(OSError, RuntimeError, TimeoutError, aiohttp.ClientError):  # it has gone
        await socket.send_str(msgspec.json.encode(answer).decode())
        async with asyncio.timeout(0):  # what a stranger still says is not read
            await socket.close(code=REFUSED_CODE)


def _files() -> dict[str, tuple[bytes, str]]:
    """The page's files by path; nothing else can be asked for, whatever a path looks like."""
    files = {}
    for file in (importlib.resources.files("relay.hop") / "web").iterdir():
        kind = _TYPES.get(file.name.rpartition(".")[2])
        if kind is not None:
            path = PAGE_PATH if file.name == "index.html" else f"{PAGE_PATH}/{file.name}"
            files[path] = (file.read_bytes(), kind)
    return files

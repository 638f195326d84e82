"""A small HTTPS server that plays the gateway towards a hop: bundle, join, renew, tunnel."""

import asyncio
import base64
import contextlib
import json
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from aiohttp import web

from tests.support.ca import Ca
from transport.identity.join import DEVICE_LABEL, HttpsOperation, Invitation, https_transcript, signed_input
from transport.identity.svid import parse_csr
from transport.identity.tls import own_leaf_of, peer_of, server_context
from transport.links.websocket import WebSocketLink, accept_websocket
from transport.primitives import Secret, VerifyKey, sha256


def pack(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


def unpack(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


class JoiningGateway:
    """`on_tunnel` gets each tunnel's link; by default it echoes. `refuse` is a code that join and renew answer with."""

    def __init__(self, ca: Ca, *, served_as: str = "gateway/g", presents: Ca | None = None) -> None:
        self.ca = ca
        self.presents = presents or ca  # whose SVID the listener shows
        self.served_as = served_as
        self.lifetime = 3600.0
        self.sequence = 1
        self.issuer = ca  # who signs what is issued
        self.issued_roots = [ca.root_der]  # in the bundle that comes with it
        self.refuse = ""
        self.raw_answer: bytes | None = None
        self.secret, self.token_id = os.urandom(16), os.urandom(8)
        self.requests: list[tuple[str, dict[str, Any]]] = []
        self.notes: list[dict[str, Any]] = []
        self.final = asyncio.Event()  # a hop's last note has come
        self.peers: list[str] = []
        self.tunnels: list[WebSocketLink] = []
        self.on_tunnel: Callable[[WebSocketLink], Awaitable[None]] = self._echo
        self._nonces: set[bytes] = set()
        self._device: VerifyKey | None = None
        self.path = "hop/pi"

    def invitation(self, path: str = "hop/pi", **changes: Any) -> Invitation:
        self.path = path
        fields: dict[str, Any] = {
            "root_sha256": sha256(self.ca.root_der), "token_id": self.token_id, "secret": Secret(self.secret),
            "trust_domain": self.ca.trust_domain, "role_path": path, "hints": (self.url,),
        }
        return Invitation(**(fields | changes))

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator["JoiningGateway"]:
        app = web.Application()
        app.router.add_get("/v1/bundle", self._bundle)
        app.router.add_post("/v1/join/nonce", self._nonce)
        app.router.add_post("/v1/join", self._join)
        app.router.add_post("/v1/renew", self._join)
        app.router.add_get("/v1/tunnel", self._tunnel)
        runner = web.AppRunner(app, shutdown_timeout=1.0)
        await runner.setup()
        tls = server_context(self.presents.issue(self.served_as), self.ca.bundle(), ["hop"], require_client=False)
        site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=tls)
        await site.start()
        assert site._server is not None
        self.port = site._server.sockets[0].getsockname()[1]
        self.url = f"https://127.0.0.1:{self.port}"
        try:
            yield self
        finally:
            await asyncio.gather(*(link.close("shutdown") for link in self.tunnels))
            await runner.cleanup()

    async def _bundle(self, request: web.Request) -> web.Response:
        return web.json_response(self._bundle_of([self.ca.root_der]))

    def _bundle_of(self, roots: list[bytes]) -> dict[str, Any]:
        packed = [pack(one) for one in roots]
        return {"trust_domain": self.ca.trust_domain, "roots": packed, "sequence": self.sequence}

    async def _nonce(self, request: web.Request) -> web.Response:
        nonce = os.urandom(32)
        self._nonces.add(nonce)
        return web.json_response({"nonce": pack(nonce)})

    async def _join(self, request: web.Request) -> web.Response:
        body = await request.json()
        self.requests.append((request.path, body))
        nonce = unpack(body["nonce"])
        self._nonces.remove(nonce)
        if request.path == "/v1/join":
            assert (unpack(body["token_id"]), unpack(body["secret"])) == (self.token_id, self.secret)
            device = VerifyKey.from_spki(unpack(body["device_key"]))
            if self._device is not None and self._device.spki != device.spki:
                self.refuse = "invitation"
            self._device = device
        else:
            assert self._device is not None and unpack(body["device_id"]) == sha256(self._device.spki)
            device = self._device
        operation = HttpsOperation.JOIN if request.path == "/v1/join" else HttpsOperation.RENEW
        subject = unpack(body["token_id" if operation is HttpsOperation.JOIN else "device_id"])
        leaf = own_leaf_of(request.transport)
        assert leaf is not None
        h = https_transcript(operation, nonce, unpack(body["csr"]), subject, leaf)
        signed = signed_input(DEVICE_LABEL, h, sha256(device.spki))
        device.verify(unpack(body["signature"]), signed)
        if self.raw_answer is not None:
            return web.Response(body=self.raw_answer, content_type="application/json")
        if self.refuse:
            return web.json_response({"error": {"code": self.refuse, "message": "no"}}, status=403)
        chain = self.issuer.issue_for(parse_csr(unpack(body["csr"])).spki, self.path, lifetime=self.lifetime)
        return web.json_response({
            "id": f"spiffe://{self.ca.trust_domain}/{self.path}", "chain": [pack(one) for one in chain],
            "bundle": self._bundle_of(self.issued_roots), "enrolment": 1,
        })

    async def _tunnel(self, request: web.Request) -> web.StreamResponse:
        peer = peer_of(request.transport)
        if peer is None:
            raise web.HTTPForbidden
        self.peers.append(str(peer.id))
        link = await accept_websocket(request, str(peer.id), on_note=self._note)
        self.tunnels.append(link)
        await self.on_tunnel(link)
        await link.close()
        return link.response

    def _note(self, text: str) -> None:
        self.notes.append(json.loads(text))
        if self.notes[-1]["final"]:
            self.final.set()

    async def _echo(self, link: WebSocketLink) -> None:
        while data := await link.receive():
            await link.send(data)

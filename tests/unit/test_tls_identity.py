"""The SPIFFE ID is checked inside the TLS handshake: refused peers never reach a handler, nor get a request."""

import os
import ssl
from collections.abc import Callable

import aiohttp
import pytest
from aiohttp import web

from tests.support.ca import Ca
from transport.errors import IdentityRefused, LocalMisuse
from transport.identity.svid import Svid, TrustBundle
from transport.identity.tls import client_context, load_svid, peer_of, refusal_in, server_context, unverified_context

CA = Ca()


class Server:
    """An HTTPS server that tells the peer its id."""

    def __init__(self, context: ssl.SSLContext) -> None:
        self.context = context
        self.hits = 0

    async def __aenter__(self) -> "Server":
        async def hello(request: web.Request) -> web.Response:
            self.hits += 1
            peer = peer_of(request.transport)
            return web.Response(text=str(peer.id) if peer else "nobody")

        app = web.Application()
        app.router.add_get("/", hello)
        self._runner = web.AppRunner(app)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0, ssl_context=self.context)
        await site.start()
        self.url = f"https://127.0.0.1:{site._server.sockets[0].getsockname()[1]}/"
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._runner.cleanup()

    async def get(self, context: ssl.SSLContext) -> str:
        connector = aiohttp.TCPConnector(ssl=context, force_close=True)
        async with aiohttp.ClientSession(connector=connector) as session, session.get(self.url) as response:
            return await response.text()

    async def refused(self, context: ssl.SSLContext) -> IdentityRefused:
        with pytest.raises(aiohttp.ClientError) as caught:
            await self.get(context)
        refusal = refusal_in(caught.value)
        assert refusal is not None
        assert self.hits == 0
        return refusal


def gateway(require: bool = True, path: str = "gateway/g", ca: Ca = CA) -> Server:
    return Server(server_context(ca.issue(path), CA.bundle(), ["hop"], require_client=require))


async def test_both_sides_learn_who_the_other_is() -> None:
    async with gateway() as server:
        assert await server.get(client_context(CA.bundle(), CA.issue("hop/pi"))) == "spiffe://field.example/hop/pi"


@pytest.mark.parametrize("make", [
    lambda: CA.issue("edge/lap-1"), lambda: CA.issue("gateway/g"), lambda: Ca().issue("hop/pi"),
    lambda: CA.issue("hop/pi", start=-7200, lifetime=3600), lambda: CA.issue("hop/pi", uris=["spiffe://other/hop/pi"]),
    lambda: CA.issue("hop/pi", uris=[]), lambda: Ca("other.example").issue("hop/pi"),
], ids=["edge", "gateway", "same names, other keys", "expired", "foreign id", "no id", "other domain"])
@pytest.mark.parametrize("require", [True, False])
async def test_a_refused_client_never_reaches_a_handler(make: Callable[[], Svid], require: bool) -> None:
    async with gateway(require) as server:
        with pytest.raises((aiohttp.ClientError, OSError)):
            await server.get(client_context(CA.bundle(), make()))
        assert server.hits == 0


async def test_a_certificate_is_needed_or_optional() -> None:
    async with gateway(require=False) as server:
        assert await server.get(client_context(CA.bundle())) == "nobody"
        assert await server.get(unverified_context()) == "nobody"
    async with gateway(require=True) as server:
        with pytest.raises((aiohttp.ClientError, OSError)):
            await server.get(client_context(CA.bundle()))
        assert server.hits == 0


async def test_a_wrong_server_gets_no_request() -> None:
    mine = CA.issue("hop/pi")
    for path in ("edge/lap-1", "hop/pi"):
        async with gateway(False, path) as server:
            assert (await server.refused(client_context(CA.bundle(), mine))).rule == "role"
    async with gateway(False, ca=Ca()) as server:
        await server.refused(client_context(CA.bundle(), mine))
    async with Server(server_context(CA.issue("gateway/g", start=-7200, lifetime=3600), CA.bundle(), ["hop"],
                                     require_client=False)) as server:
        assert "expired" in (await server.refused(client_context(CA.bundle(), mine))).rule


async def test_tickets_are_off_and_old_tls_is_not_spoken() -> None:
    server = server_context(CA.issue("gateway/g"), CA.bundle(), ["hop"], require_client=True)
    client = client_context(CA.bundle())
    assert server.num_tickets == 0
    assert {server.minimum_version, client.minimum_version} == {ssl.TLSVersion.TLSv1_3}
    assert (server.verify_mode, client.verify_mode) == (ssl.CERT_REQUIRED, ssl.CERT_REQUIRED)


async def test_a_live_context_takes_a_new_svid_and_leaves_no_descriptor() -> None:
    async with gateway() as server:
        context = client_context(CA.bundle(), CA.issue("hop/old"))
        assert await server.get(context) == "spiffe://field.example/hop/old"
        before = len(os.listdir("/proc/self/fd"))
        load_svid(context, CA.issue("hop/new"))
        assert len(os.listdir("/proc/self/fd")) == before
        assert await server.get(context) == "spiffe://field.example/hop/new"


def test_a_key_that_does_not_fit_is_our_own_mistake() -> None:
    one, two = CA.issue("hop/a"), CA.issue("hop/b")
    wrong = Svid(one.id, one.chain, two.key, one.not_before, one.not_after)
    with pytest.raises(LocalMisuse):
        client_context(CA.bundle(), wrong)


def test_an_error_without_a_refusal_in_it() -> None:
    assert refusal_in(ValueError()) is None
    assert refusal_in(ConnectionResetError()) is None
    assert peer_of(None) is None
    assert TrustBundle("field.example", (CA.root_der,), 1).roots == CA.bundle().roots

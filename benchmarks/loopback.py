"""One small request and its answer over TCP on the loopback, session up; beside HTTPS keep-alive by aiohttp.

Client and server of both run in this one process and event loop, so that a round trip is all the work of both ends.
"""

import asyncio
import contextlib
import os
import time
from collections.abc import Callable

import aiohttp
from aiohttp import web

from benchmarks.chains import Chains
from benchmarks.cores import EPOCH
from benchmarks.measure import Times
from transport.edge_session import EdgeSession
from transport.errors import TransportError
from transport.identity.verify import verify_svid
from transport.initiator import SvidLogin
from transport.links.base import Endpoint, Link, connect, listen
from transport.messages import Padding, RequestHeader, Welcome, encode_header
from transport.primitives import sha256
from transport.serving import GatewaySession, Incoming, Responder
from transport.tickets import TicketStore

BODY = b'{"model":"m","messages":[{"role":"user","content":"' + b"x" * 200 + b'"}]}'
ANSWER = b'{"choices":[{"message":{"content":"' + b"y" * 200 + b'"}}]}'


def responder(chains: Chains) -> Responder:
    svid = chains.issue("gateway/bench")
    return Responder(
        lambda: svid, lambda: chains.root, lambda chain, now: verify_svid(chain, chains.bundle, role="edge", now=now),
        TicketStore(),
    )


async def serve(link: Link, gateway: Responder, admitted: Callable[[], None] = lambda: None) -> None:
    """Answers every request with ANSWER until the session ends."""
    with contextlib.suppress(TransportError):
        session = await GatewaySession.accept(link, gateway)
        session.admit(Welcome(EPOCH, "", 1))
        admitted()
        async for incoming in session.requests():
            if isinstance(incoming, Incoming):
                incoming.begin(200, "application/json", streamed=False)
                await incoming.write(ANSWER)
                incoming.end(len(ANSWER), sha256(ANSWER))


async def open_session(endpoint: Endpoint, chains: Chains, padding: Padding = Padding.BUCKET) -> EdgeSession:
    svid = chains.issue("edge/bench")
    return await EdgeSession(
        await connect(endpoint), SvidLogin(svid.chain, svid.not_after), svid.key,
        lambda chain, now: verify_svid(chain, chains.bundle, role="gateway", now=now), padding=padding,
    ).open()


async def _ask(session: EdgeSession) -> None:
    header = encode_header(RequestHeader(
        "POST", "/v1/chat/completions", "application/json", "", len(BODY), int(time.time()) + 600
    ))
    answer = await session.request(os.urandom(16), header, BODY).started()
    got = b"".join([chunk async for chunk in answer])
    assert got == ANSWER


async def round_trips(rounds: int, requests: int) -> tuple[Times, Times]:
    """(ours, aiohttp): CPU seconds for one request and answer, in rounds of `requests` one after the other.

    One thread does the work of both ends and never waits for anything else, so this is the time a round trip takes on
    a machine that has nothing else to do.
    """
    chains = Chains(intermediate=True)

    async def answer(request: web.Request) -> web.Response:
        await request.read()
        return web.Response(body=ANSWER, content_type="application/json")

    app = web.Application()
    app.router.add_post("/v1/chat/completions", answer)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=chains.tls(chains.issue("gateway/bench"), server=True))
    await site.start()
    port = runner.addresses[0][1]
    gateway = responder(chains)
    listener = await listen(Endpoint.parse("tcp:127.0.0.1:0"), lambda link: serve(link, gateway))
    tls = chains.tls(chains.issue("edge/bench"), server=False)
    session = await open_session(listener.endpoint, chains, Padding.OFF)
    ours: list[float] = []
    theirs: list[float] = []
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=tls, limit=1)) as http:
        url = f"https://127.0.0.1:{port}/v1/chat/completions"

        async def ask_http() -> None:
            async with http.post(url, data=BODY, headers={"Content-Type": "application/json"}) as response:
                assert await response.read() == ANSWER

        async def ask_us() -> None:
            await _ask(session)

        for round_ in range(rounds + 1):
            for seconds, ask in ((ours, ask_us), (theirs, ask_http)):
                started = time.thread_time()
                for _ in range(requests):
                    await ask()
                if round_:  # the first one warms up
                    seconds.append((time.thread_time() - started) / requests)
    await session.close()
    await listener.close()
    await runner.cleanup()
    return Times(tuple(ours)), Times(tuple(theirs))


def run(rounds: int, requests: int) -> tuple[Times, Times]:
    return asyncio.run(round_trips(rounds, requests))

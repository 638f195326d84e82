"""The encrypted session beside HTTPS: the same devices ask one gateway process the same, by either way in turns.

Each device has one session, with streams side by side on it, and as many HTTPS connections that show the same SVID.
What is compared is the processor time of the gateway's process.
"""

import asyncio
import ssl
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from statistics import median, quantiles

import aiohttp

from benchmarks.bare_proxy import PATH
from benchmarks.gateway_load import cpu_seconds
from benchmarks.measure import Row, cost_row
from transport.edge_session import EdgeSession, obtain
from transport.identity.join import Invitation
from transport.identity.svid import Svid, TrustBundle, make_csr
from transport.identity.tls import client_context
from transport.identity.verify import VerifiedPeer, verify_svid
from transport.initiator import Joining, SvidLogin
from transport.links.base import Endpoint, connect
from transport.messages import Padding, RequestHeader, encode_header
from transport.primitives import SigningKey, random_bytes

DEVICES, STREAMS = 4, 4
WANTED = 1.5  # at most so many times the processor time of a request by HTTPS
_LIFE_S = 600


@dataclass(frozen=True)
class Device:
    """One that has joined."""

    svid: Svid
    bundle: TrustBundle

    def check(self, chain: Sequence[bytes], now: float) -> VerifiedPeer:
        return verify_svid(chain, self.bundle, role="gateway", now=now)

    @classmethod
    async def joined(cls, endpoint: Endpoint, bundle: TrustBundle, invitation: Invitation) -> "Device":
        key, svid_key = SigningKey.generate(), SigningKey.generate()
        purpose = Joining(invitation, key.public.spki, make_csr(svid_key))
        issued = await obtain(await connect(endpoint), purpose, key, lambda chain, now: verify_svid(
            chain, bundle, role="gateway", now=now
        ))
        return cls(Svid.from_chain(issued.chain, svid_key), bundle)

    async def session(self, endpoint: Endpoint) -> EdgeSession:
        login = SvidLogin(self.svid.chain, self.svid.not_after)
        return await EdgeSession(await connect(endpoint), login, self.svid.key, self.check, Padding.BUCKET).open()

    def tls(self) -> ssl.SSLContext:
        return client_context(self.bundle, self.svid)


async def by_session(session: EdgeSession, body: bytes) -> None:
    """One request to its end, acknowledged as an edge does. Raises RuntimeError for any answer but 200."""
    request_id = random_bytes(16)
    header = encode_header(RequestHeader(
        "POST", PATH, "application/json", "", len(body), int(time.time()) + _LIFE_S
    ))
    answer = await session.request(request_id, header, body).started()
    got = sum([len(part) async for part in answer])
    if answer.status != 200 or not got:
        raise RuntimeError(f"an answer by session with status {answer.status}")
    session.acknowledge(request_id, got)


async def by_https(client: aiohttp.ClientSession, url: str, body: bytes) -> None:
    async with client.post(url, data=body, headers={"Content-Type": "application/json"}) as answer:
        if answer.status != 200 or not await answer.read():
            raise RuntimeError(f"an answer by HTTPS with status {answer.status}")


async def in_a_loop(requests: int, asks: Sequence[Callable[[], Awaitable[None]]]) -> None:
    """`requests` in all, by each of `asks` one after the other."""
    left = iter(range(requests))

    async def one(ask: Callable[[], Awaitable[None]], left: Iterator[int]) -> None:
        for _ in left:
            await ask()

    async with asyncio.TaskGroup() as group:
        for ask in asks:
            group.create_task(one(ask, left))


async def measured(
    pid: int, session_port: int, https_port: int, bundle: TrustBundle, invitations: Sequence[Invitation], body: bytes,
    *, rounds: int, requests: int,
) -> Row:
    """Of the gateway with that process, for as many devices as there are invitations."""
    endpoint = Endpoint.parse(f"tcp:127.0.0.1:{session_port}")
    devices = [await Device.joined(endpoint, bundle, one) for one in invitations]
    url = f"https://127.0.0.1:{https_port}{PATH}"
    costs: dict[str, list[float]] = {"session": [], "https": []}
    async with AsyncExitStack() as stack:
        sessions = [await device.session(endpoint) for device in devices]
        for session in sessions:
            stack.push_async_callback(session.close)
        clients = [await stack.enter_async_context(aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=STREAMS, ssl=device.tls(), keepalive_timeout=60)
        )) for device in devices]
        ways: dict[str, list[Callable[[], Awaitable[None]]]] = {
            "session": [lambda one=one: by_session(one, body) for one in sessions for _ in range(STREAMS)],  # type: ignore[misc]
            "https": [lambda one=one: by_https(one, url, body) for one in clients for _ in range(STREAMS)],  # type: ignore[misc]
        }
        for round_ in range(rounds + 1):
            for name, asks in ways.items():
                started = cpu_seconds(pid)
                await in_a_loop(requests, asks)
                if round_:  # the first one warms up
                    costs[name].append((cpu_seconds(pid) - started) / requests * 1e6)
    return row_of(costs["session"], costs["https"])


def row_of(session: Sequence[float], https: Sequence[float]) -> Row:
    """Wanted is of the ratio as the table has it: HTTPS over ours."""
    first, _, third = quantiles(session, n=4)
    ours = median(session)
    return cost_row(
        f"CPU per request by encrypted session, {DEVICES} sessions of {STREAMS} streams", ours, "us", median(https),
        f"our own HTTPS, SVID, {DEVICES * STREAMS} connections", wanted=1 / WANTED, spread=(third - first) / ours,
    )

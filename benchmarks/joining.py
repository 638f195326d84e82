"""Joins and renewals at a gateway process: edges by the session's handshake, hops by HTTPS.

All devices are in this one process, which keeps off the gateway's core where there is another. Invitations, keys and
certificate requests are made beforehand. So many are under way at once, and each that is done begins the next.
"""

import asyncio
import json
import os
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import aiohttp

from benchmarks.measure import Row
from relay.gateway.audit.log import AUDIT_FILE, AuditLog
from relay.gateway.identity.ca import Authority
from relay.gateway.identity.enrolment import Enrolment
from relay.gateway.state.sqlcipher import open_state
from relay.hop.identity import pack, unpack
from tests.support.gateway_lab import DOMAIN, PASSPHRASE, make_folder
from tests.support.mock_provider import KEY
from transport.edge_session import obtain
from transport.identity.join import (
    DEVICE_LABEL,
    HttpsOperation,
    Invitation,
    bundle_from_joined_root,
    https_transcript,
    signed_input,
)
from transport.identity.svid import TrustBundle, make_csr
from transport.identity.tls import client_context, peer_of
from transport.identity.verify import VerifiedPeer, verify_svid
from transport.initiator import Joining, Renewing
from transport.links.base import Endpoint, connect
from transport.messages import Issued
from transport.primitives import SigningKey, sha256

ROOT: Final = Path(__file__).resolve().parent.parent
AT_ONCE: Final = 32
ADDRESSES: Final = 64  # of the loopback, that hops come from: HTTPS allows one address so many handshakes a second
WANTED: Final = 200.0
CONFIG: Final = f"""
trust_domain = "{DOMAIN}"
[listen]
session = "tcp:127.0.0.1:0"
https = "127.0.0.1:0"
[limits]
handshakes = 256
full_handshakes_per_s = 100000.0
[provider]
base_url = "http://127.0.0.1:1/v1"
key_file = "provider.key"
[[allow]]
id = "/edge/*"
models = ["small"]
"""


@dataclass(frozen=True)
class Newcomer:
    """Who is about to join. `csr` is for an SVID key that is not needed again."""

    invitation: Invitation
    key: SigningKey
    csr: bytes


@dataclass(frozen=True)
class Used:
    """What the gateway had used by a moment: seconds of its processor, of the wall, and of waiting for the audit."""

    cpu: float
    wall: float
    syncs: int
    sync_s: float


class Gateway:
    """The process, and where it listens."""

    def __init__(self, process: asyncio.subprocess.Process, session: str, https: str, bundle: TrustBundle) -> None:
        self._process = process
        self.endpoint = Endpoint.parse(session)
        self.https, self.bundle = https, bundle

    async def used(self) -> Used:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(b"?")
        return Used(**json.loads(await self._process.stdout.readline()))


@asynccontextmanager
async def gateway(folder: Path, edges: int, hops: int) -> AsyncIterator[tuple[Gateway, list[Newcomer], list[Newcomer]]]:
    """Makes invitations, then starts the gateway."""
    await asyncio.to_thread(make_folder, folder)
    (folder / "gateway.toml").write_text(CONFIG)
    (folder / "provider.key").write_text(KEY)
    (folder / "provider.key").chmod(0o600)
    with open_state(folder, PASSPHRASE) as database:
        audit, authority = AuditLog(folder / AUDIT_FILE), Authority.open(folder, PASSPHRASE)
        enrolment = Enrolment(database, authority, audit)
        await enrolment.load()
        names = [*(f"edge/lap-{number}" for number in range(edges)), *(f"hop/box-{number}" for number in range(hops))]
        invitations = await asyncio.gather(*(enrolment.invite(name) for name in names))
        await audit.close()
    newcomers = [Newcomer(one, SigningKey.generate(), make_csr(SigningKey.generate())) for one in invitations]
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "benchmarks.joining_gateway", str(folder), cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)}, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
    )
    try:
        assert process.stdout is not None
        line = await process.stdout.readline()
        if not line:
            raise RuntimeError("the gateway did not start")
        told: dict[str, Any] = json.loads(line)
        yield Gateway(process, told["session"], told["https"], authority.bundle), newcomers[:edges], newcomers[edges:]
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def join_edge(gateway: Gateway, who: Newcomer) -> Issued:
    """The whole of it, over a connection of its own."""

    def check(chain: Sequence[bytes], now: float) -> VerifiedPeer:
        return verify_svid(chain, bundle_from_joined_root(who.invitation, chain), role="gateway", now=now)

    purpose = Joining(who.invitation, who.key.public.spki, who.csr)
    return await obtain(await connect(gateway.endpoint), purpose, who.key, check)


async def renew_edge(gateway: Gateway, who: Newcomer) -> Issued:
    def check(chain: Sequence[bytes], now: float) -> VerifiedPeer:
        return verify_svid(chain, gateway.bundle, role="gateway", now=now)

    return await obtain(await connect(gateway.endpoint), Renewing(who.key.public.spki, who.csr), who.key, check)


class Answer(aiohttp.ClientResponse):
    """Remembers whose it is: its connection may be given back as soon as its head is read."""

    server: VerifiedPeer | None = None

    async def start(self, connection: aiohttp.connector.Connection) -> aiohttp.ClientResponse:
        self.server = peer_of(connection.transport)
        return await super().start(connection)


async def join_hop(gateway: Gateway, who: Newcomer, number: int) -> dict[str, Any]:
    """As a hop does that holds the root already: TLS, a nonce, and the request that is signed over it."""
    place = f"127.0.0.{2 + number % ADDRESSES}"
    tls = aiohttp.TCPConnector(ssl=client_context(gateway.bundle), local_addr=(place, 0), limit=1)
    base = f"https://{gateway.https}"
    async with aiohttp.ClientSession(base, connector=tls, response_class=Answer) as http:
        async with http.post("/v1/join/nonce", json={}) as response:
            assert isinstance(response, Answer)
            server = response.server
            nonce = unpack((await response.json())["nonce"])
        assert server is not None
        h = https_transcript(HttpsOperation.JOIN, nonce, who.csr, who.invitation.token_id, server.leaf_sha256)
        signature = who.key.sign(signed_input(DEVICE_LABEL, h, sha256(who.key.public.spki)))
        body = {
            "token_id": who.invitation.token_id, "secret": who.invitation.secret.expose(),
            "device_key": who.key.public.spki, "csr": who.csr, "nonce": nonce, "signature": signature,
        }
        async with http.post("/v1/join", json={name: pack(value) for name, value in body.items()}) as response:
            response.raise_for_status()
            answer: dict[str, Any] = await response.json()
            return answer


@dataclass(frozen=True)
class Run:
    """What a number of joins took; `times` in seconds, sorted."""

    times: list[float]
    wall: float
    before: Used
    after: Used

    def rows(self, what: str, wanted: float | None) -> list[Row]:
        count, at = len(self.times), f"{AT_ONCE} at once"
        rate = count / self.wall
        cores = (self.after.cpu - self.before.cpu) / self.wall
        peer = "the rate that is wanted" if wanted else ""
        return [
            Row(f"{what}, {at}", rate, "/s", wanted, peer, rate / wanted if wanted else None, 1.0 if wanted else None),
            Row(f"{what}, {at}, p50", self.times[count // 2] * 1e3, "ms", None, "", None),
            Row(f"{what}, {at}, p99", self.times[count * 99 // 100] * 1e3, "ms", None, "", None),
            Row(f"{what}, processor of the gateway", cores / rate * 1e3, "ms", None, "", None),
        ]

    def sync_rows(self, what: str) -> list[Row]:
        count, syncs = len(self.times), self.after.syncs - self.before.syncs
        waited = self.after.sync_s - self.before.sync_s
        return [
            Row(f"{what}, of the time the audit waits for the disk", waited / self.wall * 100, "%", None, "", None),
            Row(f"{what}, one such wait", waited / syncs * 1e3, "ms", None, "", None),
            Row(f"{what}, that share one", count / syncs, "", None, "", None),
        ]


async def timed(gateway: Gateway, jobs: Sequence[Callable[[], Awaitable[object]]]) -> Run:
    """All of them, `AT_ONCE` at a time; whichever fails ends the measurement."""
    todo, times = iter(jobs), []

    async def work() -> None:
        for job in todo:
            began = time.perf_counter()
            await job()
            times.append(time.perf_counter() - began)

    before, began = await gateway.used(), time.perf_counter()
    async with asyncio.TaskGroup() as group:
        for _ in range(AT_ONCE):
            group.create_task(work())
    wall = time.perf_counter() - began
    return Run(sorted(times), wall, before, await gateway.used())


async def measured(edges: int, hops: int) -> list[Row]:
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, cores[1:] or cores)
    try:
        with tempfile.TemporaryDirectory(prefix="causeway-joins-") as folder:
            async with gateway(Path(folder) / "gateway", edges, hops) as (to, laptops, boxes):
                joins = await timed(to, [lambda one=one: join_edge(to, one) for one in laptops])
                renewals = await timed(to, [lambda one=one: renew_edge(to, one) for one in laptops])
                by_https = await timed(to, [lambda at=at: join_hop(to, boxes[at], at) for at in range(hops)])
    finally:
        os.sched_setaffinity(0, cores)
    return [
        *joins.rows("an edge joins", WANTED), *joins.sync_rows("joins"), *renewals.rows("an edge renews", None),
        *by_https.rows("a hop joins by HTTPS", None),
    ]


def run(*, smoke: bool) -> list[Row]:
    return asyncio.run(measured(*((100, 30) if smoke else (3_000, 500))))

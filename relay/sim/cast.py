"""Who plays: a gateway, hops and edges, each made of what the product is made of, each to be killed and started again.

Two things of the product are not on stage: TLS between hop and gateway (their tunnels are in memory), and listeners.
"""

import asyncio
import random
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Final

from edge_client import identity
from edge_client.gateway_client import GatewayClient
from edge_client.outbox import Outbox
from edge_client.sessions import Clock
from relay.gateway.app import SWEEP_S
from relay.gateway.audit.log import AuditLog
from relay.gateway.audit.refusals import Refusals
from relay.gateway.checks.authenticate import Authenticate
from relay.gateway.checks.authorise import Authorise
from relay.gateway.checks.schema import Schema
from relay.gateway.forward import Forward, ModelList
from relay.gateway.identity.ca import Authority, OwnIdentity, create_authority
from relay.gateway.identity.enrolment import Enrolment
from relay.gateway.journal import Journal
from relay.gateway.pipeline import Pipeline
from relay.gateway.policy.decisions import Policy
from relay.gateway.policy.settings import Allow, Policies, checked
from relay.gateway.requests import Requests
from relay.gateway.sessions import SessionLimits, Sessions
from relay.gateway.state.sqlcipher import create_state, open_state
from relay.gateway.taps.meter import Meter
from relay.gateway.trace import HopNote, TraceStore, parse_note
from relay.gateway.upstream.keys import ProviderKey
from relay.hop.app import HopLimits
from relay.hop.pipe import Pipe
from relay.sim.scripted_provider import MODEL, ScriptedProvider
from store.database import STORE_SCHEMA, Database
from store.keys import DatabaseKey, Passphrase
from store.queue import Queue
from store.settings import Settings
from transport import session, telemetry
from transport.errors import CloseReason, LinkLost
from transport.identity.join import Invitation
from transport.links.base import Endpoint, Link
from transport.links.memory import MemoryLink, memory_pair
from transport.links.simulated import Air
from transport.links.virtual_time import wall
from transport.messages import Padding
from transport.primitives import Secret, random_bytes
from transport.tickets import TicketStore

DOMAIN: Final = "sim.example"
RADIO: Final = Endpoint("ble", "")  # any hop in reach
SCAN_S: Final = 20.0  # how long an edge looks for a hop before it calls that a failure
_TRACES: Final = 16  # kept in memory; few, so that a short run, too, shows whether anything grows beyond its bound
_PROVIDER_KEY: Final = ProviderKey(Secret(b"sk-of-a-provider-that-asks-for-none"))


class VirtualClock(Clock):
    """The edge's clock in virtual time, with dice of a seed."""

    def __init__(self, dice: random.Random) -> None:
        self._dice = dice

    def dice(self) -> float:
        return self._dice.random()

    def now(self) -> float:
        return wall()

    def of_session(self) -> session.Clock:
        return wall


class Gateway:
    """One gateway over a folder of its own; `start` and `kill` it as often as you like."""

    def __init__(self, folder: Path, provider: ScriptedProvider) -> None:
        """Makes the folder. Takes about a second of key derivation."""
        self._folder, self._provider = folder, provider
        self._passphrase = Passphrase(random_bytes(16).hex())
        folder.mkdir(mode=0o700)
        root = Passphrase(random_bytes(16).hex())
        create_authority(folder, DOMAIN, passphrase=self._passphrase, root_passphrase=root, now=wall())
        create_state(folder, self._passphrase)
        self._stack = AsyncExitStack()
        self._sessions: Sessions | None = None
        self._links: dict[asyncio.Task[None], MemoryLink] = {}
        self._traces: TraceStore
        self.enrolment: Enrolment

    async def start(self) -> None:
        """As relay.gateway.app does, without its listeners."""
        stack, clock = self._stack, wall
        database = stack.enter_context(open_state(self._folder, self._passphrase))
        audit = AuditLog(self._folder / "audit.jsonl", clock=clock)
        stack.push_async_callback(audit.close)
        tracing = telemetry.start("gateway", traces=_TRACES)
        stack.callback(tracing.close)
        authority, refusals = Authority.open(self._folder, self._passphrase), Refusals(audit, clock=clock)
        self.enrolment = Enrolment(database, authority, audit, refusals=refusals, clock=clock)
        await self.enrolment.load()
        self._traces = traces = TraceStore(database, clock=clock)
        policy = Policy(checked(self._folder, [], [Allow(id="/edge/*", models=[MODEL])], Policies(), []))
        pipeline = Pipeline(
            checks=[Authenticate(self.enrolment, clock=clock), Authorise(policy), Schema()],
            answerers={"chat": Forward.to_one(self._provider, _PROVIDER_KEY, audit, tracing), "models": ModelList()},
            taps=[Meter], audit=audit, telemetry=tracing, node="sim",
        )
        journal = Journal(database, clock=clock)
        await journal.load()
        stack.push_async_callback(journal.close)
        requests = Requests(
            journal=journal, pipeline=pipeline, enrolment=self.enrolment, traces=traces, telemetry=tracing,
            refusals=refusals, policy=policy,
        )
        self._sessions = sessions = Sessions(
            identity=OwnIdentity(authority, "sim", clock=clock), authority=authority, enrolment=self.enrolment,
            requests=requests, traces=traces, audit=audit, refusals=refusals, limits=SessionLimits(),
            tickets=TicketStore(), clock=clock, session_clock=lambda: wall,
        )
        stack.push_async_callback(sessions.drain, 0)
        sweeping = asyncio.create_task(_again(SWEEP_S, journal.sweep))
        stack.push_async_callback(_ended, {sweeping})

    async def kill(self) -> None:
        """Ends the process without a word to anybody; what was under way is so in its state."""
        self._sessions = None
        for link in list(self._links.values()):
            await link.close("error")
        await self._stack.aclose()
        await _ended(set(self._links))
        self._stack = AsyncExitStack()

    def tunnel(self, hop: str) -> "Tunnel":
        """A hop's way in. Raises LinkLost while the gateway is down."""
        if self._sessions is None:
            raise LinkLost("the gateway is down", reason="unavailable")
        notes = _Notes()
        near, far = memory_pair(far=f"tunnel of {hop}")
        self._serve(self._sessions, far, f"spiffe://{DOMAIN}/hop/{hop}", notes)
        return Tunnel(near, notes)

    def straight(self) -> MemoryLink:
        """A link without a hop, for what comes before the play."""
        assert self._sessions is not None
        near, far = memory_pair()
        self._serve(self._sessions, far, "", _Notes())
        return near

    def _serve(self, sessions: Sessions, link: MemoryLink, via: str, notes: "_Notes") -> None:
        async def save() -> None:
            if notes.latest is not None and notes.latest.link == notes.link_id:
                await self._traces.note(via, notes.latest)

        async def work() -> None:
            await sessions.serve_link(link, via=via, known=notes.bind, settled=save)

        task = asyncio.create_task(work())
        self._links[task] = link
        task.add_done_callback(self._links.pop)


class _Notes:
    """What a hop says about one tunnel."""

    def __init__(self) -> None:
        self.latest: HopNote | None = None
        self.link_id = ""

    def bind(self, link_id: str) -> None:
        self.link_id = link_id


class Tunnel:
    """A tunnel's end at the hop: a link that takes notes."""

    def __init__(self, link: MemoryLink, notes: _Notes) -> None:
        self.peer, self.send, self.receive, self.close = link.peer, link.send, link.receive, link.close
        self._notes = notes

    async def send_note(self, text: str) -> None:
        self._notes.latest = parse_note(text) or self._notes.latest


class Hop:
    """One hop: a pipe for each link that an edge opens."""

    def __init__(self, name: str, gateway: Gateway) -> None:
        self.name, self._gateway = name, gateway
        self.up = True
        self._limits = HopLimits()
        self._links: dict[asyncio.Task[None], MemoryLink] = {}

    async def open(self) -> Link:
        """The edge's end of a new link. Raises LinkLost while the hop is down."""
        if not self.up:
            raise LinkLost("the hop does not answer", reason="unavailable")
        near, far = memory_pair(near="an edge", far=self.name)
        task = asyncio.create_task(self._serve(far))
        self._links[task] = far
        task.add_done_callback(self._links.pop)
        return near

    async def kill(self) -> None:
        self.up = False
        for link in list(self._links.values()):
            await link.close("error")
        await _ended(set(self._links))

    async def _serve(self, edge: MemoryLink) -> None:
        reason: CloseReason = "error"
        try:
            async with asyncio.timeout(self._limits.first_s):
                first = await edge.receive()
            if first:
                await Pipe(edge, self._gateway.tunnel(self.name), self._limits.pipe, first=first, clock=wall).run()
            reason = "done"
        except (LinkLost, TimeoutError):
            pass
        finally:
            await edge.close(reason)


class Watched:
    """A link of an edge; `ended` is told once: True if it broke, False if the edge itself has closed it."""

    def __init__(self, link: Link, ended: Callable[["Watched", bool], None]) -> None:
        self.peer, self._link = link.peer, link
        self._ended: Callable[[Watched, bool], None] | None = ended

    async def send(self, data: bytes) -> None:
        try:
            await self._link.send(data)
        except LinkLost:
            self._tell(broke=True)
            raise

    async def receive(self) -> bytes:
        try:
            return await self._link.receive()
        except LinkLost:
            self._tell(broke=True)
            raise

    async def close(self, reason: CloseReason = "done") -> None:
        self._tell(broke=False)
        await self._link.close(reason)

    def _tell(self, *, broke: bool) -> None:
        ended, self._ended = self._ended, None
        if ended is not None:
            ended(self, broke)


class Edge:
    """One edge: its store, its radio, and a gateway client that can be killed and started again."""

    def __init__(
        self, name: str, folder: Path, hops: dict[str, Hop], airs: dict[str, Air], padding: Padding,
        dice: random.Random, parted: Callable[[bool], None],
    ) -> None:
        """`airs` by the hop's name; `dice` for its pauses. `parted` is told True for each link that breaks, and False
        when the edge itself closes the only one it has.
        """
        self._clock = VirtualClock(dice)
        self.name, self._hops, self.airs, self._padding, self._parted = name, hops, airs, padding, parted
        self._database = Database.open(folder / f"{name}.db", DatabaseKey.generate(), schema=STORE_SCHEMA)
        self._settings = Settings(self._database, identity.NAMESPACE)
        self.outbox = Outbox(Queue(self._database, "outbox"))
        self._tracing = telemetry.start("edge", traces=_TRACES)
        self._failed: dict[str, float] = {}  # loop time of a hop's last failure
        self._open: set[Watched] = set()
        self.lives = 0
        self.client: GatewayClient

    async def join(self, invitation: Invitation, link: Link) -> None:
        await identity.join(self._settings, invitation, link, (str(RADIO),), clock=wall)

    def start(self) -> None:
        self.lives += 1
        self.client = GatewayClient(
            self._settings, self.outbox, (RADIO,), self._tracing, self._dial, clock=self._clock,
            padding=self._padding,
        )

    async def kill(self) -> None:
        """Ends the process: its links are gone at once, its store stays as it is."""
        self.lives += 1
        for air in self.airs.values():
            for link in list(air.links):
                await link.close("error")
        await self.client.close()

    async def close(self) -> None:
        await self.client.close()
        self._tracing.close()
        self._database.close()

    def cut(self) -> None:
        """The radio falls silent, until both ends have noticed."""
        for air in self.airs.values():
            for link in air.links:
                link.cut()

    def in_reach_at(self, now: float) -> float:
        """The first moment from `now` on in which some hop is in reach."""
        return min(end if begin <= now else now for begin, end in self._gaps(now))

    def apart(self, start: float, end: float) -> Iterator[tuple[float, float]]:
        """The times between `start` and `end` in which no hop is in reach."""
        now = start
        while now < end:
            back = self.in_reach_at(now)
            if back > now:
                yield now, min(back, end)
                now = back
            else:
                now = max(begin for begin, _ in self._gaps(now) if begin > now)

    def _gaps(self, now: float) -> list[tuple[float, float]]:
        return [air.reach.gap(now) for air in self.airs.values()]

    async def _dial(self, endpoint: Endpoint) -> Link:
        """To the hop that is, or comes, in reach first; one that has just failed after the others."""
        now = asyncio.get_running_loop().time()

        def order(hop: str) -> tuple[float, float]:
            begin, end = self.airs[hop].reach.gap(now)
            return (end if begin <= now else now), self._failed.get(hop, 0.0)

        best = min(self.airs, key=order)
        try:
            link = await self.airs[best].connect(self._hops[best].open, timeout_s=SCAN_S)
        except LinkLost:
            self._failed[best] = now
            raise
        self._open.add(watched := Watched(link, self._link_ended))
        return watched

    def _link_ended(self, link: Watched, broke: bool) -> None:
        self._open.discard(link)
        if broke or not self._open:  # a renewed session stands before the old one is closed
            self._parted(broke)


async def _again(every_s: float, work: Callable[[], Awaitable[object]]) -> None:
    while True:
        await asyncio.sleep(every_s)
        await work()


async def _ended(tasks: set[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)

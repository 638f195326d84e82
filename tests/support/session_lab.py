"""A gateway from its links to its provider in one process, over memory links: what `app` builds, without listeners."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from relay.gateway.anomaly.guard import QUARANTINED, Guard
from relay.gateway.anomaly.settings import AS_BUILT, Anomaly
from relay.gateway.audit.log import AuditLog
from relay.gateway.audit.refusals import Refusals
from relay.gateway.call import JournalLimits
from relay.gateway.checks.authenticate import Authenticate
from relay.gateway.checks.authorise import Authorise
from relay.gateway.checks.quota import Quota
from relay.gateway.checks.schema import Schema
from relay.gateway.checks.standing import Standing
from relay.gateway.forward import Forward, ModelList
from relay.gateway.identity.ca import Authority, OwnIdentity
from relay.gateway.identity.enrolment import Enrolment
from relay.gateway.identity.measures import Measures
from relay.gateway.identity.revocation import Revocation
from relay.gateway.journal import Journal
from relay.gateway.pipeline import Answerer, Pipeline
from relay.gateway.policy.decisions import Policy
from relay.gateway.quota.quotas import Quotas
from relay.gateway.quota.settings import UNLIMITED
from relay.gateway.quota.tap import Allowance
from relay.gateway.requests import Requests
from relay.gateway.sessions import SessionLimits, Sessions
from relay.gateway.state.sqlcipher import open_state
from relay.gateway.taps.meter import Meter
from relay.gateway.trace import TraceStore
from relay.gateway.upstream.http import HttpUpstream
from relay.gateway.upstream.keys import ProviderKey
from tests.support.gateway_lab import PASSPHRASE, allowing, audit_lines
from tests.support.memory_link import MemoryLink, memory_links
from tests.support.mock_provider import KEY
from transport import telemetry
from transport.edge_session import EdgeSession
from transport.identity.svid import Svid, make_csr
from transport.identity.verify import VerifiedPeer, verify_svid
from transport.initiator import Resumption, SvidLogin
from transport.messages import Posture
from transport.primitives import Secret, SigningKey
from transport.session import session_clock
from transport.tickets import Ticket, TicketStore


@dataclass
class Lab:
    directory: Path
    authority: Authority
    enrolment: Enrolment
    journal: Journal
    traces: TraceStore
    tickets: TicketStore
    policy: Policy
    sessions: Sessions
    revocation: Revocation
    guard: Guard
    tasks: list[asyncio.Task[None]] = field(default_factory=list)

    def link(self, *, via: str = "", peer: str = "tcp:192.0.2.1:4711") -> MemoryLink:
        """The edge's end of a link that the gateway serves."""
        ours, theirs = memory_links()
        theirs.peer = peer
        self.tasks.append(asyncio.create_task(self.sessions.serve_link(theirs, via=via)))
        return ours

    async def device(self, name: str) -> Svid:
        invitation = await self.enrolment.invite(f"edge/{name}")
        device, key = SigningKey.generate(), SigningKey.generate()
        joined = await self.enrolment.join(
            invitation.token_id, invitation.secret, make_csr(key), device.public.spki, roles=("edge",)
        )
        return Svid.from_chain(joined.issued.chain, key)

    def check_gateway(self, chain: Any, now: float) -> VerifiedPeer:
        return verify_svid(chain, self.authority.bundle, role="gateway", now=now)

    def unopened(
        self, link: MemoryLink, svid: Svid, ticket: Ticket | None = None, posture: Posture | None = None
    ) -> EdgeSession:
        """A session to be opened; with a ticket, what is asked before that travels as early data."""
        purpose = SvidLogin(svid.chain, svid.not_after) if ticket is None else Resumption(ticket)
        return EdgeSession(link, purpose, svid.key, self.check_gateway, posture=posture)

    async def session(
        self, svid: Svid, ticket: Ticket | None = None, posture: Posture | None = None, **where: str
    ) -> EdgeSession:
        return await self.unopened(self.link(**where), svid, ticket, posture).open()

    def audit(self, event: str) -> list[dict[str, Any]]:
        return [line for line in audit_lines(self.directory / "a.jsonl") if line["event"] == event]


@asynccontextmanager
async def gateway(
    directory: Path, base_url: str = "http://127.0.0.1:1/v1", *, limits: SessionLimits | None = None,
    journal_limits: JournalLimits | None = None, ticking: Callable[[], float] = time.monotonic,
    policy: Policy | None = None, inference: str = "", clock: Callable[[], float] | None = None,
    quotas: Quotas | None = None,
    anomaly: Anomaly = AS_BUILT, judging: Callable[[], float] | None = None, answerer: Answerer | None = None,
) -> AsyncIterator[Lab]:
    """One process of a gateway, over a folder that `gateway_lab.make_folder` has made.

    Edges may invoke "small" unless `policy` says otherwise; `inference`: where the model "defect-detection" is served.
    `clock` has unix seconds for all of it; `answerer` answers in place of a provider. Nobody but the test has `guard`
    judge, by the clock `judging`.
    """
    of_session = session_clock if clock is None else (lambda told=clock: told)
    clock = clock or time.time
    async with AsyncExitStack() as stack:
        database = stack.enter_context(open_state(directory, PASSPHRASE))
        audit = AuditLog(directory / "a.jsonl", clock=clock)
        stack.push_async_callback(audit.close)
        authority, tracing = Authority.open(directory, PASSPHRASE), telemetry.start("gateway")
        stack.callback(tracing.close)
        enrolment = Enrolment(database, authority, audit, clock=clock)
        await enrolment.load()
        upstream = HttpUpstream(base_url)
        stack.push_async_callback(upstream.close)
        policy = policy or allowing({"/edge/*": ["small"]})
        stack.push_async_callback(policy.close)
        authorise = Authorise(
            policy, serves=lambda operation, model: (
                (model == "defect-detection") == (operation == "infer") and (bool(inference) or operation != "infer")
            )
        )
        answerers: dict[str, Answerer] = {
            "chat": answerer or Forward.to_one(upstream, ProviderKey(Secret(KEY.encode())), audit, tracing),
            "models": ModelList(),
        }
        if inference:
            server = HttpUpstream(inference, name="inference")
            stack.push_async_callback(server.close)
            answerers["infer"] = Forward.to_one(server, None, audit, tracing)

        async def stop(number: int) -> None:
            await requests.stop(number, QUARANTINED)

        guard = Guard(
            database, anomaly, clock=judging or clock, act=Measures(enrolment, audit, lambda: revocation, stop)
        )
        await guard.load()
        standing = Standing(guard)
        pipeline = Pipeline(
            checks=[Authenticate(enrolment, clock=clock), standing, authorise, Schema(),
                    Quota(quotas or Quotas(UNLIMITED))],
            still=authorise.still, observers=[guard], answerers=answerers, taps=[Allowance, Meter], audit=audit,
            telemetry=tracing, node="x",
        )
        journal = Journal(database, limits=journal_limits, clock=clock)
        traces, tickets = TraceStore(database, clock=clock), TicketStore()
        await journal.load()
        refusals = Refusals(audit, clock=clock)
        requests = Requests(
            journal=journal, pipeline=pipeline, enrolment=enrolment, traces=traces, telemetry=tracing,
            refusals=refusals, policy=policy, barred=standing.barred,
        )
        sessions = Sessions(
            identity=OwnIdentity(authority, "main", clock=clock), authority=authority, enrolment=enrolment,
            requests=requests, traces=traces, audit=audit, refusals=refusals, limits=limits or SessionLimits(),
            tickets=tickets, ticking=ticking, clock=clock, session_clock=of_session,
            revocations=lambda: revocation.list,
        )
        revocation = Revocation(directory, database, authority, enrolment, audit, cut=sessions.cut, clock=clock)
        await revocation.refresh()
        lab = Lab(directory, authority, enrolment, journal, traces, tickets, policy, sessions, revocation, guard)
        try:
            yield lab
        finally:
            await sessions.drain(0)
            await journal.close()
            await guard.close()
            for task in lab.tasks:  # of links that never became sessions
                task.cancel()
            await asyncio.gather(*lab.tasks, return_exceptions=True)

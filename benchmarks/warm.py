"""Requests on warm sessions at a gateway, and at the same gateway with identity and authorisation both off.

Gateways and devices are in this one process: sessions over TCP on the loopback, state and audit in files in memory
(/dev/shm, where there is one), so that the disk's moods are not taken for anybody's cost, and a stand-in provider that
answers at once. What is off in the second gateway: the checks authenticate and authorise, whether the device may come
by its hop, and the look at the policy before each piece of an answer. All else is the same code.
"""

import asyncio
import json
import os
import random
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Final

from benchmarks.measure import Row
from benchmarks.policy import DEVICES, MODELS, SITES, rules
from relay.gateway.audit.log import AuditLog
from relay.gateway.audit.refusals import Refusals
from relay.gateway.checks.authenticate import Authenticate
from relay.gateway.checks.authorise import Authorise
from relay.gateway.checks.schema import Schema
from relay.gateway.forward import Forward
from relay.gateway.identity.ca import Authority, OwnIdentity
from relay.gateway.identity.enrolment import Enrolment
from relay.gateway.journal import Journal
from relay.gateway.pipeline import Answer, Check, Pipeline, Refusal, RequestContext
from relay.gateway.policy.decisions import Policy
from relay.gateway.requests import Asker, Requests
from relay.gateway.sessions import SessionLimits, Sessions
from relay.gateway.state.sqlcipher import open_state
from relay.gateway.taps.meter import Meter
from relay.gateway.trace import TraceStore
from relay.gateway.upstream.keys import ProviderKey
from tests.support.gateway_lab import PASSPHRASE, make_folder
from transport import telemetry
from transport.edge_session import EdgeSession
from transport.errors import RequestRefused
from transport.identity.svid import Svid, make_csr
from transport.identity.verify import VerifiedPeer, verify_svid
from transport.initiator import SvidLogin
from transport.links.base import Endpoint, connect, listen
from transport.messages import Padding, Posture, RequestHeader, encode_header
from transport.primitives import Secret, SigningKey, sha256
from transport.tickets import TicketStore

SESSIONS: Final = 16  # devices that ask, one after the other
POSTURE: Final = Posture("encrypted", "present", "0.1.0")
ANSWER: Final = json.dumps({
    "model": "stand-in", "choices": [{"message": {"content": "y" * 200}}],
    "usage": {"prompt_tokens": 50, "completion_tokens": 50},
}).encode()
OFF, ON, ANEW = "off", "on", "anew"
BOUNDS_MS: Final = {"p50": 1.0, "p99": 3.0}


class StandIn:
    """A provider that answers at once, always the same."""

    name, host = "stand-in", "stand-in.example"

    @asynccontextmanager
    async def call(
        self, route: str, body: bytes, *, stream: bool, key: Secret | None, **_: object
    ) -> AsyncIterator[Answer]:
        async def chunks() -> AsyncIterator[bytes]:
            yield ANSWER

        yield Answer(200, "application/json", False, chunks())

    async def close(self) -> None:
        pass


class Believe:
    """In place of authenticate and authorise: takes the model's name, which schema wants, and asks nobody."""

    async def check(self, context: RequestContext) -> Refusal | None:
        context.model = json.loads(context.body)["model"]
        return None


class Unasked(Requests):
    """Admits every request of a session that stands."""

    async def _admit(self, asker: Asker) -> Refusal | None:
        return None


@dataclass
class Gateway:
    """One gateway and the sessions that stand at it, each with its device's models that the policy allows."""

    policy: Policy
    sessions: list[tuple[EdgeSession, list[str]]]


@asynccontextmanager
async def gateway(folder: Path, devices: int, *, checked: bool) -> AsyncIterator[Gateway]:
    """What `relay.gateway.app.serve` builds, with so many devices on record and 100 rules, or asking of neither."""
    async with AsyncExitStack() as stack:
        await asyncio.to_thread(make_folder, folder)
        database = stack.enter_context(open_state(folder, PASSPHRASE))
        audit = AuditLog(folder / "a.jsonl")
        stack.push_async_callback(audit.close)
        authority, tracing = Authority.open(folder, PASSPHRASE), telemetry.start("gateway")
        stack.callback(tracing.close)
        enrolment = Enrolment(database, authority, audit)
        await enrolment.load()
        joined = await asyncio.gather(*(_device(enrolment, number) for number in range(devices)))
        policy = Policy(rules(folder), enrolment.attested_tpm)
        authorise = Authorise(policy)
        checks: list[Check] = [Authenticate(enrolment), authorise] if checked else [Believe()]
        pipeline = Pipeline(
            checks=[*checks, Schema()], still=authorise.still if checked else None,
            answerers={"chat": Forward.to_one(StandIn(), ProviderKey(Secret(b"key")), audit, tracing)}, taps=[Meter],
            audit=audit, telemetry=tracing, node="x",
        )
        journal, traces, refusals = Journal(database), TraceStore(database), Refusals(audit)
        await journal.load()
        stack.push_async_callback(journal.close)
        requests = (Requests if checked else Unasked)(
            journal=journal, pipeline=pipeline, enrolment=enrolment, traces=traces, telemetry=tracing,
            refusals=refusals, policy=policy,
        )
        sessions = Sessions(
            identity=OwnIdentity(authority, "main"), authority=authority, enrolment=enrolment, requests=requests,
            traces=traces, audit=audit, refusals=refusals, limits=SessionLimits(), tickets=TicketStore(),
        )
        stack.push_async_callback(sessions.drain, 0)
        listener = await listen(Endpoint.parse("tcp:127.0.0.1:0"), sessions.serve_link)
        stack.push_async_callback(listener.close)

        def check(chain: list[bytes], now: float) -> VerifiedPeer:
            return verify_svid(chain, authority.bundle, role="gateway", now=now)

        opened = []
        for number in range(0, devices, devices // SESSIONS)[:SESSIONS]:
            svid = joined[number]
            session = await EdgeSession(
                await connect(listener.endpoint), SvidLogin(svid.chain, svid.not_after), svid.key, check,
                padding=Padding.OFF, posture=POSTURE,
            ).open()
            stack.push_async_callback(session.close)
            opened.append((session, _models(number)))
        yield Gateway(policy, opened)


async def _device(enrolment: Enrolment, number: int) -> Svid:
    invitation = await enrolment.invite(f"edge/site-{number % SITES}/device-{number}")
    device, key = SigningKey.generate(), SigningKey.generate()
    joined = await enrolment.join(
        invitation.token_id, invitation.secret, make_csr(key), device.public.spki, roles=("edge",)
    )
    return Svid.from_chain(joined.issued.chain, key)


def _models(number: int) -> list[str]:
    """What `benchmarks.policy.rules` allow a device of that number, whose disk is encrypted."""
    site = number % SITES
    return sorted({MODELS[site % len(MODELS)], MODELS[0]} if site < 50 else {MODELS[site % len(MODELS)]})


async def _ask(session: EdgeSession, model: str) -> float:
    """Seconds from asking to the last byte."""
    body = json.dumps({"model": model, "messages": [{"role": "user", "content": "x" * 200}]}).encode()
    header = encode_header(RequestHeader(
        "POST", "/v1/chat/completions", "application/json", "", len(body), int(time.time()) + 600
    ))
    request_id = os.urandom(16)
    began = time.perf_counter()
    answer = await session.request(request_id, header, body).started()
    got = b"".join([chunk async for chunk in answer])
    taken = time.perf_counter() - began
    assert sha256(got) == sha256(ANSWER)
    session.acknowledge(request_id, len(got))
    return taken


async def _check(off: Gateway, on: Gateway) -> None:
    """That the one asks what the other does not."""
    assert await _ask(off.sessions[0][0], "no-such-model")
    try:
        await _ask(on.sessions[0][0], "no-such-model")
    except RequestRefused as refusal:
        assert refusal.status == 403
    else:
        raise AssertionError("authorisation is off in both")


async def measured(rounds: int, requests: int, devices: int) -> list[Row]:
    """Each request is asked of every gateway, in an order that changes; percentiles of each round, and their median."""
    dice = random.Random(1)
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    shown: dict[str, dict[str, list[float]]] = {name: {"p50": [], "p99": []} for name in (OFF, ON, ANEW)}
    with tempfile.TemporaryDirectory(prefix="causeway-warm-", dir=memory) as folder:
        async with (
            gateway(Path(folder) / "off", devices, checked=False) as off,
            gateway(Path(folder) / "on", devices, checked=True) as on,
        ):
            await _check(off, on)
            for round_ in range(rounds + 1):
                times: dict[str, list[float]] = {name: [] for name in shown}
                for number in range(requests):
                    at = number % SESSIONS
                    for name in dice.sample(list(shown), 3):
                        session, models = (off if name == OFF else on).sessions[at]
                        model = models[number // SESSIONS % len(models)]
                        if name == ANEW:
                            on.policy._kept.clear()
                        times[name].append(await _ask(session, model))
                for name, taken in times.items():
                    taken.sort()
                    if round_:  # the first one warms up
                        shown[name]["p50"].append(taken[len(taken) // 2])
                        shown[name]["p99"].append(taken[len(taken) * 99 // 100])
    return [row for at in BOUNDS_MS for row in _rows(shown, at)]


def _rows(shown: dict[str, dict[str, list[float]]], at: str) -> list[Row]:
    peer, rows = "the same gateway with both off", []
    for name, what in ((ON, "decision kept"), (ANEW, "decided anew")):
        ours, theirs = (median(shown[which][at]) * 1e3 for which in (name, OFF))
        rows.append(Row(f"a request on a warm session, {what}, {at}", ours, "ms", theirs, peer, theirs / ours))
        # Of each round, since what slowed it down slowed both; and never below what such a run can tell from nothing.
        added = max(0.01, median(
            (mine - other) * 1e3 for mine, other in zip(shown[name][at], shown[OFF][at], strict=True)
        ))
        bound = BOUNDS_MS[at]
        rows.append(Row(f"which is more by, {what}, {at}", added, "ms", bound, "the bound", bound / added, 1.0))
    return rows


def run(*, smoke: bool) -> list[Row]:
    return asyncio.run(measured(*((2, 50, 100) if smoke else (15, 400, DEVICES))))

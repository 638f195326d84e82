"""The edge's way to a gateway: joining, renewal, requests, and what the outbox says after each kind of ending."""

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization

from edge_client.errors import GatewayRefused, Interrupted, NotJoined, PromptTooLong, ProviderFailed
from edge_client.gateway_client import GatewayClient
from edge_client.identity import NAMESPACE, DeviceIdentity, join
from edge_client.outbox import Outbox
from store.database import STORE_SCHEMA, Database
from store.keys import DatabaseKey
from store.queue import Queue
from store.settings import Settings
from tests.support.ca import Ca
from tests.support.connection_pair import EPOCH, verifier
from tests.support.memory_link import memory_links
from transport import telemetry
from transport.errors import IdentityRefused, LinkLost, Overloaded, PeerRefused, TransportError
from transport.handshake import JoinCredential, RenewCredential
from transport.identity.join import Invitation
from transport.identity.svid import parse_csr
from transport.identity.verify import VerifiedPeer
from transport.links.base import Endpoint, Link
from transport.messages import Issued, SpanRecord, Welcome
from transport.primitives import Secret, sha256
from transport.serving import GatewaySession, Incoming, Responder

ENDPOINT = Endpoint.parse("tcp:127.0.0.1:1")
Handler = Callable[[Incoming], Awaitable[None]]


@dataclass
class FakeGateway:
    """The gateway's end of memory links; the session code is the product's, decisions are the test's."""

    ca: Ca
    handle: Handler
    lifetime: float = 3600.0
    start: float = -300.0
    issue_path: str = "edge/lap-1"
    sequence: int = 1
    drop_after_credential: bool = False
    device_keys: list[bytes] = field(default_factory=list)
    dials: int = 0
    links: list[Link] = field(default_factory=list)
    spans: list[SpanRecord] = field(default_factory=list)
    tasks: list[asyncio.Task[None]] = field(default_factory=list)

    async def dial(self, endpoint: Endpoint) -> Link:
        self.dials += 1
        ours, theirs = memory_links()
        self.links.append(ours)
        self.tasks.append(asyncio.create_task(self._serve(theirs)))
        return ours

    async def _serve(self, link: Link) -> None:
        svid = self.ca.issue("gateway/main")
        responder = Responder(lambda: svid, lambda: self.ca.root_der, verifier(self.ca.bundle(), "edge"))
        with contextlib.suppress(TransportError):
            session = await GatewaySession.accept(link, responder)
            credential = session.credential
            if isinstance(credential, VerifiedPeer):
                session.on_spans = self.spans.extend
                session.admit(Welcome(EPOCH, "spiffe://field.example/hop/h", 1))
                async with asyncio.TaskGroup() as group:
                    with contextlib.suppress(LinkLost):
                        async for incoming in session.requests():
                            group.create_task(self.handle(incoming))
                return
            if isinstance(credential, JoinCredential):
                self.device_keys.append(credential.device_key.spki)
            assert isinstance(credential, JoinCredential | RenewCredential)
            if self.drop_after_credential:
                await link.close()
                return
            spki = parse_csr(credential.csr).spki
            public = serialization.load_der_public_key(spki)
            chain = self.ca.issue(
                self.issue_path, foreign_key=public, start=self.start, lifetime=self.lifetime
            ).chain
            await session.issue(Issued(
                f"spiffe://field.example/{self.issue_path}", list(chain), [self.ca.root_der], self.sequence, 7
            ))


async def say_hello(incoming: Incoming) -> None:
    incoming.begin(200, "application/json", streamed=False)
    await incoming.write(b"hello")
    incoming.end()


@dataclass
class Edge:
    settings: Settings
    outbox: Outbox
    queue: Queue
    tracing: telemetry.Telemetry
    gateway: FakeGateway
    client: GatewayClient

    async def join(self, gateway: FakeGateway | None = None) -> DeviceIdentity:
        ca = (gateway or self.gateway).ca
        invite = Invitation(sha256(ca.root_der), b"t" * 8, Secret(b"s" * 16), ca.trust_domain, "edge/lap-1")
        return await join(self.settings, invite, await self.gateway.dial(ENDPOINT), (str(ENDPOINT),))

    async def ask(self, body: bytes = b"prompt") -> bytes:
        answer = await self.client.request("POST", "/v1/chat/completions", body)
        return b"".join([chunk async for chunk in answer.chunks()])

    async def states(self) -> list[tuple[str, str, bool]]:
        return [(row.state, row.note, row.payload is not None) for row in await self.queue.list()]


@pytest.fixture
async def edge(tmp_path: Path) -> AsyncIterator[Edge]:
    database = Database.open(tmp_path / "store.db", DatabaseKey.generate(), schema=STORE_SCHEMA)
    settings, queue = Settings(database, NAMESPACE), Queue(database, "outbox")
    gateway = FakeGateway(Ca(), say_hello)
    tracing = telemetry.start("edge")
    client = GatewayClient(settings, Outbox(queue), (), tracing, gateway.dial)
    try:
        yield Edge(settings, Outbox(queue), queue, tracing, gateway, client)
    finally:
        await client.close()
        for link in gateway.links:
            await link.close()
        await asyncio.gather(*gateway.tasks)
        tracing.close()
        database.close()


async def test_join_then_ask(edge: Edge) -> None:
    identity = await edge.join()
    assert (str(identity.id), identity.enrolment) == ("spiffe://field.example/edge/lap-1", 7)
    assert await edge.ask() == b"hello"
    assert await edge.states() == [("done", "", False)]


async def test_session_is_kept_for_the_next_request(edge: Edge) -> None:
    await edge.join()
    before = edge.gateway.dials
    await edge.ask()
    await edge.ask()
    assert edge.gateway.dials == before + 1


async def test_without_joining(edge: Edge) -> None:
    with pytest.raises(NotJoined):
        await edge.ask()
    assert [state for state, *_ in await edge.states()] == ["failed"]


async def test_C3_lost_link_while_joining_strands_nobody(edge: Edge) -> None:
    edge.gateway.drop_after_credential = True
    with pytest.raises(LinkLost):
        await edge.join()
    edge.gateway.drop_after_credential = False
    await edge.join()
    first, second = edge.gateway.device_keys
    assert first == second


async def test_C2_after_the_svid_has_run_out_the_device_key_gets_a_new_one(edge: Edge) -> None:
    edge.gateway.start, edge.gateway.lifetime = -3600.0, 3600.0 + 30  # ends in 30 s, within the leeway of 60 s
    identity = await edge.join()
    stale = DeviceIdentity(
        identity.id, identity.enrolment, identity.device_key,
        edge.gateway.ca.issue("edge/lap-1", start=-7200, lifetime=3600), identity.bundle, identity.endpoints,
    )
    await stale.save(edge.settings)
    assert not stale.svid_valid(time.time())
    edge.gateway.start, edge.gateway.lifetime = -300.0, 3900.0
    assert await edge.ask() == b"hello"
    renewed = await DeviceIdentity.load(edge.settings)
    assert renewed is not None and renewed.svid_valid(time.time())
    assert renewed.device_key.public.spki == identity.device_key.public.spki


async def test_issued_for_another_id_is_refused_and_nothing_is_stored(edge: Edge) -> None:
    edge.gateway.issue_path = "edge/somebody-else"
    with pytest.raises(IdentityRefused) as caught:
        await edge.join()
    assert caught.value.rule == "issued ID"
    assert await DeviceIdentity.load(edge.settings) is None


async def test_bundle_sequence_never_goes_back(edge: Edge) -> None:
    edge.gateway.sequence = 5
    identity = await edge.join()
    assert identity.bundle.sequence == 5
    edge.gateway.sequence = 3
    expired = edge.gateway.ca.issue("edge/lap-1", start=-7200, lifetime=3600)
    await DeviceIdentity(
        identity.id, 7, identity.device_key, expired, identity.bundle, identity.endpoints
    ).save(edge.settings)
    await edge.ask()
    renewed = await DeviceIdentity.load(edge.settings)
    assert renewed is not None and renewed.bundle.sequence == 5


async def test_gateway_of_another_authority_gets_nothing(edge: Edge) -> None:
    await edge.join()
    edge.gateway.ca = Ca()
    with pytest.raises(IdentityRefused):
        await edge.ask()
    assert [state for state, *_ in await edge.states()] == ["failed"]


async def test_gateway_that_does_not_know_us(edge: Edge) -> None:
    await edge.join()

    async def refusing(endpoint: Endpoint) -> Link:
        ours, theirs = memory_links()

        async def serve() -> None:
            svid = edge.gateway.ca.issue("gateway/main")
            responder = Responder(
                lambda: svid, lambda: edge.gateway.ca.root_der, verifier(edge.gateway.ca.bundle(), "edge")
            )
            session = await GatewaySession.accept(theirs, responder)
            await session.refuse()

        edge.gateway.tasks.append(asyncio.create_task(serve()))
        return ours

    edge.client._dial = refusing
    with pytest.raises(PeerRefused) as caught:
        await edge.ask()
    assert caught.value.reason == "refused"


async def test_hop_down_is_a_link_error_and_the_prompt_is_kept(edge: Edge) -> None:
    await edge.join()

    async def nobody(endpoint: Endpoint) -> Link:
        raise LinkLost("nobody answers")

    edge.client._dial = nobody
    with pytest.raises(LinkLost):
        await edge.ask()
    assert await edge.states() == [("failed", "link_lost", True)]


@pytest.mark.parametrize(("reason", "status", "retryable", "error", "state"), [
    ("model_not_allowed", 403, False, GatewayRefused, "failed"),
    ("provider_auth", 502, False, ProviderFailed, "failed"),
    ("provider_rate_limited", 429, True, ProviderFailed, "failed"),
    ("provider_timeout", 504, False, ProviderFailed, "interrupted"),
    ("provider_timeout", 504, True, ProviderFailed, "failed"),
    ("provider_error", 502, False, ProviderFailed, "interrupted"),
    ("internal_error", 500, False, GatewayRefused, "interrupted"),
    ("audit_unavailable", 503, False, GatewayRefused, "interrupted"),
    ("audit_unavailable", 503, True, GatewayRefused, "failed"),
    ("a_code_of_tomorrow", 500, False, GatewayRefused, "interrupted"),
])
async def test_refusals(
    edge: Edge, reason: str, status: int, retryable: bool, error: type[Exception], state: str
) -> None:
    async def refuse(incoming: Incoming) -> None:
        incoming.refuse(status, reason, "no", retryable=retryable)

    edge.gateway.handle = refuse
    await edge.join()
    with pytest.raises(error) as caught:
        await edge.ask()
    assert caught.value.reason == reason  # type: ignore[attr-defined]
    assert await edge.states() == [(state, reason, True)]


async def test_refusal_after_the_answer_began(edge: Edge) -> None:
    async def stumble(incoming: Incoming) -> None:
        incoming.begin(200, "text/event-stream", streamed=True)
        await incoming.write(b"half an ans")
        await asyncio.sleep(0)
        incoming.refuse(502, "provider_garbled", "cut", retryable=False)

    edge.gateway.handle = stumble
    await edge.join()
    with pytest.raises(ProviderFailed):
        await edge.ask()
    assert [state for state, *_ in await edge.states()] == ["interrupted"]


async def test_session_lost_in_mid_answer_is_interrupted_and_never_sent_again(edge: Edge) -> None:
    async def half(incoming: Incoming) -> None:
        incoming.begin(200, "text/event-stream", streamed=True)
        await incoming.write(b"half")

    edge.gateway.handle = half
    await edge.join()
    answer = await edge.client.request("POST", "/v1/chat/completions", b"x")
    chunks = answer.chunks()
    assert await anext(chunks) == b"half"
    dials = edge.gateway.dials
    await edge.gateway.links[-1].close()
    with pytest.raises(Interrupted):
        await anext(chunks)
    assert [state for state, *_ in await edge.states()] == ["interrupted"]
    assert edge.gateway.dials == dials


async def test_svid_that_runs_out_in_mid_answer_is_interrupted(edge: Edge) -> None:
    async def half(incoming: Incoming) -> None:
        incoming.begin(200, "text/event-stream", streamed=True)
        await incoming.write(b"half")

    edge.gateway.handle = half
    await edge.join()
    answer = await edge.client.request("POST", "/v1/chat/completions", b"x")
    chunks = answer.chunks()
    assert await anext(chunks) == b"half"
    session = edge.client._session
    assert session is not None
    with pytest.raises(IdentityRefused):
        session._connection.handle_time(time.time() + 7200)
    session._driver.wake()
    with pytest.raises(Interrupted):
        await anext(chunks)
    assert [state for state, *_ in await edge.states()] == ["interrupted"]


async def test_new_requests_leave_a_session_that_is_past_its_half_life(edge: Edge) -> None:
    release = asyncio.Event()

    async def slow(incoming: Incoming) -> None:
        incoming.begin(200, "text/plain", streamed=True)
        await release.wait()
        await incoming.write(b"hello")
        incoming.end()

    edge.gateway.handle = slow
    edge.gateway.start, edge.gateway.lifetime = -3000.0, 3600.0  # past the half from the start
    await edge.join()
    before = edge.gateway.dials
    first = await edge.client.request("POST", "/v1/chat/completions", b"x")
    edge.gateway.start, edge.gateway.lifetime = -300.0, 3900.0
    second = await edge.client.request("POST", "/v1/chat/completions", b"x")
    assert edge.gateway.dials == before + 4  # renewal and session, each time
    release.set()
    for answer in (first, second):
        assert [chunk async for chunk in answer.chunks()] == [b"hello"]


async def test_request_that_never_left_is_failed_and_not_interrupted(edge: Edge) -> None:
    release, full = asyncio.Event(), asyncio.Barrier(33)

    async def wait(incoming: Incoming) -> None:
        await full.wait()
        await release.wait()
        await say_hello(incoming)

    edge.gateway.handle = wait
    await edge.join()
    waiting = [asyncio.create_task(edge.ask()) for _ in range(32)]
    await full.wait()
    with pytest.raises(Overloaded):
        await edge.ask()
    assert (await edge.states())[-1] == ("failed", "overloaded", True)
    release.set()
    assert await asyncio.gather(*waiting) == [b"hello"] * 32


async def test_reader_that_goes_away_cancels(edge: Edge) -> None:
    cancelled = asyncio.Event()

    async def endless(incoming: Incoming) -> None:
        incoming.begin(200, "text/event-stream", streamed=True)
        await incoming.write(b"first")
        await incoming.cancelled.wait()
        cancelled.set()

    edge.gateway.handle = endless
    await edge.join()
    answer = await edge.client.request("POST", "/v1/chat/completions", b"x")
    async with contextlib.aclosing(answer.chunks()) as chunks:
        assert await anext(chunks) == b"first"
    async with asyncio.timeout(5):
        await cancelled.wait()
    assert [(state, note) for state, note, _ in await edge.states()] == [("interrupted", "cancelled")]


async def test_oversized_request_is_refused_before_anything_is_stored(edge: Edge) -> None:
    await edge.join()
    with pytest.raises(PromptTooLong):
        await edge.ask(bytes((1 << 20) + 1))
    assert await edge.states() == []


async def test_models_and_a_garbled_list(edge: Edge) -> None:
    reply = json.dumps({"data": [{"id": "a"}, {"id": "b"}]}).encode()

    async def models(incoming: Incoming) -> None:
        assert incoming.header.route == "/v1/models"
        incoming.begin(200, "application/json", streamed=False)
        await incoming.write(reply)
        incoming.end()

    edge.gateway.handle = models
    await edge.join()
    assert await edge.client.models() == ["a", "b"]
    reply = b"<html>"
    with pytest.raises(ProviderFailed):
        await edge.client.models()


async def test_traceparent_rides_inside_and_spans_are_reported(edge: Edge) -> None:
    seen: list[str] = []

    async def note(incoming: Incoming) -> None:
        seen.append(incoming.header.traceparent)
        await say_hello(incoming)

    edge.gateway.handle = note
    await edge.join()
    with edge.tracing.span("edge.ask") as span:
        trace_id = telemetry.trace_id_of(span)
        await edge.ask()
    edge.client.report(trace_id)
    await edge.client.close()
    await asyncio.gather(*edge.gateway.tasks)
    assert seen[0].split("-")[1] == trace_id
    assert [(s.trace_id, s.name) for s in edge.gateway.spans] == [(trace_id, "edge.ask")]


async def test_identity_record_never_prints_its_keys(edge: Edge) -> None:
    identity = await edge.join()
    secret = identity.device_key.to_pkcs8().expose()
    assert secret[-20:].hex() not in repr(identity) and repr(secret[:8]) not in repr(identity)

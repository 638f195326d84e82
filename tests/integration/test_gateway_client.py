"""The edge's way to a gateway: joining, renewal, requests, and what the outbox says after each kind of ending."""

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from edge_client.errors import (
    GatewayRefused,
    GaveUp,
    Interrupted,
    NotJoined,
    PromptTooLong,
    ProviderFailed,
)
from edge_client.identity import DeviceIdentity
from tests.support.ca import Ca
from tests.support.edge_lab import Edge, edge_lab, until
from tests.support.fake_gateway import Call, say_hello
from transport import telemetry
from transport.errors import IdentityRefused, LinkLost, PeerRefused
from transport.events import CONTENT_TYPE


@pytest.fixture
async def edge(tmp_path: Path) -> AsyncIterator[Edge]:
    async with edge_lab(tmp_path) as edge:
        yield edge


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


async def test_what_is_no_entry_of_events_interrupts_and_stops_the_work(edge: Edge) -> None:
    """The same bytes would come again on every link, so nothing is asked for again."""
    calls: list[Call] = []

    async def garbled(call: Call) -> None:
        calls.append(call)
        await call.begin(content_type=CONTENT_TYPE)
        await call.write(b"\x03")  # kind 3
        await call.cancelled.wait()

    await edge.join()
    edge.gateway.handle = garbled
    with pytest.raises(Interrupted):
        await edge.ask()
    assert await edge.states() == [("interrupted", "protocol_violation", True)]
    await until(lambda: calls[0].cancelled.is_set())


async def test_an_answer_that_ends_within_an_entry_is_interrupted(edge: Edge) -> None:
    await edge.join()
    edge.gateway.handle = lambda call: call.give(b"\x10abc", content_type=CONTENT_TYPE)
    with pytest.raises(Interrupted):
        await edge.ask()
    assert await edge.states() == [("interrupted", "protocol_violation", True)]


async def test_the_link_is_told_as_it_stands(edge: Edge) -> None:
    await edge.join()
    assert edge.client.link == ("idle", ""), "nothing was asked yet"
    await edge.ask()
    state, via = edge.client.link
    session = edge.client._sessions.current
    assert session is not None and (state, via) == ("up", session.welcome.via)
    for link in edge.gateway.links:
        await link.abort()
    await until(lambda: edge.client.link == ("idle", ""))
    edge.gateway.dead.add("tcp:127.0.0.1:1")
    with pytest.raises(GaveUp):
        await edge.ask()
    assert edge.client.link == ("down", "")


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


async def test_H13_bundle_sequence_never_goes_back(edge: Edge) -> None:
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


async def test_gateway_that_does_not_know_us_is_asked_once(edge: Edge) -> None:
    await edge.join()
    dials = edge.gateway.dials
    edge.gateway.refuse_everybody = True
    with pytest.raises(PeerRefused) as caught:
        await edge.ask()
    assert caught.value.reason == "refused"
    assert edge.gateway.dials == dials + 2, "by a session, and by the one renewal that may follow"
    assert await edge.states() == [("failed", "peer_refused", True)]


async def test_hop_down_gives_up_in_time_and_the_prompt_waits(edge: Edge) -> None:
    await edge.join()
    edge.gateway.dead.add("tcp:127.0.0.1:1")
    begun = edge.clock.now()
    with pytest.raises(GaveUp) as caught:
        await edge.ask()
    assert 55 <= edge.clock.now() - begun <= 65
    assert await edge.states() == [("waiting", "", True)]
    (entry,) = await edge.outbox.entries()
    assert caught.value.request == entry.name and entry.name in str(caught.value)
    assert f"edge outbox retry {entry.name}" in str(caught.value.hint)
    assert len(edge.notes) == 1
    edge.gateway.dead.clear()
    assert b"".join([c async for c in (await edge.client.take_up(entry.id)).chunks()]) == b"hello"
    assert await edge.states() == [("done", "", False)]


@pytest.mark.parametrize(("reason", "status", "retryable", "error", "state"), [
    ("model_not_allowed", 403, False, GatewayRefused, "failed"),
    ("rate_limited", 429, True, GatewayRefused, "failed"),
    ("quota_exceeded", 429, False, GatewayRefused, "failed"),
    ("budget_exceeded", 429, False, GatewayRefused, "failed"),
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
    async def refuse(call: Call) -> None:
        await call.refuse(status, reason, retryable=retryable)

    edge.gateway.handle = refuse
    await edge.join()
    with pytest.raises(error) as caught:
        await edge.ask()
    assert caught.value.reason == reason  # type: ignore[attr-defined]
    assert await edge.states() == [(state, reason, True)]


async def test_refusal_after_the_answer_began(edge: Edge) -> None:
    async def stumble(call: Call) -> None:
        await call.begin(200, "text/event-stream", streamed=True)
        await call.write(b"half an ans")
        await asyncio.sleep(0)
        await call.refuse(502, "provider_garbled")

    edge.gateway.handle = stumble
    await edge.join()
    with pytest.raises(ProviderFailed):
        await edge.ask()
    assert [state for state, *_ in await edge.states()] == ["interrupted"]


async def test_new_requests_leave_a_session_that_is_past_its_half_life(edge: Edge) -> None:
    release = asyncio.Event()

    async def slow(call: Call) -> None:
        await call.begin(200, "text/plain", streamed=True)
        await release.wait()
        await call.write(b"hello")
        await call.end()

    edge.gateway.handle = slow
    edge.gateway.start, edge.gateway.lifetime = -3000.0, 3600.0  # past the half from the start
    await edge.join()
    before = edge.gateway.dials
    first = await edge.client.request("POST", "/v1/chat/completions", b"x")
    edge.gateway.start, edge.gateway.lifetime = -300.0, 3900.0
    edge.clock.ahead += 61
    second = await edge.client.request("POST", "/v1/chat/completions", b"x")
    assert edge.gateway.dials == before + 4  # renewal and session, each time
    release.set()
    for answer in (first, second):
        assert [chunk async for chunk in answer.chunks()] == [b"hello"]


async def test_request_beyond_the_sessions_streams_waits_its_turn(edge: Edge) -> None:
    release, full = asyncio.Event(), asyncio.Event()

    async def wait(call: Call) -> None:
        if len(edge.gateway.called) == 32:
            full.set()
        await release.wait()
        await say_hello(call)

    edge.gateway.handle = wait
    await edge.join()
    waiting = [asyncio.create_task(edge.ask()) for _ in range(32)]
    await full.wait()
    late = asyncio.create_task(edge.ask())
    await until(lambda: edge.clock.pauses)
    release.set()
    assert await asyncio.gather(*waiting, late) == [b"hello"] * 33
    assert len(edge.gateway.called) == 33


async def test_reader_that_goes_away_cancels(edge: Edge) -> None:
    cancelled = asyncio.Event()

    async def endless(call: Call) -> None:
        await call.begin(200, "text/event-stream", streamed=True)
        await call.write(b"first")
        await call.cancelled.wait()
        cancelled.set()

    edge.gateway.handle = endless
    await edge.join()
    answer = await edge.client.request("POST", "/v1/chat/completions", b"x")
    async with contextlib.aclosing(answer.chunks()) as chunks:
        assert await anext(chunks) == b"first"
    async with asyncio.timeout(60):
        await cancelled.wait()
    assert [(state, note) for state, note, _ in await edge.states()] == [("interrupted", "cancelled")]


async def test_oversized_request_is_refused_before_anything_is_stored(edge: Edge) -> None:
    await edge.join()
    with pytest.raises(PromptTooLong):
        await edge.ask(bytes((1 << 20) + 1))
    assert await edge.states() == []


async def test_models_and_a_garbled_list(edge: Edge) -> None:
    reply = json.dumps({"data": [{"id": "a"}, {"id": "b"}]}).encode()

    async def models(call: Call) -> None:
        assert call.header.route == "/v1/models"
        await call.begin(200, "application/json", streamed=False)
        await call.write(reply)
        await call.end()

    edge.gateway.handle = models
    await edge.join()
    assert await edge.client.models() == ["a", "b"]
    reply = b"<html>"
    with pytest.raises(ProviderFailed):
        await edge.client.models()


async def test_traceparent_rides_inside_and_spans_are_reported(edge: Edge) -> None:
    seen: list[str] = []

    async def note(call: Call) -> None:
        seen.append(call.header.traceparent)
        await say_hello(call)

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

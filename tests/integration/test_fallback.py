"""Another provider is asked only where the one before provably did not accept the request; and never with its key."""

from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from relay.gateway.audit.log import AuditLog
from relay.gateway.checks.authorise import Authorise
from relay.gateway.checks.schema import Schema
from relay.gateway.errors import AuditUnavailable
from relay.gateway.forward import Forward
from relay.gateway.pipeline import Pipeline
from relay.gateway.taps.meter import Meter
from relay.gateway.upstream.base import Timeouts
from relay.gateway.upstream.breaker import Breaker
from relay.gateway.upstream.http import HttpUpstream
from relay.gateway.upstream.keys import ProviderKey
from relay.gateway.upstream.providers import Provided
from relay.gateway.upstream.routing import Routing, Target
from tests.support.gateway_lab import KeptSink, allowing, audit_lines, chat, context
from tests.support.mock_provider import STREAM, MockProvider
from transport import telemetry
from transport.primitives import Secret

PATIENT = Timeouts(connect=20.0, first_byte=20.0, idle=20.0)
FAILURES, OPEN_S = 3, 15.0


@dataclass
class Lab:
    first: MockProvider
    second: MockProvider
    pipeline: Pipeline
    file: Path
    upstreams: Mapping[str, HttpUpstream]
    now: float = 0.0

    async def ask(self, body: bytes = b"") -> KeptSink:
        sink = KeptSink()
        await self.pipeline.handle(context(body or chat()), sink)
        return sink

    def lines(self, event: str) -> list[dict[str, Any]]:
        return [line for line in audit_lines(self.file) if line["event"] == event]


@asynccontextmanager
async def built(folder: Path, first: MockProvider, second: MockProvider) -> AsyncIterator[Lab]:
    async with AsyncExitStack() as stack:
        tracing = telemetry.start("gateway")
        stack.callback(tracing.close)
        audit = AuditLog(folder / "audit.jsonl")
        stack.push_async_callback(audit.close)
        upstreams = {}
        for name, one in (("first", first), ("second", second)):
            upstreams[name] = HttpUpstream(one.base_url, name=name, timeouts=PATIENT)
            stack.push_async_callback(upstreams[name].close)
        providers = {
            name: Provided(upstreams[name], ProviderKey(Secret(one.key.encode())), Breaker(FAILURES, OPEN_S))
            for name, one in (("first", first), ("second", second))
        }
        routing = Routing({("chat", "small"): (Target("first", "small"), Target("second", "little"))}, {})
        forward = Forward(providers, routing, audit, tracing, ticking=lambda: lab.now)
        policy = allowing({"/edge/*": ["small"]})
        pipeline = Pipeline(
            checks=[Authorise(policy, serves=routing.serves), Schema()], answerers={"chat": forward}, taps=[Meter],
            audit=audit, telemetry=tracing, node="x",
        )
        lab = Lab(first, second, pipeline, folder / "audit.jsonl", upstreams)
        yield lab


@pytest.fixture
async def lab(tmp_path: Path) -> AsyncIterator[Lab]:
    async with (
        MockProvider(key="sk-first-0123456789") as first, MockProvider(key="sk-second-0123456789") as second,
        built(tmp_path, first, second) as lab,
    ):
        yield lab


NOT_ACCEPTED = {"401": "provider_auth", "403": "provider_auth", "429": "provider_rate_limited",
                "503": "provider_error", "529": "provider_error"}


@pytest.mark.parametrize("mode", NOT_ACCEPTED)
@pytest.mark.parametrize("stream", [False, True])
async def test_who_did_not_accept_it_is_followed_by_the_next(lab: Lab, mode: str, stream: bool) -> None:
    lab.first.mode = mode
    sink = await lab.ask(chat(stream=stream))
    assert sink.ended and lab.second.calls == 1
    assert not stream or sink.data == b"".join(STREAM)
    assert lab.second.bodies == [chat("little", stream=stream)], "by the name that it has there"
    assert lab.second.headers[0]["Authorization"] == f"Bearer {lab.second.key}"
    (attempt,), (outcome,) = lab.lines("request.attempt"), lab.lines("request.outcome")
    assert (attempt["provider"], attempt["there"], attempt["code"]) == ("first", "small", NOT_ACCEPTED[mode])
    assert attempt["request"] == outcome["request"]
    assert (outcome["provider"], outcome["result"]) == ("second", "answered")


async def test_nor_did_one_that_is_not_there(tmp_path: Path) -> None:
    async with MockProvider() as first:
        pass
    async with MockProvider() as second, built(tmp_path, first, second) as lab:
        assert (await lab.ask()).ended and lab.second.calls == 1
        assert lab.lines("request.attempt")[0]["code"] == "provider_unreachable"


@pytest.mark.parametrize("mode", [
    "400", "404", "409", "413", "422", "500", "502", "504", "redirect", "html", "not_json", "gzip", "cut", "huge",
    "quotes_key", "error_200",
])
async def test_where_it_may_have_been_accepted_nobody_else_is_asked(lab: Lab, mode: str) -> None:
    lab.first.mode = mode
    sink = await lab.ask()
    assert sink.refused is not None and not sink.refused[2]
    assert (lab.first.calls, lab.second.calls, lab.second.headers) == (1, 0, [])
    assert lab.lines("request.attempt") == []
    assert lab.lines("request.outcome")[0]["provider"] == "first"


async def test_nor_where_it_does_not_answer_in_time(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """However fast the machine: it never answers."""
    monkeypatch.setattr(lab.upstreams["first"]._client, "timeouts", Timeouts(connect=20.0, first_byte=0.05, idle=0.05))
    lab.first.mode = "timeout"
    sink = await lab.ask()
    assert sink.refused == (504, "provider_timeout", False) and lab.second.headers == []


@pytest.mark.parametrize("mode", ["stream_garbage", "stream_cut", "stream_error", "stream_no_done", "stream_json"])
async def test_nor_once_an_answer_has_begun(lab: Lab, mode: str) -> None:
    lab.first.mode = mode
    sink = await lab.ask(chat(stream=True))
    assert sink.refused is not None and not sink.ended
    assert lab.second.headers == []


async def test_the_last_one_s_failure_is_the_answer(lab: Lab) -> None:
    lab.first.mode, lab.second.mode = "503", "429"
    assert (await lab.ask()).refused == (429, "provider_rate_limited", True)
    assert len(lab.lines("request.attempt")) == 1
    lab.second.mode = "500"
    assert (await lab.ask()).refused == (502, "provider_error", False)


async def test_without_a_record_of_the_first_nobody_else_is_asked(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    real = AuditLog.append

    async def broken(self: AuditLog, event: str, *shared: bytes, **fields: Any) -> None:
        if event == "request.attempt":
            raise AuditUnavailable("the audit log cannot be written")
        await real(self, event, *shared, **fields)

    monkeypatch.setattr(AuditLog, "append", broken)
    lab.first.mode = "503"
    assert (await lab.ask()).refused == (503, "audit_unavailable", False)
    assert lab.second.headers == []


# --- breakers ---------------------------------------------------------------------------------------------------------


async def test_one_that_keeps_failing_is_not_asked_for_a_while(lab: Lab) -> None:
    lab.first.mode = "500"
    for _ in range(FAILURES):
        assert (await lab.ask()).refused == (502, "provider_error", False)
    assert (await lab.ask()).ended
    assert (lab.first.calls, lab.second.calls) == (FAILURES, 1)
    assert lab.lines("request.attempt")[-1]["code"] == "provider_unavailable"
    lab.now += OPEN_S  # one may try, and finds it well
    lab.first.mode = "ok"
    assert (await lab.ask()).ended and lab.first.calls == FAILURES + 1
    assert (await lab.ask()).ended and (lab.first.calls, lab.second.calls) == (FAILURES + 2, 1)


async def test_where_nobody_may_be_asked_it_may_be_tried_again(lab: Lab) -> None:
    for one in (lab.first, lab.second):
        one.mode = "503"
    for _ in range(FAILURES):
        assert (await lab.ask()).refused == (502, "provider_error", True)
    assert (await lab.ask()).refused == (503, "provider_unavailable", True)
    assert (lab.first.calls, lab.second.calls) == (FAILURES, FAILURES)


@pytest.mark.parametrize("mode", ["400", "401", "429"])
async def test_a_refusal_is_no_failure_of_the_provider(lab: Lab, mode: str) -> None:
    lab.first.mode = lab.second.mode = mode
    for _ in range(FAILURES + 2):
        refused = (await lab.ask()).refused
        assert refused is not None and refused[1] != "provider_unavailable"


async def test_whoever_asks_for_more_than_goes_through_closes_the_provider_to_nobody(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("relay.gateway.upstream.http.ANSWER_MAX", 100)  # it is the device that chooses how much that is
    for _ in range(FAILURES + 1):
        assert (await lab.ask()).refused == (502, "provider_garbled", False)
    assert lab.first.calls == FAILURES + 1 and lab.second.calls == 0


# --- keys -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stream", [False, True])
async def test_no_redirect_is_followed_with_a_key(lab: Lab, stream: bool) -> None:
    lab.first.mode, lab.first.elsewhere = "redirect", f"{lab.second.base_url}/chat/completions"
    sink = await lab.ask(chat(stream=stream))
    assert sink.refused == (502, "provider_error", False)
    assert lab.second.headers == [] and lab.second.paths == []

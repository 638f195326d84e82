"""The pipeline against a real HTTP provider, in every way a provider can fail. The key stays where it belongs."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from relay.gateway.audit.log import AuditLog, verify
from relay.gateway.checks.authorise import Authorise
from relay.gateway.checks.schema import Schema
from relay.gateway.errors import AuditUnavailable, ConfigError
from relay.gateway.forward import Forward, ModelList
from relay.gateway.pipeline import Pipeline, RequestContext
from relay.gateway.taps.meter import Meter
from relay.gateway.taps.secrets import secret_filter
from relay.gateway.upstream.base import Timeouts, checked_base_url
from relay.gateway.upstream.http import HttpUpstream
from relay.gateway.upstream.keys import ProviderKey, key_from_environment, key_from_file
from tests.support.gateway_lab import KeptSink, allowing, audit_lines, chat, context
from tests.support.mock_provider import KEY, STREAM, WHOLE, MockProvider, chunk
from transport import telemetry
from transport.errors import LinkLost
from transport.primitives import Secret

PATIENT = Timeouts(connect=20.0, first_byte=20.0, idle=20.0)  # a busy machine is no provider failure
SHORT = Timeouts(connect=20.0, first_byte=0.1, idle=0.1)


@dataclass
class Lab:
    provider: MockProvider
    pipeline: Pipeline
    tracing: telemetry.Telemetry
    audit: AuditLog
    directory: Path
    upstream: HttpUpstream

    async def ask(self, body: bytes, sink: KeptSink | None = None, **changes: Any) -> tuple[KeptSink, RequestContext]:
        sink = sink or KeptSink()
        request = context(body, **changes)
        await self.pipeline.handle(request, sink)
        return sink, request

    def lines(self) -> list[dict[str, Any]]:
        return audit_lines(self.directory / "audit.jsonl")

    def everything_written(self) -> bytes:
        return b"".join(file.read_bytes() for file in self.directory.iterdir())


@asynccontextmanager
async def build(provider: MockProvider, directory: Path, **options: Any) -> AsyncIterator[Lab]:
    upstream = HttpUpstream(provider.base_url, timeouts=PATIENT, **options)
    tracing = telemetry.start("gateway", directory / "spans.jsonl")
    audit = AuditLog(directory / "audit.jsonl")
    policy = allowing({"/edge/*": ["small", "large"]})
    pipeline = Pipeline(
        checks=[Authorise(policy), Schema()],
        answerers={
            "chat": Forward.to_one(upstream, ProviderKey(Secret(KEY.encode())), audit, tracing), "models": ModelList(),
        },
        taps=[Meter, secret_filter(lambda: [KEY.encode()])], audit=audit, telemetry=tracing,
        node="spiffe://field.example/gateway/main",
    )
    yield Lab(provider, pipeline, tracing, audit, directory, upstream)
    await upstream.close()
    await audit.close()
    tracing.close()


@pytest.fixture
async def lab(tmp_path: Path) -> AsyncIterator[Lab]:
    async with MockProvider() as provider, build(provider, tmp_path) as lab:
        yield lab


async def test_a_whole_answer_arrives_byte_for_byte(lab: Lab) -> None:
    body = chat(temperature=0.5)
    sink, request = await lab.ask(body)
    assert sink.begun == (200, "application/json", False)
    assert json.loads(sink.data) == WHOLE
    assert sink.ended
    assert lab.provider.bodies == [body]
    assert (request.usage.input_tokens, request.usage.output_tokens, request.usage.model) == (11, 5, "mock-1")


async def test_a_stream_arrives_byte_for_byte_in_whole_lines(lab: Lab) -> None:
    sink, request = await lab.ask(chat(stream=True))
    assert sink.begun == (200, "text/event-stream", True)
    assert sink.data == b"".join(STREAM)
    assert sink.ended
    assert request.usage.output_tokens == 5
    assert lab.provider.calls == 1


async def test_secrets_in_a_stream_are_cut_out_and_counted_and_named_nowhere(lab: Lab) -> None:
    aws, usage = "AKIAIOSFODNN7EXAMPLE", {"prompt_tokens": 11, "completion_tokens": 5}
    pieces = ("use ", KEY[:9], KEY[9:], " or ", aws[:3], aws[3:], " then")
    lab.provider.stream = [*map(chunk, pieces), chunk(None, usage=usage), b"data: [DONE]\n\n"]
    sink, request = await lab.ask(chat(stream=True))
    events = [json.loads(line[6:]) for line in sink.data.splitlines() if line.startswith(b"data: {")]
    text = "".join(event["choices"][0]["delta"]["content"] for event in events[:-1])
    assert text == "use [secret removed] or [secret removed] then"
    assert len(events) == len(lab.provider.stream) - 1
    assert request.usage.output_tokens == 5
    outcome = lab.lines()[-1]
    assert outcome["filtered"] == "aws-key=1 gateway-provider-key=1"
    assert outcome["bytes_out"] == len(sink.data)
    (span,) = [span for span in lab.tracing.finished(request.trace_id) if span.name == "request"]
    assert span.attributes["causeway.filtered"] == 2
    written = lab.everything_written() + sink.data
    assert KEY[9:].encode() not in written
    assert aws[3:].encode() not in written


async def test_the_client_can_send_no_header_of_its_own(lab: Lab) -> None:
    await lab.ask(chat(user="Authorization: Bearer mine"))
    (headers,) = lab.provider.headers
    assert headers["Authorization"] == f"Bearer {KEY}"
    assert set(headers) <= {"Host", "Content-Type", "Accept", "Accept-Encoding", "User-Agent", "Content-Length",
                            "Authorization"}


@pytest.mark.parametrize(("mode", "stream", "expected"), [
    ("401", False, (502, "provider_auth", False)), ("401", True, (502, "provider_auth", False)),
    ("403", False, (502, "provider_auth", False)),
    ("429", False, (429, "provider_rate_limited", True)), ("429", True, (429, "provider_rate_limited", True)),
    ("500", False, (502, "provider_error", False)), ("500", True, (502, "provider_error", False)),
    ("503", False, (502, "provider_error", True)),
    ("400", False, (400, "provider_rejected", False)),
    ("redirect", False, (502, "provider_error", False)),
    ("timeout", False, (504, "provider_timeout", False)), ("timeout", True, (504, "provider_timeout", False)),
    ("html", False, (502, "provider_garbled", False)),
    ("not_json", False, (502, "provider_garbled", False)),
    ("gzip", False, (502, "provider_garbled", False)),
    ("cut", False, (502, "provider_garbled", False)),
    ("huge", False, (502, "provider_garbled", False)),
    ("quotes_key", False, (502, "provider_garbled", False)),
    ("error_200", False, (502, "provider_error", False)),
    ("stream_json", True, (502, "provider_garbled", False)),
    ("stream_garbage", True, (502, "provider_garbled", False)),
    ("stream_cut", True, (502, "provider_garbled", False)),
    ("stream_no_done", True, (502, "provider_garbled", False)),
    ("stream_error", True, (502, "provider_error", False)),
    ("stream_stall", True, (504, "provider_timeout", False)),
])
async def test_every_provider_failure_is_one_typed_refusal(
    lab: Lab, mode: str, stream: bool, expected: tuple[int, str, bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    lab.provider.mode = mode
    if expected[1] == "provider_timeout":
        monkeypatch.setattr(lab.upstream._client, "timeouts", SHORT)
    sink, _ = await lab.ask(chat(stream=stream))
    assert sink.refused == expected
    assert not sink.ended
    assert KEY not in sink.message
    assert KEY.encode() not in sink.data
    assert KEY.encode() not in lab.everything_written()
    intent, outcome = lab.lines()
    assert (intent["event"], outcome["event"]) == ("request.intent", "request.outcome")
    assert (outcome["result"], outcome["code"]) == ("failed", expected[1])
    assert lab.provider.calls <= 1  # never a second attempt


async def test_a_rejected_request_names_the_provider_s_code_only(lab: Lab) -> None:
    lab.provider.mode = "400"
    sink, _ = await lab.ask(chat())
    assert sink.message == "the provider refused the request (context_length_exceeded)"


async def test_a_stream_that_has_said_done_need_not_be_waited_for(lab: Lab) -> None:
    lab.provider.mode = "stream_lingers"
    sink, _ = await lab.ask(chat(stream=True))
    assert sink.ended
    assert sink.data == b"".join(STREAM)


async def test_a_provider_that_is_not_there(tmp_path: Path) -> None:
    async with MockProvider() as provider:
        pass
    async with build(provider, tmp_path) as lab:
        sink, _ = await lab.ask(chat())
    assert sink.refused == (502, "provider_unreachable", True)


async def test_an_endless_stream_is_cut(tmp_path: Path) -> None:
    async with MockProvider() as provider, build(provider, tmp_path, stream_max=4096) as lab:
        provider.stream = [STREAM[0]] * 100
        sink, _ = await lab.ask(chat(stream=True))
        assert sink.refused == (502, "provider_garbled", False)
        assert len(sink.data) <= 4096


async def test_cancelling_ends_the_call_at_the_provider_and_is_audited(lab: Lab) -> None:
    lab.provider.mode = "stream_stall"
    sink = KeptSink()
    task = asyncio.create_task(lab.pipeline.handle(context(chat(stream=True)), sink))
    await sink.wrote.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    async with asyncio.timeout(60):
        await lab.provider.ended.wait()
    assert lab.lines()[-1]["result"] == "cancelled"


async def test_a_device_that_goes_away_ends_the_call(lab: Lab) -> None:
    class Gone(KeptSink):
        async def write(self, data: bytes) -> None:
            raise LinkLost("the link broke while sending")

    lab.provider.mode = "stream_lingers"
    with pytest.raises(LinkLost):
        await lab.ask(chat(stream=True), Gone())
    async with asyncio.timeout(60):
        await lab.provider.ended.wait()
    assert (lab.lines()[-1]["result"], lab.lines()[-1]["code"]) == ("undelivered", "link_lost")


async def test_the_provider_is_read_no_faster_than_the_device_takes(lab: Lab) -> None:
    class Slow(KeptSink):
        def __init__(self) -> None:
            super().__init__()
            self.go = asyncio.Event()

        async def write(self, data: bytes) -> None:
            await super().write(data)
            await self.go.wait()

    lab.provider.stream = [chunk("x" * 100_000)] * 200 + STREAM[-1:]  # 20 MB: more than all buffers between
    sink = Slow()
    task = asyncio.create_task(lab.pipeline.handle(context(chat(stream=True)), sink))
    await sink.wrote.wait()
    for _ in range(200):
        await asyncio.sleep(0)
    assert not lab.provider.ended.is_set()
    sink.go.set()
    await task
    assert sink.data == b"".join(lab.provider.stream)


async def test_intent_is_on_disk_before_the_provider_hears_of_it(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    async def broken(*_: object, **__: object) -> None:
        raise AuditUnavailable("the audit log cannot be written")

    monkeypatch.setattr(lab.audit, "append", broken)
    sink, _ = await lab.ask(chat())
    assert sink.refused == (503, "audit_unavailable", True)
    assert lab.provider.calls == 0


async def test_no_answer_is_whole_without_its_record(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    real = lab.audit.append

    async def broken_later(event: str, *shared: bytes, **fields: Any) -> None:
        if event == "request.outcome":
            raise AuditUnavailable("the audit log cannot be written")
        await real(event, *shared, **fields)

    monkeypatch.setattr(lab.audit, "append", broken_later)
    for lab.provider.mode in ("ok", "500", "503"):  # delivered, failed, and failed where the provider says: again
        sink, _ = await lab.ask(chat())
        assert not sink.ended
        assert sink.refused == (503, "audit_unavailable", False)  # the provider was called: not to be tried again
    assert lab.provider.calls == 3


async def test_refusals_are_audited_and_call_nobody(lab: Lab) -> None:
    for body in (chat("forbidden"), b"{", chat(text="")):
        sink, _ = await lab.ask(body)
        assert sink.refused is not None
    assert [line["event"] for line in lab.lines()] == ["request.refused"] * 3
    assert lab.provider.calls == 0
    assert verify(lab.directory / "audit.jsonl")[0] == 3


async def test_models_come_from_the_allow_list(lab: Lab) -> None:
    sink, _ = await lab.ask(b"", method="GET", route="/v1/models")
    assert [model["id"] for model in json.loads(sink.data)["data"]] == ["large", "small"]
    assert lab.provider.calls == 0


async def test_no_prompt_and_no_answer_in_audit_or_spans(lab: Lab) -> None:
    lab.provider.stream = [event.replace(b"pump", b"CANARY-B") for event in STREAM]
    sink, _ = await lab.ask(chat(text="CANARY-A", stream=True))
    await lab.ask(chat(text="CANARY-A", temperature="CANARY-A"))
    assert b"CANARY-B" in sink.data
    assert b"CANARY-A" in lab.provider.bodies[0]
    written = lab.everything_written()
    assert b"request.outcome" in written
    assert b"gen_ai.request.model" in written
    assert b"CANARY-A" not in written
    assert b"CANARY-B" not in written


async def test_one_trace_from_the_edge_to_the_provider_call(lab: Lab) -> None:
    parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    _, request = await lab.ask(chat(), traceparent=parent)
    assert request.trace_id == parent[3:35]
    call, handled = lab.tracing.finished(request.trace_id)
    assert (call.role, handled.role) == ("provider", "gateway")
    assert handled.parent_id == "b7ad6b7169203331"
    assert call.parent_id == handled.span_id
    assert call.attributes["gen_ai.usage.input_tokens"] == 11
    assert call.attributes["gen_ai.response.model"] == "mock-1"
    assert call.attributes["server.address"] == "127.0.0.1"
    assert handled.attributes["causeway.bytes.out"] == call.attributes["causeway.bytes.in"]


async def test_a_bug_of_ours_is_one_refusal_and_quotes_nothing(
    lab: Lab, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("CANARY-A")

    monkeypatch.setattr(HttpUpstream, "call", broken)
    sink, _ = await lab.ask(chat(text="CANARY-A"))
    assert sink.refused == (500, "internal_error", False)
    assert "CANARY-A" not in caplog.text
    assert "RuntimeError" in caplog.text


@pytest.mark.parametrize("url", [
    "http://api.example.com/v1", "ftp://127.0.0.1/v1", "https://", "https://user:pw@api.example.com/v1",
    "https://api.example.com/v1?key=1", "https://api.example.com/v1#x", "http://127.0.0.1.example.com/v1",
    "https://ex ample.com/v1", "https://b\u00fccher.example/v1", "https://a\x7fb.example/v1", "https://a%20b.example/v1",
    "http://[::2]/v1", "https://api.example.com:0/v1", "https://api.example.com:99999/v1", "api.example.com",
])
def test_base_urls_that_would_show_the_key_are_refused(url: str) -> None:
    with pytest.raises(ConfigError):
        checked_base_url(url)


@pytest.mark.parametrize("url", [
    "https://api.example.com/v1/", "http://127.0.0.1:9000/v1", "http://localhost:9000/v1", "http://[::1]:9000/v1",
])
def test_base_urls_that_are_fine(url: str) -> None:
    assert checked_base_url(url) == url.rstrip("/")


def test_keys_come_from_file_or_environment_and_never_show(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "provider.key"
    file.write_text(f"{KEY}\n")
    key = key_from_file(file)
    assert key.expose() == KEY.encode()
    assert KEY not in f"{key!r} {key}"
    monkeypatch.setenv("MOCK_KEY", KEY)
    assert key_from_environment("MOCK_KEY").expose() == KEY.encode()
    with pytest.raises(ConfigError):
        key_from_environment("MOCK_KEY")  # taken out at first use
    for bad in ("", " ", "two words", "new\nline", "\u00e9"):
        file.write_text(bad)
        with pytest.raises(ConfigError) as refused:
            key_from_file(file)
        assert "two" not in str(refused.value)
    with pytest.raises(ConfigError):
        key_from_file(tmp_path / "absent")

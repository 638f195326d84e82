"""Spans: names and numbers leave the process, text of prompts does not; trace context is strict."""

import json
import stat
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.context import Context
from opentelemetry.trace import get_current_span

from transport import telemetry

GOOD = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def parent_of(context: Context) -> int:
    return get_current_span(context).get_span_context().trace_id


def test_a_well_formed_traceparent_becomes_the_parent() -> None:
    assert parent_of(telemetry.context_from(GOOD)) == 0x0AF7651916CD43DD8448EB211C80319C


@pytest.mark.parametrize("bad", [
    "", "00", GOOD[:-1], GOOD + "0", GOOD + "-01", GOOD.upper(), "ff" + GOOD[2:], "01" + GOOD[2:],
    "00-" + "0" * 32 + GOOD[35:], GOOD[:36] + "0" * 16 + "-01", GOOD + "\n", " " + GOOD, GOOD.replace("a", "\u0661", 1),
])
def test_M12_anything_but_a_traceparent_starts_a_new_trace(bad: str) -> None:
    assert parent_of(telemetry.context_from(bad)) == 0


@given(st.text(max_size=80))
def test_context_from_never_raises(text: str) -> None:
    telemetry.context_from(text)


@pytest.mark.parametrize("flags", ["00", "01", "fe", "ff"])
def test_M12_what_an_edge_says_of_sampling_decides_nothing(flags: str, tmp_path: Path) -> None:
    """A device cannot keep its requests out of the gateway's record by a bit of its trace context."""
    gateway = telemetry.start("gateway", tmp_path / "spans.jsonl")
    with gateway.span("request", parent=telemetry.context_from(GOOD[:-2] + flags)):
        pass
    (record,) = gateway.finished(GOOD[3:35])
    gateway.close()
    assert (record.parent_id, record.role) == (GOOD[36:52], "gateway")
    assert (tmp_path / "spans.jsonl").read_text().count(GOOD[3:35]) == 1


def test_spans_join_by_traceparent_and_keep_their_role(tmp_path: Path) -> None:
    file = tmp_path / "spans.jsonl"
    edge, gateway = telemetry.start("edge"), telemetry.start("gateway", file)
    with edge.span("ask") as asked:
        sent = telemetry.traceparent_of(asked)
    call = {telemetry.ROLE: "provider", telemetry.BYTES_IN: 3}
    with (
        gateway.span("request", parent=telemetry.context_from(sent)) as served,
        gateway.span("provider call", attributes=call),
    ):
        pass
    trace = telemetry.trace_id_of(asked)
    assert telemetry.trace_id_of(served) == trace
    assert [span.role for span in edge.finished(trace)] == ["edge"]
    provider, request = gateway.finished(trace)
    assert (provider.role, request.role) == ("provider", "gateway")
    assert provider.parent_id == request.span_id
    assert request.parent_id == edge.finished(trace)[0].span_id
    assert provider.end_ms >= provider.start_ms > 1e12
    gateway.close()
    edge.close()
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert [line["name"] for line in lines] == ["provider call", "request"]
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_text_of_a_prompt_cannot_leave_in_a_span(tmp_path: Path) -> None:
    file = tmp_path / "spans.jsonl"
    tracing = telemetry.start("gateway", file)
    with pytest.raises(ValueError), tracing.span("request", attributes={"prompt": "CANARY-7"}) as span:
        span.set_attribute("gen_ai.prompt", "CANARY-7")
        span.set_attribute("causeway.notes", "CANARY-7")
        span.set_attribute(telemetry.GEN_AI_REQUEST_MODEL, "small")
        raise ValueError("CANARY-7")
    (record,) = tracing.finished(telemetry.trace_id_of(span))
    tracing.close()
    assert record.attributes == {telemetry.GEN_AI_REQUEST_MODEL: "small", telemetry.ERROR_TYPE: "ValueError"}
    assert "CANARY-7" not in file.read_text()
    assert "small" in file.read_text()


def test_memory_is_bounded() -> None:
    tracing = telemetry.start("gateway")
    with tracing.span("root") as root:
        for _ in range(100):
            with tracing.span("child"):
                pass
    first = telemetry.trace_id_of(root)
    assert len(tracing.finished(first)) == 64
    for _ in range(512):
        with tracing.span("other", parent=Context()):
            pass
    assert tracing.finished(first) == []
    tracing.close()


def test_a_file_that_cannot_be_written_stops_no_request(tmp_path: Path) -> None:
    tracing = telemetry.start("gateway", tmp_path / "absent" / "spans.jsonl")
    with tracing.span("request") as span:
        pass
    assert len(tracing.finished(telemetry.trace_id_of(span))) == 1
    tracing.close()


def test_under_load_the_file_has_a_share_and_memory_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(telemetry, "_BURST", 3)
    monkeypatch.setattr(telemetry, "_PER_SECOND", 0.0)
    tracing = telemetry.start("gateway", tmp_path / "spans.jsonl")
    with tracing.span("root") as root:
        for _ in range(9):
            with tracing.span("child"):
                pass
    tracing.close()
    assert len((tmp_path / "spans.jsonl").read_text().splitlines()) == 3
    assert len(tracing.finished(telemetry.trace_id_of(root))) == 10


def test_tracing_switched_off_still_gives_a_valid_traceparent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_SDK_DISABLED", "true")
    tracing = telemetry.start("edge")
    with tracing.span("ask") as span:
        assert parent_of(telemetry.context_from(telemetry.traceparent_of(span))) != 0
    tracing.close()

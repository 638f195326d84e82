"""One trace from edge to provider: OpenTelemetry set up once, W3C trace context, and the names of every attribute.

Spans hold names, numbers and identities, never text of a prompt or an answer. That is enforced where spans leave: an
attribute whose name is not listed here is dropped, and exceptions are recorded by their code alone. Each role has a
tracer of its own, not the global one, so that all can live in one process (tests, the simulator).

API and context are OpenTelemetry's; the spans are ours, as the SDK's cost five times as much (ADR 0029). What is not
needed at once is done when somebody reads it; the SDK is there where a collector is set.
"""

import importlib
import logging
import os
import re
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from contextvars import Token
from pathlib import Path
from types import TracebackType
from typing import Any, Final, TextIO

import msgspec
from opentelemetry.context import Context, attach, detach
from opentelemetry.trace import (
    INVALID_SPAN,
    NonRecordingSpan,
    Span,
    SpanContext,
    SpanKind,
    Status,
    StatusCode,
    TraceFlags,
    get_current_span,
    set_span_in_context,
)

from transport.messages import SpanRecord

# --- OpenTelemetry GenAI semantic conventions, the one place that spells them -----------------------------------------
GEN_AI_OPERATION: Final = "gen_ai.operation.name"
GEN_AI_PROVIDER: Final = "gen_ai.provider.name"
GEN_AI_REQUEST_MODEL: Final = "gen_ai.request.model"
GEN_AI_RESPONSE_MODEL: Final = "gen_ai.response.model"
GEN_AI_INPUT_TOKENS: Final = "gen_ai.usage.input_tokens"
GEN_AI_OUTPUT_TOKENS: Final = "gen_ai.usage.output_tokens"
ERROR_TYPE: Final = "error.type"  # our stable error code
HTTP_STATUS: Final = "http.response.status_code"
SERVER_ADDRESS: Final = "server.address"
# --- Causeway's own ---------------------------------------------------------------------------------------------------
ROLE: Final = "causeway.role"  # overrides the process's role: the provider call is a span of the gateway's process
NODE: Final = "causeway.node"  # SPIFFE ID of who did the work
DEVICE: Final = "causeway.device"  # SPIFFE ID of who asked
VIA: Final = "causeway.via"  # SPIFFE ID of the hop
LINK_ID: Final = "causeway.link.id"  # 16 hex digits
REQUEST_ID: Final = "causeway.request.id"  # 32 hex digits
ROUTE: Final = "causeway.route"  # edge: where the prompt went, and the route a request took in the gateway
RULE: Final = "causeway.rule"  # edge: the router's rule that decided, a stable word of router/policy.py
BYTES_IN: Final = "causeway.bytes.in"
BYTES_OUT: Final = "causeway.bytes.out"
INJECTION: Final = "causeway.injection"  # 0..1: how much a request is like an attempt to take over the model
FILTERED: Final = "causeway.filtered"  # secrets that the gateway cut out of an answer

_TEXT_NAMES: Final = frozenset({
    GEN_AI_OPERATION, GEN_AI_PROVIDER, GEN_AI_REQUEST_MODEL, GEN_AI_RESPONSE_MODEL, ERROR_TYPE, SERVER_ADDRESS,
    ROLE, NODE, DEVICE, VIA, LINK_ID, REQUEST_ID, ROUTE, RULE,
})
_NUMBER_PREFIXES: Final = ("causeway.", "gen_ai.usage.", "http.response.")
_MAX_TEXT: Final = 128  # characters of a text attribute; this and the next as the wire has them (messages.SpanRecord)
_MAX_ATTRIBUTES: Final = 16
_MAX_TRACES: Final = 512  # kept in memory for `finished`
_MAX_SPANS_PER_TRACE: Final = 64
_FILE_ROTATE: Final = 16 << 20  # bytes; one older file is kept beside it
_BURST: Final = 2_000  # lines written at once,
_PER_SECOND: Final = 100.0  # and after these
_HELD_MAX: Final = 64  # attributes of a span, before they are looked at

_TRACEPARENT = re.compile(r"00-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})", re.ASCII)
_NO_TRACE, _NO_SPAN = "0" * 32, "0" * 16
_SAMPLED: Final = TraceFlags(TraceFlags.SAMPLED)
_log = logging.getLogger(__name__)


def permitted(attributes: Mapping[str, object]) -> dict[str, str | int | float]:
    """Only what may be in a span: text under listed names (cut to 128 characters), numbers under known prefixes.

    Used for our own spans and for those that a peer sends. At most 16 survive.
    """
    kept: dict[str, str | int | float] = {}
    for name, value in attributes.items():
        if len(kept) == _MAX_ATTRIBUTES:
            break
        if isinstance(value, str):
            if name in _TEXT_NAMES:
                kept[name] = value[:_MAX_TEXT]
        elif isinstance(value, int | float) and len(name) <= 64 and name.startswith(_NUMBER_PREFIXES):
            kept[name] = int(value) if isinstance(value, bool) else value
    return kept


def traceparent_of(span: Span) -> str:
    """W3C trace context, version 00, of a span; a random one where tracing is switched off (OTEL_SDK_DISABLED)."""
    if isinstance(span, Recorded):
        return f"00-{span.trace_id}-{span.span_id}-01"
    context = span.get_span_context()
    if not context.is_valid:
        return f"00-{os.urandom(16).hex()}-{os.urandom(8).hex()}-00"
    return f"00-{context.trace_id:032x}-{context.span_id:016x}-{int(context.trace_flags) & 1:02x}"


def trace_id_of(span: Span) -> str:
    """32 hex digits."""
    return span.trace_id if isinstance(span, Recorded) else f"{span.get_span_context().trace_id:032x}"


def context_from(traceparent: str) -> Context:
    """The parent named by a W3C traceparent. Anything but a well-formed version 00 value gives an empty context.

    The value is untrusted: it joins spans and is never used to decide anything (W3C Trace Context 3.2.2, 3.2.4).
    """
    trace_id, span_id = _ids_in(traceparent)
    if not trace_id:
        return Context()
    flags = TraceFlags(int(traceparent[-2:], 16))
    return set_span_in_context(NonRecordingSpan(_context(trace_id, span_id, remote=True, flags=flags)), Context())


def _ids_in(traceparent: str) -> tuple[str, str]:
    match = _TRACEPARENT.fullmatch(traceparent)
    return ("", "") if match is None or match[1] == _NO_TRACE or match[2] == _NO_SPAN else (match[1], match[2])


def _context(trace_id: str, span_id: str, *, remote: bool, flags: TraceFlags) -> SpanContext:
    return SpanContext(int(trace_id, 16), int(span_id, 16), is_remote=remote, trace_flags=flags)


def record_of(span: "Recorded", role: str) -> SpanRecord:
    """A finished span in the shape that travels and is stored; times in Unix milliseconds."""
    attributes = permitted(span.attributes)
    return SpanRecord(
        trace_id=span.trace_id, span_id=span.span_id, parent_id=span.parent_id, name=span.name[:64],
        role=str(attributes.pop(ROLE, role)), start_ms=span.start_ns / 1e6, end_ms=span.end_ns / 1e6,
        attributes=attributes,
    )


def as_object(record: SpanRecord) -> dict[str, Any]:
    """A span as a JSON object with named fields, for files and `--json`; on the wire it is an array."""
    return msgspec.structs.asdict(record)


class Recorded(Span):
    """A span as it is written down: what it was given, until somebody wants to read it."""

    def __init__(
        self, name: str, kind: SpanKind, trace_id: str, parent_id: str, attributes: Mapping[str, object],
        ended: Callable[["Recorded"], None],
    ) -> None:
        """`trace_id`: 32 hex digits, "" for a new one; `parent_id`: 16 hex digits, "" for none."""
        fresh = os.urandom(24).hex()
        self.name, self.kind = name, kind
        self.trace_id, self.span_id, self.parent_id = trace_id or fresh[16:], fresh[:16], parent_id
        self.attributes: dict[str, object] = dict(attributes)
        self.start_ns, self.end_ns = time.time_ns(), 0
        self._ended = ended

    def get_span_context(self) -> SpanContext:
        return _context(self.trace_id, self.span_id, remote=False, flags=_SAMPLED)

    def is_recording(self) -> bool:
        return not self.end_ns

    def set_attribute(self, key: str, value: Any) -> None:
        if not self.end_ns and len(self.attributes) < _HELD_MAX:
            self.attributes[key] = value

    def set_attributes(self, attributes: Mapping[str, Any]) -> None:
        for key, value in attributes.items():
            self.set_attribute(key, value)

    def end(self, end_time: int | None = None) -> None:
        if not self.end_ns:
            self.end_ns = end_time or time.time_ns()
            self._ended(self)

    def update_name(self, name: str) -> None:
        self.name = name

    def add_event(self, name: str, attributes: Any = None, timestamp: int | None = None) -> None:
        """Nothing: events hold texts."""

    def record_exception(
        self, exception: BaseException, attributes: Any = None, timestamp: int | None = None, escaped: bool = False
    ) -> None:
        """Nothing, likewise."""

    def set_status(self, status: Status | StatusCode, description: str | None = None) -> None:
        """Nothing: `error.type` says it."""


class _Current(AbstractContextManager[Span]):
    """A span that lasts as long as the block; `here`: and is the current one inside."""

    def __init__(self, span: Span, *, here: bool) -> None:
        self._span, self._here = span, here
        self._token: Token[Context] | None = None

    def __enter__(self) -> Span:
        if self._here:
            self._token = attach(set_span_in_context(self._span))
        return self._span

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._token is not None:
            detach(self._token)
        if error is not None:
            self._span.set_attribute(ERROR_TYPE, str(getattr(error, "code", type(error).__name__)))
        self._span.end()


class _Keeper:
    """The latest finished spans, in memory."""

    def __init__(self, role: str, traces: int) -> None:
        self._role, self._room = role, traces
        self._lock = threading.Lock()
        self._traces: OrderedDict[str, list[Recorded]] = OrderedDict()

    def keep(self, span: Recorded) -> None:
        spans = self._traces.get(span.trace_id)
        if spans is None:
            with self._lock:
                spans = self._traces.setdefault(span.trace_id, [])
                if len(self._traces) > self._room:
                    self._traces.popitem(last=False)
        if len(spans) < _MAX_SPANS_PER_TRACE:
            spans.append(span)

    def finished(self, trace_id: str) -> list[SpanRecord]:
        with self._lock:
            spans = list(self._traces.get(trace_id, ()))
        return [record_of(span, self._role) for span in spans]


class _Lines:
    """Appends spans to a file, each as one JSON line; of more than anybody reads, under load, a share."""

    def __init__(self, role: str, path: Path) -> None:
        self._role = role
        self._path: Path | None = path
        self._stream: TextIO | None = None
        self._room, self._filled = float(_BURST), time.monotonic()
        self._lock = threading.Lock()

    def keep(self, span: Recorded) -> None:
        if self._room < 1:
            now = time.monotonic()
            room = (now - self._filled) * _PER_SECOND
            if room < 1:
                return
            self._room, self._filled = min(float(_BURST), room), now
        with self._lock:
            if self._path is not None:
                self._room -= 1
                self._write(self._path, record_of(span, self._role))

    def close(self) -> None:
        """Idempotent; nothing is written after it."""
        with self._lock:
            if self._stream is not None:
                self._stream.close()
                self._stream = None
            self._path = None

    def _write(self, path: Path, record: SpanRecord) -> None:
        try:
            if self._stream is None:
                self._stream = _private(path)
            elif self._stream.tell() > _FILE_ROTATE:
                self._stream.close()
                path.replace(path.with_suffix(path.suffix + ".1"))
                self._stream = _private(path)
            self._stream.write(msgspec.json.encode(as_object(record)).decode() + "\n")
        except OSError as error:  # a full disk must not stop a request; the audit, not the trace, is the record
            _log.warning("spans are not written to file: %s", error.strerror)
            self._path = None


def _private(path: Path) -> TextIO:
    return os.fdopen(os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600), "a", encoding="utf-8", buffering=1)


class _Export:
    """To an outside collector, by OTLP: a span of which every attribute is permitted."""

    def __init__(self, role: str, exporter: Any) -> None:
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import ReadableSpan
        from opentelemetry.sdk.trace.export import BatchSpanProcessor

        self._readable, self._resource = ReadableSpan, Resource.create({"service.name": f"causeway-{role}"})
        self._batches = BatchSpanProcessor(exporter)

    def keep(self, span: Recorded) -> None:
        if len(permitted(span.attributes)) != len(span.attributes):
            _log.error("span %s was not exported: it holds an attribute that is not listed", span.name)
            return
        self._batches.on_end(self._readable(
            name=span.name, context=span.get_span_context(), kind=span.kind, resource=self._resource,
            parent=_context(span.trace_id, span.parent_id, remote=True, flags=_SAMPLED) if span.parent_id else None,
            attributes=permitted(span.attributes), start_time=span.start_ns, end_time=span.end_ns,
        ))

    def close(self) -> None:
        self._batches.shutdown()  # type: ignore[no-untyped-call]


class Telemetry:
    """The tracer of one role. Make it with `start`, end it with `close`."""

    def __init__(
        self, role: str, keeper: _Keeper, lines: _Lines | None, export: _Export | None, *, disabled: bool = False
    ) -> None:
        self.role = role
        self._keeper, self._lines, self._export, self._disabled = keeper, lines, export, disabled
        self._closed = False

    def span(
        self,
        name: str,
        *,
        parent: Context | str | None = None,
        kind: SpanKind = SpanKind.INTERNAL,
        attributes: Mapping[str, str | int | float] | None = None,
    ) -> AbstractContextManager[Span]:
        """A span that is current inside the block. `parent` None means the current one; `Context()` a new trace. Under
        a W3C traceparent as `parent` it is current nowhere.

        An exception that leaves the block sets `error.type` to its stable code (or class name), never its text.
        """
        here = not isinstance(parent, str)
        above = parent if isinstance(parent, str) else get_current_span(parent)
        return _Current(self.begin(name, parent=above, kind=kind, attributes=attributes), here=here)

    def begin(
        self, name: str, *, parent: Span | str, kind: SpanKind = SpanKind.INTERNAL,
        attributes: Mapping[str, str | int | float] | None = None,
    ) -> Span:
        """The same, current nowhere, for the caller to `end`. `parent` may be a W3C traceparent, as `context_from`."""
        if isinstance(parent, str):
            above = _ids_in(parent)
        elif isinstance(parent, Recorded):
            above = parent.trace_id, parent.span_id
        else:
            above = _ids_in(traceparent_of(parent)) if parent.get_span_context().is_valid else ("", "")
        if self._disabled:
            return NonRecordingSpan(_context(*above, remote=True, flags=_SAMPLED)) if above[0] else INVALID_SPAN
        return Recorded(name, kind, *above, attributes or {}, self._ended)

    def finished(self, trace_id: str) -> list[SpanRecord]:
        """Finished spans of a trace, oldest first; the latest 512 traces, at most 64 spans each."""
        return self._keeper.finished(trace_id)

    def close(self) -> None:
        """Writes what waits to be written, to a collector for up to its own time-out. Idempotent."""
        if not self._closed:
            self._closed = True
            for one in (self._lines, self._export):
                if one is not None:
                    one.close()

    def _ended(self, span: Recorded) -> None:
        self._keeper.keep(span)
        if self._closed:
            return
        if self._lines is not None:
            self._lines.keep(span)
        if self._export is not None:
            self._export.keep(span)


def start(role: str, file: Path | None = None, *, traces: int = _MAX_TRACES) -> Telemetry:
    """Tracing for `role` ("edge", "hop", "gateway"): kept in memory, appended to `file`, sent by OTLP if configured.

    OTLP follows the standard environment variables (OTEL_EXPORTER_OTLP_ENDPOINT, ...) and needs the extra `otlp`.
    `traces`: how many are kept in memory. Sampling is always on, but for OTEL_SDK_DISABLED: the local record is the
    product's; a collector may sample behind it.
    """
    disabled = os.environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true"
    lines = None if file is None else _Lines(role, file)
    return Telemetry(role, _Keeper(role, traces), lines, None if disabled else _otlp(role), disabled=disabled)


def _otlp(role: str) -> _Export | None:
    if not (os.environ.get("OTEL_EXPORTER_OTLP_ENDPOINT") or os.environ.get("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")):
        return None
    try:
        otlp = importlib.import_module("opentelemetry.exporter.otlp.proto.http.trace_exporter")
    except ImportError:
        _log.warning("an OTLP endpoint is set but the extra `otlp` is not installed; spans stay local")
        return None
    return _Export(role, otlp.OTLPSpanExporter())

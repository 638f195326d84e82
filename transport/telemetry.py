"""One trace from edge to provider: OpenTelemetry set up once, W3C trace context, and the names of every attribute.

Spans hold names, numbers and identities, never text of a prompt or an answer. That is enforced where spans leave: an
attribute whose name is not listed here is dropped, and exceptions are recorded by their code alone. Each process has a
provider of its own, not the global one, so that all roles can live in one process (tests, the simulator).
"""

import contextlib
import importlib
import logging
import os
import re
import threading
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final, TextIO

import msgspec
from opentelemetry.context import Context
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, SpanLimits, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.sampling import ALWAYS_ON
from opentelemetry.trace import (
    NonRecordingSpan,
    Span,
    SpanContext,
    SpanKind,
    TraceFlags,
    Tracer,
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

_TRACEPARENT = re.compile(r"00-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})", re.ASCII)
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
    context = span.get_span_context()
    if not context.is_valid:
        return f"00-{os.urandom(16).hex()}-{os.urandom(8).hex()}-00"
    return f"00-{context.trace_id:032x}-{context.span_id:016x}-{int(context.trace_flags) & 1:02x}"


def trace_id_of(span: Span) -> str:
    """32 hex digits."""
    return f"{span.get_span_context().trace_id:032x}"


def context_from(traceparent: str) -> Context:
    """The parent named by a W3C traceparent. Anything but a well-formed version 00 value gives an empty context.

    The value is untrusted: it joins spans and is never used to decide anything (W3C Trace Context 3.2.2, 3.2.4).
    """
    match = _TRACEPARENT.fullmatch(traceparent)
    if match is None or not int(match[1], 16) or not int(match[2], 16):
        return Context()
    flags = TraceFlags(int(match[3], 16))
    parent = SpanContext(int(match[1], 16), int(match[2], 16), is_remote=True, trace_flags=flags)
    return set_span_in_context(NonRecordingSpan(parent), Context())


def record_of(span: ReadableSpan, role: str) -> SpanRecord:
    """A finished span in the shape that travels and is stored; times in Unix milliseconds."""
    context = span.get_span_context()
    attributes = permitted(span.attributes or {})
    return SpanRecord(
        trace_id=f"{context.trace_id:032x}" if context else "",
        span_id=f"{context.span_id:016x}" if context else "",
        parent_id=f"{span.parent.span_id:016x}" if span.parent else "",
        name=span.name[:64],
        role=str(attributes.pop(ROLE, role)),
        start_ms=(span.start_time or 0) / 1e6,
        end_ms=(span.end_time or 0) / 1e6,
        attributes=attributes,
    )


def as_object(record: SpanRecord) -> dict[str, Any]:
    """A span as a JSON object with named fields, for files and `--json`; on the wire it is an array."""
    return msgspec.structs.asdict(record)


class _Keeper(SpanProcessor):
    """Keeps the latest finished spans in memory and appends each as one JSON line to a file."""

    def __init__(self, role: str, file: Path | None, traces: int) -> None:
        self._role, self._room = role, traces
        self._lock = threading.Lock()
        self._traces: OrderedDict[str, list[SpanRecord]] = OrderedDict()
        self._path = file
        self._stream: TextIO | None = None

    def on_end(self, span: ReadableSpan) -> None:
        record = record_of(span, self._role)
        with self._lock:
            spans = self._traces.setdefault(record.trace_id, [])
            if len(spans) < _MAX_SPANS_PER_TRACE:
                spans.append(record)
            while len(self._traces) > self._room:
                self._traces.popitem(last=False)
            if self._path is not None:
                self._write(self._path, record)

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

    def finished(self, trace_id: str) -> list[SpanRecord]:
        with self._lock:
            return list(self._traces.get(trace_id, ()))

    def shutdown(self) -> None:
        with self._lock:
            if self._stream is not None:
                self._stream.close()
                self._stream = None
            self._path = None


def _private(path: Path) -> TextIO:
    return os.fdopen(os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600), "a", encoding="utf-8", buffering=1)


class _Screen(SpanProcessor):
    """Lets a span reach an outside collector only if every attribute is permitted."""

    def __init__(self, inner: SpanProcessor) -> None:
        self._inner = inner

    def on_end(self, span: ReadableSpan) -> None:
        attributes = span.attributes or {}
        if len(permitted(attributes)) == len(attributes) and not span.events:
            self._inner.on_end(span)
        else:
            _log.error("span %s was not exported: it holds an attribute that is not listed", span.name)

    def shutdown(self) -> None:
        self._inner.shutdown()

    def force_flush(self, timeout_millis: int = 30000) -> bool:
        return self._inner.force_flush(timeout_millis)


class Telemetry:
    """This process's tracer. Make it with `start`, end it with `close`."""

    def __init__(self, role: str, provider: TracerProvider, keeper: _Keeper) -> None:
        self.role = role
        self._provider = provider
        self._keeper = keeper
        self.tracer: Tracer = provider.get_tracer("causeway")

    @contextlib.contextmanager
    def span(
        self,
        name: str,
        *,
        parent: Context | None = None,
        kind: SpanKind = SpanKind.INTERNAL,
        attributes: Mapping[str, str | int | float] | None = None,
    ) -> Iterator[Span]:
        """A span that is current inside the block. `parent` None means the current one; `Context()` a new trace.

        An exception that leaves the block sets `error.type` to its stable code (or class name), never its text.
        """
        with self.tracer.start_as_current_span(
            name, context=parent, kind=kind, attributes=attributes,
            record_exception=False, set_status_on_exception=False,
        ) as span:
            try:
                yield span
            except BaseException as error:
                span.set_attribute(ERROR_TYPE, str(getattr(error, "code", type(error).__name__)))
                raise

    def finished(self, trace_id: str) -> list[SpanRecord]:
        """Finished spans of a trace, oldest first; the latest 512 traces, at most 64 spans each."""
        return self._keeper.finished(trace_id)

    def close(self) -> None:
        """Flushes exporters (OTLP for up to its own time-out). Idempotent."""
        self._provider.shutdown()


def start(role: str, file: Path | None = None, *, traces: int = _MAX_TRACES) -> Telemetry:
    """Tracing for `role` ("edge", "hop", "gateway"): kept in memory, appended to `file`, sent by OTLP if configured.

    OTLP follows the standard environment variables (OTEL_EXPORTER_OTLP_ENDPOINT, ...) and needs the extra `otlp`.
    `traces`: how many are kept in memory. Sampling is always on: the local record is the product's; a collector may
    sample behind it.
    """
    provider = TracerProvider(
        sampler=ALWAYS_ON,
        resource=Resource.create({"service.name": f"causeway-{role}"}),
        shutdown_on_exit=False,
        span_limits=SpanLimits(max_attribute_length=_MAX_TEXT, max_events=8, max_links=8),
    )
    keeper = _Keeper(role, file, traces)
    provider.add_span_processor(keeper)
    if os.environ.get("OTEL_EXPORTER_OTLP_ENDPOINT") or os.environ.get("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"):
        _add_otlp(provider)
    return Telemetry(role, provider, keeper)


def _add_otlp(provider: TracerProvider) -> None:
    try:
        otlp = importlib.import_module("opentelemetry.exporter.otlp.proto.http.trace_exporter")
    except ImportError:
        _log.warning("an OTLP endpoint is set but the extra `otlp` is not installed; spans stay local")
        return
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    provider.add_span_processor(_Screen(BatchSpanProcessor(otlp.OTLPSpanExporter())))

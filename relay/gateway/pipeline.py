"""The way of a request through the gateway: checks, then forward, then taps; and the audit of all of it.

Checks run in a fixed order, cheap and certain before costly: authenticate (is the caller still who the handshake said),
standing (is it under suspicion), authorise (may it do this at all), schema (is the body what it says it is), inspect
(does it try to take over the model), quota (is enough left). A check passes the request on or ends it with a `Refusal`;
it cannot change its bytes. Forward calls the provider and alone holds its key. Taps see each piece of the
answer before the device does, and may hold it back or change it.

The pipeline writes the audit itself: an intent before the provider is called, the outcome before the device is told
that its answer is whole, and every refusal. Where the audit cannot be written, nothing happens; when a record is on
stable storage is said there (`audit.log`).
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Final, Protocol

import msgspec
from opentelemetry.trace import Span, SpanKind

from relay.gateway.audit.log import AuditLog, members
from relay.gateway.errors import AuditUnavailable, JournalFull, ProviderFailure
from relay.gateway.routes import Route, find
from transport import telemetry as names
from transport.errors import TransportError
from transport.identity.verify import VerifiedPeer
from transport.telemetry import Telemetry, trace_id_of, traceparent_of

DECISION_MAX: Final = 256  # characters of a reason on record
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Refusal:
    """The end of a request, for the device: HTTP status, stable code (of `checks.problems`), words for a person.

    `param` names the field at fault; `headers` go with it by HTTPS, such as Retry-After. A session carries neither.
    """

    status: int
    code: str
    message: str
    retryable: bool = False
    param: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict, compare=False)


class Said(msgspec.Struct, frozen=True, gc=False):
    """A text that a model will read. `role`: system, developer, user, assistant or tool, whatever the API calls it."""

    role: str
    text: str


@dataclass
class Usage:
    """What an answer cost, as far as the provider said; tokens None where it did not."""

    input_tokens: int | None = None
    output_tokens: int | None = None
    model: str = ""


class Hold(Protocol):
    """What a request has reserved of its quotas. What `reserved` and `settle` give goes on record."""

    def reserved(self) -> dict[str, int]: ...

    def settle(self, result: str, failure: ProviderFailure | None = None) -> dict[str, int]:
        """Charges what the call came to and gives back the rest, once. `result` as on record, "" if nobody was called.
        """
        ...

    def headers(self) -> dict[str, str]:
        """For an answer by HTTP: what is left."""
        ...


@dataclass(slots=True)
class RequestContext:
    """One request on its way. The first block is what came in; checks fill the second, forward and taps the third."""

    request_id: bytes
    method: str
    route: str
    content_type: str
    body: bytes = field(repr=False)
    traceparent: str
    expires_at: int
    peer: VerifiedPeer
    enrolment: int
    via: str
    link_id: str
    token: str = ""  # the access token that it came with, by its `jti`

    target: Route | None = field(init=False)
    about: bytes = field(default=b"", repr=False)  # what each of its records says of it, once there is one
    trace_id: str = ""
    span: str = ""  # traceparent of the gateway's own span
    policy: str = ""  # version of the policy that decided, and in what words
    decision: str = ""
    model: str = ""
    models: list[str] = field(default_factory=list)  # where a list of them is asked for
    stream: bool = False
    parsed: bool = False  # schema has found the body to be what `model` and `stream` say
    said: list[Said] = field(default_factory=list, repr=False)  # in order; images and files are not in it
    injection: float | None = None  # 0..1: how much `said` is like an attempt to take over the model; None: not judged
    inspected: str = ""  # what came of that, for the audit: never "passed" unless it was judged
    flagged: bool = False
    output_max: int | None = None  # tokens that the request itself allows of all its answers together
    answers: int = 1  # asked for at once
    hold: Hold | None = field(default=None, repr=False)

    usage: Usage = field(default_factory=Usage)
    attempts: int = 0  # that reached a provider
    cut: str = ""  # code of the quota that was used up while the answer ran, which ends there as a whole one
    provider: str = ""  # who was asked last, by its name in the configuration
    bytes_out: int = 0
    answer_type: str = ""  # media type of the answer, once it has begun
    filtered: dict[str, int] = field(default_factory=dict)  # how many secrets were cut out of it, by kind

    def __post_init__(self) -> None:
        self.target = find(self.method, self.route)


class Check(Protocol):
    """One stage before the call. Which earlier ones it builds on is said in its class."""

    async def check(self, context: RequestContext) -> Refusal | None: ...


@dataclass(frozen=True)
class Answer:
    """An answer as it comes: complete only if `chunks` ends without an exception (ProviderFailure)."""

    status: int
    content_type: str
    streamed: bool
    chunks: AsyncIterator[bytes]


class Answerer(Protocol):
    """Who answers an operation."""

    def answer(self, context: RequestContext) -> AbstractAsyncContextManager[Answer]: ...


class _Withdrawn(Exception):
    """What was allowed when the answer began is so no longer."""


class Tap(Protocol):
    """Sees an answer go by. What it returns goes on, so that it may hold back or change; `finish` gives the rest."""

    def feed(self, data: bytes) -> bytes: ...
    def finish(self) -> bytes: ...


class Sink(Protocol):
    """Where an answer goes: a call of the journal, or an HTTPS response.

    `calling` is told before anybody is called. `refuse` may also end a begun answer; the refusal is
    `retryable` only if nobody can have accepted the request.
    """

    async def calling(self) -> None: ...
    async def begin(self, status: int, content_type: str, *, streamed: bool) -> None: ...
    async def write(self, data: bytes) -> None: ...
    async def end(self) -> None: ...
    async def refuse(self, refusal: Refusal) -> None: ...


class Observer(Protocol):
    """Hears of each request what became of it, and must be quick: it is on the way of all. It raises nothing."""

    def refused(self, context: RequestContext, refusal: Refusal) -> None:
        """By a check; nobody was called."""
        ...

    def finished(self, context: RequestContext, result: str, code: str) -> None:
        """`result` and `code` as in the record of the outcome."""
        ...


_AUDIT_DOWN: Final = Refusal(503, "audit_unavailable", "the gateway cannot keep its audit record and refuses all work",
                             retryable=True)
_UNRECORDED: Final = Refusal(503, "audit_unavailable", "the gateway cannot record the outcome; the provider was called")
_WITHDRAWN: Final = Refusal(403, "policy_changed", "the gateway's policy has changed and allows this no longer")
_INTERNAL: Final = Refusal(500, "internal_error", "the gateway failed; its log says more under the trace id")


class Pipeline:
    """Built once by `app`; `handle` is called for each request, many at a time."""

    def __init__(
        self, *, checks: Sequence[Check], answerers: Mapping[str, Answerer],
        taps: Sequence[Callable[[RequestContext], Tap]], audit: AuditLog, telemetry: Telemetry, node: str,
        still: Callable[[RequestContext], Awaitable[Refusal | None]] | None = None, observers: Sequence[Observer] = (),
    ) -> None:
        """`node` is the gateway's own SPIFFE ID, for spans. `still` is asked before each chunk of an answer, which ends
        there if it is refused.
        """
        self._checks = checks
        self._answerers = answerers
        self._taps = taps
        self._audit = audit
        self._telemetry = telemetry
        self._node = node
        self._still = still
        self._observers = observers

    async def handle(self, context: RequestContext, sink: Sink) -> None:
        """Answers or refuses one request through `sink`. Cancelling it cancels the provider call.

        Raises only LinkLost and the like from `sink`; everything else ends in a refusal.
        """
        span = self._telemetry.begin("request", parent=context.traceparent, kind=SpanKind.SERVER, attributes={
            names.NODE: self._node, names.DEVICE: str(context.peer.id), names.VIA: context.via,
            names.LINK_ID: context.link_id, names.REQUEST_ID: context.request_id.hex(),
            names.ROUTE: context.route, names.BYTES_IN: len(context.body),
        })
        context.trace_id, context.span = trace_id_of(span), traceparent_of(span)
        try:
            try:
                refusal = await self._admit(context) or await self._answer(context, sink)
            except AuditUnavailable:
                refusal = _UNRECORDED  # asking again would call the provider again
            finally:
                if context.hold is not None:
                    context.hold.settle("")  # where nobody was called; else it has been done
                _describe(span, context)
            if refusal is not None:
                span.set_attribute(names.ERROR_TYPE, refusal.code)
                span.set_attribute(names.HTTP_STATUS, refusal.status)
                await sink.refuse(refusal)
        except BaseException as error:
            span.set_attribute(names.ERROR_TYPE, str(getattr(error, "code", type(error).__name__)))
            raise
        finally:
            span.end()

    async def _admit(self, context: RequestContext) -> Refusal | None:
        """None once every check has passed and the intent is on record. Nobody has been called until then."""
        try:
            for check in self._checks:
                refusal = await check.check(context)
                if refusal is not None:
                    for observer in self._observers:
                        observer.refused(context, refusal)
                    await self._record(
                        "request.refused", context, code=refusal.code, status=refusal.status, **_decided(context)
                    )
                    return refusal
            held = {} if context.hold is None else context.hold.reserved()
            await self._record("request.intent", context, bytes_in=len(context.body), **_decided(context), **held)
        except AuditUnavailable:
            return _AUDIT_DOWN
        return None

    async def _answer(self, context: RequestContext, sink: Sink) -> Refusal | None:
        """None once the answer has been delivered whole and that is on record, else why not."""
        target = context.target
        assert target is not None  # authorise refuses unknown routes
        await sink.calling()
        failed: ProviderFailure | None = None
        try:
            await self._deliver(context, self._answerers[target.operation], sink)
        except AuditUnavailable:
            raise
        except ProviderFailure as failure:
            refusal = Refusal(failure.status, failure.kind, str(failure), failure.again)
            failed = failure.with_traceback(None)  # which has this frame: a cycle would keep the request
        except _Withdrawn:
            refusal = _WITHDRAWN
        except JournalFull as full:
            refusal = Refusal(429, full.code, str(full))
        except TransportError as error:
            await self._outcome(context, "undelivered", error.code)
            raise
        except asyncio.CancelledError:
            # The record must not be lost with the task; the provider call has ended by now.
            await asyncio.shield(self._outcome(context, "cancelled", "cancelled"))
            raise
        except Exception as error:
            where = error.__traceback__
            while where is not None and where.tb_next is not None:
                where = where.tb_next
            line = f"{where.tb_frame.f_code.co_filename}:{where.tb_lineno}" if where else "?"
            # No message and no traceback: both could quote a prompt.
            _log.error("request %s failed with %s at %s", context.trace_id, type(error).__name__, line)
            refusal = _INTERNAL
        else:
            return None
        await self._outcome(context, "failed", refusal.code, failed)
        return refusal

    async def _deliver(self, context: RequestContext, answerer: Answerer, sink: Sink) -> None:
        async with answerer.answer(context) as answer:
            taps = [make(context) for make in self._taps]  # now, as the provider's key is known by which it was asked
            context.answer_type = answer.content_type
            await sink.begin(answer.status, answer.content_type, streamed=answer.streamed)
            async for chunk in answer.chunks:
                if self._still is not None and await self._still(context) is not None:
                    raise _Withdrawn
                for tap in taps:
                    chunk = tap.feed(chunk)
                await self._send(context, chunk, sink)
                if context.cut:
                    break
            rest = b""
            for tap in taps:
                rest = tap.feed(rest) + tap.finish()
            await self._send(context, rest, sink)
        await self._outcome(context, "cut" if context.cut else "answered", context.cut)
        await sink.end()

    @staticmethod
    async def _send(context: RequestContext, data: bytes, sink: Sink) -> None:
        if data:
            context.bytes_out += len(data)
            await sink.write(data)  # waits for the device's credit, and with it the reading from the provider

    async def _outcome(
        self, context: RequestContext, result: str, code: str, failure: ProviderFailure | None = None
    ) -> None:
        more: dict[str, str | int] = {} if context.hold is None else {**context.hold.settle(result, failure)}
        for observer in self._observers:
            observer.finished(context, result, code)
        if context.filtered:
            more["filtered"] = " ".join(f"{kind}={count}" for kind, count in sorted(context.filtered.items()))
        await self._record(
            "request.outcome", context, result=result, code=code, bytes_out=context.bytes_out,
            input_tokens=context.usage.input_tokens, output_tokens=context.usage.output_tokens,
            provider=context.provider, **more,
        )

    def _record(self, event: str, context: RequestContext, **fields: str | int | None) -> Awaitable[None]:
        if not context.about:
            context.about = members({
                "request": context.request_id.hex(), "trace": context.trace_id, "id": str(context.peer.id),
                "enrolment": context.enrolment, "via": context.via, "link": context.link_id, "route": context.route,
                "model": context.model, **({"token": context.token} if context.token else {}),
            })
        return self._audit.append(event, context.about, **fields)


def _decided(context: RequestContext) -> dict[str, str]:
    decided = {"policy": context.policy, "decision": context.decision[:DECISION_MAX]}
    if context.inspected:
        decided["inspected"] = context.inspected
    return decided


def _describe(span: Span, context: RequestContext) -> None:
    if context.target is not None:
        span.set_attribute(names.GEN_AI_OPERATION, context.target.operation)
    if context.model:
        span.set_attribute(names.GEN_AI_REQUEST_MODEL, context.model)
    span.set_attribute(names.BYTES_OUT, context.bytes_out)
    if context.injection is not None:
        span.set_attribute(names.INJECTION, round(context.injection, 4))
    if context.filtered:
        span.set_attribute(names.FILTERED, sum(context.filtered.values()))

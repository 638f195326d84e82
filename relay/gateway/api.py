"""The pipeline by plain HTTPS, for clients that are connected and need no session: OpenAI's API, and inference.

Who asks is known before a body is read; how much may be asked at once, in all and by one identity, is bounded before
that. A request lives as long as its connection: when the client goes away, its registration ends, or policy allows it
no longer, the call to the provider is cancelled at once, and nobody can fetch the answer later.
"""

import asyncio
import logging
import re
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

from aiohttp import web

from relay.gateway.answers import NOWHERE, STRAIGHT
from relay.gateway.audit.refusals import Refusals
from relay.gateway.checks.fields import BODY_MAX
from relay.gateway.errors import AuditUnavailable
from relay.gateway.identity.callers import Caller, Callers
from relay.gateway.identity.denials import Denied
from relay.gateway.identity.enrolment import Enrolment
from relay.gateway.identity.registrations import Registration
from relay.gateway.listening import Gate
from relay.gateway.pipeline import Pipeline, Refusal, RequestContext
from relay.gateway.policy.decisions import Policy
from relay.gateway.response import HttpSink, refused
from relay.gateway.sessions import finished
from relay.gateway.trace import TraceStore
from relay.places import Places
from transport.errors import TransportError
from transport.primitives import random_bytes
from transport.telemetry import Telemetry

_log = logging.getLogger(__name__)
_POSTED: Final = ("/v1/chat/completions", "/v1/responses", "/v1/embeddings", "/v1/messages")
_TRACEPARENT: Final = re.compile(r"00-([0-9a-f]{32})-[0-9a-f]{16}-[0-9a-f]{2}", re.ASCII)
_NOT_ADMITTED: Final = Refusal(403, "identity_refused", "the device is not admitted by this gateway")
_NOT_GOOD: Final = Refusal(401, "invalid_token", "the token is not good; ask for a new one")
_FULL: Final = Refusal(503, "overloaded", "the gateway has too much to do; try again later", retryable=True)
_DENIED: Final = {one.code: one for one in (
    _NOT_ADMITTED, _NOT_GOOD, _FULL,
    Refusal(401, "identity_unknown", "the gateway does not know who asks"),
    Refusal(401, "invalid_dpop_proof", "the proof of the key is not valid"),
    Refusal(401, "use_dpop_nonce", "a proof needs the nonce of our last answer", retryable=True),
)}
_BUSY: Final = Refusal(429, "too_many_requests", "too many requests at once", retryable=True)
_STOPPING: Final = Refusal(503, "shutting_down", "the gateway is shutting down", retryable=True)
_TOO_LARGE: Final = Refusal(413, "request_too_large", "the request is over 1 MiB")
_ENCODED: Final = Refusal(415, "unsupported_encoding", "this gateway takes bodies as they are, not compressed")
_SLOW: Final = Refusal(408, "request_timeout", "the request came too slowly")
_FAILED: Final = Refusal(500, "internal_error", "the gateway failed; its log says more under the trace id")
_CUT: Final = Refusal(400, "bad_request", "the request is not whole")


@dataclass(frozen=True)
class ApiLimits:
    """Requests under way, in all and of one identity; seconds for a body."""

    requests: int = 1_024
    per_identity: int = 32
    body_s: float = 30.0


class _Running:
    """A request under way, in the task that its server has made for it."""

    def __init__(self, caller: Caller, context: RequestContext, sink: HttpSink) -> None:
        self.caller, self.context, self.sink = caller, context, sink
        task = asyncio.current_task()
        assert task is not None
        self.work: asyncio.Task[Any] = task
        self.why: Refusal | None = None  # it was cut
        self.ended = False  # by us: cut, or its client is gone

    def cut(self, why: Refusal) -> None:
        self.why = self.why or why
        self._end()

    def lost(self) -> None:
        """Its client is gone; if nothing more is to be sent, it has what it asked for."""
        if not self.sink.whole:
            self._end()

    def _end(self) -> None:
        if not self.ended:
            self.ended = True
            self.work.cancel()


class Api:
    """All requests by HTTPS of a gateway."""

    def __init__(
        self, *, callers: Callers, pipeline: Pipeline, enrolment: Enrolment, policy: Policy,
        still: Callable[[RequestContext], Awaitable[Refusal | None]], traces: TraceStore, telemetry: Telemetry,
        refusals: Refusals, gate: Gate, limits: ApiLimits | None = None, clock: Callable[[], float] = time.time,
    ) -> None:
        """`still` says whether policy, which has just changed, allows a request that is under way."""
        self._callers, self._pipeline, self._enrolment, self._still = callers, pipeline, enrolment, still
        self._traces, self._telemetry, self._refusals, self._gate = traces, telemetry, refusals, gate
        self._limits, self._clock = limits or ApiLimits(), clock
        self._places = Places(self._limits.requests, self._limits.per_identity)
        self._running: set[_Running] = set()
        self._looking: set[asyncio.Task[None]] = set()
        self._draining = False
        policy.changed.append(self._policy_changed)

    def offer(self, app: web.Application) -> None:
        """Adds the routes."""
        app[STRAIGHT] = {("POST", path): self._serve for path in _POSTED}
        for path in _POSTED:
            app.router.add_post(path, self._serve)
        app.router.add_get("/v1/models", self._serve, allow_head=False)
        app.router.add_post("/v2/models/{name}/infer", self._serve)
        app[NOWHERE] = _nowhere
        app.router.add_get("/openapi.json", _described, allow_head=False)
        app.router.add_get("/schemas/{name}.json", _described, allow_head=False)

    async def cut(self, ended: Sequence[Registration]) -> None:
        """Ends what runs of registrations that have ended. No word from the provider goes to them after this."""
        enrolments = {one.enrolment for one in ended}
        for one in list(self._running):
            if one.caller.enrolment in enrolments:
                one.cut(_NOT_ADMITTED)

    def stop(self, enrolment: int, why: Refusal) -> None:
        """Ends what runs of a device that stays registered."""
        for one in list(self._running):
            if one.caller.enrolment == enrolment:
                one.cut(why)

    async def drain(self, seconds: float, hurry: asyncio.Event) -> None:
        """Takes nothing new, and lets what runs finish for up to `seconds`, or until `hurry` is set."""
        self._draining = True
        if works := {one.work for one in self._running}:
            await finished(works, seconds, hurry)
        for one in list(self._running):
            one.cut(_STOPPING)

    # --- one request ------------------------------------------------------------------------------------------------

    async def _serve(self, request: web.Request) -> web.StreamResponse:
        traceparent = request.headers.get("Traceparent", "")
        try:
            caller = await self._callers.of(request)
        except Denied as denied:
            return await self._denied(request, denied)
        place = str(caller.enrolment)
        refusal = _STOPPING if self._draining else None
        if refusal is None and not self._places.take(place):
            refusal = _FULL if self._places.taken >= self._places.total else _BUSY
        if refusal is not None:
            return refused(request, refusal, _trace_id(traceparent))
        try:
            if not self._gate.keeps(request.protocol, place):
                return _closing(request, _BUSY, _trace_id(traceparent))
            await self._enrolment.seen(caller.enrolment)
            body = await self._body(request)
            if not isinstance(body, Refusal) and not self._callers.stands(caller):
                body = _NOT_GOOD  # since the body began to come; whoever is ended otherwise, `authenticate` finds
            if isinstance(body, Refusal):
                return _closing(request, body, _trace_id(traceparent))
            ids = random_bytes(24)
            return await self._answered(request, caller, RequestContext(
                request_id=ids[:16], method=request.method, route=request.path,
                content_type=request.headers.get("Content-Type", ""), body=body, traceparent=traceparent,
                expires_at=int(self._clock()) + 600, peer=caller.peer, enrolment=caller.enrolment, via="",
                link_id=ids[16:].hex(), token=caller.token,
            ))
        finally:
            self._places.leave(place)

    async def _body(self, request: web.Request) -> bytes | Refusal:
        if (request.content_length or 0) > BODY_MAX:
            return _TOO_LARGE
        if request.headers.get("Content-Encoding", "identity").lower() != "identity":
            return _ENCODED
        content = request.content
        if content.is_eof():  # it came with its head, as a rule
            data = content.read_nowait()
            return data if len(data) <= BODY_MAX else _TOO_LARGE
        parts = bytearray()
        try:
            async with asyncio.timeout(self._limits.body_s):
                async for part in content.iter_any():
                    parts += part
                    if len(parts) > BODY_MAX:
                        return _TOO_LARGE
        except TimeoutError:
            return _SLOW
        except (OSError, web.RequestPayloadError):
            return _CUT
        return bytes(parts)

    async def _answered(self, request: web.Request, caller: Caller, context: RequestContext) -> web.StreamResponse:
        sink = HttpSink(request, context)
        running = _Running(caller, context, sink)
        here = self._gate.watch(request.protocol, running.lost)
        self._running.add(running)
        try:
            if here:
                await self._pipeline.handle(context, sink)
        except TransportError:
            pass  # on record as undelivered
        except asyncio.CancelledError:
            if not running.ended:
                raise  # the server ends
            running.work.uncancel()
        finally:
            self._running.discard(running)
            self._gate.unwatch(request.protocol)
            if context.trace_id:
                await self._traces.save(
                    context.trace_id, str(context.peer.id), context.link_id,
                    partial(self._telemetry.finished, context.trace_id),
                )
        if running.why is not None and not sink.whole:
            await sink.refuse(running.why)
        return sink.response or refused(request, _FAILED, context.trace_id)  # to nobody, as a rule: the client has gone

    async def _denied(self, request: web.Request, denied: Denied) -> web.Response:
        """A nonce that is missing or old leaves no record: so every client begins."""
        refusal, trace_id = _DENIED[denied.error], _trace_id(request.headers.get("Traceparent", ""))
        if refusal.code != "use_dpop_nonce":
            try:
                await self._refusals.append(
                    "https.denied", reason=denied.reason, id=denied.id, peer=request.remote, route=request.path[:64],
                    trace=trace_id,
                )
            except AuditUnavailable:
                _log.error("a refusal could not be audited")
        answer = refused(request, refusal, trace_id)
        if refusal.status == 401:
            answer.headers["WWW-Authenticate"] = f'DPoP algs="ES256", error="{refusal.code}"'
        sends = (request.content_length or 0) or "Transfer-Encoding" in request.headers
        if sends or refusal.code != "use_dpop_nonce":
            answer.force_close()  # what a stranger sends along is not read, and who was revoked holds no connection
        return answer

    # --- what runs and may no longer --------------------------------------------------------------------------------

    def keys_changed(self) -> None:
        """Ends what was asked for by tokens whose key is believed no longer."""
        for one in list(self._running):
            if not self._callers.stands(one.caller):
                one.cut(_NOT_GOOD)

    def _policy_changed(self) -> None:
        task = asyncio.create_task(self._look_again())
        self._looking.add(task)
        task.add_done_callback(self._looking.discard)

    async def _look_again(self) -> None:
        """A provider that is silent gives no chunk at which the pipeline would see it."""
        for one in list(self._running):
            if one.context.policy and (refusal := await self._still(one.context)) is not None:
                one.cut(Refusal(403, "policy_changed", refusal.message))


def _nowhere(request: web.Request, error: web.HTTPException) -> web.Response:
    """Where there is no route, that is said in the words of the others."""
    if not (more := {name: value for name, value in error.headers.items() if name == "Allow"}):
        return refused(request, Refusal(404, "unknown_route", "the gateway has no such route"), _trace_id(""))
    return refused(request, Refusal(405, "method_not_allowed", "not by this method", headers=more), _trace_id(""))


async def _described(request: web.Request) -> web.Response:
    """What is taken here, for everybody: nothing in it depends on who asks, or on this gateway."""
    from relay.gateway.checks.openapi import published  # made on the first question, and kept

    if (body := published(request.match_info.get("name", "openapi"))) is None:
        raise web.HTTPNotFound
    return web.Response(body=body, content_type="application/json")


def _closing(request: web.Request, refusal: Refusal, trace_id: str) -> web.Response:
    """And what else comes is not looked at."""
    answer = refused(request, refusal, trace_id)
    answer.force_close()
    return answer


def _trace_id(traceparent: str) -> str:
    """The client's, else one that the audit and the answer have in common."""
    match = _TRACEPARENT.fullmatch(traceparent)
    return match[1] if match else random_bytes(16).hex()

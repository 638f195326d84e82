"""A request in, its answer out, over whatever link there is to a hop or gateway.

One session is kept for many requests. Each request is in the outbox before its first byte leaves, and has an outcome
there afterwards: done, failed (no provider accepted it) or interrupted (nobody can know).
"""

import asyncio
import os
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from typing import Final

import msgspec
from opentelemetry import trace

from edge_client.errors import GatewayRefused, Interrupted, NotJoined, PromptTooLong, ProviderFailed
from edge_client.identity import DeviceIdentity, renew
from edge_client.outbox import Outbox
from store.settings import Settings
from transport.errors import LinkLost, RequestRefused, TransportError
from transport.links.base import Endpoint, Link
from transport.messages import REQUEST_BODY_MAX, RequestHeader, encode_header
from transport.session import EdgeSession
from transport.session import RemoteAnswer as SessionAnswer
from transport.telemetry import Telemetry, traceparent_of

REQUEST_LIFETIME_S: Final = 24 * 3600
_HINTS: Final = {
    "not_allowed": "ask the gateway's administrator to allow it for this device",
    "model_not_allowed": "`edge status` lists the models this device may use",
    "provider_auth": "the gateway's provider key is not accepted; tell its administrator",
    "provider_rate_limited": "wait a little, then ask again",
    "provider_timeout": "ask again",
}


# Refusals that come before the provider is called, or by which it says that it did not take the request (SPEC.md
# section 11). After any other that is not retryable, or once an answer has begun, nobody can know.
_NOT_ACCEPTED: Final = frozenset({
    "identity_expired", "identity_refused", "request_expired", "bad_expiry", "unknown_route", "not_allowed",
    "model_not_allowed", "request_too_large", "unsupported_content_type", "unexpected_body", "malformed_json",
    "ambiguous_json", "json_too_deep", "unknown_field", "invalid_request", "empty_prompt", "too_many_requests",
    "shutting_down", "provider_unreachable", "provider_auth", "provider_rate_limited", "provider_rejected",
})


class _ModelList(msgspec.Struct):
    class _Model(msgspec.Struct):
        id: str

    data: list[_Model]


class RemoteAnswer:
    """An answer under way. Complete only if `chunks()` ends without an exception; then the outbox row is done."""

    def __init__(self, answer: SessionAnswer, outbox: Outbox, request_id: bytes, trace_id: str, via: str) -> None:
        self._answer, self._outbox = answer, outbox
        self.request_id, self.trace_id, self.via = request_id, trace_id, via
        self.status, self.content_type = answer.status, answer.content_type

    async def chunks(self) -> AsyncGenerator[bytes, None]:
        """The answer's bytes as they come. Raises GatewayRefused, ProviderFailed or Interrupted."""
        settled = False
        try:
            async for chunk in self._answer:
                yield chunk
            await self._outbox.done(self.request_id)
            settled = True
        except TransportError as error:
            settled = True
            raise await settle_failure(self._outbox, self.request_id, error, begun=True) from error
        finally:
            if not settled:  # the reader went away
                self._answer.cancel()
                await self._outbox.interrupted(self.request_id, "cancelled")


class GatewayClient:
    """Asks the gateway through the first endpoint that answers. `dial` opens a link."""

    def __init__(
        self, settings: Settings, outbox: Outbox, endpoints: Sequence[Endpoint], telemetry: Telemetry,
        dial: Callable[[Endpoint], Awaitable[Link]],
    ) -> None:
        self._settings, self._outbox, self._telemetry, self._dial = settings, outbox, telemetry, dial
        self._endpoints = tuple(endpoints)
        self._session: EdgeSession | None = None
        self._identity_of_session: DeviceIdentity
        self._retired: list[EdgeSession] = []
        self._opening = asyncio.Lock()

    async def request(self, method: str, route: str, body: bytes) -> RemoteAnswer:
        """Sends a request of at most 1 MiB under the current span's trace, and waits for the answer's head.

        Raises NotJoined, PromptTooLong, GatewayRefused, ProviderFailed, Interrupted, or TransportError when nothing
        could be sent; the outbox holds the outcome.
        """
        if len(body) > REQUEST_BODY_MAX:
            raise PromptTooLong("the request is over 1 MiB", hint="shorten the prompt")
        span = trace.get_current_span()
        traceparent = traceparent_of(span)
        now = int(time.time())
        expires_at = now + REQUEST_LIFETIME_S
        header = encode_header(RequestHeader(
            method, route, "application/json" if body else "", traceparent, len(body), expires_at
        ))
        request_id = os.urandom(16)
        await self._outbox.accept(request_id, header, body, now=now, expires_at=expires_at)
        try:
            session = await self._open_session()
            answer = session.request(request_id, header, body)
        except BaseException as error:
            await self._outbox.failed(request_id, str(getattr(error, "code", "not_sent")))
            raise
        try:
            await answer.started()
        except TransportError as error:
            raise await settle_failure(self._outbox, request_id, error, begun=False) from error
        except BaseException:
            await self._outbox.interrupted(request_id, "cancelled")
            raise
        trace_id = traceparent.split("-")[1]
        return RemoteAnswer(answer, self._outbox, request_id, trace_id, session.welcome.via)

    async def models(self) -> list[str]:
        """The model names this device may use. Raises like `request`."""
        answer = await self.request("GET", "/v1/models", b"")
        data = b"".join([chunk async for chunk in answer.chunks()])
        try:
            return [model.id for model in msgspec.json.decode(data, type=_ModelList).data]
        except msgspec.MsgspecError:
            raise ProviderFailed("the gateway's list of models does not decode") from None

    def report(self, trace_id: str) -> None:
        """Hands this edge's finished spans of a trace to the gateway, if the session still stands."""
        spans = self._telemetry.finished(trace_id)
        if self._session is not None and self._session.alive:
            for span in spans:  # one a message: with every attribute at its longest it has 10 KiB
                self._session.send_spans([span])

    async def close(self) -> None:
        """Ends the session in an orderly way."""
        sessions = [*self._retired, *([self._session] if self._session is not None else [])]
        self._session, self._retired = None, []
        for session in sessions:
            await session.close()

    async def _open_session(self) -> EdgeSession:
        async with self._opening:
            identity = await DeviceIdentity.load(self._settings)
            if identity is None:
                raise NotJoined
            if self._session is not None and self._session.alive:
                if not self._identity_of_session.wants_renewal(time.time()):
                    return self._session
                # An answer must not run into the session's end: new requests go to a new session, old ones stay.
                self._retired.append(self._session)
            self._retired = [session for session in self._retired if not await _closed_if_idle(session)]
            if identity.wants_renewal(time.time()):
                try:
                    identity = await renew(self._settings, identity, await self._link(identity))
                except TransportError:
                    if not identity.svid_valid(time.time()):
                        raise
            self._session = await EdgeSession.open(await self._link(identity), identity.svid, identity.verify_gateway)
            self._identity_of_session = identity
            return self._session

    async def _link(self, identity: DeviceIdentity) -> Link:
        endpoints = self._endpoints or tuple(Endpoint.parse(text) for text in identity.endpoints)
        failure: TransportError = LinkLost(
            "no hop or gateway is known", hint="name one with `--hop tcp:HOST:PORT`, or in config.toml"
        )
        for endpoint in endpoints:
            try:
                return await self._dial(endpoint)
            except TransportError as error:
                failure = error
        raise failure


async def _closed_if_idle(session: EdgeSession) -> bool:
    if session.alive and not session.idle:
        return False
    await session.close()
    return True


async def settle_failure(outbox: Outbox, request_id: bytes, error: TransportError, *, begun: bool) -> Exception:
    """Puts the outcome of a request that has been handed to a session into the outbox; the error for the user.

    `begun` says that an answer had begun. Only a refusal can mean that no provider took it.
    """
    if not isinstance(error, RequestRefused):
        await outbox.interrupted(request_id, error.code)
        return Interrupted(error.code)
    if not begun and (error.may_retry or error.reason in _NOT_ACCEPTED):
        await outbox.failed(request_id, error.reason)
        hint = _HINTS.get(error.reason)
    else:
        await outbox.interrupted(request_id, error.reason)
        hint = "the provider may have done the work; ask again if you want to"
    if error.reason.startswith("provider_"):
        return ProviderFailed(str(error), hint=hint, reason=error.reason)
    return GatewayRefused(str(error), hint=hint, reason=error.reason)

"""One request's way to its answer, over as many links as it takes; the reader sees one stream of bytes.

What may be sent again is the question here. The first sending may be early data, or in the first flight of a full
handshake. From then on it is `resume` that is sent, which calls nobody; and only if a gateway whose journal is still
the one of the first sending says that it never saw the request, is it sent again, on that very session.
"""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Final, Self

from edge_client.errors import GatewayRefused, GaveUp, Interrupted, NotJoined, ProviderFailed, RequestExpired
from edge_client.outbox import Outbox, short
from edge_client.sessions import Clock, Sessions
from transport.edge_session import EdgeSession
from transport.edge_session import RemoteAnswer as SessionAnswer
from transport.errors import (
    IdentityExpired,
    IdentityRefused,
    PeerRefused,
    ProtocolViolation,
    RequestRefused,
    TransportError,
)
from transport.events import CONTENT_TYPE, PLAIN_TYPE, EventDecoder
from transport.reconnect import Reconnect, is_final, worth_retrying
from transport.stream import Progress

UNKNOWN: Final = "unknown_request"
_STABLE_S: Final = 30.0  # a session that stood for so long ends an outage, also if it brought no byte
_HINTS: Final = {
    "not_allowed": "ask the gateway's administrator to allow it for this device",
    "relay_not_allowed": "come by another hop, or ask the gateway's administrator to allow this one",
    "model_not_allowed": "ask the gateway's administrator which models this device may use",
    "provider_unreachable": "the gateway cannot reach its provider; ask again later, or with `edge ask --local`",
    "provider_auth": "the gateway's provider key is not accepted; tell its administrator",
    "provider_rate_limited": "wait a little, then ask again",
    "provider_timeout": "ask again",
    **dict.fromkeys(
        ("rate_limited", "quota_exceeded", "budget_exceeded"),
        "the gateway's administrator sets quotas; `edge ask --local` answers here",
    ),
    "journal_full": "answers that wait at the gateway fill this device's share; `edge outbox` lists them",
}
# Refusals that come before the provider is called, or by which it says that it did not take the request (SPEC.md
# section 11). After any other that is not retryable, or once an answer has begun, nobody can know.
_NOT_ACCEPTED: Final = frozenset({
    "identity_expired", "identity_refused", "request_expired", "bad_expiry", "unknown_route", "not_allowed",
    "model_not_allowed", "request_too_large", "unsupported_content_type", "unexpected_body", "malformed_json",
    "ambiguous_json", "json_too_deep", "unknown_field", "invalid_request", "empty_prompt", "too_many_requests",
    "shutting_down", "journal_full", "provider_unreachable", "provider_auth", "provider_rate_limited",
    "provider_rejected", "relay_not_allowed", "policy_unavailable", "rate_limited", "quota_exceeded", "budget_exceeded",
    "remote_content", "provider_state", "hosted_tool", "model_not_on_route",
})
# Refusals of this attempt alone, which a little later may go another way.
_LATER: Final = frozenset({"shutting_down", "too_many_requests", "policy_unavailable"})
SUPERSEDED: Final = "superseded"  # an older stream of ours reached the gateway late, and took the answer over
# Said of this attempt; of an earlier sending they say nothing.
_OF_THIS_ATTEMPT: Final = frozenset({
    "identity_expired", "identity_refused", "request_expired", "too_many_requests", "shutting_down", "journal_full",
    "relay_not_allowed", "policy_unavailable",
})


class RemoteAnswer:
    """An answer under way. Complete only if `chunks()` ends without an exception; then the outbox row is done.

    What came in the session's compact form is given out as the events it stands for.

    `begun_under` is the epoch under which an earlier process sent the request; None if none has. `keep` is awaited when
    the whole answer has been given out, before the outbox says so.
    """

    status: int
    content_type: str
    keep: Callable[[], Awaitable[None]] | None = None

    def __init__(
        self, sessions: Sessions, outbox: Outbox, clock: Clock, *, request_id: bytes, trace_id: str, header: bytes,
        body: bytes, expires_at: int, begun_under: bytes | None, give_up_s: float, tell: Callable[[str], None],
    ) -> None:
        self._sessions, self._outbox, self._clock, self._tell = sessions, outbox, clock, tell
        self.request_id, self.trace_id = request_id, trace_id
        self._header, self._body, self._expires_at = header, body, expires_at
        self._epoch = begun_under
        self._sendings = 0 if begun_under is None else 1
        self._progress = Progress()
        self._events: EventDecoder | None = None
        self._outage = Reconnect(give_up_s)
        self._give_up_s = give_up_s
        self._told = False
        self._session: EdgeSession | None = None
        self._answer: SessionAnswer | None = None
        self._resumed = self._send_again = self._begun = False
        self._had = 0  # bytes when the last outage began
        self._since = 0.0  # when this session took the request

    @property
    def via(self) -> str:
        """SPIFFE ID of the hop that the answer comes through now; empty if direct."""
        return self._session.welcome.via if self._session is not None else ""

    async def started(self) -> Self:
        """Waits for the head, over as many sessions as it takes.

        Raises what ends the request: GatewayRefused, ProviderFailed, Interrupted, RequestExpired; GaveUp, with the
        request kept in the outbox; TransportError for an identity that is refused.
        """
        try:
            await self._head()
        except asyncio.CancelledError:  # whoever asked has gone
            await self._cancel()
            raise
        except NotJoined as error:
            await self._outbox.failed(self.request_id, error.code)
            raise
        return self

    async def chunks(self) -> AsyncGenerator[bytes, None]:
        """The answer's bytes as they come, each once, whatever the link does. Raises like `started`."""
        try:
            while True:
                if self._answer is None:
                    await self._head()
                    continue
                try:
                    async for chunk in self._answer:
                        async for event in self._unwrapped(chunk):
                            yield event
                    async for _ in self._unwrapped(None):
                        pass
                    break
                except TransportError as error:
                    self._answer = None
                    await self._after(error)
            if self.keep is not None:
                await self.keep()
            await self._outbox.done(self.request_id)
        except (asyncio.CancelledError, GeneratorExit):  # the reader went away
            await self._cancel()
            raise
        self._sessions.acknowledge(self.request_id, self._progress.offset)  # only now may the gateway forget it

    async def _unwrapped(self, chunk: bytes | None) -> AsyncGenerator[bytes, None]:
        """What a piece of the answer stands for, never all of it at once: it may be a thousand times as long. None at
        its end. Raises Interrupted for what is no entry of events: the same bytes would come again on every link, so
        there is no going on behind them."""
        if self._events is None:
            if chunk is not None:
                yield chunk
            return
        try:
            if chunk is None:
                self._events.finish()
                return
            for event in self._events.feed(chunk):
                yield event
        except ProtocolViolation as error:
            await self._cancel(interrupted=error.code)
            raise Interrupted(error.code) from error

    async def ask(self, session: EdgeSession, epoch: bytes) -> SessionAnswer:
        """For `Sessions`: gives the request, or the question for the rest of its answer, to a session."""
        self._session, self._since = session, self._clock.now()
        self._resumed = self._sendings > 0
        if self._resumed:
            return session.resume(self.request_id, self._progress)
        self._epoch = epoch
        await self._outbox.sent(self.request_id, epoch, now=int(self._clock.now()))
        return self._send(session)

    def not_taken(self) -> None:
        if not self._resumed:
            self._sendings -= 1

    def _send(self, session: EdgeSession) -> SessionAnswer:
        answer = session.request(self.request_id, self._header, self._body, self._progress)
        self._sendings += 1
        self._resumed = False
        return answer

    async def _head(self) -> None:
        while True:
            try:
                if self._send_again and self._session is not None:
                    answer = self._send(self._session)
                else:
                    self._session, answer = await self._sessions.attach(self)
                    if not self._resumed and self._session.welcome.epoch != self._epoch:
                        self._epoch = self._session.welcome.epoch
                        await self._outbox.sent(self.request_id, self._epoch, now=int(self._clock.now()))
                self._send_again = False
                await answer.started()
            except TransportError as error:
                self._send_again = False
                await self._after(error)
                continue
            self._answer, self._begun = answer, True
            self.status, self.content_type = answer.status, answer.content_type
            if answer.content_type == CONTENT_TYPE:
                self.content_type = PLAIN_TYPE
                self._events = self._events or EventDecoder()
            return

    async def _after(self, error: TransportError) -> None:
        """Returns when it is time to go on. Raises the error for the user if there is no going on."""
        if self._sessions.closed:
            raise error
        if isinstance(error, RequestRefused):
            if error.reason == UNKNOWN and self._resumed:
                await self._unknown()
                return
            if error.reason != SUPERSEDED and not (error.reason in _LATER and error.may_retry):
                raise await self._settle(error) from error
        elif not worth_retrying(error) and not self._of_a_stranger(error):
            raise await self._settle(error) from error
        elif self._moved():
            return
        await self._pause(error)

    async def _unknown(self) -> None:
        """The gateway does not know the request. It is safe to send it only if its journal is still the same one."""
        same = self._session is not None and self._session.welcome.epoch == self._epoch
        if not same or self._progress.offset:
            await self._outbox.interrupted(self.request_id, UNKNOWN)
            raise Interrupted(UNKNOWN)
        self._send_again = True

    def _of_a_stranger(self, error: TransportError) -> bool:
        """Whether the gateway that has the request may never have said this: whoever poses as a hop can show another
        certificate or send a hint, and may delay an answer that waits, but not end it.
        """
        if isinstance(error, IdentityExpired) or is_final(error):
            return False
        return self._sendings > 0 and isinstance(error, IdentityRefused | PeerRefused)

    def _moved(self) -> bool:
        """Whether a session newer than ours stands already: a renewal, or another request was quicker."""
        current = self._sessions.current
        return current is not None and current is not self._session and current.alive

    async def _pause(self, error: TransportError) -> None:
        now = self._clock.now()
        if now >= self._expires_at:
            await self._outbox.expire(now=int(now))
            raise RequestExpired from error
        if self._progress.offset > self._had or (self._begun and now - self._since >= _STABLE_S):
            self._outage.over()
            self._told = False
        self._had = self._progress.offset
        wait = self._outage.next_pause(now, self._clock.dice(), not_after=self._expires_at)
        if wait is None:
            raise GaveUp(short(self.request_id), self._give_up_s, sent=self._sendings > 0) from error
        if not self._told:
            self._told = True
            self._tell("link lost, resuming ..." if self._sendings else f"{error}, trying again ...")
        await self._clock.sleep(wait)

    async def _settle(self, error: TransportError) -> Exception:
        """Puts the outcome into the outbox; the error for the user."""
        if not isinstance(error, RequestRefused):
            if not self._sendings:
                await self._outbox.failed(self.request_id, error.code)
                return error
            await self._outbox.interrupted(self.request_id, error.code)
            return error if error.fault in ("identity", "policy") else Interrupted(error.code)
        if error.reason == "interrupted":
            await self._outbox.interrupted(self.request_id, error.reason)
            return Interrupted(error.reason)
        of_all = not (self._resumed and error.reason in _OF_THIS_ATTEMPT)
        if not self._begun and of_all and (error.may_retry or error.reason in _NOT_ACCEPTED):
            await self._outbox.failed(self.request_id, error.reason)
            hint = _HINTS.get(error.reason)
        else:
            await self._outbox.interrupted(self.request_id, error.reason)
            hint = "the provider may have done the work; ask again if you want to"
        kind = ProviderFailed if error.reason.startswith("provider_") else GatewayRefused
        again = error.may_retry and not self._begun
        return kind(str(error), hint=hint, reason=error.reason, status=error.status, retryable=again)

    async def _cancel(self, interrupted: str = "") -> None:
        """Persisted first; what a lost link keeps from the gateway is told it with the next session."""
        if interrupted:
            await self._outbox.interrupted(self.request_id, interrupted)
        elif not self._sessions.closed:
            await self._outbox.cancel(self.request_id)
        if self._answer is not None:
            self._answer.cancel()
            self._answer = None

"""A request in, its answer out, over whatever links there are to hops and gateway, exactly once.

One session is kept for many requests. Each request is in the outbox before its first byte leaves, and ends there as
done, failed (no provider accepted it), interrupted (nobody can know) or expired. What a killed process leaves behind is
taken up by the next one. The gateway is told that it may forget an answer only after that is on record here.
"""

import asyncio
import contextlib
import os
from collections.abc import Awaitable, Callable, Sequence
from typing import Final, Literal

import msgspec
from opentelemetry import trace

from edge_client.dialing import nobody
from edge_client.errors import BadUse, GaveUp, PromptTooLong, ProviderFailed
from edge_client.identity import Identities
from edge_client.outbox import Entry, Outbox
from edge_client.posture import Tell, silent
from edge_client.remote_answer import RemoteAnswer
from edge_client.sessions import Clock, Dial, Find, Sessions
from edge_client.ways import LinkPicture
from store.settings import Settings
from store.tpm import Tpm
from transport.edge_session import EdgeSession
from transport.errors import RequestRefused, TransportError
from transport.links.base import Endpoint, Link
from transport.messages import REQUEST_BODY_MAX, Padding, RequestHeader, decode_header, encode_header
from transport.stream import Progress
from transport.telemetry import Telemetry, traceparent_of

__all__ = ["GIVE_UP_S", "GatewayClient", "RemoteAnswer"]

REQUEST_LIFETIME_S: Final = 24 * 3600
_LISTING_LIFETIME_S: Final = 600  # the gateway keeps a row for so long, and a list of models is soon asked for again
GIVE_UP_S: Final = 60.0
_MODELS: Final = "granted-models"
_MODELS_GIVE_UP_S: Final = 5.0  # where the list of last time will do
_CONFIRM_S: Final = 10.0


class _ModelList(msgspec.Struct):
    class _Model(msgspec.Struct):
        id: str

    data: list[_Model]


def _header(method: str, route: str, body: bytes, expires_at: int) -> bytes:
    """Raises PromptTooLong."""
    if len(body) > REQUEST_BODY_MAX:
        raise PromptTooLong("the request is over 1 MiB", hint="shorten the prompt")
    return encode_header(RequestHeader(
        method, route, "application/json" if body else "", traceparent_of(trace.get_current_span()), len(body),
        expires_at,
    ))


def _names(data: bytes) -> list[str]:
    try:
        return [model.id for model in msgspec.json.decode(data, type=_ModelList).data]
    except msgspec.MsgspecError:
        raise ProviderFailed("the gateway's list of models does not decode") from None


class GatewayClient:
    """Asks the gateway through the first endpoint that answers, or else a hop that `find` names. `dial` opens a link,
    `tell` shows a person a note, `worked` is told each link over which the gateway was reached.

    `early_data` off costs a round trip: nothing is asked before the gateway's `welcome`. What is asked earlier may be
    replayed, to a journal which answers it once; is forward secret only after its ticket is gone on both sides; and
    ends as interrupted if that journal was lost since the session before, since nobody can know what it had seen.
    After `give_up_s` seconds without a way to the gateway a request is left in the outbox.
    """

    def __init__(
        self, settings: Settings, outbox: Outbox, endpoints: Sequence[Endpoint], telemetry: Telemetry, dial: Dial, *,
        give_up_s: float = GIVE_UP_S, tell: Callable[[str], None] = lambda text: None, clock: Clock | None = None,
        early_data: bool = True, padding: Padding = Padding.BUCKET, find: Find = nobody,
        worked: Callable[[Link], None] = lambda link: None, posture: Tell = silent,
        identities: Identities | None = None, tpm: Tpm | None = None,
    ) -> None:
        self._settings, self._outbox, self._telemetry = settings, outbox, telemetry
        self._clock = clock or Clock()
        self._give_up_s, self._tell = give_up_s, tell
        self._sessions = Sessions(
            settings, endpoints, dial, self._clock, early_data=early_data, padding=padding, find=find, worked=worked,
            posture=posture, identities=identities or Identities(settings, tpm=tpm),
        )
        self._sessions.opened = self._opened
        self._tasks: set[asyncio.Task[None]] = set()

    async def request(
        self, method: str, route: str, body: bytes, *, give_up_s: float | None = None,
        lifetime_s: int = REQUEST_LIFETIME_S,
    ) -> RemoteAnswer:
        """Sends a request of at most 1 MiB under the current span's trace, and waits for the answer's head.

        Raises PromptTooLong, and like `RemoteAnswer.started`; the outbox holds the outcome.
        """
        now = int(self._clock.now())
        request_id, header = os.urandom(16), _header(method, route, body, now + lifetime_s)
        await self._outbox.accept(request_id, header, body, now=now, expires_at=now + lifetime_s)
        return await self._answer(request_id, header, body, None, give_up_s or self._give_up_s).started()

    async def leave(
        self, method: str, route: str, body: bytes, promise: Callable[[bytes], Awaitable[None]]
    ) -> tuple[bytes, int]:
        """Puts a request into the outbox and dials nobody; its id, of which `promise` was told first, and its expiry.

        Raises PromptTooLong, StoreError.
        """
        now = int(self._clock.now())
        expires_at = now + REQUEST_LIFETIME_S
        request_id, header = os.urandom(16), _header(method, route, body, expires_at)
        await promise(request_id)
        await self._outbox.accept(request_id, header, body, now=now, expires_at=expires_at)
        return request_id, expires_at

    async def reach(self) -> str:
        """One attempt at each endpoint, unless a session stands: the endpoint over which one does now.

        Raises NotJoined, TransportError.
        """
        await self._sessions.stand()
        return self._sessions.endpoint

    async def while_up(self) -> None:
        """Returns when the session that stands has ended; at once if there is none."""
        if self._sessions.current is not None:
            await self._sessions.current.ended()

    def forget(self, endpoints: Sequence[Endpoint]) -> None:
        """Ways that `find` has named are not to be tried any more."""
        self._sessions.forget(endpoints)

    async def unsettled(self) -> list[Entry]:
        """What earlier processes have left to be taken up, oldest first; what has expired is settled as such."""
        await self._outbox.expire(now=int(self._clock.now()))
        return await self._outbox.unsettled()

    async def take_up(
        self, request_id: bytes, *, keep: Callable[[], Awaitable[None]] | None = None
    ) -> RemoteAnswer:
        """Goes on with a request that waits or was sent by an earlier process; its answer from the first byte.

        `keep` as in RemoteAnswer.
        Raises BadUse if there is nothing to go on with, and like `RemoteAnswer.started`.
        """
        await self._outbox.expire(now=int(self._clock.now()))
        entry = await self._outbox.get(request_id)
        if entry is None or entry.state not in ("waiting", "sent") or entry.header is None or entry.body is None:
            raise BadUse("this request has an outcome already", hint="`edge outbox` shows it")
        begun_under = (entry.epoch or b"") if entry.state == "sent" else None
        answer = self._answer(request_id, entry.header, entry.body, begun_under, self._give_up_s)
        answer.keep = keep
        return await answer.started()

    async def retry(self, request_id: bytes) -> RemoteAnswer:
        """Goes on with a request, or asks anew, by a new id, what has failed or was interrupted.

        Raises BadUse if the prompt is there no more, and like `RemoteAnswer.started`.
        """
        await self._outbox.expire(now=int(self._clock.now()))
        entry = await self._outbox.get(request_id)
        if entry is not None and entry.state in ("waiting", "sent"):
            return await self.take_up(request_id)
        if entry is None or entry.header is None or entry.body is None:
            raise BadUse("the prompt of this request is there no more", hint="ask again")
        header = decode_header(entry.header)
        now = int(self._clock.now())
        again = encode_header(RequestHeader(
            header.method, header.route, header.content_type, traceparent_of(trace.get_current_span()),
            header.body_length, now + REQUEST_LIFETIME_S,
        ))
        new_id = os.urandom(16)
        await self._outbox.accept(new_id, again, entry.body, now=now, expires_at=now + REQUEST_LIFETIME_S)
        await self._outbox.erase(request_id)
        return await self._answer(new_id, again, entry.body, None, self._give_up_s).started()

    async def cancel(self, request_id: bytes) -> bool:
        """Drops a request for good; again changes nothing. Whether the gateway knows: if not, the next session tells.

        Raises StoreError.
        """
        await self._outbox.cancel(request_id)
        now = int(self._clock.now())
        if request_id not in await self._outbox.cancelled(now=now):
            return True
        try:
            async with asyncio.timeout(_CONFIRM_S):
                await self._tell_cancelled(await self._sessions.stand())
        except (TransportError, TimeoutError):
            return False
        return request_id not in await self._outbox.cancelled(now=now)

    async def models(self) -> list[str]:
        """The model names this device may use; those of last time if there is no way to the gateway.

        Raises like `request`.
        """
        last = await self._settings.get(_MODELS)
        patience = min(self._give_up_s, _MODELS_GIVE_UP_S) if last else self._give_up_s
        try:
            answer = await self.request(
                "GET", "/v1/models", b"", give_up_s=patience, lifetime_s=_LISTING_LIFETIME_S
            )
            data = b"".join([chunk async for chunk in answer.chunks()])
        except GaveUp as error:
            await self._outbox.cancel((await self._outbox.find(error.request)).id)  # not worth keeping
            if last is None:
                raise GaveUp("", patience, sent=False) from None
            data = last
        names = _names(data)
        if data != last:
            await self._settings.put(_MODELS, data)
        return names

    async def known_models(self) -> list[str]:
        """The model names of last time, without asking; empty if there was none."""
        last = await self._settings.get(_MODELS)
        return [] if last is None else _names(last)

    def report(self, trace_id: str) -> None:
        """Hands this edge's finished spans of a trace to the gateway, if the session still stands."""
        spans = self._telemetry.finished(trace_id)
        session = self._sessions.current
        if session is not None and session.alive:
            for span in spans:  # one a message: with every attribute at its longest it has 10 KiB
                session.send_spans([span])

    @property
    def link(self) -> tuple[Literal["up", "down", "idle"], str]:
        """Whether a session stands, and the hop's SPIFFE ID (empty: direct). Idle: none is needed or was tried."""
        session = self._sessions.current
        if session is not None and session.alive:
            return "up", session.welcome.via
        return ("down" if self._sessions.failed else "idle"), ""

    def picture(self) -> LinkPicture:
        """The link as it stands now."""
        (state, via), sessions = self.link, self._sessions
        return LinkPicture(
            state, via, sessions.endpoint if state == "up" else "", sessions.traffic.round_trip_s,
            sessions.traffic.sent, sessions.traffic.received, sessions.known(),
        )

    async def close(self) -> None:
        """Ends the session in an orderly way. What is under way stays in the outbox, to be taken up."""
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
        await self._sessions.close()

    def _answer(
        self, request_id: bytes, header: bytes, body: bytes, begun_under: bytes | None, give_up_s: float
    ) -> RemoteAnswer:
        decoded = decode_header(header)
        _, _, trace_id = decoded.traceparent.partition("-")
        return RemoteAnswer(
            self._sessions, self._outbox, self._clock, request_id=request_id, trace_id=trace_id[:32], header=header,
            body=body, expires_at=decoded.expires_at, begun_under=begun_under, give_up_s=give_up_s, tell=self._tell,
        )

    def _opened(self, session: EdgeSession) -> None:
        async def work() -> None:
            try:
                await self._tell_cancelled(session)
            except TransportError:
                return  # the next session will do

        self._tasks.add(task := asyncio.create_task(work()))
        task.add_done_callback(self._tasks.discard)

    async def _tell_cancelled(self, session: EdgeSession) -> None:
        """Cancels at the gateway what was cancelled here, until it confirms. Never early data."""
        for request_id in await self._outbox.cancelled(now=int(self._clock.now())):
            session.resume(request_id, Progress()).cancel()
            with contextlib.suppress(RequestRefused):  # cancelled, interrupted or unknown: it is over there
                progress = Progress()
                async for _ in await session.resume(request_id, progress).started():
                    pass
                self._sessions.acknowledge(request_id, progress.offset)  # it was whole before the cancellation came
            await self._outbox.cancel_confirmed(request_id)

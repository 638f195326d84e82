"""Between streams of sessions and calls of the journal: who asks gets the answer of their own request, and once.

A stream is here today and gone tomorrow; a call is carried out whoever listens. What a session asks for is claimed or
found in the journal, and the stream becomes the call's reader until it is told the end, the device wants no more of it,
or the session is lost. Only the second ends the call.
"""

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Final

from relay.gateway.audit.refusals import Refusals
from relay.gateway.call import Call, CallRefused, Reader
from relay.gateway.compact import Compact
from relay.gateway.errors import AuditUnavailable
from relay.gateway.identity.enrolment import Enrolment
from relay.gateway.journal import UNKNOWN, Journal
from relay.gateway.pipeline import DECISION_MAX, Pipeline, Refusal, RequestContext
from relay.gateway.policy.decisions import Policy
from relay.gateway.state.calls import Key
from relay.gateway.trace import TraceStore
from store.errors import StoreError
from transport.errors import IdentityRefused, ProtocolViolation, TransportError
from transport.identity.verify import VerifiedPeer
from transport.primitives import sha256
from transport.serving import AnswerStream, Incoming, Resumed
from transport.telemetry import Telemetry

Settled = Callable[[], Awaitable[None]] | None
ACKS_MAX: Final = 1_000  # requests whose acknowledgements wait, of one session; no device has more on record
GATHER_S: Final = 0.1  # seconds that an acknowledgement waits for others
_log = logging.getLogger(__name__)

_NOT_ADMITTED: Final = Refusal(403, "identity_refused", "the device is not admitted by this gateway")
_NO_RELAY: Final = Refusal(403, "relay_not_allowed", "this device may not come by that hop; another may do")
_NO_POLICY: Final = Refusal(503, "policy_unavailable", "the gateway cannot reach its policy and refuses all work",
                            retryable=True)
_NO_CLAIM: Final = Refusal(
    503, "journal_unavailable", "the gateway cannot keep its journal and calls nobody", retryable=True
)
_NO_ANSWER: Final = Refusal(500, "internal_error", "the gateway cannot read its journal; the answer may be there later")


@dataclass(frozen=True)
class Asker:
    """Whose session it is, and how it came."""

    peer: VerifiedPeer
    enrolment: int
    via: str
    link_id: str

    def key(self, request_id: bytes) -> Key:
        return Key(str(self.peer.id), self.enrolment, request_id)


class Requests:
    """One for a gateway."""

    def __init__(
        self, *, journal: Journal, pipeline: Pipeline, enrolment: Enrolment, traces: TraceStore, telemetry: Telemetry,
        refusals: Refusals, policy: Policy, barred: Callable[[int], Refusal | None] = lambda _: None,
    ) -> None:
        """`barred` says of an enrolment why it is refused everything, answers that wait included."""
        self._journal = journal
        self._pipeline = pipeline
        self._enrolment = enrolment
        self._traces = traces
        self._telemetry = telemetry
        self._refusals = refusals
        self.policy, self._barred = policy, barred

    def epoch_of(self, enrolment: int) -> bytes:
        """The journal's epoch as a device is told it: 16 bytes. Under another enrolment nothing is known of what it
        asked under an earlier one, so that is another epoch to it.
        """
        return sha256(b"causeway epoch", self._journal.epoch, enrolment.to_bytes(8, "big"))[:16]

    @property
    def running(self) -> set[asyncio.Task[None]]:
        """The calls under way."""
        return self._journal.running

    async def serve(self, asker: Asker, stream: Incoming | Resumed, settled: Settled) -> None:
        """Answers one stream, to its end or the session's. `settled` is called after that."""
        try:
            found = await self._admit(asker) or await self._call_of(asker, stream)
        except StoreError as error:
            _log.error("a request was turned away: %s", error)
            found = _NO_CLAIM if isinstance(stream, Incoming) else _NO_ANSWER
        if isinstance(found, Refusal):
            stream.refuse(found.status, found.code, found.message, retryable=found.retryable)
            return
        offset = stream.offset if isinstance(stream, Resumed) else 0
        await self._deliver(asker, stream, self._journal.read(found, offset))
        if found.trace_id and found.link_id != asker.link_id:  # so that the trace shows every link of the answer
            await self._traces.save(found.trace_id, str(asker.peer.id), asker.link_id, [])
        if settled is not None:
            await settled()

    async def ack(self, asker: Asker, offsets: Mapping[bytes, int]) -> None:
        """By request id. Raises ProtocolViolation, StoreError."""
        await self._journal.ack({asker.key(request_id): offset for request_id, offset in offsets.items()})

    async def stop(self, enrolment: int, why: Refusal) -> None:
        """Ends what runs of a device. Raises StoreError."""
        await self._journal.stop(enrolment, why)

    async def forget_ended(self) -> None:
        """Ends the calls and forgets the answers of registrations that have ended. Raises StoreError."""
        ended = {one.enrolment for one in self._enrolment.registrations() if one.status != "active"}
        for owner in self._journal.owners:
            if owner[1] in ended:
                await self._journal.delete_identity(owner)

    # --- inside -----------------------------------------------------------------------------------------------------

    async def _admit(self, asker: Asker) -> Refusal | None:
        """A session may outlast its device's registration, and an answer that waits needs no check of the pipeline.

        Whether it may come by this hop is looked at here, too, so that a new policy holds for sessions that stand.
        """
        try:
            if self._enrolment.enrolment_of(asker.peer) == asker.enrolment:
                barred = self._barred(asker.enrolment)
                return await self._by_hop(asker) if barred is None else await self._refused(asker, barred.code, barred)
            reason = "registration"
        except IdentityRefused as refusal:
            reason = refusal.rule
        return await self._refused(asker, reason, _NOT_ADMITTED)

    async def _by_hop(self, asker: Asker) -> Refusal | None:
        decision = await self.policy.by_hop(asker.peer.id, asker.enrolment, asker.via)
        if decision is None:
            return None
        refusal = _NO_POLICY if decision.unavailable else _NO_RELAY
        return await self._refused(asker, "policy", refusal, decision=decision.reason[:DECISION_MAX])

    async def _refused(self, asker: Asker, reason: str, refusal: Refusal, **fields: str) -> Refusal:
        try:
            await self._refusals.append(
                "request.refused", reason=reason, id=str(asker.peer.id), via=asker.via, link=asker.link_id,
                code=refusal.code, status=refusal.status, **fields,
            )
        except AuditUnavailable:
            _log.error("a refusal could not be audited")
        return refusal

    async def _call_of(self, asker: Asker, stream: Incoming | Resumed) -> Call | Refusal:
        key = asker.key(stream.request_id)
        if isinstance(stream, Resumed):
            call = await self._journal.find(key)
            if call is None:
                return UNKNOWN
            fits = stream.offset <= call.length and (not stream.offset or stream.generation == call.generation)
            return call if fits or call.refusal is not None else UNKNOWN
        header = stream.header
        context = RequestContext(
            request_id=stream.request_id, method=header.method, route=header.route, content_type=header.content_type,
            body=stream.body, traceparent=header.traceparent, expires_at=header.expires_at, peer=asker.peer,
            enrolment=asker.enrolment, via=asker.via, link_id=asker.link_id,
        )
        return await self._journal.claim(
            key, stream.digest, header.expires_at, lambda call: self._carry_out(context, call)
        )

    async def _carry_out(self, context: RequestContext, call: Call) -> None:
        try:
            await self._pipeline.handle(context, Compact(call))
        finally:
            call.trace_id, call.link_id = context.trace_id, context.link_id
            if context.trace_id:
                await self._traces.save(
                    context.trace_id, str(context.peer.id), context.link_id,
                    partial(self._telemetry.finished, context.trace_id),
                )

    async def _deliver(self, asker: Asker, stream: Incoming | Resumed, reader: Reader) -> None:
        stream.on_over(reader.leave)
        try:
            await _copy(reader, stream)
        except TransportError:
            pass  # nobody waits for it any more
        finally:
            reader.close()
        if stream.cancelled.is_set():
            await self._journal.cancel(asker.key(stream.request_id))


async def _copy(reader: Reader, stream: AnswerStream) -> None:
    """Raises StreamEnded if nobody waits for it any more."""
    call = reader.call
    try:
        offset, head = reader.offset, await reader.head()
        stream.begin(
            head.status, head.content_type, streamed=head.streamed, generation=call.generation, offset=offset
        )
        while data := await reader.next():
            await stream.write(data)
        stream.end(call.length, call.sha256)
        return
    except CallRefused as ended:
        refusal = ended.refusal
    except StoreError as error:
        _log.error("an answer could not be read: %s", error)
        refusal = _NO_ANSWER
    stream.refuse(refusal.status, refusal.code, refusal.message, retryable=refusal.retryable)


class Acknowledgements:
    """Those of one session. Nobody waits for them, so they are gathered for a moment; what comes meanwhile for a
    request is one with what waits for it.
    """

    def __init__(self, requests: Requests, asker: Asker, violated: Callable[[], None]) -> None:
        """`violated` is told that the device does not keep to the protocol."""
        self._requests, self._asker, self._violated = requests, asker, violated
        self._waiting: dict[bytes, int] = {}
        self._over = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def take(self, request_id: bytes, offset: int) -> None:
        if len(self._waiting) >= ACKS_MAX and request_id not in self._waiting:
            self._violated()
            return
        self._waiting[request_id] = max(offset, self._waiting.get(request_id, 0))
        if self._task is None:
            self._task = asyncio.create_task(self._work())

    async def settled(self) -> None:
        """To be called once the session has ended."""
        self._over.set()
        if self._task is not None:
            await asyncio.wait({self._task})

    async def _work(self) -> None:
        try:
            while self._waiting:
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._over.wait(), GATHER_S)
                taken, self._waiting = self._waiting, {}
                await self._requests.ack(self._asker, taken)
        except ProtocolViolation:
            self._waiting.clear()
            self._violated()
        except StoreError as error:  # the answers stay until they expire
            _log.error("an acknowledgement was not kept: %s", error)
        finally:
            self._task = None

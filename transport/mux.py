"""Many requests on one session: numbers, credit, fairness, cancellation. Sans-IO, no clock. docs/SPEC.md section 7.

Both sides keep a queue of small messages, which go first, and send stream data round robin, so that one long answer
does not hold up a short one. A message for a stream that was never opened ends the session. What leaves as a burst and
what in cells is told by the padding mode (`transport.pacing`); when a tick is, the connection knows.
"""

from abc import ABC, abstractmethod
from collections import deque
from dataclasses import dataclass, field
from functools import partial
from typing import Final

from transport.errors import LocalMisuse, Overloaded, ProtocolViolation
from transport.messages import (
    CONTROL,
    DATA_MAX,
    MESSAGE_MAX,
    RECORD_PLAINTEXT_MAX,
    REQUEST_BODY_MAX,
    STREAMS_MAX,
    Answer,
    AnswerData,
    Body,
    Cancel,
    Credit,
    End,
    Message,
    Open,
    Padding,
    Refuse,
    RequestHeader,
    Resume,
    decode,
    decode_header,
    encode,
    request_digest,
)
from transport.pacing import (
    BUCKET_CELL,
    BUCKET_ROOM,
    CONSTANT_ROOM,
    ROOM_FLOOR,
    data_room,
    fill,
    rung,
    split,
)
from transport.records import LENGTH_LEN
from transport.stream import ANSWER_CREDIT, BODY_CREDIT, BodyBuffer, Progress, ReceiveHalf, SendHalf

BODIES_MAX: Final = 4 * REQUEST_BODY_MAX  # bytes of unfinished request bodies a gateway holds for one session
_OVERHEAD: Final = MESSAGE_MAX - DATA_MAX + LENGTH_LEN  # around the bytes of a data message, at most
_FLOOR: Final = 256  # a smaller rest of a record is left to padding
TAILS_MAX: Final = 2 * STREAMS_MAX  # answers that are over and still get dummy cells; the oldest lose theirs


@dataclass(frozen=True)
class RequestReceived:
    """Gateway: a whole request, length and digest verified."""

    stream: int
    request_id: bytes
    header: RequestHeader
    header_bytes: bytes
    body: bytes
    digest: bytes


@dataclass(frozen=True)
class ResumeRequested:
    """Gateway: the edge wants the answer of an earlier request from `offset` of `generation` on."""

    stream: int
    request_id: bytes
    generation: int
    offset: int


@dataclass(frozen=True)
class RequestCancelled:
    """Gateway: the edge wants no more of this answer. The stream is over."""

    stream: int


@dataclass(frozen=True)
class StreamWritable:
    """Gateway: some of this answer's bytes have left, so more may be written."""

    stream: int


@dataclass(frozen=True)
class AnswerStarted:
    """Edge."""

    stream: int
    status: int
    content_type: str
    streamed: bool


@dataclass(frozen=True)
class AnswerBytes:
    """Edge: report them with `consumed` once they are out of memory."""

    stream: int
    data: bytes


@dataclass(frozen=True)
class AnswerEnded:
    """Edge: the answer is whole; its length and SHA-256 were checked. The stream is over."""

    stream: int


@dataclass(frozen=True)
class StreamRefused:
    """Edge: the gateway ended the request. The stream is over."""

    stream: int
    status: int
    code: str
    message: str
    retryable: bool


StreamEvent = (
    RequestReceived
    | ResumeRequested
    | RequestCancelled
    | StreamWritable
    | AnswerStarted
    | AnswerBytes
    | AnswerEnded
    | StreamRefused
)


@dataclass
class _Paced:
    """A streamed answer in `bucket`: what waits for a tick besides its data, and what it has taken."""

    waiting: deque[bytes] = field(default_factory=deque)
    cells: int = 0
    ticks: int = 0  # at which it had cells, this one not counted
    busy: bool = False  # at this tick

    @property
    def rate(self) -> int:
        """Cells a tick, on average over those that had any; at least one."""
        ticks = self.ticks + self.busy
        return max(1, (self.cells + ticks // 2) // ticks)

    def send(self, message: Message) -> None:
        self.waiting.extend(split(encode(message), BUCKET_ROOM))


class _Mux(ABC):
    """What both sides share: the queue of small messages and the round robin over sending halves."""

    def __init__(self) -> None:
        self.events: deque[StreamEvent] = deque()
        self._queue: deque[tuple[bytes, bool]] = deque()  # encoded, and whether it is flow control
        self._senders: dict[int, SendHalf] = {}  # insertion order is the order of turns
        self._paced: dict[int, _Paced] = {}  # likewise; these leave in cells of their own
        self.padding = Padding.BUCKET

    def send(self, message: Message) -> None:
        """Queues a small message ahead of all stream data. Raises BadInput if it is too long for a record."""
        self._queue.extend(self._split(encode(message), isinstance(message, CONTROL)))

    def send_first(self, message: Message) -> None:
        """Queues a message ahead of everything; for one that begins a session."""
        self._queue.appendleft((encode(message), False))

    def pace(self, padding: Padding) -> None:
        """Changes the padding mode. Whatever waits goes the new way, small messages first."""
        self.padding = padding
        waiting = list(self._queue)
        waiting += [(encoded, False) for paced in self._paced.values() for encoded in paced.waiting]
        self._queue = deque(part for entry in waiting for part in self._split(*entry))
        self._paced.clear()

    def _split(self, encoded: bytes, control: bool) -> list[tuple[bytes, bool]]:
        if self.padding is not Padding.CONSTANT:
            return [(encoded, control)]
        return [(part, control) for part in split(encoded, CONSTANT_ROOM)]

    def cell(self, room: int = CONSTANT_ROOM) -> list[bytes]:
        """Mode `constant`: encoded messages for one cell, at most `room` bytes with their lengths; perhaps none."""
        return fill(room, self._next_for_cell)

    def _next_for_cell(self, room: int) -> bytes | None:
        if self._queue:
            return self._queue.popleft()[0] if len(self._queue[0][0]) + LENGTH_LEN <= room else None
        message = self._next_data(room, cell=True)
        return None if message is None else encode(message)

    def burst(self, limit: int) -> tuple[list[bytes], bool]:
        """(encoded messages for one burst of at most `limit` bytes, whether they are flow control alone)."""
        out: list[bytes] = []
        only_control = True
        room = RECORD_PLAINTEXT_MAX  # what is left of the record that `pack` is filling
        while True:
            if room < _OVERHEAD + _FLOOR:
                room = RECORD_PLAINTEXT_MAX
            if self._queue:
                if len(self._queue[0][0]) + LENGTH_LEN > limit:
                    break
                encoded, control = self._queue.popleft()
            else:
                message = self._next_data(min(room, limit))
                if message is None:
                    break
                encoded, control = encode(message), False
            only_control = only_control and control
            out.append(encoded)
            size = len(encoded) + LENGTH_LEN
            room = (room if size <= room else RECORD_PLAINTEXT_MAX) - size
            limit -= size
        return out, only_control

    def _next_data(self, room: int, *, cell: bool = False) -> Message | None:
        """Data or an end, in at most `room` bytes with its length, of the next stream whose turn it is."""
        if room < (ROOM_FLOOR if cell else _OVERHEAD + _FLOOR):
            return None
        for stream, half in list(self._senders.items()):
            if stream not in self._paced:
                size = data_room(stream, half.offset, room) if cell else min(room - _OVERHEAD, DATA_MAX)
                message = self._advance(stream, half, size)
                if message is not None:
                    return message
        return None

    def _advance(self, stream: int, half: SendHalf, size: int) -> Message | None:
        if half.sendable:
            offset, data = half.take(size)
            self._senders[stream] = self._senders.pop(stream)  # to the end of the turns
            return self._data_message(stream, offset, data)
        if half.drained:
            del self._senders[stream]
            return self._last_message(stream, half)
        return None

    def _grant(self, message: Credit) -> None:
        half = self._senders.get(message.stream)
        if half is not None:
            half.grant(message.limit)

    @property
    def queued(self) -> int:
        """Small messages that wait to leave."""
        return len(self._queue) + sum(len(paced.waiting) for paced in self._paced.values())

    @property
    def cells_due(self) -> bool:
        """Mode `bucket`: whether anything waits for a tick."""
        return False

    def cells(self, limit: int) -> list[list[bytes]]:
        """Mode `bucket`: messages for cells, each of at most BUCKET_ROOM bytes; about `limit` bytes of cells."""
        return []

    def dummies(self) -> int:
        """Mode `bucket`: how many padding-only cells end this tick; to be asked once a tick, after its cells."""
        return 0

    @abstractmethod
    def _data_message(self, stream: int, offset: int, data: bytes) -> Message: ...

    @abstractmethod
    def _last_message(self, stream: int, half: SendHalf) -> Message | None: ...


class _Asked:
    """The edge's view of one stream: how far its answer has come."""

    def __init__(self, progress: Progress | None) -> None:
        self.answer = ReceiveHalf(ANSWER_CREDIT, progress)
        self.started = False
        self.cancelled = False


class EdgeMux(_Mux):
    """The side that asks. Streams are numbered from 0 upwards and never used twice."""

    def __init__(self) -> None:
        super().__init__()
        self._next = 0
        self._streams: dict[int, _Asked] = {}

    def request(self, request_id: bytes, header: bytes, body: bytes, progress: Progress | None = None) -> int:
        """Queues a request and returns its stream number. Raises Overloaded with 32 streams open."""
        if decode_header(header).body_length != len(body):
            raise LocalMisuse("header does not tell the body's length")
        stream = self._new_stream(progress)
        self.send(Open(stream, request_id, header, request_digest(header, body)))
        if body:
            half = SendHalf(BODY_CREDIT)
            half.write(body)
            half.end()
            self._senders[stream] = half
        return stream

    def resume(self, request_id: bytes, progress: Progress) -> int:
        """Asks for the rest of an earlier request's answer; events follow as for a new one. Raises Overloaded."""
        stream = self._new_stream(progress)
        self.send(Resume(stream, request_id, progress.generation, progress.offset))
        return stream

    def early(self, limit: int) -> list[bytes]:
        """Encoded whole requests and resumes, in order, of at most `limit` bytes with their lengths.

        Ends at the first that does not fit whole, since stream numbers rise on the wire. Nothing else may be early data
        (review M6).
        """
        out: list[bytes] = []
        while self._queue:
            encoded, _ = self._queue[0]
            message = decode(encoded)
            half = self._senders.get(message.stream) if isinstance(message, Open) else None
            size = len(encoded) + LENGTH_LEN + (half.buffered + _OVERHEAD if half is not None else 0)
            if half is None and isinstance(message, Open):
                whole = decode_header(message.header).body_length == 0  # else cancelled meanwhile, its body is gone
            else:
                whole = half is None or half.buffered <= BODY_CREDIT
            if not isinstance(message, Open | Resume) or not whole or size > limit:
                break
            self._queue.popleft()
            out.append(encoded)
            if half is not None and isinstance(message, Open):
                out.append(encode(Body(message.stream, *half.take(half.buffered))))
                del self._senders[message.stream]
            limit -= size
        return out

    def _new_stream(self, progress: Progress | None) -> int:
        if len(self._streams) >= STREAMS_MAX:
            raise Overloaded(f"{STREAMS_MAX} requests are already open on this session")
        stream = self._next
        self._next += 1
        self._streams[stream] = _Asked(progress)
        return stream

    def cancel(self, stream: int) -> None:
        """No more of this answer is wanted; no event follows for it. Does nothing for a stream that is over."""
        asked = self._streams.get(stream)
        if asked is not None and not asked.cancelled:
            asked.cancelled = True
            self._senders.pop(stream, None)
            self.send(Cancel(stream))

    def consumed(self, stream: int, count: int) -> None:
        """The application has taken `count` answer bytes, so that the gateway may send more."""
        asked = self._streams.get(stream)
        if asked is not None:
            limit = asked.answer.consume(count)
            if limit is not None:
                self.send(Credit(stream, limit))

    def receive(self, message: Message) -> None:
        """Raises ProtocolViolation for what a gateway may not send, or not now."""
        if not isinstance(message, Credit | Answer | AnswerData | End | Refuse):
            raise ProtocolViolation("message is not for this side")
        asked = self._streams.get(message.stream)
        if asked is None:
            # Credit for a body that has all been sent, and whose stream has been refused meanwhile, is late, not wrong.
            if isinstance(message, Credit) and message.stream < self._next:
                return
            raise ProtocolViolation("stream is not open")
        match message:
            case Credit():
                self._grant(message)
            case Answer():
                if asked.started:
                    raise ProtocolViolation("answer begins twice")
                asked.started = True
                asked.answer.begin(message.generation)
                self._tell(asked, AnswerStarted(
                    message.stream, message.status, message.content_type, message.streamed
                ))
            case AnswerData():
                self._check_started(asked)
                asked.answer.accept(message.offset, message.data)
                self._tell(asked, AnswerBytes(message.stream, message.data))
            case End():
                self._check_started(asked)
                asked.answer.check_end(message.length, message.sha256)
                self._close(message.stream)
                self._tell(asked, AnswerEnded(message.stream))
            case Refuse():
                self._close(message.stream)
                self._tell(asked, StreamRefused(
                    message.stream, message.status, message.code, message.message, message.retryable
                ))

    def _check_started(self, asked: _Asked) -> None:
        if not asked.started:
            raise ProtocolViolation("answer has not begun")

    def _close(self, stream: int) -> None:
        del self._streams[stream]
        self._senders.pop(stream, None)

    def _tell(self, asked: _Asked, event: StreamEvent) -> None:
        if not asked.cancelled:
            self.events.append(event)

    def _data_message(self, stream: int, offset: int, data: bytes) -> Message:
        return Body(stream, offset, data)

    def _last_message(self, stream: int, half: SendHalf) -> Message | None:
        return None  # the header told the body's length


@dataclass
class _Asking:
    """The gateway's view of one stream whose request is not whole yet."""

    request: Open
    header: RequestHeader
    body: BodyBuffer


class GatewayMux(_Mux):
    """The side that answers. Bodies are put together here, so that nothing acts on a part of a request."""

    def __init__(self) -> None:
        super().__init__()
        self._last = -1
        self._incoming: dict[int, _Asking] = {}
        self._ungranted: deque[int] = deque()  # streams whose bodies have had no credit beyond the first
        self._answering: set[int] = set()
        self._ends: dict[int, End] = {}
        self._tails: list[tuple[int, int]] = []  # dummy cells that an answer which is over still gets, and the rate
        self._new_tails: list[tuple[int, int]] = []  # the same, from the next tick on

    def answer(
        self, stream: int, status: int, content_type: str, *, streamed: bool, generation: int = 0, offset: int = 0
    ) -> None:
        """Begins an answer, or goes on with it at `offset`. Does nothing, like the three below, once it is over."""
        if stream in self._answering and stream not in self._senders:
            self._senders[stream] = SendHalf(ANSWER_CREDIT, offset)
            head = Answer(stream, generation, status, content_type, streamed)
            if streamed and self.padding is Padding.BUCKET:
                self._paced[stream] = _Paced()
                self._paced[stream].send(head)
            else:
                self.send(head)

    def write(self, stream: int, data: bytes) -> None:
        half = self._senders.get(stream)
        if half is not None:
            half.write(data)

    def end(self, stream: int, length: int, sha256: bytes) -> None:
        """Marks the end: length and SHA-256 of the whole answer, also of what earlier links have carried."""
        half = self._senders.get(stream)
        if half is not None:
            half.end()
            self._ends[stream] = End(stream, length, sha256)

    def refuse(self, stream: int, status: int, code: str, message: str, *, retryable: bool) -> None:
        """Ends a stream without (the rest of) an answer."""
        if stream in self._answering:
            self._over(stream)
            refusal = Refuse(stream, status, code, message, retryable)
            if stream in self._paced:
                self._paced[stream].send(refusal)
            else:
                self.send(refusal)

    def pace(self, padding: Padding) -> None:
        super().pace(padding)
        self._tails.clear()
        self._new_tails.clear()

    @property
    def cells_due(self) -> bool:
        return bool(self._tails or self._new_tails) or self._next_paced() is not None

    def _next_paced(self) -> int | None:
        for stream, paced in self._paced.items():
            half = self._senders.get(stream)
            if paced.waiting or (half is not None and (half.sendable or half.drained)):
                return stream
        return None

    def cells(self, limit: int) -> list[list[bytes]]:
        out: list[list[bytes]] = []
        while len(out) * BUCKET_CELL < limit and (stream := self._next_paced()) is not None:
            paced = self._paced.pop(stream)
            self._paced[stream] = paced  # to the end of the turns
            turn = [fill(BUCKET_ROOM, partial(self._next_of, stream))]
            while paced.waiting:  # the parts of a message stay together
                turn.append(fill(BUCKET_ROOM, partial(self._next_of, stream)))
            paced.cells += len(turn)
            paced.busy = True
            out += turn
            if stream not in self._senders:
                del self._paced[stream]
                if tail := rung(paced.cells) - paced.cells:
                    self._new_tails.append((tail, paced.rate))
        return out

    def _next_of(self, stream: int, room: int) -> bytes | None:
        waiting, half = self._paced[stream].waiting, self._senders.get(stream)
        if waiting:
            return waiting.popleft() if len(waiting[0]) + LENGTH_LEN <= room else None
        if half is None or room < ROOM_FLOOR:
            return None
        message = self._advance(stream, half, data_room(stream, half.offset, room))
        return None if message is None else encode(message)

    def dummies(self) -> int:
        for paced in self._paced.values():
            paced.ticks, paced.busy = paced.ticks + paced.busy, False
        count = sum(min(tail, rate) for tail, rate in self._tails)
        left = [(tail - rate, rate) for tail, rate in self._tails if tail > rate]
        self._tails = [*left, *self._new_tails][-TAILS_MAX:]
        self._new_tails = []
        return count

    def buffered(self, stream: int) -> int:
        """Answer bytes that wait to leave; the caller stops writing while there are many."""
        half = self._senders.get(stream)
        return 0 if half is None else half.buffered

    def receive(self, message: Message) -> None:
        """Raises ProtocolViolation for what an edge may not send, or not now."""
        match message:
            case Open():
                self._open(message)
            case Resume():
                self._new_stream(message.stream)
                self.events.append(ResumeRequested(
                    message.stream, message.request_id, message.generation, message.offset
                ))
            case Body():
                asking = self._incoming.get(message.stream)
                if asking is None:
                    # Bytes that were under way when a request was refused are late, not wrong.
                    if message.stream > self._last:
                        raise ProtocolViolation("stream is not open")
                    return
                asking.body.accept(message.offset, message.data)
                self._finish_if_whole(message.stream, asking)
            case Credit():
                if message.stream > self._last:
                    raise ProtocolViolation("stream is not open")
                self._grant(message)
            case Cancel():
                if message.stream > self._last:
                    raise ProtocolViolation("stream is not open")
                if message.stream in self._answering:
                    if message.stream not in self._incoming:
                        self.events.append(RequestCancelled(message.stream))
                    self.refuse(message.stream, 499, "cancelled", "the request was cancelled", retryable=False)
            case _:
                raise ProtocolViolation("message is not for this side")

    @property
    def incomplete(self) -> bool:
        """Whether a request waits for more of its body."""
        return bool(self._incoming)

    def _new_stream(self, stream: int) -> None:
        if stream <= self._last:
            raise ProtocolViolation("stream number was used before")
        if len(self._answering) >= STREAMS_MAX:
            raise ProtocolViolation("too many streams are open")
        self._last = stream
        self._answering.add(stream)

    def _open(self, message: Open) -> None:
        self._new_stream(message.stream)
        asking = _Asking(message, header := decode_header(message.header), BodyBuffer(header.body_length))
        self._incoming[message.stream] = asking
        if header.body_length > BODY_CREDIT:
            self._ungranted.append(message.stream)
            self._grant_bodies()
        self._finish_if_whole(message.stream, asking)

    def _grant_bodies(self) -> None:
        """Lets the oldest waiting bodies come, as far as memory for unfinished ones goes."""
        waiting = set(self._ungranted)
        held = sum(a.header.body_length for stream, a in self._incoming.items() if stream not in waiting)
        while self._ungranted:
            asking = self._incoming.get(self._ungranted[0])
            if asking is not None:
                held += asking.header.body_length
                if held > BODIES_MAX:
                    return
                self.send(Credit(self._ungranted[0], asking.body.grant_all()))
            self._ungranted.popleft()

    def _finish_if_whole(self, stream: int, asking: _Asking) -> None:
        if not asking.body.complete:
            return
        del self._incoming[stream]
        self._grant_bodies()
        body = asking.body.take()
        if request_digest(asking.request.header, body) != asking.request.digest:
            raise ProtocolViolation("request does not fit its digest")
        self.events.append(RequestReceived(
            stream, asking.request.request_id, asking.header, asking.request.header, body, asking.request.digest
        ))

    def _over(self, stream: int) -> None:
        self._answering.discard(stream)
        self._senders.pop(stream, None)
        self._ends.pop(stream, None)
        if self._incoming.pop(stream, None) is not None:
            self._grant_bodies()

    def _data_message(self, stream: int, offset: int, data: bytes) -> Message:
        self.events.append(StreamWritable(stream))
        return AnswerData(stream, offset, data)

    def _last_message(self, stream: int, half: SendHalf) -> Message | None:
        last = self._ends.pop(stream)
        self._over(stream)
        return last

"""Many requests on one session: numbers, credit, fairness, cancellation. Sans-IO, no clock. docs/SPEC.md section 7.

Both sides keep a queue of small messages, which go first, and send stream data round robin, so that one long answer
does not hold up a short one. A message for a stream that was never opened ends the session. What leaves as a burst and
what in cells is told by the padding mode (`transport.pacing`); when a tick is, the connection knows.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Final

from transport.messages import (
    CONTROL,
    DATA_MAX,
    MESSAGE_MAX,
    RECORD_PLAINTEXT_MAX,
    Credit,
    Message,
    Padding,
    RequestHeader,
    encode,
)
from transport.pacing import BUCKET_ROOM, CONSTANT_ROOM, ROOM_FLOOR, Rhythm, data_room, fill, split
from transport.records import LENGTH_LEN
from transport.stream import SendHalf

OVERHEAD: Final = MESSAGE_MAX - DATA_MAX + LENGTH_LEN  # around the bytes of a data message, at most
_FLOOR: Final = 256  # a smaller rest of a record is left to padding


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


class Paced:
    """A streamed answer in `bucket`: what waits for a tick besides its data, and what it has taken."""

    def __init__(self) -> None:
        self.waiting: list[bytes] = []
        self.rhythm = Rhythm()

    def send(self, message: Message) -> None:
        self.waiting.extend(split(encode(message), BUCKET_ROOM))


class Mux(ABC):
    """What both sides share: the queue of small messages and the round robin over sending halves."""

    __slots__ = ("_paced", "_queue", "_senders", "events", "padding")  # and lists, not deques: an idle session is small

    def __init__(self) -> None:
        self.events: list[StreamEvent] = []
        self._queue: list[tuple[bytes, bool]] = []  # encoded, and whether it is flow control
        self._senders: dict[int, SendHalf] = {}  # insertion order is the order of turns
        self._paced: dict[int, Paced] = {}  # likewise; these leave in cells of their own
        self.padding = Padding.BUCKET

    def send(self, message: Message) -> None:
        """Queues a small message ahead of all stream data. Raises BadInput if it is too long for a record."""
        self._queue.extend(self._split(encode(message), isinstance(message, CONTROL)))

    def send_first(self, message: Message) -> None:
        """Queues a message ahead of everything; for one that begins a session."""
        self._queue.insert(0, (encode(message), False))

    def pace(self, padding: Padding) -> None:
        """Changes the padding mode. Whatever waits goes the new way, small messages first."""
        self.padding = padding
        waiting = list(self._queue)
        waiting += [(encoded, False) for paced in self._paced.values() for encoded in paced.waiting]
        self._queue = [part for entry in waiting for part in self._split(*entry)]
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
            return self._queue.pop(0)[0] if len(self._queue[0][0]) + LENGTH_LEN <= room else None
        message = self._next_data(room, cell=True)
        return None if message is None else encode(message)

    def burst(self, limit: int) -> tuple[list[bytes], bool]:
        """(encoded messages for one burst of at most `limit` bytes, whether they are flow control alone)."""
        out: list[bytes] = []
        only_control = True
        taken = 0  # of the queue
        room = RECORD_PLAINTEXT_MAX  # what is left of the record that `pack` is filling
        while True:
            if room < OVERHEAD + _FLOOR:
                room = RECORD_PLAINTEXT_MAX
            if taken < len(self._queue):
                encoded, control = self._queue[taken]
                if len(encoded) + LENGTH_LEN > limit:
                    break
                taken += 1
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
        del self._queue[:taken]
        return out, only_control

    def _next_data(self, room: int, *, cell: bool = False) -> Message | None:
        """Data or an end, in at most `room` bytes with its length, of the next stream whose turn it is."""
        if room < (ROOM_FLOOR if cell else OVERHEAD + _FLOOR):
            return None
        for stream, half in list(self._senders.items()):
            if stream not in self._paced:
                size = data_room(stream, half.offset, room) if cell else min(room - OVERHEAD, DATA_MAX)
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

    def dummies(self, tick: int) -> int:
        """Mode `bucket`: how many padding-only cells end tick number `tick`; to be asked once, after its cells."""
        return 0

    @abstractmethod
    def receive(self, message: Message) -> None:
        """Raises ProtocolViolation for what the peer may not send, or not now."""

    @abstractmethod
    def _data_message(self, stream: int, offset: int, data: bytes) -> Message: ...

    @abstractmethod
    def _last_message(self, stream: int, half: SendHalf) -> Message | None: ...

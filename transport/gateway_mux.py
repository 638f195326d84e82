"""The gateway's side of the streams: whole requests come in, answers go out. Sans-IO; see `transport.mux`."""

from dataclasses import dataclass
from functools import partial
from typing import Final

from transport.errors import ProtocolViolation
from transport.messages import (
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
    decode_header,
    encode,
    request_digest,
)
from transport.mux import Mux, Paced, RequestCancelled, RequestReceived, ResumeRequested, StreamWritable
from transport.pacing import BUCKET_CELL, BUCKET_ROOM, ROOM_FLOOR, Tail, data_room, fill
from transport.primitives import sha256
from transport.records import LENGTH_LEN
from transport.stream import ANSWER_CREDIT, BODY_CREDIT, BodyBuffer, SendHalf

BODIES_MAX: Final = 4 * REQUEST_BODY_MAX  # bytes of unfinished request bodies a gateway holds for one session
TAILS_MAX: Final = 2 * STREAMS_MAX  # answers that are over and still get dummy cells; the oldest lose theirs


@dataclass
class _Asking:
    """The gateway's view of one stream whose request is not whole yet."""

    request: Open
    header: RequestHeader
    body: BodyBuffer


class GatewayMux(Mux):
    """The side that answers. Bodies are put together here, so that nothing acts on a part of a request."""

    __slots__ = ("_answering", "_ends", "_incoming", "_last", "_new_tails", "_tails", "_ungranted", "seed")

    def __init__(self) -> None:
        super().__init__()
        self._last = -1
        self._incoming: dict[int, _Asking] = {}
        self._ungranted: list[int] = []  # streams whose bodies have had no credit beyond the first
        self._answering: list[int] = []  # at most STREAMS_MAX
        self._ends: dict[int, End] = {}
        self._tails: list[Tail] = []  # dummy cells that answers which are over still get
        self._new_tails: list[Tail] = []  # the same, from the next tick on
        self.seed = b""  # of the dice for tails; secret

    def answer(
        self, stream: int, status: int, content_type: str, *, streamed: bool, generation: int = 0, offset: int = 0
    ) -> None:
        """Begins an answer, or goes on with it at `offset`. Does nothing, like the three below, once it is over."""
        if stream in self._answering and stream not in self._senders:
            self._senders[stream] = SendHalf(ANSWER_CREDIT, offset)
            head = Answer(stream, generation, status, content_type, streamed)
            if streamed and self.padding is Padding.BUCKET:
                self._paced[stream] = Paced()
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
            paced.rhythm.add(len(turn))
            out += turn
            if stream not in self._senders:
                del self._paced[stream]
                tail = paced.rhythm.tail(sha256(self.seed, stream.to_bytes(8, "big")))
                if tail is not None:
                    self._new_tails.append(tail)
        return out

    def _next_of(self, stream: int, room: int) -> bytes | None:
        waiting, half = self._paced[stream].waiting, self._senders.get(stream)
        if waiting:
            return waiting.pop(0) if len(waiting[0]) + LENGTH_LEN <= room else None
        if half is None or room < ROOM_FLOOR:
            return None
        message = self._advance(stream, half, data_room(stream, half.offset, room))
        return None if message is None else encode(message)

    def dummies(self, tick: int) -> int:
        for paced in self._paced.values():
            paced.rhythm.end_tick(tick)
        count = sum(tail.next_tick() for tail in self._tails)
        self._tails = [*(tail for tail in self._tails if not tail.over), *self._new_tails][-TAILS_MAX:]
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
        self._answering.append(stream)

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
            self._ungranted.pop(0)

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
        if stream in self._answering:
            self._answering.remove(stream)
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

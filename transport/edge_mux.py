"""The edge's side of the streams: requests go out, answers come in. Sans-IO; see `transport.mux`."""

from transport.errors import LocalMisuse, Overloaded, ProtocolViolation
from transport.messages import (
    STREAMS_MAX,
    Answer,
    AnswerData,
    Body,
    Cancel,
    Credit,
    End,
    Message,
    Open,
    Refuse,
    Resume,
    decode,
    decode_header,
    encode,
    request_digest,
)
from transport.mux import OVERHEAD, AnswerBytes, AnswerEnded, AnswerStarted, Mux, StreamEvent, StreamRefused
from transport.records import LENGTH_LEN
from transport.stream import ANSWER_CREDIT, BODY_CREDIT, Progress, ReceiveHalf, SendHalf


class _Asked:
    """The edge's view of one stream: how far its answer has come."""

    def __init__(self, progress: Progress | None) -> None:
        self.answer = ReceiveHalf(ANSWER_CREDIT, progress)
        self.started = False
        self.cancelled = False


class EdgeMux(Mux):
    """The side that asks. Streams are numbered from 0 upwards and never used twice."""

    __slots__ = ("_next", "_streams")

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
            size = len(encoded) + LENGTH_LEN + (half.buffered + OVERHEAD if half is not None else 0)
            if half is None and isinstance(message, Open):
                whole = decode_header(message.header).body_length == 0  # else cancelled meanwhile, its body is gone
            else:
                whole = half is None or half.buffered <= BODY_CREDIT
            if not isinstance(message, Open | Resume) or not whole or size > limit:
                break
            self._queue.pop(0)
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

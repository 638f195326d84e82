"""One request in flight: the sending and the receiving half of its bytes, under credit. Sans-IO, no clock.

Offsets count bytes of the body (edge to gateway) or of the answer (gateway to edge). Credit is absolute: a limit up to
which the sender may go, never falling, so that a repeated or late message changes nothing.
"""

import hashlib
from collections import deque
from typing import Final

from transport.errors import LocalMisuse, ProtocolViolation
from transport.messages import CREDIT_MAX, REQUEST_BODY_MAX

BODY_CREDIT: Final = 8 * 1024  # of each new stream, before the gateway grants more
ANSWER_CREDIT: Final = 256 * 1024  # of each answer, before the edge grants more
ANSWER_MAX: Final = CREDIT_MAX  # bytes of one answer


class SendHalf:
    """Bytes waiting to leave within the peer's credit. The caller bounds `buffered` by waiting before it writes.

    `start` is the offset of the first byte that will be written: not 0 where an answer goes on.
    """

    def __init__(self, credit: int, start: int = 0) -> None:
        self._limit = start + credit
        self._pieces: deque[bytes] = deque()
        self._head = 0  # bytes of the first piece that have left
        self._sent = start
        self.buffered = 0
        self.ended = False

    def write(self, data: bytes) -> None:
        if self.ended:
            raise LocalMisuse("write after the end")
        if data:
            self._pieces.append(data)
            self.buffered += len(data)

    def end(self) -> None:
        self.ended = True

    def grant(self, limit: int) -> None:
        """Takes the peer's new limit; a lower one than before is a late message and changes nothing."""
        self._limit = max(self._limit, limit)

    @property
    def offset(self) -> int:
        """Of the byte that leaves next."""
        return self._sent

    @property
    def sendable(self) -> bool:
        return self.buffered > 0 and self._sent < self._limit

    @property
    def drained(self) -> bool:
        """Whether the end was marked and every byte before it has left."""
        return self.ended and self.buffered == 0

    def take(self, room: int) -> tuple[int, bytes]:
        """(offset, data) of at most `room` bytes within credit; call only while `sendable`."""
        budget = min(room, self._limit - self._sent)
        offset, out = self._sent, bytearray()
        while self._pieces and len(out) < budget:
            piece = self._pieces[0]
            part = piece[self._head : self._head + budget - len(out)]
            out += part
            self._head += len(part)
            if self._head == len(piece):
                self._pieces.popleft()
                self._head = 0
        if not out:
            raise LocalMisuse("nothing may be sent")
        data = bytes(out)
        self.buffered -= len(data)
        self._sent += len(data)
        return offset, data


class Progress:
    """How much of an answer an edge has, over all links: generation, offset, and the digest of what it has.

    It outlives sessions; at most one stream at a time works on it.
    """

    def __init__(self) -> None:
        self.generation = 0
        self.offset = 0
        self.digest = hashlib.sha256()


class ReceiveHalf:
    """Checks offsets and credit of what arrives, and says when to grant more."""

    def __init__(self, credit: int, progress: Progress | None = None) -> None:
        self._progress = progress or Progress()
        self._consumed = self._progress.offset
        self._limit = self._progress.offset + credit
        self._window = credit

    @property
    def received(self) -> int:
        return self._progress.offset

    def begin(self, generation: int) -> None:
        """Raises ProtocolViolation if bytes of another generation are here already: they cannot be taken back."""
        if self._progress.offset and generation != self._progress.generation:
            raise ProtocolViolation("answer is of another generation")
        self._progress.generation = generation

    def accept(self, offset: int, data: bytes) -> None:
        """Raises ProtocolViolation for a gap, an overlap, or more than was granted."""
        if offset != self._progress.offset:
            raise ProtocolViolation("data offset is not the next one")
        if offset + len(data) > self._limit:
            raise ProtocolViolation("data goes beyond the credit")
        self._progress.offset += len(data)
        self._progress.digest.update(data)

    def allow(self, limit: int) -> None:
        """Raises the limit to `limit` at once (a body whose length is known)."""
        self._limit = max(self._limit, limit)

    def consume(self, count: int) -> int | None:
        """The application has taken `count` bytes: the new limit to tell the peer, once half the window is used."""
        self._consumed += count
        if self._consumed > self.received:
            raise LocalMisuse("more was consumed than received")
        limit = min(self._consumed + self._window, ANSWER_MAX)
        if limit - self._limit < self._window // 2:
            return None
        self._limit = limit
        return limit

    def check_end(self, length: int, sha256: bytes) -> None:
        """Raises ProtocolViolation unless length and digest are those of what arrived."""
        if length != self.received or sha256 != self._progress.digest.digest():
            raise ProtocolViolation("end marker does not fit the data")


class BodyBuffer:
    """A request body being put together at the gateway; at most REQUEST_BODY_MAX bytes, checked before the first."""

    def __init__(self, length: int) -> None:
        if length > REQUEST_BODY_MAX:
            raise ProtocolViolation("request body is too long")
        self._length = length
        self._half = ReceiveHalf(min(BODY_CREDIT, length))
        self._data = bytearray()

    def grant_all(self) -> int:
        self._half.allow(self._length)
        return self._length

    def accept(self, offset: int, data: bytes) -> None:
        self._half.accept(offset, data)
        self._data += data

    @property
    def complete(self) -> bool:
        return len(self._data) == self._length

    def take(self) -> bytes:
        data = bytes(self._data)
        self._data.clear()
        return data

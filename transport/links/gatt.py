"""The pipe over GATT: an ordered byte stream in values that the carrier may reorder or drop. docs/SPEC.md section 9.

One service with three characteristics: the central writes values to `rx` without response, the peripheral notifies them
on `tx`, and `info` is read before. A pipe begins when the central subscribes to `tx`.

    data   0sssssss || payload(1 to 494)         sequence number mod 128
    state  0x80 || limit(4) || sent(4)           takes data values up to the limit-th; has sent so many itself
    end    0x81 || reason(1) || count(4)         the sender's last data value was the count-th

Counts are absolute, from the pipe's start, so that a value that is lost or comes late skews nothing. What is lost is
not sent again: the pipe ends, and the session goes on over another. Sans-IO: time comes in as an argument.
"""

from collections import deque
from dataclasses import dataclass
from struct import Struct
from typing import Final, Literal

from transport.errors import CloseReason, LinkLost, LocalMisuse, ProtocolViolation

SERVICE: Final = "6c550001-36dd-42eb-b94f-13d310764f09"
RX: Final = "6c550002-36dd-42eb-b94f-13d310764f09"
TX: Final = "6c550003-36dd-42eb-b94f-13d310764f09"
INFO: Final = "6c550004-36dd-42eb-b94f-13d310764f09"
WAITING: Final = "6c550006-36dd-42eb-b94f-13d310764f09"  # what an edge advertises that waits for a phone

Role = Literal["hop", "edge"]
ADVERTISED: Final[dict[Role, str]] = {"hop": SERVICE, "edge": WAITING}

SHORT_NAME: Final = 8  # bytes of a name that an advertisement has room for beside the service
VERSION: Final = 1
VALUE_MIN: Final = 20  # bytes: what an ATT_MTU of 23 leaves
VALUE_MAX: Final = 495  # two link-layer packets of 251 bytes exactly; 512 fails on hosts in use
WINDOW: Final = 32  # data values under way in one direction; far below half of the sequence numbers
FIRST_CREDIT: Final = 1  # of a peripheral whose host needs one value to be ready for more
QUEUE_MAX: Final = 64 * 1024  # bytes that wait to be sent
GAP_S: Final = 2.0  # a value that was sent and does not come within this time is lost
STARVED_S: Final = 30.0  # a peer that grants nothing for this long while something waits is given up
REPEAT_S: Final = 1.0  # after which a control value that may have been lost is said again

_SEQUENCES: Final = 128
_COUNT_MAX: Final = 2**32 - 1
_REASONS: Final[tuple[CloseReason, ...]] = ("done", "idle", "limit", "shutdown", "error")
_info = Struct(">BBHB")
_state = Struct(">BII")
_end = Struct(">BBI")
_STATE: Final = 0x80
_END: Final = 0x81
_HEADERS: Final = [bytes([number]) for number in range(_SEQUENCES)]


@dataclass(frozen=True)
class Info:
    """What the peripheral says in `info`: who it is, the largest value it takes, what the central may send at first."""

    role: Role
    value_size: int  # 20 to 495 bytes
    credit: int  # 1 to 32 values

    def encode(self) -> bytes:
        return _info.pack(VERSION, ("hop", "edge").index(self.role) + 1, self.value_size, self.credit)

    @classmethod
    def decode(cls, value: bytes) -> "Info":
        """Raises ProtocolViolation for every other length, version, role or bound."""
        if len(value) != _info.size:
            raise ProtocolViolation("the other end's info has a wrong length")
        version, role, value_size, credit = _info.unpack(value)
        if version != VERSION:
            raise ProtocolViolation("the other end speaks another version", hint="update the older of the two")
        if role not in (1, 2) or not VALUE_MIN <= value_size <= VALUE_MAX or not 1 <= credit <= WINDOW:
            raise ProtocolViolation("the other end's info is out of bounds")
        return cls("hop" if role == 1 else "edge", value_size, credit)


class _Incoming:
    """The peer's values put in order. At most 32 of them are here, unread or waiting for an earlier one."""

    def __init__(self, granted: int) -> None:
        self.ready: deque[bytes] = deque()  # payloads in order
        self.came = 0  # values that came in order
        self.promised = 0  # values that the peer has sent for certain
        self.gap_since: float | None = None
        self.moved_at = 0.0
        self.end: tuple[CloseReason, int] | None = None
        self.discarding = False  # nobody will read
        self._held: dict[int, bytes] = {}  # by number
        self._cut = 0  # bytes of the first payload that are read already
        self._grants = deque([granted])  # what was told; the peer may know only the first that it has not passed

    @property
    def limit(self) -> int:
        """What the peer may be told to send up to."""
        return min(self.came - len(self.ready) + WINDOW, _COUNT_MAX)

    @property
    def grant_due(self) -> bool:
        return self.limit - self._grants[-1] >= WINDOW // 2

    @property
    def peer_may_wait(self) -> bool:
        """Whether the peer stands at a grant that it knows, because it has not heard of a later one."""
        return len(self._grants) > 1 and self._grants[0] == self.promised and self.end is None

    @property
    def complete(self) -> bool:
        return self.end is not None and self.came == self.end[1]

    def tell(self) -> int:
        """What a state tells the peer: more in steps of half the window, so that few of them are to be remembered."""
        if self.grant_due:
            self._grants.append(self.limit)
        return self._grants[-1]

    def data(self, value: bytes, now: float) -> None:
        number = self.came + (value[0] - self.came) % _SEQUENCES
        if number >= (self.end[1] if self.end else self._grants[-1]) or number in self._held:
            raise ProtocolViolation("a value came twice or was not granted")
        payload = bytes(value[1:])
        if number == self.came and not self._held:
            self.came += 1
            self.ready.append(payload)
        else:
            self._held[number] = payload
            while (held := self._held.pop(self.came, None)) is not None:
                self.came += 1
                self.ready.append(held)
        if self.discarding:
            self.ready.clear()
        self.moved_at = now
        self.sent(number + 1, now, moved=number < self.came)

    def sent(self, count: int, now: float, *, moved: bool = False) -> None:
        """The peer has sent so many values. Keeps the time since which one of them is missing."""
        if count > self._grants[-1] or (self.end is not None and count > self.end[1]):
            raise ProtocolViolation("the peer sent more than was granted, or went on after its end")
        self.promised = max(self.promised, count)
        while len(self._grants) > 1 and self._grants[0] < self.promised:
            self._grants.popleft()
        if self.promised == self.came:
            self.gap_since = None
        elif self.gap_since is None or moved:
            self.gap_since = now

    def ended(self, reason: CloseReason, count: int, now: float) -> None:
        if self.end not in (None, (reason, count)) or count < self.promised:
            raise ProtocolViolation("the peer's end contradicts what it sent before")
        self.sent(count, now)
        self.end = (reason, count)

    def read(self, limit: int) -> bytes:
        parts: list[bytes] = []
        while self.ready and limit > 0:
            part = self.ready[0][self._cut:self._cut + limit]
            limit -= len(part)
            self._cut += len(part)
            parts.append(part)
            if self._cut == len(self.ready[0]):
                self.ready.popleft()
                self._cut = 0
        return b"".join(parts)

    def discard(self) -> None:
        self.discarding = True
        self.ready.clear()
        self._cut = 0


class _Outgoing:
    """Bytes that wait to leave in values of one size, as far as the peer's limit allows."""

    def __init__(self, payload_max: int, limit: int) -> None:
        self.buffered = 0
        self.sent = 0
        self.limit = limit
        self._payload_max = payload_max
        self._parts: deque[bytes] = deque()
        self._cut = 0

    def add(self, data: bytes) -> None:
        self._parts.append(data)
        self.buffered += len(data)

    def drop(self) -> None:
        self._parts.clear()
        self.buffered = self._cut = 0

    def grant(self, limit: int) -> bool:
        """Whether this allows more than was known."""
        if limit > self.sent + WINDOW:
            raise ProtocolViolation("the peer grants more than its window")
        before, self.limit = self.limit, max(self.limit, limit)
        return self.limit > before

    def next_data(self) -> bytes:
        """A value, as full as what waits allows: small writes travel together."""
        pieces, room = [_HEADERS[self.sent % _SEQUENCES]], self._payload_max
        while room and self._parts:
            piece = self._parts[0][self._cut:self._cut + room]
            pieces.append(piece)
            room -= len(piece)
            self._cut += len(piece)
            if self._cut == len(self._parts[0]):
                self._parts.popleft()
                self._cut = 0
        self.buffered -= self._payload_max - room
        self.sent += 1
        return b"".join(pieces)


class GattPipe:
    """One end of a pipe. Values go out by `next_value` and come in by `receive_value`; bytes by `send` and `read`.

    After an exception the pipe is dead but for `read`: what came in order until then is right.
    """

    def __init__(self, value_size: int, credit: int, peer_credit: int, now: float) -> None:
        """`value_size` of what this end sends, 20 to 495; `credit`: data values that it may send before the first grant
        (a central: those of `info`; a peripheral: 0), `peer_credit` likewise for the other end. `now` in seconds.
        """
        if not VALUE_MIN <= value_size <= VALUE_MAX or not (0 <= credit <= WINDOW and 0 <= peer_credit <= WINDOW):
            raise LocalMisuse("a pipe of these bounds is not possible")
        self._in = _Incoming(peer_credit)
        self._out = _Outgoing(value_size - 1, credit)
        self._in.moved_at = now
        self._tell = self._in.grant_due
        self._told_at = now
        self._mark_at: float | None = None  # when the peer is told how much was sent, unless more leaves before
        self._starved_since: float | None = None
        self._own_end: CloseReason | None = None
        self._closing = False  # this end began to close
        self._say_end = False
        self._said_at: float | None = None  # when the own end left last

    @property
    def buffered(self) -> int:
        """Bytes that wait to be sent."""
        return self._out.buffered

    @property
    def ended(self) -> CloseReason | None:
        """Why the peer ended, once every value before its end is here (perhaps not read yet)."""
        return self._in.end[0] if self._in.end and self._in.complete else None

    @property
    def finished(self) -> bool:
        """Both ends have said that they end: the carrier is no longer needed."""
        return self._said_at is not None and self._in.end is not None and (self._closing or self._in.complete)

    def send(self, data: bytes) -> None:
        """Queues bytes; those the peer will not read are dropped. LocalMisuse over 64 KiB in the queue, or after `end`.
        """
        if self._closing:
            raise LocalMisuse("this pipe was ended at this end")
        if self._own_end is not None or not data:
            return
        if self._out.buffered + len(data) > QUEUE_MAX:
            raise LocalMisuse("too many bytes wait to be sent")
        self._out.add(bytes(data))

    def end(self, reason: CloseReason) -> None:
        """Ends both directions: for "done" after all that is queued, else at once. What still comes is not kept."""
        if self._own_end is None:
            self._own_end, self._say_end = reason, True
        self._closing = True
        self._in.discard()
        self._tell = self._tell or self._in.grant_due
        if reason != "done" or self._in.end is not None:
            self._drop_queue()

    def next_value(self, now: float) -> bytes | None:
        """The next value to hand to the carrier, None if there is nothing to send or it has to wait for the peer."""
        out = self._out
        if self._tell:
            self._tell = False
            return self._state(now)
        if out.buffered:
            if out.sent < out.limit:
                self._mark_at = now + REPEAT_S
                return out.next_data()
            if self._starved_since is None:
                self._starved_since = now
            return None
        if self._say_end:
            self._say_end = False
            self._said_at = now
            self._mark_at = None
            return _end.pack(_END, _REASONS.index(self._own_end or "done"), out.sent)
        return None

    def receive_value(self, value: bytes, now: float) -> None:
        """Takes a value from the peer. Raises ProtocolViolation: empty, over 495 bytes, unknown, against the window."""
        if not 0 < len(value) <= VALUE_MAX:
            raise ProtocolViolation("a value is empty or too long")
        kind = value[0]
        if kind < _SEQUENCES:
            if len(value) == 1:
                raise ProtocolViolation("a value carries no data")
            self._in.data(value, now)
        elif kind == _STATE and len(value) == _state.size:
            _, limit, sent = _state.unpack(value)
            if self._out.grant(limit):
                self._starved_since = None
            self._in.sent(sent, now)
        elif kind == _END and len(value) == _end.size and value[1] < len(_REASONS):
            _, reason, count = _end.unpack(value)
            if self._in.end is not None and self._said_at is not None and now >= self._said_at + REPEAT_S / 2:
                self._say_end = True  # the peer asks again: it has not heard this end; in half a second it would have
            self._in.ended(_REASONS[reason], count, now)
        else:
            raise ProtocolViolation("a control value is unknown")
        if self._in.discarding:
            self._tell = self._tell or self._in.grant_due
        if self._in.end is not None and (self._closing or self._in.complete):
            self._drop_queue()  # nobody reads it any more
            if self._own_end is None:
                self._own_end, self._say_end = "done", True

    def read(self, limit: int) -> bytes:
        """At most `limit` bytes in order, b"" if none is here. Makes room, which the peer is told of in halves."""
        data = self._in.read(limit)
        self._tell = self._tell or (self._in.end is None and self._in.grant_due)
        return data

    def next_deadline(self) -> float | None:
        """When `handle_time` wants to be called, None if only values can change anything, in or out."""
        if self.finished:
            return None
        times: list[float] = []
        if not self._tell:  # else it is due already
            times += [self._mark_at] if self._mark_at is not None else []
            times += [self._told_at + REPEAT_S] if self._repeats else []
        if self._closing and self._said_at is not None and not self._say_end:
            times.append(self._said_at + REPEAT_S)
        if self._in.gap_since is not None and not self._closing:
            times.append(self._in.gap_since + GAP_S)
        if self._starved_since is not None:
            times.append(self._starved_since + STARVED_S)
        return min(times, default=None)

    def handle_time(self, now: float) -> None:
        """Raises LinkLost if a value is missing for 2 s, or the peer grants nothing for 30 s while something waits."""
        if self.finished:
            return
        if self._in.gap_since is not None and not self._closing and now >= self._in.gap_since + GAP_S:
            raise LinkLost("the radio lost a part of what was sent", hint="the session goes on over a new link")
        if self._starved_since is not None and now >= self._starved_since + STARVED_S:
            raise LinkLost("the peer takes nothing from this link any more")
        if (self._mark_at is not None and now >= self._mark_at) or (self._repeats and now >= self._told_at + REPEAT_S):
            self._tell = True
        if self._closing and self._said_at is not None and now >= self._said_at + REPEAT_S:
            self._say_end = True

    def _drop_queue(self) -> None:
        self._out.drop()
        self._starved_since = None

    @property
    def _repeats(self) -> bool:
        """A peer that has waited for longer than it may has given up, or has nothing to send."""
        return self._in.peer_may_wait and self._told_at <= self._in.moved_at + STARVED_S

    def _state(self, now: float) -> bytes:
        self._told_at, self._mark_at = now, None
        return _state.pack(_STATE, self._in.tell(), self._out.sent)

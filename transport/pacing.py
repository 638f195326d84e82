"""What a watcher may learn from sizes and times: padding modes, cells, ticks, and the ladder. Sans-IO.

**Ticks.** Each side has a clock of its own that starts with the session (the gateway's when it sends `welcome`, the
edge's when it has read it): tick k is at start + k * 100 ms, whatever the streams do (review H9). A tick that could
not be kept, as in a suspended machine or on a link that takes no more, is made up for once and not repeated.

**Choice.** The edge chooses. A session begins in `bucket`; for another mode the edge's first message is `pace(mode)`:
behind record 0 in a full handshake, behind the gateway's `welcome` in a resumed one, never in early data. A `pace`
that comes later, or twice, ends the session. It governs both directions from then on.

**bucket.** Bursts are padded (transport.records). The gateway's messages for a streamed answer (head, data, end, or a
refusal after the head) leave only at ticks, each record being a cell of 128 bytes of plaintext that serves one answer;
as many cells a tick as text waits. When the answer is over, padding-only cells follow, in numbers a tick like its own
(`Tail`), until the number of its cells is on the ladder 16, 24, 32, 48, 64, 96, ...; the edge's application has had the
end by then. What an edge says because an answer is over (`ack`, `spans`) would tell where the tail begins: once a
streamed answer has begun it waits until nothing has come for 500 ms, or for the next whole minute of the edge's clock.
A session that ends before the tail does loses it, and with it the rung: the length of its last answer then shows to one
cell (`EdgeSession.linger` waits for it). An answer that goes on over another session is counted from 0 there.

**constant.** At every tick from the beginning of the session to its end each side sends one cell of 512 bytes of
plaintext, whatever waits, and nothing else. The edge's cell with `pace` comes first: behind record 0, or at once behind
the `welcome`; the gateway's leave at ticks from when it has read that. There is no early data, and the last
cell, which holds `close`, leaves when the session ends. About 5 kB/s each way, and no request is faster than that.

**off.** Neither padding nor ticks, for trusted wires and measurements.

Cost of an answer of 300 tokens of 4 bytes at 20 a second, gateway to edge: off 10 kB, bucket 28 kB (about 150 cells,
rung 192, tail of 4 s), constant 81 kB in the same 15 s, and 81 kB the other way. A tick adds 50 ms to the first token
on average, 100 ms at most.

Cells keep 4 bytes free for a `rekey`. A message that does not fit a cell travels in `part` messages, which follow each
other without another message between them (but `close`), of at most one whole message's length in all.
"""

from collections.abc import Callable
from typing import Final

from transport.errors import ProtocolViolation
from transport.messages import MESSAGE_MAX, AnswerData, Message, Part, Rekey, decode, encode
from transport.primitives import sha256
from transport.records import LENGTH_LEN, REKEY_ROOM

TICK_S: Final = 0.1
QUIET_S: Final = 0.5
MINUTE_S: Final = 60.0
BUCKET_CELL: Final = 128  # plaintext bytes
CONSTANT_CELL: Final = 512
BUCKET_ROOM: Final = BUCKET_CELL - REKEY_ROOM  # for messages with their lengths
CONSTANT_ROOM: Final = CONSTANT_CELL - REKEY_ROOM
ROOM_FLOOR: Final = 64  # a smaller rest of a cell is left to padding; the longest `end` with its length takes 52
LADDER_FOOT: Final = 16
RHYTHM_TICKS: Final = 64  # of an answer, remembered for its tail
BLUR: Final = 0.7
LULL_MAX: Final = 2  # ticks without a cell in a row, in a tail: far below QUIET_S
_BIN8_MAX: Final = 255


def rung(cells: int) -> int:
    """The lowest number on the ladder 16, 24, 32, 48, 64, ... (2^k and 3 * 2^(k-1)) that is not below `cells`."""
    power = LADDER_FOOT
    while power < cells:
        if cells <= power * 3 // 2:
            return power * 3 // 2
        power *= 2
    return power


def data_room(stream: int, offset: int, room: int) -> int:
    """How many bytes a data message for `room` bytes, its length included, can carry."""
    left = room - LENGTH_LEN - (len(encode(AnswerData(stream, offset, b"."))) - 1)
    return left if left <= _BIN8_MAX else max(_BIN8_MAX, left - 1)  # bin 16 has a longer head than bin 8


def split(encoded: bytes, room: int) -> list[bytes]:
    """An encoded message as such if it fits `room` bytes with its length, else in encoded parts that each do."""
    if len(encoded) + LENGTH_LEN <= room:
        return [encoded]
    size = room - LENGTH_LEN - (len(encode(Part(True, bytes(_BIN8_MAX + 1)))) - (_BIN8_MAX + 1))
    pieces = [encoded[at : at + size] for at in range(0, len(encoded), size)]
    return [encode(Part(at < len(pieces) - 1, piece)) for at, piece in enumerate(pieces)]


def fill(room: int, take: Callable[[int], bytes | None]) -> list[bytes]:
    """The messages of one cell: what `take` gives for the room that is left, until it gives None."""
    cell: list[bytes] = []
    while (encoded := take(room)) is not None:
        cell.append(encoded)
        room -= len(encoded) + LENGTH_LEN
    return cell


class Joiner:
    """Puts parts together again; holds at most one message."""

    __slots__ = ("_data",)

    def __init__(self) -> None:
        self._data = bytearray()

    @property
    def busy(self) -> bool:
        """Whether parts are due, and no other message."""
        return bool(self._data)

    def add(self, part: Part) -> Message | None:
        """The whole message with its last part. Raises ProtocolViolation for one that may not come so."""
        if len(self._data) + len(part.data) > MESSAGE_MAX:
            raise ProtocolViolation("parts are too long for a message")
        self._data += part.data
        if part.more:
            return None
        message = decode(bytes(self._data))
        self._data.clear()
        if isinstance(message, Part | Rekey):
            raise ProtocolViolation("message may not come in parts")
        return message


class TickClock:
    """The ticks of one side of a session. Armed only while something is due at the next one."""

    __slots__ = ("_next", "_period", "_reached", "_start")

    def __init__(self, start: float, period: float = TICK_S) -> None:
        self._start, self._period = start, period
        self._next: float | None = None
        self._reached = False

    @property
    def deadline(self) -> float | None:
        """When the armed tick is; None when none is armed, or it has been reached and waits to be used."""
        return None if self._reached else self._next

    def arm(self, now: float) -> None:
        """Waits for the first tick after `now`; does nothing while one is armed."""
        if self._next is None:
            k = max(1, int((now - self._start) / self._period))
            while self._start + k * self._period <= now:  # the division may be off by one
                k += 1
            self._next = self._start + k * self._period

    @property
    def number(self) -> int:
        """Of the armed tick, from 1."""
        return 0 if self._next is None else round((self._next - self._start) / self._period)

    def reach(self, now: float) -> None:
        self._reached = self._next is not None and now >= self._next

    def due(self, now: float) -> bool:
        return self._next is not None and now >= self._next

    def used(self) -> None:
        self._next, self._reached = None, False


class Rhythm:
    """How many cells an answer had, and at each of its last ticks, so that its tail can go on in the same way."""

    __slots__ = ("_busy", "_counts", "_here", "_last", "cells")

    def __init__(self) -> None:
        self.cells = 0
        self._here = 0  # at this tick
        self._busy = 0  # ticks with cells, this one not counted
        self._last = 0  # number of the last of them
        self._counts = bytearray()

    def add(self, cells: int) -> None:
        """So many cells more leave at this tick."""
        self.cells += cells
        self._here += cells

    def end_tick(self, number: int) -> None:
        if not self._here:
            return
        if self._busy:
            self._counts += bytes(min(number - self._last - 1, LULL_MAX))
        self._counts.append(min(self._here, 255))
        del self._counts[:-RHYTHM_TICKS]
        self._busy, self._last, self._here = self._busy + 1, number, 0

    def tail(self, seed: bytes) -> "Tail | None":
        """What is missing to the next rung; None if nothing is. The tick at which the answer ends is not repeated."""
        missing = rung(self.cells) - self.cells
        busy = self._busy + bool(self._here)
        rate = max(1, (self.cells + busy // 2) // busy)
        return Tail(missing, bytes(self._counts) or bytes([min(rate, 255)]), rate, seed) if missing else None


class Tail:
    """Padding-only cells behind an answer: at each tick as many as the answer had at one that secret dice choose.

    Numbers that only come again would show where text, which brings new ones, has ended: so every second one is
    blurred. At `rate` cells a tick, the answer's average, a tail would take T ticks; after 2 T it goes no slower.
    """

    __slots__ = ("_at", "_counts", "_in_lull", "_missing", "_patience", "_rate", "_seed")

    def __init__(self, missing: int, counts: bytes, rate: int, seed: bytes) -> None:
        self._missing, self._counts, self._rate, self._seed = missing, counts, rate, seed
        self._patience = 2 * -(-missing // rate)
        self._at, self._in_lull = 0, False

    @property
    def over(self) -> bool:
        return self._missing == 0

    def next_tick(self) -> int:
        """How many cells are due at this tick."""
        # A lull is gone through to its end, so that none is longer than those of the answer, which LULL_MAX bounds.
        self._at = (self._at + 1) % len(self._counts) if self._in_lull else self._draw(len(self._counts))
        count = self._blurred(self._counts[self._at])
        self._in_lull = count == 0
        self._patience -= 1
        if self._patience < 0:
            count = max(count, self._rate)
        count = min(count, self._missing)
        self._missing -= count
        return count

    def _blurred(self, count: int) -> int:
        """Every second number that is not 0 is changed by some of what lies between two others."""
        one, other = (self._counts[self._draw(len(self._counts))] for _ in range(2))
        if not (count and one and other) or self._draw(2):
            return count
        return max(1, count + round(BLUR * (one - other)))

    def _draw(self, below: int) -> int:
        self._seed = sha256(b"causeway tail", self._seed)
        return int.from_bytes(self._seed[:4], "big") % below


class Veil:
    """Mode `bucket`, edge: holds back what would tell that a streamed answer is over while its tail still comes."""

    def __init__(self, start: float) -> None:
        self.drawn = False
        self._held: list[Message] = []
        self._minutes = TickClock(start, MINUTE_S)

    def hold(self, message: Message) -> bool:
        """Whether it keeps the message. Raises BadInput for one that is too long."""
        if self.drawn:
            encode(message)
            self._held.append(message)
        return self.drawn

    def deadline(self, heard: float) -> float | None:
        """When `release` will give something, if nothing is heard from now on."""
        if not self._held:
            return None
        quiet, minute = heard + QUIET_S, self._minutes.deadline
        return quiet if minute is None else min(quiet, minute)

    def release(self, now: float, heard: float) -> list[Message]:
        """What may leave now; `heard` is when the gateway was last heard."""
        if now >= heard + QUIET_S:
            self.drawn = False
        elif not self._held:
            return []
        elif not self._minutes.due(now):
            self._minutes.arm(now)
            return []
        return self.drain()

    def drain(self) -> list[Message]:
        held, self._held = self._held, []
        self._minutes.used()
        return held

"""Handshake, records and streams as one sans-IO object for each side: bytes, time and answers in; events and bytes out.

    edge                                   gateway
    EdgeConnection(offer, ...)             GatewayConnection(...)
      data_to_send()  -> frame 1  ------->   receive_data()
                                             SignatureNeeded -> signed(...)
      receive_data()  <------- frame 2 <--   data_to_send()
      SignatureNeeded -> signed(...)
      data_to_send()  -> record 0 ------->   CredentialReceived -> admit(...) / issue(...) / refuse()
      Welcomed / IssuedReceived  <--------   data_to_send()
      then streams, both ways, until Close

`now` is in unix seconds and must never fall during a connection. After a TransportError from `receive_data` or
`handle_time` the connection is closed: what `data_to_send` still returns may be sent, then the link is closed. Keys
belong to one link; a connection is never used on a second one.

Padding and ticks are those of `transport.pacing`: `next_deadline` holds the next tick while something is due at it, and
the first `data_to_send` at or after the tick gives what is.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum, auto
from typing import Final

from transport.errors import (
    HandshakeTimeout,
    IdentityExpired,
    LinkLost,
    LocalMisuse,
    Overloaded,
    PeerRefused,
    ProtocolViolation,
    TicketRefused,
    TransportError,
)
from transport.handshake import (
    FRAME_HEADER_LEN,
    Credential,
    FrameType,
    Hint,
    Split,
)
from transport.identity.verify import VerifiedPeer
from transport.messages import (
    Attest,
    Challenge,
    Close,
    Issued,
    Message,
    Padding,
    Part,
    Ping,
    Pong,
    Posture,
    Proof,
    Spans,
    Welcome,
    encode,
)
from transport.mux import Mux, StreamEvent
from transport.pacing import BUCKET_CELL, CONSTANT_CELL, CONSTANT_ROOM, Joiner, TickClock
from transport.primitives import Secret, sha256
from transport.records import LENGTH_LEN, RecordOpener, RecordSealer
from transport.tickets import Ticket, derive_tickets

STEP_DEADLINE_S: Final = 10.0  # each handshake step; 5 kB at 1 kB/s passes
EARLY_FLIGHT: Final = 8 * 1024  # bytes of messages, with their lengths, that may follow record 0 before the welcome
BURST: Final = 64 * 1024
LINK_ID_INPUT: Final = 64
REST_S: Final = 0.5  # without hearing anything, before an open session gives back memory that it can do without
IDLE_S: Final = 30.0  # without hearing anything, before a ping
SILENCE_S: Final = 45.0  # without hearing anything, before the link counts as lost
QUEUE_HIGH_WATER: Final = 256  # small messages waiting to leave; a shell stops reading above it

CLOSE_REFUSED: Final = "refused"
CLOSE_REVOKED: Final = "revoked"
_HINTS: Final = {
    Hint.NOT_SPOKEN_HERE: ("not_spoken_here", "is this the address of a Causeway hop or gateway, of this version?"),
    Hint.OVERLOADED: ("overloaded", "try again in a minute"),
}
_CLOSE_TEXT: Final = {
    CLOSE_REFUSED: (
        "the gateway did not accept this identity",
        "a device that has joined may have been revoked; for one that joins, the invitation may be used up, expired or "
        "for a device with a TPM (`edge join --tpm`); ask the gateway's administrator",
    ),
    CLOSE_REVOKED: (
        "the gateway has revoked this device",
        "it takes nothing from it any more; ask the gateway's administrator, who can say why and reinstate it",
    ),
    "overloaded": ("the gateway is overloaded", "try again in a minute"),
    "shutdown": ("the gateway is shutting down", "try again in a minute"),
    "protocol_error": ("the peer saw a protocol violation", "are both ends of the same version?"),
}


def refused_by(code: str) -> PeerRefused:
    """What the code of a `close` means to whoever wanted the session."""
    text, hint = _CLOSE_TEXT.get(code, ("the peer ended the session", None))
    return PeerRefused(text, reason=code if code in _CLOSE_TEXT else "other", hint=hint)


class Phase(Enum):
    """Where a connection is. There is no way back."""

    HANDSHAKE = auto()
    SIGNING = auto()  # a SignatureNeeded waits for `signed`
    ADMISSION = auto()  # record 0 is sent or verified; nothing but the gateway's decision is due
    OPEN = auto()
    CLOSED = auto()


@dataclass(frozen=True)
class SignatureNeeded:
    """Sign `message` (ECDSA P-256, SHA-256, 64 bytes r || s) with the SVID or device key and call `signed`."""

    message: bytes
    joining: bool = False  # at a gateway: with the key of the SVID that is for those who join or renew


@dataclass(frozen=True)
class CredentialReceived:
    """Gateway: who is asking, verified as far as the transcript goes. Decide by admit, issue or refuse."""

    credential: Credential


@dataclass(frozen=True)
class EvidenceReceived:
    """Gateway: of a device that joins and attests. `Attest` is answered by `challenge`, refuse or issue end it."""

    evidence: Attest | Proof


@dataclass(frozen=True)
class ChallengeReceived:
    """Edge: have the TPM answer it, and call `prove`."""

    challenge: Challenge


@dataclass(frozen=True)
class Welcomed:
    """Edge: the session is open."""

    welcome: Welcome


@dataclass(frozen=True)
class IssuedReceived:
    """Edge: the answer to a join or renewal; the session ends."""

    issued: Issued


@dataclass(frozen=True)
class SpansReceived:
    """Gateway: the edge's own spans."""

    spans: Spans


@dataclass(frozen=True)
class PostureReceived:
    """Gateway: what the edge says of its own state."""

    posture: Posture


@dataclass(frozen=True)
class AckReceived:
    """Gateway: the edge will not ask again for this answer's bytes before `offset`."""

    request_id: bytes
    offset: int


@dataclass(frozen=True)
class HeldReceived:
    """Gateway: which revocation list the edge has."""

    sequence: int


@dataclass(frozen=True)
class RevocationsReceived:
    """Edge: a revocation list, not looked at yet."""

    data: bytes


@dataclass(frozen=True)
class PeerClosed:
    """An orderly end."""

    code: str


Event = (
    SignatureNeeded
    | CredentialReceived
    | EvidenceReceived
    | ChallengeReceived
    | Welcomed
    | IssuedReceived
    | SpansReceived
    | PostureReceived
    | AckReceived
    | HeldReceived
    | RevocationsReceived
    | PeerClosed
    | StreamEvent
)


class Connection(ABC):
    """What both sides share: buffers, deadlines, the record phase, and how it all ends."""

    __slots__ = (
        "_awake", "_chaining_key", "_deadline", "_events", "_heard", "_inbox", "_joiner", "_link_head", "_on_record",
        "_opener", "_out", "_pinged", "_resuming", "_sealer", "_ticks", "peer", "phase", "session_hash", "tickets",
    )

    def __init__(self, now: float) -> None:
        self.phase = Phase.HANDSHAKE
        self.session_hash = b""
        self._resuming = False
        self.peer: VerifiedPeer | None = None
        self._out = bytearray()
        self._inbox = bytearray()
        self._events: list[Event] = []
        self._deadline: float | None = now + STEP_DEADLINE_S
        self._heard = now
        self._pinged = False
        self._awake = True
        self.tickets: list[Ticket] = []  # derived from this session, once it is open
        self._chaining_key: Secret | None = None
        self._on_record: Callable[[], None] | None = None  # called when a record of the open session is the peer's
        self._sealer: RecordSealer | None = None
        self._opener: RecordOpener | None = None
        self._link_head = bytearray()  # the edge's first 64 bytes
        self._ticks = TickClock(now)  # starts again with the session
        self._joiner = Joiner()

    @property
    def link_id(self) -> str:
        """First 8 bytes (hex) of SHA-256("causeway link" || the edge's first 64 bytes), as a hop computes it."""
        return sha256(b"causeway link", bytes(self._link_head[:LINK_ID_INPUT]))[:8].hex()

    def receive_data(self, data: bytes, now: float) -> None:
        """Takes bytes from the link, in order. Raises TransportError; then the connection is closed."""
        if self.phase is Phase.CLOSED:
            return
        self._heard, self._pinged, self._awake = now, False, True
        try:
            if self._opener is None:
                self._inbox += data
                self._handshake_input(now)
            else:
                self._opener.feed(data)
            if self._opener is not None:
                self._record_input(now)
        except TransportError as error:
            self._fail(error, now)
            raise

    def receive_eof(self) -> None:
        """The link ended. Raises LinkLost unless `close` has been seen or sent before."""
        if self.phase is not Phase.CLOSED:
            self._end()
            raise LinkLost("the link ended without a close", hint="the hop or gateway went away; try again")

    def data_to_send(self, now: float) -> bytes:
        """Bytes for the link, at most about one burst a call; b"" when nothing is due."""
        if self.phase is Phase.OPEN:
            if self._mux.padding is Padding.CONSTANT:
                if self._ticks.due(now):
                    self._seal_cell(now)
            else:
                self._seal_streams(now, BURST)
                self._seal_tick(now)
        out = bytes(self._out)
        self._out.clear()
        return out

    def next_event(self) -> Event | None:
        return self._events.pop(0) if self._events else None

    def next_deadline(self) -> float | None:
        """When `handle_time` is due next, if nothing happens before."""
        if self.phase is Phase.CLOSED or self._deadline is None:
            return None
        if self.phase is not Phase.OPEN:
            return self._deadline
        tick = self._ticks.deadline
        quiet = self._heard + REST_S if self._awake else self._silence_at
        return min(self._deadline, quiet, *([] if tick is None else [tick]))

    @property
    def _silence_at(self) -> float:
        return self._heard + (SILENCE_S if self._pinged else IDLE_S)

    def handle_time(self, now: float) -> None:
        """Notes a tick, pings an idle peer, and ends what has waited too long. Output may be due afterwards.

        Raises HandshakeTimeout; IdentityExpired when the session's SVIDs have run out; LinkLost when a peer has been
        silent through a ping. Then the connection is closed.
        """
        due = self.next_deadline()
        if due is None or now < due:
            return
        if self.phase is not Phase.OPEN:
            self._end()
            raise HandshakeTimeout("the peer made no progress in the handshake", hint="check the address and the link")
        if self._deadline is not None and now >= self._deadline:
            self.close("expired", now)
            raise IdentityExpired("the session's identity has run out", rule="session lifetime")
        self._ticks.reach(now)
        if self._awake and now >= self._heard + REST_S:
            self._rest()
        if now < self._silence_at:
            return
        if self._pinged:
            self._end()
            raise LinkLost("the peer has gone silent", hint="the hop or gateway went away; try again")
        self._pinged = True
        self._mux.send(Ping())

    def _rest(self) -> None:
        self._awake = False
        if self._sealer is not None and self._opener is not None:
            self._sealer.rest()
            self._opener.rest()
        if self.peer is not None:
            self.peer.key.rest()

    def close(self, code: str, now: float) -> None:
        """Ends the session in an orderly way, telling the peer if there are keys to tell it under.

        Small messages that wait leave first, and up to one burst of stream data with them; in mode `constant`, what
        fits a cell.
        """
        if self.phase is Phase.OPEN and self._mux.padding is not Padding.CONSTANT:
            self._seal_streams(now, BURST)
            self._seal_cells(now, BURST)
        self.cut(code, now)

    def cut(self, code: str, now: float) -> None:
        """The same at once: nothing of what waits leaves before the word (in mode `constant`, what fits its cell)."""
        if self.phase in (Phase.OPEN, Phase.ADMISSION):
            self._send_now(Close(code), now)
        self._end()

    def _start_records(self, split: Split, now: float) -> None:
        self._sealer, self._opener = RecordSealer(split.sending, now), RecordOpener(split.receiving, now)
        self._chaining_key = split.chaining_key

    def _open(self, peer: VerifiedPeer, not_after: float, now: float) -> None:
        """The session stands, until `not_after`; both sides derive its tickets."""
        self.phase = Phase.OPEN
        self.peer = peer
        self._deadline = not_after
        self._heard = now
        self._ticks = TickClock(now)
        if self._mux.padding is Padding.CONSTANT:
            self._ticks.arm(now)
        if self._chaining_key is not None:
            self.tickets = derive_tickets(self._chaining_key, self.session_hash, peer, not_after)
            self._chaining_key = None

    def _send_now(self, message: Message, now: float) -> None:
        if self._sealer is None:
            raise LocalMisuse("there are no keys yet")
        encoded = encode(message)
        if self._mux.padding is Padding.CONSTANT:
            cell = [*self._mux.cell(CONSTANT_ROOM - LENGTH_LEN - len(encoded)), encoded]
            self._out += self._sealer.seal_cell(cell, CONSTANT_CELL, now)
        else:
            self._out += self._sealer.seal_burst([encoded], now)

    def _take_frame(self, length_ok: int, limit: int) -> tuple[int, bytes] | None:
        """(type, body) of a whole frame; `length_ok` > 0 wants exactly that length. Hints are dealt with here."""
        if not self._inbox:
            return None
        kind = self._inbox[0]
        if kind == FrameType.HINT:
            if len(self._inbox) < 2:
                return None
            self._raise_hint(self._inbox[1])
        if len(self._inbox) < FRAME_HEADER_LEN:
            return None
        length = int.from_bytes(self._inbox[1:FRAME_HEADER_LEN], "big")
        if length > limit or (length_ok and length != length_ok):
            raise ProtocolViolation("handshake frame has a bad length")
        if len(self._inbox) < FRAME_HEADER_LEN + length:
            return None
        body = bytes(self._inbox[FRAME_HEADER_LEN : FRAME_HEADER_LEN + length])
        del self._inbox[: FRAME_HEADER_LEN + length]
        return kind, body

    def _raise_hint(self, code: int) -> None:
        if code == Hint.UNKNOWN_TICKET and self._resuming:
            raise TicketRefused("the gateway does not know this ticket")
        if code == Hint.OVERLOADED:
            raise Overloaded("the gateway is overloaded", hint=_HINTS[Hint.OVERLOADED][1])
        reason, hint = _HINTS[Hint.NOT_SPOKEN_HERE]
        raise PeerRefused("the other end does not take this handshake", reason=reason, hint=hint)

    def _peer_closed(self, message: Close) -> None:
        admitted = self.phase is Phase.OPEN
        self._end()
        if not admitted:
            raise refused_by(message.code)
        self._events.append(PeerClosed(message.code))

    def _fail(self, error: TransportError, now: float) -> None:
        if self.phase is Phase.OPEN and isinstance(error, ProtocolViolation) and error.code != "decrypt_failed":
            self._send_now(Close("protocol_error"), now)
        self._end()

    def _end(self) -> None:
        self.phase = Phase.CLOSED
        self._sealer = self._opener = None
        self._inbox.clear()

    def _seal_streams(self, now: float, limit: int) -> None:
        messages, control = self._mux.burst(limit)
        if messages and self._sealer is not None:
            self._out += self._sealer.seal_burst(messages, now, control=control)
        self._collect_events()

    def _seal_cell(self, now: float) -> None:
        """Mode `constant`: the one record of this tick."""
        if self._sealer is not None:
            self._out += self._sealer.seal_cell(self._mux.cell(), CONSTANT_CELL, now)
        self._collect_events()
        self._ticks.used()
        self._ticks.arm(now)

    def _seal_tick(self, now: float) -> None:
        """Mode `bucket`: if a tick is due, its cells, over several calls if there are many; else waits for one."""
        if self._ticks.due(now) and not self._seal_cells(now, BURST):
            if self._sealer is not None:
                for _ in range(self._mux.dummies(self._ticks.number)):
                    self._out += self._sealer.seal_cell([], BUCKET_CELL, now)
            self._ticks.used()
        if self._mux.cells_due:
            self._ticks.arm(now)

    def _seal_cells(self, now: float, limit: int) -> bool:
        """Whether more might wait."""
        cells = self._mux.cells(limit)
        if self._sealer is not None:
            for cell in cells:
                self._out += self._sealer.seal_cell(cell, BUCKET_CELL, now)
        self._collect_events()
        return len(cells) * BUCKET_CELL >= limit

    def _collect_events(self) -> None:
        self._events.extend(self._mux.events)
        self._mux.events.clear()

    def _record_input(self, now: float) -> None:
        while self._opener is not None and self.phase in (Phase.ADMISSION, Phase.OPEN):
            messages = self._opener.next_messages(now)
            if messages is None:
                return
            if self._on_record is not None:
                self._on_record()
            for message in messages:
                if self._opener is None:
                    raise ProtocolViolation("message after close")
                whole: Message | None = message
                if isinstance(message, Part) and self.phase is Phase.OPEN:
                    whole = self._joiner.add(message)
                elif self._joiner.busy and not isinstance(message, Close):
                    raise ProtocolViolation("message between parts")
                match whole:
                    case None:
                        pass
                    case Close():
                        self._peer_closed(whole)
                    case Ping() | Pong() if self.phase is not Phase.OPEN:
                        raise ProtocolViolation("a heartbeat before the session stands")
                    case Ping():
                        self._mux.send(Pong())
                    case Pong():
                        pass  # having been heard is all it is for
                    case _:
                        self._handle(whole, now)
                        self._collect_events()

    @property
    def congested(self) -> bool:
        """Whether so many small messages wait to leave that a shell should stop reading."""
        return self._mux.queued > QUEUE_HIGH_WATER

    @property
    @abstractmethod
    def _mux(self) -> Mux: ...

    @abstractmethod
    def _handshake_input(self, now: float) -> None: ...

    @abstractmethod
    def _handle(self, message: Message, now: float) -> None: ...

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
"""

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum, auto
from typing import Final

from transport.errors import (
    HandshakeTimeout,
    IdentityExpired,
    IdentityRefused,
    LinkLost,
    LocalMisuse,
    Overloaded,
    PeerRefused,
    ProtocolViolation,
    TransportError,
)
from transport.handshake import (
    FIRST_BODY_LEN,
    FRAME_HEADER_LEN,
    SECOND_BODY_MAX,
    Credential,
    FrameType,
    Hint,
    InitiatorHandshake,
    JoinOffer,
    Offer,
    RenewOffer,
    ResponderHandshake,
    SvidOffer,
    Verify,
    check_second_length,
    encode_offer,
)
from transport.identity.join import Invitation
from transport.identity.verify import VerifiedPeer
from transport.messages import Close, Issued, Message, Spans, Welcome, encode
from transport.mux import EdgeMux, GatewayMux, StreamEvent
from transport.noise import CipherState, Ephemerals
from transport.primitives import sha256
from transport.records import RecordOpener, RecordSealer

STEP_DEADLINE_S: Final = 10.0  # each handshake step; 5 kB at 1 kB/s passes
EARLY_FLIGHT: Final = 8 * 1024  # bytes of messages, with their lengths, that may follow record 0 before the welcome
UNVERIFIED_MAX: Final = 16 * 1024  # bytes a gateway holds before record 0 has been verified
BURST: Final = 64 * 1024
LINK_ID_INPUT: Final = 64
QUEUE_HIGH_WATER: Final = 256  # small messages waiting to leave; a shell stops reading above it

_CLOSE_REFUSED: Final = "refused"
_HINTS: Final = {
    Hint.NOT_SPOKEN_HERE: ("not_spoken_here", "is this the address of a Causeway hop or gateway, of this version?"),
    Hint.OVERLOADED: ("overloaded", "try again in a minute"),
}
_CLOSE_TEXT: Final = {
    _CLOSE_REFUSED: (
        "the gateway did not accept this identity",
        "the invitation may be used up or expired, or the device revoked; ask the gateway's administrator",
    ),
    "overloaded": ("the gateway is overloaded", "try again in a minute"),
    "shutdown": ("the gateway is shutting down", "try again in a minute"),
    "protocol_error": ("the peer saw a protocol violation", "are both ends of the same version?"),
}


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


@dataclass(frozen=True)
class CredentialReceived:
    """Gateway: who is asking, verified as far as the transcript goes. Decide by admit, issue or refuse."""

    credential: Credential


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
class PeerClosed:
    """An orderly end."""

    code: str


Event = SignatureNeeded | CredentialReceived | Welcomed | IssuedReceived | SpansReceived | PeerClosed | StreamEvent


class _Connection(ABC):
    """What both sides share: buffers, deadlines, the record phase, and how it all ends."""

    def __init__(self, now: float) -> None:
        self.phase = Phase.HANDSHAKE
        self.session_hash = b""
        self.peer: VerifiedPeer | None = None
        self._out = bytearray()
        self._inbox = bytearray()
        self._events: deque[Event] = deque()
        self._deadline: float | None = now + STEP_DEADLINE_S
        self._sealer: RecordSealer | None = None
        self._opener: RecordOpener | None = None
        self._link_head = bytearray()  # the edge's first 64 bytes

    @property
    def link_id(self) -> str:
        """First 8 bytes (hex) of SHA-256("causeway link" || the edge's first 64 bytes), as a hop computes it."""
        return sha256(b"causeway link", bytes(self._link_head[:LINK_ID_INPUT]))[:8].hex()

    def receive_data(self, data: bytes, now: float) -> None:
        """Takes bytes from the link, in order. Raises TransportError; then the connection is closed."""
        if self.phase is Phase.CLOSED:
            return
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
            self._seal_streams(now, BURST)
        out = bytes(self._out)
        self._out.clear()
        return out

    def next_event(self) -> Event | None:
        return self._events.popleft() if self._events else None

    def next_deadline(self) -> float | None:
        """When `handle_time` is due next, if nothing happens before."""
        return self._deadline if self.phase is not Phase.CLOSED else None

    def handle_time(self, now: float) -> None:
        """Raises HandshakeTimeout, or IdentityExpired when the session's SVIDs have run out; then it is closed."""
        if self.phase is Phase.CLOSED or self._deadline is None or now < self._deadline:
            return
        if self.phase is Phase.OPEN:
            self.close("expired", now)
            raise IdentityExpired("the session's identity has run out", rule="session lifetime")
        self._end()
        raise HandshakeTimeout("the peer made no progress in the handshake", hint="check the address and the link")

    def close(self, code: str, now: float) -> None:
        """Ends the session in an orderly way, telling the peer if there are keys to tell it under.

        Small messages that wait leave first, and up to one burst of stream data with them.
        """
        if self.phase is Phase.OPEN:
            self._seal_streams(now, BURST)
        if self.phase in (Phase.OPEN, Phase.ADMISSION):
            self._send_now(Close(code), now)
        self._end()

    def _start_records(self, ciphers: tuple[CipherState, CipherState], now: float) -> None:
        self._sealer, self._opener = RecordSealer(ciphers[0], now), RecordOpener(ciphers[1], now)

    def _open_until(self, *times: float) -> None:
        self.phase = Phase.OPEN
        self._deadline = min(times)

    def _send_now(self, message: Message, now: float) -> None:
        if self._sealer is None:
            raise LocalMisuse("there are no keys yet")
        self._out += self._sealer.seal_burst([encode(message)], now)

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
        if code == Hint.OVERLOADED:
            raise Overloaded("the gateway is overloaded", hint=_HINTS[Hint.OVERLOADED][1])
        reason, hint = _HINTS[Hint.NOT_SPOKEN_HERE]
        raise PeerRefused("the other end does not take this handshake", reason=reason, hint=hint)

    def _peer_closed(self, message: Close) -> None:
        admitted = self.phase is Phase.OPEN
        self._end()
        if not admitted:
            text, hint = _CLOSE_TEXT.get(message.code, ("the peer ended the session", None))
            raise PeerRefused(text, reason=message.code if message.code in _CLOSE_TEXT else "other", hint=hint)
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

    def _collect_events(self) -> None:
        self._events.extend(self._mux.events)
        self._mux.events.clear()

    def _record_input(self, now: float) -> None:
        while self._opener is not None and self.phase in (Phase.ADMISSION, Phase.OPEN):
            messages = self._opener.next_messages(now)
            if messages is None:
                return
            for message in messages:
                if self._opener is None:
                    raise ProtocolViolation("message after close")
                if isinstance(message, Close):
                    self._peer_closed(message)
                else:
                    self._handle(message)
                    self._collect_events()

    @property
    def congested(self) -> bool:
        """Whether so many small messages wait to leave that a shell should stop reading."""
        return self._mux.queued > QUEUE_HIGH_WATER

    @property
    @abstractmethod
    def _mux(self) -> EdgeMux | GatewayMux: ...

    @abstractmethod
    def _handshake_input(self, now: float) -> None: ...

    @abstractmethod
    def _handle(self, message: Message) -> None: ...


@dataclass(frozen=True)
class SvidLogin:
    """A session that carries requests: `chain` of our SVID, leaf first, and when it ends (unix seconds)."""

    chain: Sequence[bytes]
    not_after: float


@dataclass(frozen=True, eq=False)
class Joining:
    """A session that redeems an invitation for `device_spki` and asks for an SVID by `csr`."""

    invitation: Invitation
    device_spki: bytes
    csr: bytes


@dataclass(frozen=True)
class Renewing:
    """A session in which a registered device asks for its next SVID by `csr`."""

    device_spki: bytes
    csr: bytes


class EdgeConnection(_Connection):
    """The initiator. `verify_gateway` must check chain and role of what the gateway shows."""

    def __init__(
        self, purpose: SvidLogin | Joining | Renewing, verify_gateway: Verify, ephemerals: Ephemerals, now: float
    ) -> None:
        super().__init__(now)
        self._purpose = purpose
        self._streams = EdgeMux()
        kind = FrameType.FULL if isinstance(purpose, SvidLogin) else FrameType.FULL_WITH_ROOT
        self._handshake = InitiatorHandshake(kind, ephemerals, verify_gateway)
        self._out += self._handshake.first_frame()
        self._link_head += self._out[:LINK_ID_INPUT]

    @property
    def _mux(self) -> EdgeMux:
        return self._streams

    def request(self, request_id: bytes, header: bytes, body: bytes) -> int:
        """Queues a request; see `EdgeMux.request`. Allowed from the start: it leaves once the gateway has passed."""
        if self.phase is Phase.CLOSED or not isinstance(self._purpose, SvidLogin):
            raise LocalMisuse("this session carries no requests")
        return self._streams.request(request_id, header, body)

    def cancel(self, stream: int) -> None:
        self._streams.cancel(stream)

    def consumed(self, stream: int, count: int) -> None:
        self._streams.consumed(stream, count)

    def send_spans(self, spans: Spans) -> None:
        self._streams.send(spans)

    def signed(self, signature: bytes, now: float) -> None:
        """The answer to SignatureNeeded: record 0 leaves, and up to 8 KiB of requests in the same flight."""
        if self.phase is not Phase.SIGNING or self._sealer is None:
            raise LocalMisuse("no signature is due")
        record = self._sealer.seal_record(encode_offer(self._offer(signature)))
        self.session_hash = sha256(self._handshake.transcript, record)
        self._out += record
        self.phase = Phase.ADMISSION
        self._deadline = now + STEP_DEADLINE_S
        if isinstance(self._purpose, SvidLogin):
            self._seal_streams(now, EARLY_FLIGHT)

    def _offer(self, signature: bytes) -> Offer:
        match self._purpose:
            case SvidLogin(chain=chain):
                return SvidOffer(list(chain), signature)
            case Renewing(device_spki=spki, csr=csr):
                return RenewOffer(sha256(spki), csr, signature)
            case Joining(invitation=invitation, device_spki=spki, csr=csr):
                return JoinOffer(invitation.token_id, invitation.secret.expose(), csr, spki, signature)

    def _handshake_input(self, now: float) -> None:
        if self.phase is not Phase.HANDSHAKE:
            raise ProtocolViolation("the gateway spoke out of turn")
        taken = self._take_frame(0, SECOND_BODY_MAX)
        if taken is None:
            return
        kind, body = taken
        if kind != self._handshake.kind or self._inbox:
            raise ProtocolViolation("second handshake frame is not of the type asked for")
        check_second_length(len(body))
        self.peer = self._handshake.read_second(body, now)
        self._start_records(self._handshake.split(), now)
        self.phase = Phase.SIGNING
        message = (
            self._handshake.svid_input(self._purpose.chain[0])
            if isinstance(self._purpose, SvidLogin)
            else self._handshake.device_input(self._purpose.device_spki)
        )
        self._events.append(SignatureNeeded(message))

    def _record_input(self, now: float) -> None:
        if self.phase is Phase.SIGNING and self._opener is not None and self._opener.buffered:
            raise ProtocolViolation("the gateway spoke out of turn")
        super()._record_input(now)

    def _handle(self, message: Message) -> None:
        if self.phase is Phase.OPEN:
            self._streams.receive(message)
        elif isinstance(message, Welcome) and isinstance(self._purpose, SvidLogin):
            if self.peer is None:
                raise LocalMisuse("no gateway was verified")
            self._open_until(self.peer.not_after, self._purpose.not_after)
            self._events.append(Welcomed(message))
        elif isinstance(message, Issued) and not isinstance(self._purpose, SvidLogin):
            self._end()
            self._events.append(IssuedReceived(message))
        else:
            raise ProtocolViolation("the session did not begin with a welcome")


class GatewayConnection(_Connection):
    """The responder. `chain` is the gateway's SVID, leaf first; `root` (DER) is shown to those who join or renew."""

    def __init__(
        self, chain: Sequence[bytes], not_after: float, root: bytes, verify_edge: Verify, ephemerals: Ephemerals,
        now: float,
    ) -> None:
        super().__init__(now)
        self._chain, self._not_after, self._root = tuple(chain), not_after, root
        self._verify, self._ephemerals = verify_edge, ephemerals
        self._streams = GatewayMux()
        self._handshake: ResponderHandshake | None = None
        self.credential: Credential | None = None

    @property
    def _mux(self) -> GatewayMux:
        return self._streams

    @property
    def streams(self) -> GatewayMux:
        """Where answers are written."""
        return self._streams

    def receive_data(self, data: bytes, now: float) -> None:
        if len(self._link_head) < LINK_ID_INPUT:
            self._link_head += data[:LINK_ID_INPUT]
        super().receive_data(data, now)

    def signed(self, signature: bytes, now: float) -> None:
        """The answer to SignatureNeeded: frame 2 leaves."""
        if self.phase is not Phase.SIGNING or self._handshake is None:
            raise LocalMisuse("no signature is due")
        with_root = self._handshake.kind is FrameType.FULL_WITH_ROOT
        self._out += self._handshake.second_frame([*self._chain, *([self._root] if with_root else [])], signature)
        self._start_records(self._handshake.split(), now)
        self.phase = Phase.HANDSHAKE
        self._deadline = now + STEP_DEADLINE_S

    def admit(self, welcome: Welcome, now: float) -> None:
        """Lets the SVID's holder in. May raise like `receive_data`, for what the edge sent behind record 0."""
        if self.phase is not Phase.ADMISSION or not isinstance(self.credential, VerifiedPeer):
            raise LocalMisuse("no SVID waits to be admitted")
        self.peer = self.credential
        self._send_now(welcome, now)
        self._open_until(self._not_after, self.peer.not_after)
        self.receive_data(b"", now)

    def issue(self, issued: Issued, now: float) -> None:
        """Answers a join or renewal, and ends the session."""
        if self.phase is not Phase.ADMISSION or isinstance(self.credential, VerifiedPeer):
            raise LocalMisuse("no join or renewal waits")
        self._send_now(issued, now)
        self._end()

    def refuse(self, now: float) -> None:
        """Turns the credential down; the peer is told no more than that."""
        self.close(_CLOSE_REFUSED, now)

    def refuse_unheard(self, hint: Hint) -> None:
        """Ends a link before any work was done for it, with two unauthenticated bytes."""
        self._out += bytes([FrameType.HINT, hint])
        self._end()

    def _handshake_input(self, now: float) -> None:
        if self.phase is not Phase.HANDSHAKE:
            raise ProtocolViolation("the edge spoke out of turn")
        if self._inbox and self._inbox[0] not in (FrameType.FULL, FrameType.FULL_WITH_ROOT):
            self.refuse_unheard(Hint.NOT_SPOKEN_HERE)
            raise ProtocolViolation("handshake type is not known")
        taken = self._take_frame(FIRST_BODY_LEN, FIRST_BODY_LEN)
        if taken is None:
            return
        kind, body = taken
        if self._inbox:
            raise ProtocolViolation("the edge spoke out of turn")
        self._handshake = ResponderHandshake(FrameType(kind), self._ephemerals, self._verify)
        message = self._handshake.read_first(body, self._chain[0])
        self.phase = Phase.SIGNING
        self._events.append(SignatureNeeded(message))

    def _record_input(self, now: float) -> None:
        if self._opener is None:
            return
        if self.phase is Phase.HANDSHAKE and self._handshake is not None:
            opened = self._opener.next_record()
            if opened is not None:
                record, plaintext = opened
                self.session_hash = sha256(self._handshake.transcript, record)
                try:
                    self.credential = self._handshake.read_credential(plaintext, now)
                except (IdentityRefused, ProtocolViolation):
                    self._send_now(Close(_CLOSE_REFUSED), now)
                    raise
                self.phase = Phase.ADMISSION
                self._deadline = now + STEP_DEADLINE_S
                self._events.append(CredentialReceived(self.credential))
        if self.phase is Phase.OPEN:
            super()._record_input(now)
        elif self._opener.buffered > UNVERIFIED_MAX:
            raise ProtocolViolation("too much was sent before the credential was accepted")

    def _handle(self, message: Message) -> None:
        if isinstance(message, Spans):
            self._events.append(SpansReceived(message))
        else:
            self._streams.receive(message)

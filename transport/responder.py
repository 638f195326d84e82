"""The gateway's side of a connection. See `transport.connection` for how it is driven."""

from collections.abc import Callable, Sequence
from typing import Final

from transport.connection import (
    CLOSE_REFUSED,
    LINK_ID_INPUT,
    STEP_DEADLINE_S,
    AckReceived,
    Connection,
    CredentialReceived,
    EvidenceReceived,
    HeldReceived,
    Phase,
    PostureReceived,
    SignatureNeeded,
    SpansReceived,
)
from transport.errors import IdentityRefused, LocalMisuse, Overloaded, ProtocolViolation, TicketRefused, TransportError
from transport.gateway_mux import GatewayMux
from transport.handshake import (
    FIRST_BODY_LEN,
    RESUME_BODY_MAX,
    RESUME_BODY_MIN,
    Credential,
    FrameType,
    Hint,
    JoinCredential,
    ResponderHandshake,
    ResumedResponder,
    Verify,
)
from transport.identity.verify import VerifiedPeer
from transport.messages import (
    Ack,
    Attest,
    Body,
    Challenge,
    Close,
    Held,
    Issued,
    Message,
    Open,
    Pace,
    Padding,
    Posture,
    Proof,
    Resume,
    Revocations,
    Spans,
    Welcome,
    decode,
)
from transport.noise import Ephemerals
from transport.primitives import hmac_sha256, sha256
from transport.records import unpack
from transport.tickets import TICKET_ID_LEN, Ticket, TicketStore

UNVERIFIED_MAX: Final = 16 * 1024  # bytes a gateway holds before record 0 has been verified


class GatewayConnection(Connection):
    """The responder. `chain` is the gateway's SVID, leaf first; `root` (DER) is shown to those who join or renew,
    behind `joining`, which is another chain of the gateway's where `chain` leaves no room for it.

    `tickets` is shared by all connections of the gateway; it is asked, consumed and filled here. `take_full` is asked
    before the costly work of a full handshake: where it says no, the edge is told to come later. In its place
    `take_resumed` is asked where a ticket is known, before any key agreement, so that strangers who start handshakes
    need not keep out those who were here before.
    """

    __slots__ = (
        "_awaited", "_chain", "_early", "_ephemerals", "_handshake", "_joining", "_not_after", "_paced", "_root",
        "_siblings",
        "_streams", "_take_full", "_take_resumed", "_ticket_store", "_verify", "credential",
    )

    def __init__(
        self, chain: Sequence[bytes], not_after: float, root: bytes, verify_edge: Verify, ephemerals: Ephemerals,
        now: float, tickets: TicketStore, *, take_full: Callable[[], bool] = lambda: True,
        take_resumed: Callable[[], bool] = lambda: True, joining: Sequence[bytes] = (),
    ) -> None:
        super().__init__(now)
        self._chain, self._not_after, self._root = tuple(chain), not_after, root
        self._joining = tuple(joining) or self._chain
        self._verify, self._ephemerals = verify_edge, ephemerals
        self._streams = GatewayMux()
        self._handshake: ResponderHandshake | None = None
        self.credential: Credential | None = None
        self._awaited: type[Attest | Proof] | None = None  # of a device that joins
        self._ticket_store = tickets
        self._take_full, self._take_resumed = take_full, take_resumed
        self._early: list[bytes] = []
        self._siblings: list[Ticket] = []  # of the ticket this session was resumed by
        self._paced = False  # whether the moment for `pace` has passed

    @property
    def _mux(self) -> GatewayMux:
        return self._streams

    @property
    def streams(self) -> GatewayMux:
        """Where answers are written."""
        return self._streams

    def receive_data(self, data: bytes, now: float) -> None:
        self._link_head += data[: LINK_ID_INPUT - len(self._link_head)]
        super().receive_data(data, now)

    def signed(self, signature: bytes, now: float) -> None:
        """The answer to SignatureNeeded: frame 2 leaves."""
        if self.phase is not Phase.SIGNING or self._handshake is None:
            raise LocalMisuse("no signature is due")
        with_root = self._handshake.kind is FrameType.FULL_WITH_ROOT
        chain = [*self._joining, self._root] if with_root else self._chain
        self._out += self._handshake.second_frame(chain, signature)
        self._start_records(self._handshake.split(), now)
        self.phase = Phase.HANDSHAKE
        self._deadline = now + STEP_DEADLINE_S

    @property
    def resumed(self) -> bool:
        """Whether the edge came by a ticket, and so has shown no certificate."""
        return self._resuming

    def admit(self, welcome: Welcome, now: float) -> None:
        """Lets the SVID's holder in. May raise like `receive_data`, for what the edge sent behind record 0."""
        if self.phase is not Phase.ADMISSION or not isinstance(self.credential, VerifiedPeer):
            raise LocalMisuse("no SVID waits to be admitted")
        edge = self.credential
        self._send_now(welcome, now)
        not_after = edge.not_after if self._resuming else min(self._not_after, edge.not_after)
        if self._chaining_key is not None:
            self._streams.seed = hmac_sha256(self._chaining_key.expose(), b"causeway tail")
        self._open(edge, not_after, now)
        self._handshake = None  # an idle session is small
        self._ticket_store.put(self.tickets, now)
        try:
            self._take_early_data(now)
        except TransportError as error:
            self._fail(error, now)
            raise
        self.receive_data(b"", now)

    def _take_early_data(self, now: float) -> None:
        """Whole requests and resumes, which the journal does once however often they come; nothing else (M6)."""
        for encoded in self._early:
            message = decode(encoded)
            if not isinstance(message, Open | Body | Resume):
                raise ProtocolViolation("message may not be early data")
            self._streams.receive(message)
            self._collect_events()
        self._early.clear()
        if self._streams.incomplete:
            raise ProtocolViolation("early data holds a part of a request")

    def challenge(self, challenge: Challenge, now: float) -> None:
        """Answers `Attest`; a `Proof` is to follow."""
        if self.phase is not Phase.ADMISSION or self._awaited is not None:
            raise LocalMisuse("no evidence waits")
        self._send_now(challenge, now)
        self._awaited = Proof
        self._deadline = now + STEP_DEADLINE_S

    def issue(self, issued: Issued, now: float) -> None:
        """Answers a join or renewal, and ends the session."""
        if self.phase is not Phase.ADMISSION or isinstance(self.credential, VerifiedPeer):
            raise LocalMisuse("no join or renewal waits")
        self._send_now(issued, now)
        self._end()

    def refuse(self, now: float) -> None:
        """Turns the credential down; the peer is told no more than that."""
        self.close(CLOSE_REFUSED, now)

    def refuse_unheard(self, hint: Hint) -> None:
        """Ends a link before any work was done for it, with two unauthenticated bytes."""
        self._out += bytes([FrameType.HINT, hint])
        self._end()

    def send_revocations(self, data: bytes) -> None:
        """Hands the edge a signed list; nothing once the session has ended."""
        self._streams.send(Revocations(data))

    def _handshake_input(self, now: float) -> None:
        if self.phase is not Phase.HANDSHAKE:
            raise ProtocolViolation("the edge spoke out of turn")
        if self._inbox and self._inbox[0] == FrameType.RESUME:
            self._resume_input(now)
            return
        if self._inbox and self._inbox[0] not in (FrameType.FULL, FrameType.FULL_WITH_ROOT):
            self.refuse_unheard(Hint.NOT_SPOKEN_HERE)
            raise ProtocolViolation("handshake type is not known")
        taken = self._take_frame(FIRST_BODY_LEN, FIRST_BODY_LEN)
        if taken is None:
            return
        kind, body = taken
        if self._inbox:
            raise ProtocolViolation("the edge spoke out of turn")
        if not self._take_full():
            self.refuse_unheard(Hint.OVERLOADED)
            raise Overloaded("too many full handshakes at once")
        self._handshake = ResponderHandshake(FrameType(kind), self._ephemerals, self._verify)
        joining = self._handshake.kind is FrameType.FULL_WITH_ROOT
        message = self._handshake.read_first(body, (self._joining if joining else self._chain)[0])
        self.phase = Phase.SIGNING
        self._events.append(SignatureNeeded(message, joining))

    def _resume_input(self, now: float) -> None:
        taken = self._take_frame(0, RESUME_BODY_MAX)
        if taken is None:
            return
        _, body = taken
        if len(body) < RESUME_BODY_MIN or self._inbox:
            raise ProtocolViolation("first handshake message has a bad length")
        ticket = self._ticket_store.find(body[:TICKET_ID_LEN], now)
        if ticket is None:
            self.refuse_unheard(Hint.UNKNOWN_TICKET)
            raise TicketRefused("the edge resumes by a ticket that is not known here")
        if not self._take_resumed():
            self.refuse_unheard(Hint.OVERLOADED)
            raise Overloaded("too many sessions are resumed at once")
        handshake = ResumedResponder(ticket, self._ephemerals)
        early = handshake.read_first(body[TICKET_ID_LEN:])
        siblings = self._ticket_store.consume(ticket.id)
        if siblings is None:
            self.refuse_unheard(Hint.UNKNOWN_TICKET)
            raise TicketRefused("the edge resumes by a ticket that has been used")
        self._early, self._siblings = unpack(early), siblings
        self._on_record = self._forget_siblings
        self._resuming = True
        self._out += handshake.second_frame()
        self.session_hash = handshake.transcript
        self._start_records(handshake.split(), now)
        self.credential = ticket.peer
        self.phase = Phase.ADMISSION
        self._deadline = now + STEP_DEADLINE_S
        self._events.append(CredentialReceived(ticket.peer))

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
                    self._send_now(Close(CLOSE_REFUSED), now)
                    raise
                self.phase = Phase.ADMISSION
                self._deadline = now + STEP_DEADLINE_S
                self._events.append(CredentialReceived(self.credential))
                if isinstance(self.credential, JoinCredential) and self.credential.attests:
                    self._awaited = Attest
        if self.phase is Phase.OPEN or self._awaited is not None:
            super()._record_input(now)
        elif self._opener.buffered > UNVERIFIED_MAX:
            raise ProtocolViolation("too much was sent before the credential was accepted")

    def _forget_siblings(self) -> None:
        """The resumed session's first record has authenticated: the edge will not need them."""
        self._ticket_store.forget(self._siblings)
        self._on_record = None

    def _handle(self, message: Message, now: float) -> None:
        if self.phase is Phase.ADMISSION:
            if not isinstance(message, Attest | Proof) or type(message) is not self._awaited:
                raise ProtocolViolation("the edge spoke out of turn")
            self._awaited = None
            self._events.append(EvidenceReceived(message))
            return
        first, self._paced = not self._paced, True
        match message:
            case Pace() if first:
                self._set_pace(message.mode, now)
            case Spans():
                self._events.append(SpansReceived(message))
            case Posture():
                self._events.append(PostureReceived(message))
            case Ack():
                self._events.append(AckReceived(message.request_id, message.offset))
            case Held():
                self._events.append(HeldReceived(message.sequence))
            case _:
                self._streams.receive(message)

    def _set_pace(self, padding: Padding, now: float) -> None:
        if padding is self._streams.padding:
            return
        self._streams.pace(padding)
        if self._sealer is not None:
            self._sealer.stop_padding()  # of bursts; cells have their own way
        self._ticks.used()
        if padding is Padding.CONSTANT:
            self._ticks.arm(now)

"""The edge's side of a connection. See `transport.connection` for how it is driven."""

from collections.abc import Sequence
from dataclasses import dataclass

from transport.connection import (
    EARLY_FLIGHT,
    LINK_ID_INPUT,
    STEP_DEADLINE_S,
    ChallengeReceived,
    Connection,
    IssuedReceived,
    Phase,
    RevocationsReceived,
    SignatureNeeded,
    Welcomed,
)
from transport.edge_mux import EdgeMux
from transport.errors import LocalMisuse, ProtocolViolation
from transport.handshake import (
    SECOND_BODY_MAX,
    AttestedJoinOffer,
    FrameType,
    InitiatorHandshake,
    JoinOffer,
    Offer,
    RenewOffer,
    ResumingInitiator,
    SvidOffer,
    Verify,
    check_second_length,
    encode_offer,
)
from transport.identity.join import Invitation
from transport.messages import (
    Ack,
    Answer,
    Attest,
    Challenge,
    Held,
    Issued,
    Message,
    Pace,
    Padding,
    Posture,
    Proof,
    Revocations,
    Spans,
    Welcome,
)
from transport.noise import Ephemerals
from transport.pacing import QUIET_S, Veil
from transport.primitives import sha256
from transport.records import pack, pad
from transport.stream import Progress
from transport.tickets import Ticket


@dataclass(frozen=True)
class SvidLogin:
    """A session that carries requests: `chain` of our SVID, leaf first, and when it ends (unix seconds)."""

    chain: Sequence[bytes]
    not_after: float


@dataclass(frozen=True, eq=False)
class Joining:
    """A session that redeems an invitation for `device_spki` and asks for an SVID by `csr`.

    With `attest` it shows the TPM that holds the device key.
    """

    invitation: Invitation
    device_spki: bytes
    csr: bytes
    attest: Attest | None = None


@dataclass(frozen=True)
class Renewing:
    """A session in which a registered device asks for its next SVID by `csr`."""

    device_spki: bytes
    csr: bytes


@dataclass(frozen=True, eq=False)
class Resumption:
    """A session that goes on from an earlier one by a ticket. `early_data` off sends requests after the round trip."""

    ticket: Ticket
    early_data: bool = True


Purpose = SvidLogin | Joining | Renewing | Resumption


class EdgeConnection(Connection):
    """The initiator. `verify_gateway` must check chain and role of what the gateway shows. `padding` is for both."""

    __slots__ = ("_challenged", "_handshake", "_posture", "_purpose", "_streams", "_veil")

    def __init__(
        self, purpose: Purpose, verify_gateway: Verify, ephemerals: Ephemerals, now: float,
        padding: Padding = Padding.BUCKET, *, posture: Posture | None = None,
    ) -> None:
        super().__init__(now)
        self._purpose, self._posture = purpose, posture
        self._challenged = False
        self._streams = EdgeMux()
        self._veil = Veil(now)
        if padding is not Padding.BUCKET and isinstance(purpose, SvidLogin | Resumption):
            self._streams.pace(padding)
        self._handshake: InitiatorHandshake | ResumingInitiator
        if isinstance(purpose, Resumption):
            self._handshake = ResumingInitiator(purpose.ticket, ephemerals)
            self._resuming = True
        else:
            kind = FrameType.FULL if isinstance(purpose, SvidLogin) else FrameType.FULL_WITH_ROOT
            self._handshake = InitiatorHandshake(kind, ephemerals, verify_gateway)

    def data_to_send(self, now: float) -> bytes:
        if not self._link_head and self.phase is Phase.HANDSHAKE:
            # Made at the last moment, so that requests which wait already can be early data.
            if isinstance(self._handshake, ResumingInitiator):
                self._out += self._handshake.first_frame(self._early_data())
            else:
                self._out += self._handshake.first_frame()
            self._link_head += self._out[:LINK_ID_INPUT]
        self._lift_veil(now)
        return super().data_to_send(now)

    def next_deadline(self) -> float | None:
        usual, held = super().next_deadline(), self._veil.deadline(self._heard)
        return usual if usual is None or held is None else min(usual, held)

    def handle_time(self, now: float) -> None:
        super().handle_time(now)
        self._lift_veil(now)

    def close(self, code: str, now: float) -> None:
        for message in self._veil.drain():
            self._streams.send(message)
        super().close(code, now)

    def tail_seconds(self, now: float) -> float:
        """How long nothing must come, from now on, until the tail of a streamed answer counts as over; 0 if it does.

        Closing before that shows the answer's length to one cell (mode `bucket`).
        """
        return max(0.0, self._heard + QUIET_S - now) if self._veil.drawn else 0.0

    def _lift_veil(self, now: float) -> None:
        for message in self._veil.release(now, self._heard):
            self._streams.send(message)

    def _send_unhurried(self, message: Message) -> None:
        if not self._veil.hold(message):
            self._streams.send(message)

    def _early_data(self) -> bytes:
        if not isinstance(self._purpose, Resumption) or not self._purpose.early_data:
            return b""
        if self._streams.padding is Padding.CONSTANT:
            return b""  # its length would show
        plaintexts = pack(self._streams.early(EARLY_FLIGHT))
        if plaintexts and self._streams.padding is not Padding.OFF:
            plaintexts = pad(plaintexts, control=False)
        return plaintexts[0] if plaintexts else b""

    @property
    def _mux(self) -> EdgeMux:
        return self._streams

    def request(self, request_id: bytes, header: bytes, body: bytes, progress: Progress | None = None) -> int:
        """Queues a request; see `EdgeMux.request`. Allowed from the start: it leaves once the gateway has passed,
        or as early data where the session is resumed."""
        self._check_carries_requests()
        return self._streams.request(request_id, header, body, progress)

    def resume(self, request_id: bytes, progress: Progress) -> int:
        """Asks for the rest of an earlier request's answer; see `EdgeMux.resume`."""
        self._check_carries_requests()
        return self._streams.resume(request_id, progress)

    def acknowledge(self, request_id: bytes, offset: int) -> None:
        """Tells the gateway that it may forget the answer up to `offset`."""
        self._send_unhurried(Ack(request_id, offset))

    def tell_held(self, sequence: int) -> None:
        """Says which revocation list is here, so that the gateway sends a newer one if it has that."""
        self._streams.send(Held(sequence))

    def _check_carries_requests(self) -> None:
        if self.phase is Phase.CLOSED or not isinstance(self._purpose, SvidLogin | Resumption):
            raise LocalMisuse("this session carries no requests")

    def cancel(self, stream: int) -> None:
        self._streams.cancel(stream)

    def consumed(self, stream: int, count: int) -> None:
        self._streams.consumed(stream, count)

    def send_spans(self, spans: Spans) -> None:
        self._send_unhurried(spans)

    def signed(self, signature: bytes, now: float) -> None:
        """The answer to SignatureNeeded: record 0 leaves, and up to 8 KiB of requests in the same flight."""
        if self.phase is not Phase.SIGNING or self._sealer is None or isinstance(self._handshake, ResumingInitiator):
            raise LocalMisuse("no signature is due")
        record = self._sealer.seal_record(encode_offer(self._offer(signature)))
        self.session_hash = sha256(self._handshake.transcript, record)
        self._out += record
        self.phase = Phase.ADMISSION
        self._deadline = now + STEP_DEADLINE_S
        if isinstance(self._purpose, SvidLogin):
            self._tell_first(now)
            if self._streams.padding is not Padding.CONSTANT:
                self._seal_streams(now, EARLY_FLIGHT)
        elif isinstance(self._purpose, Joining) and self._purpose.attest is not None:
            self._send_now(self._purpose.attest, now)

    def prove(self, secret: bytes, now: float) -> None:
        """The answer to ChallengeReceived, 32 bytes."""
        if self.phase is not Phase.ADMISSION or not self._challenged:
            raise LocalMisuse("no proof is due")
        self._send_now(Proof(secret), now)
        self._deadline = now + STEP_DEADLINE_S

    def _tell_first(self, now: float) -> None:
        """The padding mode, unless it is the one that sessions begin in, then the posture; before all requests."""
        if self._posture is not None:
            self._streams.send_first(self._posture)
        if self._sealer is None or self._streams.padding is Padding.BUCKET:
            return
        self._sealer.stop_padding()  # of bursts; cells have their own way
        self._streams.send_first(Pace(self._streams.padding))
        if self._streams.padding is Padding.CONSTANT:
            self._seal_cell(now)

    def _offer(self, signature: bytes) -> Offer:
        match self._purpose:
            case SvidLogin(chain=chain):
                return SvidOffer(list(chain), signature)
            case Renewing(device_spki=spki, csr=csr):
                return RenewOffer(sha256(spki), csr, signature)
            case Joining(invitation=invitation, device_spki=spki, csr=csr, attest=attest):
                kind = JoinOffer if attest is None else AttestedJoinOffer
                return kind(invitation.token_id, invitation.secret.expose(), csr, spki, signature)
        raise LocalMisuse("a resumption offers no credential")

    def _handshake_input(self, now: float) -> None:
        if self.phase is not Phase.HANDSHAKE:
            raise ProtocolViolation("the gateway spoke out of turn")
        taken = self._take_frame(0, SECOND_BODY_MAX)
        if taken is None:
            return
        kind, body = taken
        if kind != self._handshake.kind:
            raise ProtocolViolation("second handshake frame is not of the type asked for")
        if isinstance(self._handshake, ResumingInitiator):
            self._handshake.read_second(body)
            self.session_hash = self._handshake.transcript
            self._start_records(self._handshake.split(), now)
            self.phase = Phase.ADMISSION
            self._deadline = now + STEP_DEADLINE_S
            if self._opener is not None:  # records follow in the same flight
                self._opener.feed(bytes(self._inbox))
                self._inbox.clear()
            return
        if self._inbox:
            raise ProtocolViolation("the gateway spoke out of turn")
        check_second_length(len(body))
        self.peer = self._handshake.read_second(body, now)
        self._start_records(self._handshake.split(), now)
        self.phase = Phase.SIGNING
        if isinstance(self._purpose, Resumption):
            raise LocalMisuse("a resumption signs nothing")
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

    def _handle(self, message: Message, now: float) -> None:
        if self.phase is Phase.OPEN and isinstance(message, Revocations):
            self._events.append(RevocationsReceived(message.data))
        elif self.phase is Phase.OPEN:
            self._streams.receive(message)
            if isinstance(message, Answer) and message.streamed and self._streams.padding is Padding.BUCKET:
                self._veil.drawn = True
        elif isinstance(message, Welcome) and isinstance(self._purpose, SvidLogin) and self.peer is not None:
            self._open(self.peer, min(self.peer.not_after, self._purpose.not_after), now)
            self._events.append(Welcomed(message))
        elif isinstance(message, Welcome) and isinstance(self._purpose, Resumption):
            self._open(self._purpose.ticket.peer, self._purpose.ticket.not_after, now)
            self._tell_first(now)
            self._events.append(Welcomed(message))
        elif (
            isinstance(message, Challenge) and isinstance(self._purpose, Joining)
            and self._purpose.attest is not None and not self._challenged
        ):
            self._challenged = True
            self._deadline = now + STEP_DEADLINE_S
            self._events.append(ChallengeReceived(message))
        elif isinstance(message, Issued) and isinstance(self._purpose, Joining | Renewing):
            self._end()
            self._events.append(IssuedReceived(message))
        else:
            raise ProtocolViolation("the session did not begin with a welcome")

"""Two connection cores joined by a wire that a test can look at and bend. No asyncio, no sockets."""

from collections.abc import Callable
from dataclasses import dataclass, field

from tests.support.ca import Ca
from transport.connection import CredentialReceived, Event, SignatureNeeded
from transport.handshake import Verify
from transport.identity.svid import Svid, TrustBundle
from transport.identity.verify import verify_svid
from transport.initiator import EdgeConnection, Resumption, SvidLogin
from transport.messages import Padding, RequestHeader, Welcome, encode_header
from transport.noise import SystemEphemerals
from transport.pacing import TICK_S
from transport.primitives import sha256
from transport.responder import GatewayConnection
from transport.tickets import Ticket, TicketStore

EPOCH = b"e" * 16


def verifier(bundle: TrustBundle, role: str) -> Verify:
    return lambda chain, now: verify_svid(chain, bundle, role=role, now=now)


def header(body: bytes, *, route: str = "/v1/chat/completions", expires_at: int = 2_000_000_000) -> bytes:
    return encode_header(RequestHeader("POST", route, "application/json", "", len(body), expires_at))


def untouched(data: bytes) -> bytes:
    return data


@dataclass
class Pair:
    """An edge and a gateway. `pump` carries bytes both ways until nothing moves, signing and admitting on the way.

    It lets time pass from tick to tick as long as something waits for one.
    """

    edge: EdgeConnection
    gateway: GatewayConnection
    edge_svid: Svid
    gateway_svid: Svid
    now: float
    admit: bool = True
    edge_events: list[Event] = field(default_factory=list)
    gateway_events: list[Event] = field(default_factory=list)
    to_gateway: list[bytes] = field(default_factory=list)
    to_edge: list[bytes] = field(default_factory=list)
    bend_to_gateway: Callable[[bytes], bytes] = untouched
    bend_to_edge: Callable[[bytes], bytes] = untouched

    def step(self) -> bool:
        """One flight each way. Whether anything moved."""
        moved = False
        self._events()
        if data := self.edge.data_to_send(self.now):
            self.to_gateway.append(data)
            self.gateway.receive_data(self.bend_to_gateway(data), self.now)
            moved = True
        self._events()
        if data := self.gateway.data_to_send(self.now):
            self.to_edge.append(data)
            self.edge.receive_data(self.bend_to_edge(data), self.now)
            moved = True
        self._events()
        return moved

    def pump(self) -> None:
        while self.step() or self.tick():
            pass

    def tick(self) -> bool:
        """Goes on to the next tick, if one is waited for."""
        due = [d for core in (self.edge, self.gateway) if (d := core.next_deadline()) is not None]
        if not due or min(due) > self.now + 1.5 * TICK_S:
            return False
        self.now = max(self.now, min(due))
        for core in (self.edge, self.gateway):
            core.handle_time(self.now)
        return True

    def _events(self) -> None:
        for core, key, seen in (
            (self.edge, self.edge_svid.key, self.edge_events),
            (self.gateway, self.gateway_svid.key, self.gateway_events),
        ):
            while (event := core.next_event()) is not None:
                seen.append(event)
                if isinstance(event, SignatureNeeded):
                    core.signed(key.sign(event.message), self.now)
                elif isinstance(event, CredentialReceived) and self.admit:
                    self.gateway.admit(Welcome(EPOCH, "", 1), self.now)


def make_pair(
    ca: Ca | None = None, *, edge_svid: Svid | None = None, gateway_svid: Svid | None = None,
    gateway_bundle: TrustBundle | None = None, admit: bool = True, tickets: TicketStore | None = None,
    ticket: Ticket | None = None, early_data: bool = True, padding: Padding = Padding.BUCKET,
) -> Pair:
    """A fresh pair of one trust domain; pass an SVID to make a side somebody else, a ticket to resume."""
    ca = ca or Ca()
    edge_svid = edge_svid or ca.issue("edge/lap-1")
    gateway_svid = gateway_svid or ca.issue("gateway/main")
    now = ca.now
    purpose = Resumption(ticket, early_data) if ticket else SvidLogin(edge_svid.chain, edge_svid.not_after)
    edge = EdgeConnection(purpose, verifier(ca.bundle(), "gateway"), SystemEphemerals(), now, padding)
    gateway = GatewayConnection(
        gateway_svid.chain, gateway_svid.not_after, ca.root_der, verifier(gateway_bundle or ca.bundle(), "edge"),
        SystemEphemerals(), now, tickets if tickets is not None else TicketStore(),
    )
    return Pair(edge, gateway, edge_svid, gateway_svid, now, admit)


def answer(pair: Pair, stream: int, data: bytes, *, status: int = 200) -> None:
    """A whole answer, as a gateway gives it."""
    streams = pair.gateway.streams
    streams.answer(stream, status, "text/plain", streamed=False)
    streams.write(stream, data)
    streams.end(stream, len(data), sha256(data))

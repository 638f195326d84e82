"""Conversations between the two cores that ship, with recorded keys and planned times: what the session vectors show.

Each function of `SCRIPTS` plays one and gives its vector. All use the secrets and certificates of the first vector of
causeway.json, so a run gives the same bytes again.
"""

import hashlib
import json
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from relay.gateway.identity.attestation import make_credential
from tests.support import handshake_steps
from tests.support.connection_pair import EPOCH, header, verifier
from tests.support.outside import ROOT
from tests.support.recorded import Recorded, Side
from transport.connection import ChallengeReceived, CredentialReceived, Event, EvidenceReceived, SignatureNeeded
from transport.handshake import JoinCredential, RenewCredential
from transport.identity.join import Invitation, bundle_from_joined_root
from transport.identity.svid import TrustBundle
from transport.identity.verify import VerifiedPeer, verify_svid
from transport.initiator import EdgeConnection, Joining, Purpose, Renewing, Resumption, SvidLogin
from transport.messages import Attest, Challenge, Issued, Padding, Proof, SpanRecord, Spans, Welcome
from transport.mux import AnswerBytes, AnswerEnded, RequestReceived, ResumeRequested
from transport.primitives import Secret, SigningKey, sha256
from transport.responder import GatewayConnection
from transport.stream import Progress
from transport.tickets import Ticket, TicketStore

FIRST: dict[str, Any] = json.loads((Path(ROOT) / "tests/vectors/causeway.json").read_text())["vectors"][0]
NOW = float(FIRST["now"])
LIFETIME_S = 86_400
BUNDLE = TrustBundle(FIRST["trust_domain"], (bytes.fromhex(FIRST["root"]),), 1)
RECORDED = Recorded.from_json(FIRST)
CHAINS = {side: [bytes.fromhex(part) for part in FIRST[side]["chain"]] for side in ("edge", "gateway")}
KEYS = {side: SigningKey.from_pkcs8(Secret(bytes.fromhex(FIRST[side]["svid_key_pkcs8"]))) for side in CHAINS}
Result = dict[str, Any]


def derived(what: str) -> bytes:
    """32 bytes that are the same in every run."""
    return hashlib.sha512(f"causeway vector {what}".encode()).digest()[:32]


def derived_key(what: str) -> SigningKey:
    return SigningKey(ec.derive_private_key(int.from_bytes(derived(what), "big"), ec.SECP256R1()))


def csr_of(key: SigningKey) -> bytes:
    """As `make_csr`, with a signature that is the same in every run."""
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    request = builder.sign(key.private_key, hashes.SHA256(), ecdsa_deterministic=True)
    return request.public_bytes(serialization.Encoding.DER)


DEVICE = derived_key("device")
INVITATION = Invitation(
    sha256(BUNDLE.roots[0]), derived("token")[:8], Secret(derived("secret")[:16]), BUNDLE.trust_domain, "edge/lap-1",
    ("tcp:hop-1.field.example:7470", "https://gateway.field.example"),
)
ISSUED = Issued("spiffe://field.example/edge/lap-1", CHAINS["edge"], list(BUNDLE.roots), 1, 7)

EK, EPHEMERAL, ACTIVATED = derived_key("endorsement key"), derived_key("challenge"), derived("activated")


def _area(start: str, key: SigningKey) -> bytes:
    """TPMT_PUBLIC of section 8.7."""
    point = key.public.spki[-64:]
    return bytes.fromhex(start) + b"\0\x20" + point[:32] + b"\0\x20" + point[32:]


ATTEST = Attest(
    b"",
    _area("0023000b000300b20020837197674484b3f81a90cc8d46a5d724fd52d76e06520b64f2a1da1b331469aa"
          "0006008000430010" "00030010", EK),
    _area("0023000b0004047200000010" "0018000b00030010", DEVICE),
)
CHALLENGE = Challenge(*make_credential(
    EK.private_key.public_key(), b"\0\x0b" + sha256(ATTEST.key_public), ACTIVATED, EPHEMERAL.private_key
))


class Talk:
    """One session. `gateway_does` is called with each of the gateway's stream events."""

    def __init__(
        self, purpose: Purpose, store: TicketStore, sides: tuple[Side, Side], *, now: float = NOW,
        padding: Padding = Padding.BUCKET, device_key: SigningKey | None = None,
    ) -> None:
        def verify(chain: Any, at: float) -> VerifiedPeer:
            bundle = bundle_from_joined_root(INVITATION, chain) if isinstance(purpose, Joining) else BUNDLE
            return verify_svid(chain, bundle, role="gateway", now=at)

        self.now, self.start, self.store = now, now, store
        self.edge = EdgeConnection(purpose, verify, sides[0], now, padding)
        self.gateway = GatewayConnection(
            CHAINS["gateway"], NOW + 3_500, BUNDLE.roots[0], verifier(BUNDLE, "edge"), sides[1], now, store
        )
        self.gateway_does: Callable[[Event], None] = lambda event: None
        self.flights: list[dict[str, Any]] = []
        self.got: dict[int, bytes] = {}
        self.reads = True
        self.edge_saw: list[Event] = []
        self._keys = {"edge": device_key or KEYS["edge"], "gateway": KEYS["gateway"]}

    def settle(self, now: float | None = None) -> None:
        """Carries bytes both ways until nothing moves."""
        self.now = self.now if now is None else now
        moved = True
        while moved:
            moved = False
            self._events()
            for side, source, sink in (("edge", self.edge, self.gateway), ("gateway", self.gateway, self.edge)):
                if data := source.data_to_send(self.now):
                    self.flights.append({"at": round(self.now - self.start, 3), "from": side, "bytes": data.hex()})
                    sink.receive_data(data, self.now)
                    moved = True
                self._events()

    def run(self, until: float) -> None:
        """Lets time pass to `until` seconds after the session began, from deadline to deadline."""
        end = self.start + until
        while True:
            self.settle()
            due = [d for core in (self.edge, self.gateway) if (d := core.next_deadline()) is not None]
            if not due or min(due) > end:
                break
            self.now = max(self.now, min(due))
            for core in (self.edge, self.gateway):
                core.handle_time(self.now)
        self.now = end

    def _events(self) -> None:
        for side, core in (("edge", self.edge), ("gateway", self.gateway)):
            while (event := core.next_event()) is not None:
                match event:
                    case SignatureNeeded():
                        core.signed(self._keys[side].sign(event.message), self.now)
                    case CredentialReceived(credential=VerifiedPeer()):
                        self.gateway.admit(Welcome(EPOCH, "", 1), self.now)
                    case CredentialReceived(credential=JoinCredential() | RenewCredential() as credential):
                        if isinstance(credential, RenewCredential):
                            credential.verify(DEVICE.public)
                        if not (isinstance(credential, JoinCredential) and credential.attests):
                            self.gateway.issue(ISSUED, self.now)
                    case EvidenceReceived(evidence=Attest()):
                        self.gateway.challenge(CHALLENGE, self.now)
                    case ChallengeReceived():
                        self.edge.prove(ACTIVATED, self.now)
                    case EvidenceReceived(evidence=Proof()):
                        self.gateway.issue(ISSUED, self.now)
                    case AnswerBytes():
                        self.got[event.stream] = self.got.get(event.stream, b"") + event.data
                        if self.reads:
                            self.edge.consumed(event.stream, len(event.data))
                    case _ if side == "gateway":
                        self.gateway_does(event)
                    case _:
                        self.edge_saw.append(event)

    def request(self, number: int, body: bytes) -> None:
        self.edge.request(bytes([number]) * 16, header(body, expires_at=int(NOW) + LIFETIME_S), body)

    def answer(self, stream: int, text: bytes, *, streamed: bool = False, kind: str = "text/plain") -> None:
        self.gateway.streams.answer(stream, 200, kind, streamed=streamed)
        self.gateway.streams.write(stream, text)
        self.gateway.streams.end(stream, len(text), sha256(text))

    def vector(self, about: str, ticket: Ticket | None = None, sides: tuple[Side, Side] | None = None) -> Result:
        """What the flights hold, by keys that `handshake_steps` works out again."""
        raw = [bytes.fromhex(flight["bytes"]) for flight in self.flights]
        size = 3 + int.from_bytes(raw[1][1:3], "big")
        frames, rest = (raw[0], raw[1][:size]), [b"", raw[1][size:], *raw[2:]]
        more: Result = {}
        if ticket is None:
            kind = raw[0][0]
            steps, _ = handshake_steps.full(
                kind, frames, RECORDED.edge_scalar, RECORDED.edge_kem_seed, RECORDED.gateway_scalar
            )
            more["type"] = kind
        else:
            assert sides is not None
            named = {"id": ticket.id.hex(), "psk": ticket.psk.expose().hex()}
            steps = handshake_steps.resumed(named, frames, sides[0].scalar, sides[1].scalar)
            more |= {"type": 2, "ticket": named, "edge_scalar": sides[0].scalar.hex(),
                     "gateway_scalar": sides[1].scalar.hex()}
        readers = dict(zip(("edge", "gateway"), map(handshake_steps.Reader, steps.split()), strict=True))
        for index, (flight, data) in enumerate(zip(self.flights, rest, strict=True)):
            flight["holds"] = []
            if index < 2:
                flight["holds"].append({"frame": index + 1})
            if index == 0 and ticket is not None:
                flight["holds"][0] |= handshake_steps.inside(bytes.fromhex(
                    next(note["payload"] for note in steps.notes if note["after"] == "-> payload")
                ), "early")
            if index == 2 and ticket is None:
                plain, data = readers["edge"].take(data)
                length = int.from_bytes(plain[:2], "big")
                flight["holds"].append({"size": len(plain), "credential": plain[2 : 2 + length].hex()})
            flight["holds"] += readers[flight["from"]].records(data)
        tickets = [{"id": one.id.hex(), "psk": one.psk.expose().hex()} for one in self.edge.tickets]
        assert not tickets or steps.tickets(self.edge.session_hash)[1] == tickets
        return {
            "about": about, **more, "session_hash": self.edge.session_hash.hex(), "link_id": self.edge.link_id,
            "record_keys": {side: [key.hex() for key in reader.keys] for side, reader in readers.items()},
            **({"tickets": tickets} if tickets else {}), "flights": self.flights,
        }


def login(padding: Padding = Padding.BUCKET) -> Talk:
    purpose = SvidLogin(CHAINS["edge"], NOW + 3_500)
    return Talk(purpose, TicketStore(), (RECORDED.for_edge(), RECORDED.for_gateway()), padding=padding)


def rekey() -> list[Result]:
    """Both sides rekey after 15 minutes and go on under the new keys."""
    talk = login()

    def answer(event: Event) -> None:
        if isinstance(event, RequestReceived):
            talk.answer(event.stream, b"answer %d" % event.stream)

    talk.gateway_does = answer
    for number, seconds in ((1, 0), (2, 900), (3, 901)):
        talk.now = NOW + seconds
        talk.request(number, b"prompt %d" % number)
        talk.settle()
    assert talk.got == {index: b"answer %d" % index for index in range(3)}
    return [talk.vector(
        "both sides have used their keys for 900 s: `rekey` follows the burst in a record of its own, and what comes"
        " later is under the next key"
    )]


def packing() -> list[Result]:
    """Two messages that do not fit one record together."""
    talk = login()
    talk.settle()
    for first in (0, 100):
        talk.edge.send_spans(Spans([_long_span(first + index) for index in range(8)]))
    talk.settle()
    return [talk.vector(
        "a burst whose second message does not fit the first record: that is filled with zeros to 16,384, and T counts"
        " it whole"
    )]


def _long_span(number: int) -> SpanRecord:
    attributes: dict[str, str | int | float] = {f"key {index}": "x" * 120 for index in range(8)}
    return SpanRecord(f"{number:032x}", f"{number:016x}", "", "wait", "edge", 1.9e12, 1.9e12 + number, attributes)


def join() -> list[Result]:
    """Type 3, kind 3."""
    purpose = Joining(INVITATION, DEVICE.public.spki, csr_of(KEYS["edge"]))
    talk = Talk(purpose, TicketStore(), (RECORDED.for_edge(), RECORDED.for_gateway()), device_key=DEVICE)
    talk.settle()
    vector = talk.vector("an edge joins; `issued` is the answer, with the first vector's edge chain")
    return [vector | {
        "invitation": INVITATION.encode(), "csr": csr_of(KEYS["edge"]).hex(),
        "device_key_pkcs8": DEVICE.to_pkcs8().expose().hex(),
    }]


def join_with_tpm() -> list[Result]:
    """Type 3, kind 4."""
    purpose = Joining(INVITATION, DEVICE.public.spki, csr_of(KEYS["edge"]), ATTEST)
    talk = Talk(purpose, TicketStore(), (RECORDED.for_edge(), RECORDED.for_gateway()), device_key=DEVICE)
    talk.settle()
    vector = talk.vector("an edge joins, and shows a TPM; its challenge holds `secret`, made by `ephemeral`")
    return [vector | {
        "invitation": INVITATION.encode(), "csr": csr_of(KEYS["edge"]).hex(),
        "device_key_pkcs8": DEVICE.to_pkcs8().expose().hex(), "ek_pkcs8": EK.to_pkcs8().expose().hex(),
        "ephemeral_pkcs8": EPHEMERAL.to_pkcs8().expose().hex(), "secret": ACTIVATED.hex(),
    }]


def renew() -> list[Result]:
    """Type 3, kind 2."""
    purpose = Renewing(DEVICE.public.spki, csr_of(KEYS["edge"]))
    talk = Talk(purpose, TicketStore(), (RECORDED.for_edge(), RECORDED.for_gateway()), device_key=DEVICE)
    talk.settle()
    vector = talk.vector("the same device renews")
    return [vector | {"csr": csr_of(KEYS["edge"]).hex(), "device_key_pkcs8": DEVICE.to_pkcs8().expose().hex()}]


def refuse() -> list[Result]:
    """`refuse`, then `close`."""
    talk = login()

    def answer(event: Event) -> None:
        if isinstance(event, RequestReceived):
            talk.gateway.streams.refuse(event.stream, 403, "not_allowed", "not for this device", retryable=False)

    talk.gateway_does = answer
    talk.request(1, b"prompt")
    talk.settle()
    talk.edge.close("normal", talk.now)
    talk.settle()
    return [talk.vector("a request is refused; then the edge ends the session")]


def resume() -> list[Result]:
    """`resume`, the rest of the answer, `ack`."""
    text, progress = b"the maximum pressure of the P-101 is 6 bar", Progress()
    progress.offset, progress.generation = 12, 1
    progress.digest.update(text[:12])
    talk = login()

    def answer(event: Event) -> None:
        if isinstance(event, ResumeRequested):
            streams = talk.gateway.streams
            streams.answer(event.stream, 200, "text/plain", streamed=False, generation=1, offset=event.offset)
            streams.write(event.stream, text[event.offset :])
            streams.end(event.stream, len(text), sha256(text))

    talk.gateway_does = answer
    talk.edge.resume(b"\x01" * 16, progress)
    talk.settle()
    talk.edge.acknowledge(b"\x01" * 16, len(text))
    talk.settle()
    assert talk.got[0] == text[12:] and any(isinstance(event, AnswerEnded) for event in talk.edge_saw)
    return [talk.vector("an edge that has 12 bytes of generation 1 asks for the rest, and acknowledges all of it")
            | {"answer": text.hex()}]


def bucket() -> list[Result]:
    """A streamed answer in cells; its head comes in parts; a tail; what the edge holds back."""
    talk = login()
    talk.request(1, b"prompt")
    talk.settle()
    text = b"".join(b"word %d, " % index for index in range(40))
    kind = "text/event-stream; profile=" + "p" * 100
    talk.run(0.05)
    talk.gateway.streams.answer(0, 200, kind, streamed=True)
    talk.gateway.streams.write(0, text[:20])
    talk.run(0.15)  # a tick at 0.1 s
    talk.gateway.streams.write(0, text[20:])
    talk.gateway.streams.end(0, len(text), sha256(text))
    talk.run(0.25)
    assert talk.got[0] == text
    talk.edge.acknowledge(b"\x01" * 16, len(text))
    talk.run(4.0)
    _join_tail(talk.flights)
    return [talk.vector(
        "a streamed answer: 40 words in cells at ticks, its head in two parts; then cells of padding up to the ladder;"
        " the edge's `ack` waits until it has heard nothing for 500 ms"
    )]


def _join_tail(flights: list[dict[str, Any]]) -> None:
    """Behind the answer's last cell, at 0.2 s: cells of padding as one flight, whatever their ticks, and the `ack`."""
    tail = [flight for flight in flights if flight["at"] > 0.25]
    *cells, ack = tail
    assert [flight["from"] for flight in tail] == ["gateway"] * len(cells) + ["edge"]
    assert all(after["at"] - before["at"] < 0.35 for before, after in pairwise(cells))
    assert ack["at"] - cells[-1]["at"] == pytest.approx(0.5)
    del flights[-len(tail) :], ack["at"]
    flights += [{"from": "gateway", "bytes": "".join(flight["bytes"] for flight in cells)}, ack]


def constant() -> list[Result]:
    """Mode `constant`: one record each way at every tick."""
    talk = login(Padding.CONSTANT)

    def answer(event: Event) -> None:
        if isinstance(event, RequestReceived):
            talk.answer(event.stream, b"yes", streamed=True)

    talk.gateway_does = answer
    talk.request(1, b"prompt")
    talk.run(0.45)
    talk.edge.close("normal", talk.now)
    talk.settle()
    assert talk.got == {0: b"yes"}
    return [talk.vector("`pace(constant)`: 512 bytes of plaintext each way at every tick; `close` leaves at once")]


def chain() -> list[Result]:
    """A session, one resumed by its first ticket, and one resumed by the first ticket of that."""
    store, out = TicketStore(), []
    purpose: Purpose = SvidLogin(CHAINS["edge"], NOW + 3_500)
    sides, ticket = (RECORDED.for_edge(), RECORDED.for_gateway()), None
    for number in range(3):
        talk = Talk(purpose, store, sides, now=NOW + 60 * number)

        def answer(event: Event, talk: Talk = talk) -> None:
            if isinstance(event, RequestReceived):
                talk.answer(event.stream, b"answer")

        talk.gateway_does = answer
        talk.request(number + 1, b"prompt")
        talk.settle()
        assert talk.got == {0: b"answer"}
        out.append(talk.vector(f"session {number + 1} of a chain", ticket, sides) | {"began": int(talk.start)})
        ticket = talk.edge.tickets[0]
        purpose = Resumption(ticket)
        edge, gateway = (Side(RECORDED, derived(f"{side} of session {number + 2}")) for side in ("edge", "gateway"))
        sides = edge, gateway
    return out


SCRIPTS: dict[str, Callable[[], list[Result]]] = {
    "rekey": rekey, "packing": packing, "join": join, "join with a TPM": join_with_tpm, "renew": renew,
    "refuse and close": refuse,
    "resume and ack": resume, "bucket": bucket, "constant": constant, "chain": chain,
}

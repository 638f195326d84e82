"""What is fuzzed: every decoder of bytes or text that somebody else wrote, as a table of functions of one input.

A target returns when its input was taken or refused with a documented error; whatever else it raises is a finding.
Inputs come from a deterministic world: fixed ephemerals where it matters, so that one input always takes one path.
"""

import atexit
import contextlib
import functools
import hashlib
import json
import re
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import msgspec

from relay.gateway.checks.reading import read
from relay.gateway.checks.schema import REQUESTS
from relay.gateway.pipeline import Refusal
from relay.gateway.trace import parse_note
from store import keys, sealed
from store.errors import StoreCorrupt, WrongKey
from tests.fuzz.answer_events import answer_event_seeds, run_answer_events
from tests.fuzz.provider_answers import provider_answer_seeds, run_provider_answer
from tests.support.ca import Ca
from tests.support.connection_pair import EPOCH, header, verifier
from tests.support.stores import quick_stretch
from transport import handshake
from transport.connection import Connection, CredentialReceived, SignatureNeeded
from transport.errors import BadInput, IdentityRefused, LinkLost, LocalMisuse, ProtocolViolation, TransportError
from transport.events import TEMPLATE_MAX, EventDecoder, EventEncoder
from transport.handshake import FrameType, GatewayHello, ResponderHandshake, ResumedResponder, ResumingInitiator
from transport.identity.join import Invitation
from transport.identity.svid import SpiffeId, key_of, load_certificate, make_csr, parse_csr, spiffe_id_of
from transport.identity.verify import verify_svid
from transport.initiator import EdgeConnection, Joining, Resumption, SvidLogin
from transport.links.base import Endpoint
from transport.links.gatt import GattPipe, Info
from transport.links.weather import parse_weather
from transport.messages import (
    Ack,
    Answer,
    AnswerData,
    Body,
    Cancel,
    Close,
    Credit,
    End,
    Issued,
    Message,
    Open,
    Pace,
    Padding,
    Part,
    Ping,
    Pong,
    Refuse,
    Rekey,
    RequestHeader,
    Resume,
    SpanRecord,
    Spans,
    Welcome,
    decode,
    decode_canonical,
    decode_header,
    encode,
    encode_header,
    request_digest,
)
from transport.mux import AnswerBytes, RequestReceived, ResumeRequested
from transport.noise import SystemEphemerals
from transport.primitives import Secret, SigningKey, sha256
from transport.records import RECORD_PLAINTEXT_MAX, RecordSealer, pack, pad, unpack
from transport.responder import GatewayConnection
from transport.tickets import Ticket, TicketStore

NOW = 1_790_000_000.0
BETWEEN = b"\n--\n"  # between two flights of one input


@dataclass(frozen=True)
class Target:
    """`run` is given each input; `seeds` are inputs to start from; `max_len` in bytes."""

    run: Callable[[bytes], None]
    seeds: Callable[[], Iterable[bytes]]
    max_len: int


class World:
    """Identities and tickets that every connection target shares. Made once: it costs some milliseconds."""

    def __init__(self) -> None:
        self.ca = Ca(now=NOW)
        self.edge, self.gateway = self.ca.issue("edge/lap-1"), self.ca.issue("gateway/main")
        bundle = self.ca.bundle()
        self.verify_edge, self.verify_gateway = verifier(bundle, "edge"), verifier(bundle, "gateway")
        self.edge_peer = self.verify_edge(self.edge.chain, NOW)
        self.gateway_peer = self.verify_gateway(self.gateway.chain, NOW)
        self.device = SigningKey.generate()
        self.csr = make_csr(self.device)
        self.invitation = Invitation(
            sha256(self.ca.root_der), b"tokentok", Secret(b"s" * 16), "field.example", "edge/lap-1", ("tcp:h:1",)
        )
        self.responder = ResponderHandshake(FrameType.FULL, SystemEphemerals(), self.verify_edge)
        first = EdgeConnection(
            SvidLogin(self.edge.chain, self.edge.not_after), self.verify_gateway, SystemEphemerals(), NOW
        ).data_to_send(NOW)
        self.responder.read_first(first[3:], self.gateway.chain[0])
        self.folder = Path(tempfile.mkdtemp(prefix="causeway-fuzz-"))
        atexit.register(shutil.rmtree, self.folder, ignore_errors=True)

    def ticket(self, *, edge_side: bool) -> Ticket:
        peer = self.gateway_peer if edge_side else self.edge_peer
        return Ticket(b"t" * 16, Secret(b"p" * 32), peer, NOW + 3_000)

    def gateway_connection(self, tickets: TicketStore | None = None) -> GatewayConnection:
        return GatewayConnection(
            self.gateway.chain, self.gateway.not_after, self.ca.root_der, self.verify_edge, SystemEphemerals(), NOW,
            tickets if tickets is not None else TicketStore(),
        )

    def edge_connection(self, kind: int) -> EdgeConnection:
        login = SvidLogin(self.edge.chain, self.edge.not_after)
        joining = Joining(self.invitation, self.device.public.spki, self.csr)
        purpose = (login, joining, Resumption(self.ticket(edge_side=True)))[kind % 3]
        return EdgeConnection(purpose, self.verify_gateway, SystemEphemerals(), NOW)


world = functools.cache(World)
refusals = functools.partial(contextlib.suppress)


@contextlib.contextmanager
def peer_errors() -> Iterator[None]:
    """What bytes from a peer may cause. LocalMisuse is not among it: that would be our fault, not the peer's."""
    try:
        yield
    except LocalMisuse:
        raise
    except TransportError:
        pass


# --- messages and records -------------------------------------------------------------------------------------------

_HEADER = header(b"body")
_SPAN = SpanRecord("0" * 32, "1" * 16, "", "edge.request", "edge", 1.0, 2.5, {"model": "m", "n": 1, "x": 0.5})
FROM_EDGE: tuple[Message, ...] = (
    Open(0, b"r" * 16, _HEADER, request_digest(_HEADER, b"body")), Body(0, 0, b"body"), Credit(0, 300_000), Cancel(0),
    Spans([_SPAN]), Rekey(), Close("normal"), Resume(1, b"s" * 16, 2, 77), Ack(b"r" * 16, 12), Ping(), Pong(),
    Pace(Padding.OFF), Pace(Padding.CONSTANT), Part(True, encode(Cancel(0))[:1]), Part(False, encode(Cancel(0))[1:]),
)
FROM_GATEWAY: tuple[Message, ...] = (
    Answer(0, 0, 200, "text/plain", True), AnswerData(0, 0, b"answer"), End(0, 6, sha256(b"answer")),
    Refuse(1, 404, "unknown_request", "there is no such request", False), Credit(0, 9_000),
    Welcome(EPOCH, "spiffe://field.example/hop/pi", 1), Issued("spiffe://a/edge/b", [b"c"], [b"d"], 1, 1),
)


def run_message(data: bytes) -> None:
    with refusals(ProtocolViolation):
        assert encode(decode(data)) == data


def run_header(data: bytes) -> None:
    with refusals(ProtocolViolation):
        assert encode_header(decode_header(data)) == data


def run_unpack(data: bytes) -> None:
    with refusals(ProtocolViolation):
        packed = b"".join(len(m).to_bytes(2, "big") + m for m in unpack(data))
        assert data.startswith(packed) and not any(data[len(packed) :])


def records_of(*messages: Message) -> bytes:
    return pack([encode(message) for message in messages])[0]


# --- handshake payloads ---------------------------------------------------------------------------------------------


def run_hello(data: bytes) -> None:
    """Frame 2's payload, as the edge reads it after its tag has passed."""
    with refusals(ProtocolViolation, IdentityRefused):
        hello = decode_canonical(
            handshake._hello_decoder, handshake.unpad_payload(_padded(data)), handshake.PAYLOAD_MAX
        )
        peer = world().verify_gateway(hello.chain, NOW)
        peer.key.verify(hello.signature, b"x")


def run_credential(data: bytes) -> None:
    """Record 0's plaintext, as the gateway reads it."""
    for payload in (data, _padded(data)):
        with refusals(ProtocolViolation, IdentityRefused):
            world().responder.read_credential(payload, NOW)


def _padded(data: bytes) -> bytes:
    return handshake.pad_payload(data[: handshake.PAYLOAD_MAX - 2])


def hello_seeds() -> Iterable[bytes]:
    yield msgspec.msgpack.encode(GatewayHello(list(world().gateway.chain), bytes(64)))


def credential_seeds() -> Iterable[bytes]:
    w = world()
    yield msgspec.msgpack.encode(handshake.SvidOffer(list(w.edge.chain), bytes(64)))
    yield msgspec.msgpack.encode(handshake.RenewOffer(bytes(32), w.csr, bytes(64)))
    yield msgspec.msgpack.encode(handshake.JoinOffer(b"tokentok", bytes(16), w.csr, w.device.public.spki, bytes(64)))


# --- connections ----------------------------------------------------------------------------------------------------


def flights(data: bytes) -> list[bytes]:
    return data.split(BETWEEN)[:8]


def _edge_application(core: EdgeConnection) -> None:
    while (event := core.next_event()) is not None:
        if isinstance(event, SignatureNeeded):
            core.signed(world().edge.key.sign(event.message), NOW)
        elif isinstance(event, AnswerBytes):
            core.consumed(event.stream, len(event.data))


def _gateway_application(core: GatewayConnection) -> None:
    while (event := core.next_event()) is not None:
        if isinstance(event, SignatureNeeded):
            core.signed(world().gateway.key.sign(event.message), NOW)
        elif isinstance(event, CredentialReceived):
            if isinstance(event.credential, handshake.JoinCredential | handshake.RenewCredential):
                core.refuse(NOW)
            else:
                core.admit(Welcome(EPOCH, "", 1), NOW)
        elif isinstance(event, RequestReceived):
            core.streams.answer(event.stream, 200, "text/plain", streamed=False)
            core.streams.write(event.stream, event.body)
            core.streams.end(event.stream, len(event.body), sha256(event.body))
        elif isinstance(event, ResumeRequested):
            core.streams.refuse(event.stream, 404, "unknown_request", "there is no such request", retryable=False)


def _drive(core: EdgeConnection | GatewayConnection, data: bytes) -> None:
    core.receive_data(data, NOW)
    if isinstance(core, EdgeConnection):
        _edge_application(core)
    else:
        _gateway_application(core)
    core.data_to_send(NOW)
    check_bounds(core)


def check_bounds(core: Connection) -> None:
    if core._opener is not None:
        assert core._opener.buffered <= 96 * 1024
    assert len(core._inbox) <= 32 * 1024


def run_gateway_frames(data: bytes) -> None:
    """Raw bytes into a gateway that knows one ticket."""
    store = TicketStore()
    store.put([world().ticket(edge_side=False)], NOW)
    core = world().gateway_connection(store)
    with peer_errors():
        for flight in flights(data):
            _drive(core, flight)


def run_edge_frames(data: bytes) -> None:
    """Raw bytes into an edge that has sent its first frame; the first byte says of which kind."""
    core = world().edge_connection(data[0] if data else 0)
    core.data_to_send(NOW)
    with peer_errors():
        for flight in flights(data[1:]):
            _drive(core, flight)


def _sealed(sealer: RecordSealer, data: bytes) -> bytes:
    return b"".join(
        sealer.seal_record(data[at : at + RECORD_PLAINTEXT_MAX]) for at in range(0, len(data), RECORD_PLAINTEXT_MAX)
    )


def run_gateway_session(data: bytes) -> None:
    """What an authenticated edge may send: early data first, then record plaintexts."""
    store, ticket = TicketStore(), world().ticket(edge_side=False)
    store.put([ticket], NOW)
    core, edge = world().gateway_connection(store), ResumingInitiator(ticket, SystemEphemerals())
    early, *rest = flights(data)
    with peer_errors():
        core.receive_data(edge.first_frame(early[: handshake.EARLY_MAX]), NOW)
        second = core.data_to_send(NOW)
        edge.read_second(second[3 : 3 + handshake.RESUMED_SECOND_LEN])
        _gateway_application(core)
        sealer = RecordSealer(edge.split().sending, NOW)
        for flight in rest:
            _drive(core, _sealed(sealer, flight))


def run_edge_session(data: bytes) -> None:
    """What an authenticated gateway may send to an edge that has one request and one resume open."""
    gateway = ResumedResponder(world().ticket(edge_side=False), SystemEphemerals())
    core = world().edge_connection(2)
    core.request(b"r" * 16, _HEADER, b"body")
    core.request(b"q" * 16, header(bytes(20_000)), bytes(20_000))
    with peer_errors():
        gateway.read_first(core.data_to_send(NOW)[3 + 16 :])
        second = gateway.second_frame()
        sealer = RecordSealer(gateway.split().sending, NOW)
        core.receive_data(second, NOW)
        for flight in flights(data):
            _drive(core, _sealed(sealer, flight))


def gateway_frame_seeds() -> Iterable[bytes]:
    w = world()
    for kind in range(3):
        yield w.edge_connection(kind).data_to_send(NOW)
    early = pad([records_of(*FROM_EDGE[:2])], control=False)[0]
    yield ResumingInitiator(w.ticket(edge_side=True), SystemEphemerals()).first_frame(early)
    yield b"GET / HTTP/1.1\r\n"


def edge_frame_seeds() -> Iterable[bytes]:
    w = world()
    for kind in range(3):
        store = TicketStore()
        store.put([w.ticket(edge_side=False)], NOW)
        gateway = w.gateway_connection(store)
        gateway.receive_data(w.edge_connection(kind).data_to_send(NOW), NOW)
        _gateway_application(gateway)
        yield bytes([kind]) + gateway.data_to_send(NOW)
    yield b"\0\0\2"
    yield b"\2\0\3"


def gateway_session_seeds() -> Iterable[bytes]:
    yield BETWEEN.join([records_of(*FROM_EDGE[:2]), records_of(*FROM_EDGE[2:5]), records_of(FROM_EDGE[5])])
    yield BETWEEN.join([b"", records_of(*FROM_EDGE[:2], FROM_EDGE[8]), records_of(FROM_EDGE[7], FROM_EDGE[9])])
    yield BETWEEN.join([records_of(FROM_EDGE[7]), records_of(*FROM_EDGE[9:11], FROM_EDGE[6])])
    yield BETWEEN.join([records_of(*FROM_EDGE[:2]), records_of(FROM_EDGE[11]), records_of(*FROM_EDGE[13:])])
    yield BETWEEN.join([b"", records_of(FROM_EDGE[12], *FROM_EDGE[:2]), records_of(*FROM_EDGE[13:])])


def edge_session_seeds() -> Iterable[bytes]:
    yield BETWEEN.join([records_of(FROM_GATEWAY[5]), records_of(*FROM_GATEWAY[:3]), records_of(*FROM_GATEWAY[3:5])])
    yield BETWEEN.join([records_of(FROM_GATEWAY[5], FROM_GATEWAY[0]), records_of(Rekey())])
    yield records_of(Close("refused"))
    parts = Part(True, encode(FROM_GATEWAY[0])[:4]), Part(False, encode(FROM_GATEWAY[0])[4:])
    yield BETWEEN.join([records_of(FROM_GATEWAY[5]), records_of(*parts), records_of(*FROM_GATEWAY[1:3])])


# --- identity -------------------------------------------------------------------------------------------------------


def run_invitation(data: bytes) -> None:
    text = _text(data)
    with refusals(BadInput):
        assert Invitation.parse(text).encode() == text.strip().lower()


def run_endpoint(data: bytes) -> None:
    text = _text(data)
    with refusals(BadInput):
        endpoint = Endpoint.parse(text)
        assert Endpoint.parse(str(endpoint)) == endpoint
        if endpoint.scheme != "unix":
            host, port = endpoint.host_port()
            assert host and 0 <= port <= 65_535


def run_spiffe_id(data: bytes) -> None:
    text = _text(data)
    with refusals(BadInput):
        assert str(SpiffeId.parse(text)) == text


def _text(data: bytes) -> str:
    """Any text a Python string can hold, lone surrogates too: JSON can carry them."""
    try:
        return data.decode("utf-8", "surrogatepass")
    except UnicodeDecodeError:
        return data.decode("latin-1")


def run_csr(data: bytes) -> None:
    with refusals(ProtocolViolation):
        parse_csr(data)


def run_certificate(data: bytes) -> None:
    with refusals(IdentityRefused):
        certificate = load_certificate(data)
        with refusals(IdentityRefused):
            spiffe_id_of(certificate)
        key_of(certificate)
    w = world()
    with refusals(IdentityRefused):
        verify_svid((data, *w.edge.chain[1:]), w.ca.bundle(), role="edge", now=NOW)


def run_note(data: bytes) -> None:
    note = parse_note(_text(data))
    assert note is None or (re.fullmatch("[0-9a-f]{16}", note.link) and note.up >= 0 and note.down >= 0)


# --- links ----------------------------------------------------------------------------------------------------------


def run_events(data: bytes) -> None:
    """Entries of a streamed answer; the first byte says how they are cut."""
    size = 1 + (data[0] if data else 0)
    decoder, out = EventDecoder(), 0
    with refusals(ProtocolViolation):
        for at in range(1, len(data), size):
            out += sum(map(len, decoder.feed(data[at:at + size])))
        decoder.finish()
    assert out <= len(data) * TEMPLATE_MAX


def events_seeds() -> Iterable[bytes]:
    encoder = EventEncoder()
    stream = b"".join(b'data: {"delta":{"content":"%s"}}\n\n' % text for text in (b"a", b" b", b"")) + b"data: [DONE]"
    yield b"\x05" + encoder.feed(stream) + encoder.finish()


def run_gatt_values(data: bytes) -> None:
    """Values of a hostile peer, each behind its length; a length of 0 lets a second pass, one over 250 reads."""
    pipe, now, values = GattPipe(495, 32, 32, NOW), NOW, 0
    with refusals(ProtocolViolation, LinkLost):
        while data:
            size, data = data[0], data[1:]
            if size == 0:
                now += 1.0
                pipe.handle_time(now)
            elif size > 250:
                pipe.read(100)
            else:
                pipe.receive_value(data[:size], now)
                data = data[size:]
            while pipe.next_value(now) is not None:
                values += 1
                assert values < 10_000
            deadline = pipe.next_deadline()
            assert deadline is None or deadline > now - 60
    assert len(pipe.read(1 << 20)) <= 32 * 494


def gatt_seeds() -> Iterable[bytes]:
    near, far = GattPipe(20, 32, 32, NOW), GattPipe(20, 32, 32, NOW)
    near.send(bytes(50))
    near.end("done")
    out = b""
    while (value := near.next_value(NOW)) is not None:
        out += bytes([len(value)]) + value
        far.receive_value(value, NOW)
    yield out
    yield b"\x09\x80" + bytes(3) + b"\x40" + bytes(4) + b"\x00\xff"


def run_info(data: bytes) -> None:
    with refusals(ProtocolViolation):
        assert Info.decode(data).encode() == data


def run_weather(data: bytes) -> None:
    with refusals(BadInput):
        weather = parse_weather(_text(data))
        assert parse_weather(str(weather)) == weather


# --- files ----------------------------------------------------------------------------------------------------------


def run_sealed_file(data: bytes) -> None:
    path = world().folder / "sealed"
    path.write_bytes(data)
    with mock.patch.object(sealed, "stretch", quick_stretch), refusals(StoreCorrupt, WrongKey):
        sealed.open_file(path, keys.Passphrase("x"), purpose="p")


def run_key_file(data: bytes) -> None:
    """As it is, and with a checksum that fits, so that what lies behind the checksum is reached."""
    path = world().folder / "keys"
    for content in (data, data + hashlib.sha256(data).digest()):
        path.write_bytes(content)
        with mock.patch.object(keys, "stretch", quick_stretch), refusals(StoreCorrupt, WrongKey):
            keys.unlock_key(path, keys.Passphrase("x"))


def file_seeds(name: str) -> Iterable[bytes]:
    path = world().folder / f"seed-{name}"
    path.unlink(missing_ok=True)
    if name == "sealed":
        with mock.patch.object(sealed, "stretch", quick_stretch):
            sealed.seal_file(path, b"plaintext", keys.Passphrase("x"), purpose="p")
        yield path.read_bytes()
    else:
        with mock.patch.object(keys, "stretch", quick_stretch):
            keys.create_key(path, keys.Passphrase("x"))
        yield path.read_bytes()[:-32]


def run_request(data: bytes) -> None:
    """The gateway's reading of a body, as each endpoint in turn; what is taken is what Python's parser reads."""
    for request in REQUESTS.values():
        value = read(data)
        if isinstance(value, Refusal):
            assert 400 <= value.status < 500
            return
        assert value == json.loads(data)
        with contextlib.suppress(msgspec.ValidationError):
            taken = request.read(value)
            assert all(one.text for one in taken.said())
            assert isinstance(taken.empty(), bool) and (taken.output_max() or 0) >= 0
            assert isinstance(taken.fault(), str)


def request_seeds() -> list[bytes]:
    asked: list[dict[str, object]] = [
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "a:\u00e9"}]}], "n": 2},
        {"messages": [{"role": "assistant", "content": None, "tool_calls": [
            {"id": "1", "function": {"name": "f", "arguments": "{}"}}]}]},
        {"input": [{"role": "user", "content": "a"}, {"type": "function_call_output", "call_id": "1", "output": "b"}]},
        {"input": ["a", "b"]}, {"input": [[1, 2]]},
        {"max_tokens": 9, "messages": [{"role": "user", "content": [
            {"type": "tool_result", "tool_use_id": "1", "content": "a"}]}]},
        {"inputs": [{"name": "i", "shape": [1, 2], "datatype": "FP32", "data": [0.5, 1e3]}]},
    ]
    return [json.dumps({"model": "m"} | one).encode() for one in asked] + [b'{"a":"\\u003a","b":{"a:":[":"]}}']


TARGETS: dict[str, Target] = {
    "request": Target(run_request, request_seeds, 1_024),
    "message": Target(run_message, lambda: (encode(m) for m in (*FROM_EDGE, *FROM_GATEWAY)), 4_096),
    "header": Target(
        run_header,
        lambda: [_HEADER, encode_header(RequestHeader("GET", "/v1/models", "", "00-" + "a" * 32 + "-01", 0, 1))], 2_100,
    ),
    "unpack": Target(
        run_unpack, lambda: [records_of(*FROM_EDGE), pad([records_of(Ping())], control=True)[0]], 2_048,
    ),
    "hello": Target(run_hello, hello_seeds, 4_096),
    "credential": Target(run_credential, credential_seeds, 4_096),
    "gateway_frames": Target(run_gateway_frames, gateway_frame_seeds, 4_096),
    "edge_frames": Target(run_edge_frames, edge_frame_seeds, 8_192),
    "gateway_session": Target(run_gateway_session, gateway_session_seeds, 4_096),
    "edge_session": Target(run_edge_session, edge_session_seeds, 4_096),
    "invitation": Target(run_invitation, lambda: [world().invitation.encode().encode()], 1_024),
    "endpoint": Target(
        run_endpoint,
        lambda: [b"tcp:[::1]:7443", b"unix:/run/c.sock", b"wss://gw.example:8443/v1/tunnel", b"unix:/\xed\xa0\x80"],
        256,
    ),
    "spiffe_id": Target(run_spiffe_id, lambda: [b"spiffe://field.example/edge/lap-1"], 2_100),
    "csr": Target(run_csr, lambda: [world().csr], 1_100),
    "certificate": Target(run_certificate, lambda: [world().edge.chain[0], world().ca.root_der], 2_100),
    "note": Target(
        run_note,
        lambda: [
            b'{"link":"0011223344556677%b","start_ms":1.0,"end_ms":2.0,"up":3,"down":4}' % end for end in (b"", b"\\n")
        ], 1_024,
    ),
    "events": Target(run_events, events_seeds, 1_024),
    "gatt_values": Target(run_gatt_values, gatt_seeds, 2_048),
    "info": Target(run_info, lambda: [Info("hop", 495, 32).encode()], 8),
    "weather": Target(
        run_weather, lambda: [b"ble-1m", b"sat?loss=0.02&seed=7", b"walk-away?rate=15e3&cut_bytes=3000"], 256
    ),
    "answer_events": Target(run_answer_events, answer_event_seeds, 4_096),
    "provider_answer": Target(run_provider_answer, provider_answer_seeds, 4_096),
    "sealed_file": Target(run_sealed_file, lambda: file_seeds("sealed"), 1_024),
    "key_file": Target(run_key_file, lambda: file_seeds("keys"), 1_024),
}

"""The HTTPS listener against whoever may connect: what a joining signature covers, floods, slowness."""

import asyncio
import contextlib
import json
import shutil
import ssl
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from relay.gateway.audit.log import AuditLog
from relay.gateway.audit.refusals import PER_MINUTE, Refusals
from relay.gateway.https import listen_https, make_app
from relay.gateway.identity.ca import Authority, OwnIdentity
from relay.gateway.identity.enrolment import Enrolment
from relay.gateway.identity.revocation import Revocation
from relay.gateway.journal import Journal
from relay.gateway.listening import Gate, HttpsLimits
from relay.gateway.pipeline import Pipeline
from relay.gateway.requests import Requests
from relay.gateway.sessions import SessionLimits, Sessions
from relay.gateway.state.sqlcipher import open_state
from relay.gateway.trace import TraceStore
from relay.hop.identity import HopHome, pack, unpack
from relay.hop.identity import join as join_hop
from store.keys import Passphrase
from tests.support.gateway_lab import PASSPHRASE, Clock, allowing, audit_lines
from transport import telemetry
from transport.errors import LinkLost
from transport.identity.join import DEVICE_LABEL, HttpsOperation, Invitation, https_transcript, signed_input
from transport.identity.svid import load_certificate, make_csr, spiffe_id_of
from transport.identity.tls import client_context, load_svid, server_context, unverified_context
from transport.links.base import Endpoint
from transport.links.websocket import connect_websocket
from transport.primitives import SigningKey, random_bytes, sha256
from transport.tickets import TicketStore

JOIN, RENEW = HttpsOperation.JOIN, HttpsOperation.RENEW
LIMIT = 60.0


@dataclass
class Lab:
    directory: Path
    authority: Authority
    enrolment: Enrolment
    identity: OwnIdentity
    context: ssl.SSLContext
    gate: Gate
    clock: Clock
    address: str

    @property
    def url(self) -> str:
        return f"https://{self.address}"

    def audit(self) -> list[dict[str, Any]]:
        return audit_lines(self.directory / "a.jsonl")

    async def dial(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        host, _, port = self.address.rpartition(":")
        return await asyncio.open_connection(host, int(port))


@contextlib.asynccontextmanager
async def running(made: Path, directory: Path, *, tls: bool = True, **limits: Any) -> AsyncIterator[Lab]:
    shutil.copytree(made, directory)
    clock = Clock()
    async with AsyncExitStack() as stack, asyncio.timeout(60):
        database = stack.enter_context(open_state(directory, PASSPHRASE))
        audit = AuditLog(directory / "a.jsonl", clock=clock)
        stack.push_async_callback(audit.close)
        authority = Authority.open(directory, PASSPHRASE)
        refusals = Refusals(audit, clock=clock)
        enrolment = Enrolment(database, authority, audit, refusals=refusals, clock=clock)
        await enrolment.load()
        identity, traces = OwnIdentity(authority, "main", clock=clock), TraceStore(database)
        tracing = telemetry.start("gateway")
        stack.callback(tracing.close)
        requests = Requests(
            journal=Journal(database, clock=clock), enrolment=enrolment, traces=traces, telemetry=tracing,
            pipeline=Pipeline(checks=[], answerers={}, taps=[], audit=audit, telemetry=tracing, node="x"),
            refusals=refusals, policy=allowing({}),
        )
        sessions = Sessions(
            identity=identity, authority=authority, enrolment=enrolment, requests=requests, traces=traces, audit=audit,
            refusals=refusals, tickets=TicketStore(), limits=SessionLimits(), clock=clock,
        )
        context = server_context(identity.svid(), authority.bundle, ("hop",), require_client=False)
        gate = Gate(HttpsLimits(**limits))
        app = make_app(
            authority=authority, enrolment=enrolment, sessions=sessions, traces=traces, refusals=refusals, gate=gate,
            clock=clock, revocation=Revocation(directory, database, authority, enrolment, audit, clock=clock),
        )
        address = await listen_https(stack, app, ("127.0.0.1", 0), context if tls else None, gate)
        yield Lab(directory, authority, enrolment, identity, context, gate, clock, address)


@pytest.fixture
async def lab(made: Path, tmp_path: Path) -> AsyncIterator[Lab]:
    async with running(made, tmp_path / "gateway") as lab:
        yield lab


@dataclass
class Device:
    """A hop's side of joining, in pieces, so that a test may swap any of them."""

    lab: Lab
    client: aiohttp.ClientSession
    invitation: Invitation
    key: SigningKey = field(default_factory=SigningKey.generate)
    leaf: bytes = b""

    def __post_init__(self) -> None:
        self.leaf = self.leaf or self.lab.identity.svid().chain[0]

    async def nonce(self) -> bytes:
        status, answer = await self.post("/v1/join/nonce", {})
        assert status == 200
        return unpack(answer["nonce"])

    async def post(self, path: str, body: dict[str, str]) -> tuple[int, dict[str, Any]]:
        async with self.client.post(self.lab.url + path, json=body) as response:
            return response.status, json.loads(await response.read())

    def body(
        self, operation: HttpsOperation, nonce: bytes, csr: bytes, *, subject: bytes | None = None,
        signed_as: HttpsOperation | None = None,
    ) -> dict[str, str]:
        device_id = sha256(self.key.public.spki)
        own = self.invitation.token_id if (signed_as or operation) is JOIN else device_id
        h = https_transcript(signed_as or operation, nonce, csr, subject or own, sha256(self.leaf))
        signature = self.key.sign(signed_input(DEVICE_LABEL, h, device_id))
        proof = {"csr": pack(csr), "nonce": pack(nonce), "signature": pack(signature)}
        if operation is RENEW:
            return proof | {"device_id": pack(device_id)}
        return proof | {
            "token_id": pack(self.invitation.token_id), "secret": pack(self.invitation.secret.expose()),
            "device_key": pack(self.key.public.spki),
        }

    async def join(self) -> int:
        body = self.body(JOIN, await self.nonce(), make_csr(SigningKey.generate()))
        return (await self.post("/v1/join", body))[0]


@pytest.fixture
async def device(lab: Lab) -> AsyncIterator[Device]:
    connector = aiohttp.TCPConnector(ssl=client_context(lab.authority.bundle), limit=1)
    async with aiohttp.ClientSession(connector=connector) as client:
        yield Device(lab, client, await lab.enrolment.invite("hop/pi"))


# --- what is signed ---------------------------------------------------------------------------------------------------


async def test_a_device_joins_and_renews(device: Device) -> None:
    assert await device.join() == 200
    body = device.body(RENEW, await device.nonce(), make_csr(SigningKey.generate()))
    status, answer = await device.post("/v1/renew", body)
    assert status == 200
    assert str(spiffe_id_of(load_certificate(unpack(answer["chain"][0])))).endswith("/hop/pi")


async def test_nobody_puts_their_own_key_under_a_device_s_signature(lab: Lab, device: Device) -> None:
    theirs = make_csr(SigningKey.generate())
    body = device.body(JOIN, await device.nonce(), make_csr(SigningKey.generate()))
    assert (await device.post("/v1/join", body | {"csr": pack(theirs)}))[0] == 403
    assert lab.enrolment.registrations() == []
    assert await device.join() == 200
    body = device.body(RENEW, await device.nonce(), make_csr(SigningKey.generate()))
    assert (await device.post("/v1/renew", body | {"csr": pack(theirs)}))[0] == 403


async def test_nobody_puts_their_own_invitation_under_a_device_s_signature(lab: Lab, device: Device) -> None:
    other = await lab.enrolment.invite("hop/theirs")
    body = device.body(JOIN, await device.nonce(), make_csr(SigningKey.generate()))
    swapped = {"token_id": pack(other.token_id), "secret": pack(other.secret.expose())}
    assert (await device.post("/v1/join", body | swapped))[0] == 403
    assert lab.enrolment.registrations() == []


async def test_a_signature_to_join_does_not_renew(device: Device) -> None:
    assert await device.join() == 200
    body = device.body(RENEW, await device.nonce(), make_csr(SigningKey.generate()), signed_as=JOIN)
    assert (await device.post("/v1/renew", body))[0] == 403


async def test_a_signature_for_another_server_is_worth_nothing_here(lab: Lab, device: Device) -> None:
    device.leaf = OwnIdentity(lab.authority, "impostor").svid().chain[0]
    assert await device.join() == 403
    assert lab.enrolment.registrations() == []


@pytest.mark.parametrize("part", ["token_id", "nonce"])
async def test_fields_of_another_size_are_refused(device: Device, part: str) -> None:
    body = device.body(JOIN, await device.nonce(), make_csr(SigningKey.generate()))
    status, answer = await device.post("/v1/join", body | {part: pack(random_bytes(9))})
    assert status in (400, 403)
    assert set(answer["error"]) == {"code", "message"}


async def test_a_connection_keeps_the_certificate_it_began_with(lab: Lab, device: Device) -> None:
    """The gateway's SVID is renewed while a hop is between its two requests."""
    nonce = await device.nonce()
    for _ in range(3):
        load_svid(lab.context, OwnIdentity(lab.authority, "main").svid())
    body = device.body(JOIN, nonce, make_csr(SigningKey.generate()))
    assert (await device.post("/v1/join", body))[0] == 200


# --- floods -----------------------------------------------------------------------------------------------------------


NOBODY = {"token_id": "", "secret": "", "csr": "", "device_key": "AA", "nonce": "", "signature": ""}


async def test_what_shows_no_nonce_of_ours_leaves_no_record(lab: Lab, device: Device) -> None:
    before = len(lab.audit())
    for _ in range(50):
        assert (await device.post("/v1/join", NOBODY))[0] == 403
        body = {"device_id": "AA", "csr": "", "nonce": pack(random_bytes(32)), "signature": ""}
        assert (await device.post("/v1/renew", body))[0] == 403
    assert len(lab.audit()) == before


@pytest.mark.parametrize("case", ["bad signature", "unknown invitation", "unknown device"])
async def test_strangers_with_nonces_leave_few_records(lab: Lab, device: Device, case: str) -> None:
    before, stranger = len(lab.audit()), Device(lab, device.client, device.invitation)
    if case == "unknown invitation":
        stranger.invitation = Invitation(
            device.invitation.root_sha256, bytes(8), device.invitation.secret, "field.example", "hop/pi"
        )
    for _ in range(3 * PER_MINUTE):
        body = stranger.body(
            RENEW if case == "unknown device" else JOIN, await stranger.nonce(), make_csr(SigningKey.generate())
        )
        if case == "bad signature":
            body["signature"] = pack(bytes(64))
        path = "/v1/renew" if case == "unknown device" else "/v1/join"
        assert (await stranger.post(path, body))[0] == 403
    assert len(lab.audit()) - before == PER_MINUTE
    lab.clock.now += 30
    assert (await stranger.post(path, body | {"nonce": pack(await stranger.nonce()), "signature": "AA"}))[0] == 403
    assert sum(line.get("suppressed", 0) for line in lab.audit()) in (0, 2 * PER_MINUTE)
    assert await device.join() == 200  # and nobody is kept out by it


# --- slowness ---------------------------------------------------------------------------------------------------------


async def ended(reader: asyncio.StreamReader) -> bytes:
    """What still comes until the other end hangs up."""
    with contextlib.suppress(ConnectionError):
        return await asyncio.wait_for(reader.read(), LIMIT)
    return b""


HEAD = b"POST /v1/join HTTP/1.1\r\nHost: x\r\nContent-Length: 16000\r\n\r\n{"


async def test_hundreds_of_slow_bodies_are_soon_gone(made: Path, tmp_path: Path) -> None:
    async with running(made, tmp_path / "g", tls=False, strangers=400, per_source=400, body_s=0.2) as lab:
        links = [await lab.dial() for _ in range(300)]
        for _, writer in links:
            writer.write(HEAD)
        answers = await asyncio.gather(*(ended(reader) for reader, _ in links))
        assert {answer.split(b"\r\n")[0] for answer in answers} == {b"HTTP/1.1 408 Request Timeout"}
        for _, writer in links:
            writer.close()
        assert lab.gate.places.taken == 0


@pytest.mark.parametrize(("sent", "limits"), [
    (b"", {"idle_s": 0.1}), (b"GET /v1/bundle HT", {"idle_s": 0.1}),
    (b"GET /v1/bundle HTTP/1.1\r\nHost: x\r\nX-Slow:", {"idle_s": 0.1}),
    (b"GET /v1/bundle HTTP/1.1\r\nHost: x\r\n\r\n", {"idle_s": 0.1}),  # keep-alive, and then nothing
    (b"GET /v1/bundle HTTP/1.1\r\nHost: x\r\n\r\nGET /", {"idle_s": 0.1}),
    (HEAD.replace(b"join", b"join/nonce"), {"body_s": 0.1}), (HEAD, {"life_s": 0.1}), (b"", {"life_s": 0.1}),
])
async def test_slowness_at_any_step_ends(made: Path, tmp_path: Path, sent: bytes, limits: dict[str, float]) -> None:
    async with running(made, tmp_path / "g", tls=False, **limits) as lab:
        reader, writer = await lab.dial()
        writer.write(sent)
        await ended(reader)
        writer.close()
        assert lab.gate.places.taken == 0


@pytest.mark.parametrize("limits", [{"handshake_s": 0.1}, {"life_s": 0.1}])
async def test_slow_handshakes_end(made: Path, tmp_path: Path, limits: dict[str, float]) -> None:
    async with running(made, tmp_path / "g", **limits) as lab:
        reader, writer = await lab.dial()
        writer.write(b"\x16\x03\x01")  # the beginning of a TLS record
        assert await ended(reader) == b""
        writer.close()
        while lab.gate.places.taken:  # noqa: ASYNC110 - the lab's time-out is the limit
            await asyncio.sleep(0)
        assert not lab.gate.waiting


async def test_one_source_has_a_share_of_the_places(made: Path, tmp_path: Path) -> None:
    patient = {"idle_s": 100.0, "life_s": 100.0}  # so that nothing else ends a connection
    async with running(made, tmp_path / "g", tls=False, strangers=8, per_source=2, **patient) as lab:
        held = [await lab.dial() for _ in range(2)]
        while lab.gate.places.taken < 2:  # noqa: ASYNC110
            await asyncio.sleep(0)
        reader, writer = await lab.dial()
        assert await ended(reader) == b""
        writer.close()
        held[0][1].close()
        while lab.gate.places.taken > 1:  # noqa: ASYNC110
            await asyncio.sleep(0)
        reader, writer = await lab.dial()
        writer.write(b"GET /v1/bundle HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        assert (await ended(reader)).startswith(b"HTTP/1.1 200")
        for one in (writer, held[1][1]):
            one.close()


async def test_H15_tls_handshakes_of_one_address_are_done_so_often_a_second(made: Path, tmp_path: Path) -> None:
    async with running(made, tmp_path / "g", per_second_of_source=0.001) as lab:
        _, writer = await lab.dial()
        while not lab.gate.waiting:  # noqa: ASYNC110
            await asyncio.sleep(0)
        second, other = await lab.dial()
        assert await ended(second) == b""
        assert len(lab.gate.waiting) == lab.gate.places.taken == 1, "what had begun goes on"
        for one in (writer, other):
            one.close()


async def test_a_client_that_breaks_off_is_no_error_of_ours(
    made: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with running(made, tmp_path / "g", tls=False) as lab:
        for sent in (HEAD, b"\0\xff\r\n\r\n", b"POST /v1/join HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n"):
            _, writer = await lab.dial()
            writer.write(sent)
            await writer.drain()
            while not lab.gate.connections:  # noqa: ASYNC110
                await asyncio.sleep(0)
            for _ in range(20):
                await asyncio.sleep(0)
            writer.transport.abort()
            while lab.gate.connections:  # noqa: ASYNC110
                await asyncio.sleep(0)
    assert "Traceback" not in caplog.text
    assert [record for record in caplog.records if record.exc_info] == []


async def test_a_tunnel_holds_no_stranger_s_place_and_outlives_them(lab: Lab, tmp_path: Path) -> None:
    hop = await join_hop(HopHome(tmp_path / "hop", Passphrase("p")), await lab.enrolment.invite("hop/h"), lab.url)
    tls = client_context(hop.bundle, hop.svid)
    tunnel = await connect_websocket(Endpoint.parse(f"wss://{lab.address}/v1/tunnel"), tls=tls)
    while lab.gate.places.taken:  # noqa: ASYNC110
        await asyncio.sleep(0)
    (connection,) = lab.gate.connections.values()
    assert connection._end is None
    await tunnel.close()


async def test_a_tunnel_in_which_no_session_comes_about_ends_as_an_error(lab: Lab, tmp_path: Path) -> None:
    """So that the hop can slow that stranger down, who gets the hint all the same."""
    hop = await join_hop(HopHome(tmp_path / "hop", Passphrase("p")), await lab.enrolment.invite("hop/h"), lab.url)
    tls = client_context(hop.bundle, hop.svid)
    tunnel = await connect_websocket(Endpoint.parse(f"wss://{lab.address}/v1/tunnel"), tls=tls)
    await tunnel.send(b"\x7f" + bytes(2000))
    with pytest.raises(LinkLost) as lost:
        while await tunnel.receive():
            pass
    assert lost.value.reason == "error"
    await tunnel.close()


async def test_closing_the_listener_ends_who_is_still_shaking_hands(made: Path, tmp_path: Path) -> None:
    async with running(made, tmp_path / "g") as lab:
        reader, writer = await lab.dial()
        while not lab.gate.waiting:  # noqa: ASYNC110
            await asyncio.sleep(0)
    assert await ended(reader) == b""
    writer.close()


async def test_public_data_needs_no_identity(lab: Lab) -> None:
    async with aiohttp.ClientSession() as client, client.get(
        f"{lab.url}/v1/bundle", ssl=unverified_context()
    ) as response:
        told = await response.json()
        assert told["trust_domain"] == "field.example"
        assert told["spiffe_sequence"] == told["sequence"] == lab.authority.bundle.sequence
        assert len(told["keys"]) == len(lab.authority.bundle.roots)

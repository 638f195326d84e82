"""The listener that browsers see: what it serves, who joins there, what a token is worth, and whom it lets wait."""

import asyncio
import contextlib
import json
import shutil
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any, cast

import aiohttp
import pytest

from relay.gateway.audit.log import AuditLog
from relay.gateway.audit.refusals import PER_MINUTE, Refusals
from relay.gateway.https import listen_https
from relay.gateway.identity.ca import Authority
from relay.gateway.identity.dpop import TOKEN_S, USED_BY_KEY_MAX
from relay.gateway.identity.enrolment import Enrolment
from relay.gateway.identity.registrations import IDLE_MAX_S
from relay.gateway.listening import Gate, HttpsLimits
from relay.gateway.public import FIRST_MAX, REFUSED_CODE, make_public_app
from relay.gateway.sessions import Sessions
from relay.gateway.state.sqlcipher import open_state
from relay.gateway.trace import TraceStore
from store.database import Database
from tests.support.dpop_page import LEFT_OUT, DpopPage
from tests.support.fake_sessions import LINK_ID, FakeSessions
from tests.support.gateway_lab import DOMAIN, PASSPHRASE, Clock, audit_lines
from transport.links.websocket import NOTE_MAX
from transport.primitives import SigningKey, sha256

ORIGIN = "https://gw.example"
HOP = f"spiffe://{DOMAIN}/hop/phone-1"
LIMIT = 60.0
PATIENT = {"idle_s": 600.0, "life_s": 600.0, "body_s": 600.0}  # how slow the machine is ends no connection


@dataclass
class Lab:
    directory: Path
    database: Database
    enrolment: Enrolment
    sessions: FakeSessions
    gate: Gate
    clock: Clock
    address: str
    client: aiohttp.ClientSession

    @property
    def url(self) -> str:
        return f"http://{self.address}"

    def page(self) -> DpopPage:
        return DpopPage(self.client, ORIGIN, self.url, clock=self.clock)

    async def joined(self, name: str = "phone-1") -> DpopPage:
        page = self.page()
        await page.greet()
        assert (await page.join(await self.invitation(name)))[0] == 200
        return page

    async def invitation(self, name: str = "phone-1") -> str:
        return (await self.enrolment.invite(f"hop/{name}")).encode()

    def audit(self) -> list[dict[str, Any]]:
        return audit_lines(self.directory / "a.jsonl")

    def refused(self) -> list[tuple[str, str]]:
        return [(line["event"], line["reason"]) for line in self.audit() if line["event"].endswith(".refused")]

    async def notes(self) -> list[tuple[object, ...]]:
        """What hops said of tunnels."""
        return await self.database.run(
            lambda connection: connection.execute("SELECT link_id, hop FROM tunnels").fetchall(), read_only=True
        )

    async def closed(self) -> None:
        """Until the gateway is through with every connection."""
        await self.client.close()
        while self.gate.connections:  # noqa: ASYNC110 - the lab's time-out is the limit
            await asyncio.sleep(0)

    async def raw(self, text: str) -> bytes:
        """What comes back to bytes on a connection, until it ends."""
        reader, writer = await self.dial()
        writer.write(text.encode())
        try:
            return await ended(reader)
        finally:
            writer.close()

    async def dial(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        host, _, port = self.address.rpartition(":")
        return await asyncio.open_connection(host, int(port))


async def ended(reader: asyncio.StreamReader) -> bytes:
    with contextlib.suppress(ConnectionError):
        return await asyncio.wait_for(reader.read(), LIMIT)
    return b""


@contextlib.asynccontextmanager
async def running(made: Path, directory: Path, **limits: Any) -> AsyncIterator[Lab]:
    shutil.copytree(made, directory)
    clock = Clock()
    async with AsyncExitStack() as stack, asyncio.timeout(LIMIT):
        database = stack.enter_context(open_state(directory, PASSPHRASE))
        audit = AuditLog(directory / "a.jsonl", clock=clock)
        stack.push_async_callback(audit.close)
        refusals = Refusals(audit, clock=clock)
        enrolment = Enrolment(
            database, Authority.open(directory, PASSPHRASE), audit, refusals=refusals, clock=clock
        )
        await enrolment.load()
        sessions, gate = FakeSessions(), Gate(HttpsLimits(**limits))
        app = make_public_app(
            origin=ORIGIN, enrolment=enrolment, sessions=cast(Sessions, sessions), traces=TraceStore(database),
            audit=audit, refusals=refusals, gate=gate, clock=clock,
        )
        address = await listen_https(stack, app, ("127.0.0.1", 0), None, gate)
        async with aiohttp.ClientSession() as client:
            yield Lab(directory, database, enrolment, sessions, gate, clock, address, client)


@pytest.fixture
async def lab(made: Path, tmp_path: Path) -> AsyncIterator[Lab]:
    async with running(made, tmp_path / "gateway", **PATIENT) as lab:
        yield lab


# --- the page's files -------------------------------------------------------------------------------------------------


async def test_the_page_s_files_come_with_a_strict_policy(lab: Lab) -> None:
    names = [file.name for file in (files("relay.hop") / "web").iterdir()]
    assert "index.html" in names
    for name in names:
        path = "/hop" if name == "index.html" else f"/hop/{name}"
        async with lab.client.get(lab.url + path) as response:
            assert response.status == 200, path
            assert response.headers["Content-Security-Policy"] == (
                "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
                "connect-src 'self' wss://gw.example; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
                "manifest-src 'self'; require-trusted-types-for 'script'; trusted-types 'none'"
            )
            assert response.headers["Permissions-Policy"] == "bluetooth=(self), serial=(self), screen-wake-lock=(self)"
            assert response.headers["X-Content-Type-Options"] == "nosniff"
            assert response.headers["Referrer-Policy"] == "no-referrer"
            assert response.headers["Cache-Control"] == "no-cache"
            assert response.headers["Content-Type"].partition(";")[0] in (
                "text/html", "text/javascript", "text/css", "image/svg+xml"
            )
            assert await response.read() == (files("relay.hop") / "web" / name).read_bytes()


@pytest.mark.parametrize("path", [
    "/", "/hop/", "/hop/index.html", "/hop/..", "/hop/../hop/app.py", "/hop/%2e%2e/app.py", "/hop/..%2fapp.py",
    "/hop//etc/passwd", "/hop/%00", "/hop/web", "/../../etc/passwd", "//hop", "/hop/__init__.py", "/hop/gateway.toml",
    "/v1/bundle", "/v1/join/nonce", "/v1/tunnel", "/v1/edge", "/healthz", "/hop/join/", "/favicon.ico",
])
async def test_nothing_else_is_there(lab: Lab, path: str) -> None:
    answer = await lab.raw(f"GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    assert answer.startswith((b"HTTP/1.1 404", b"HTTP/1.1 400")), answer[:40]
    assert b'"bad_request"' in answer or b"400" in answer[:20]


@pytest.mark.parametrize(("method", "path"), [
    ("POST", "/hop"), ("GET", "/hop/join"), ("GET", "/hop/token"), ("PUT", "/hop/join"), ("DELETE", "/hop"),
    ("OPTIONS", "/hop/join"), ("POST", "/hop/tunnel"), ("TRACE", "/hop"),
])
async def test_no_other_method_is_taken(lab: Lab, method: str, path: str) -> None:
    async with lab.client.request(method, lab.url + path) as response:
        assert response.status in (404, 405)
        assert "Access-Control-Allow-Origin" not in response.headers


# --- joining ----------------------------------------------------------------------------------------------------------


async def test_a_page_joins_renews_and_opens_a_tunnel(lab: Lab) -> None:
    page = lab.page()
    await page.greet()
    status, answer = await page.join(await lab.invitation())
    assert status == 200
    assert answer == {"id": HOP, "access_token": page.token, "token_type": "DPoP", "expires_in": TOKEN_S}
    assert (await page.renew())[0] == 200
    (registration,) = lab.enrolment.registrations()
    assert (registration.id, registration.device_id) == (HOP, sha256(page.key.public.spki))
    socket = await page.open()
    assert await socket.receive_json() == {"id": HOP}
    await socket.send_bytes(b"\x00\xff opaque")
    assert await socket.receive_bytes() == b"\x00\xff opaque"
    assert lab.sessions.served == [HOP]
    await socket.close()


async def test_every_answer_brings_a_nonce_and_is_not_kept(lab: Lab) -> None:
    page, seen = lab.page(), set()
    for path, body in (("/hop/token", {}), ("/hop/join", {"invitation": "cw1"}), ("/hop/join", []), ("/hop/token", {})):
        async with lab.client.post(lab.url + path, json=body, headers={"DPoP": page.proof("POST", path)}) as response:
            assert response.headers["Cache-Control"] == "no-store"
            seen.add(response.headers["DPoP-Nonce"])
    assert len(seen) == 4


async def test_a_nonce_comes_from_here_and_is_young(lab: Lab) -> None:
    page = lab.page()
    for nonce in ("", "AAAA", page.nonce):
        page.nonce = nonce
        assert (await page.post("/hop/token", {}))[1]["error"]["code"] == "use_dpop_nonce"
    await lab.joined()
    old = page.nonce
    lab.clock.now += 61
    page.nonce = old
    answer = await page.post("/hop/token", {})
    assert (answer[0], answer[1]["error"]["code"]) == (401, "use_dpop_nonce")
    assert lab.refused() == [], "how every page begins is nothing to record"


async def test_a_clock_that_is_off_is_told(lab: Lab) -> None:
    page = lab.page()
    await page.greet()
    answer = await page.post("/hop/token", {}, iat=int(lab.clock.now) + 120)
    assert (answer[0], answer[1]["error"]["code"]) == (401, "clock")


@pytest.mark.parametrize("headers", [[], ["x"], ["", ""], ["two", "good"]])
async def test_there_is_one_proof(lab: Lab, headers: list[str]) -> None:
    page = await lab.joined()
    given = [("DPoP", page.proof("POST", "/hop/token") if one == "good" else one) for one in headers]
    async with lab.client.post(lab.url + "/hop/token", json={}, headers=given) as response:
        assert (response.status, (await response.json())["error"]["code"]) == (401, "proof")


async def test_M13_an_invitation_is_for_the_first_key(lab: Lab) -> None:
    invitation, page, thief = await lab.invitation(), lab.page(), lab.page()
    for one in (page, thief):
        await one.greet()
    assert (await page.join(invitation))[0] == 200
    assert (await page.join(invitation))[0] == 200, "the same key may come again: an answer can be lost"
    status, answer = await thief.join(invitation)
    assert (status, answer["error"]["code"]) == (403, "invitation")
    assert thief.token == ""
    assert ("join.refused", "invitation used with another device key") in lab.refused()
    assert len(lab.enrolment.registrations()) == 1
    assert (await thief.renew())[0] == 403
    assert (await page.renew())[0] == 200


async def test_an_invitation_ends(lab: Lab) -> None:
    invitation, page = await lab.invitation(), lab.page()
    lab.clock.now += 3_601
    await page.greet()
    answer = await page.post("/hop/join", {"invitation": invitation})
    assert (answer[0], answer[1]["error"]["code"]) == (403, "invitation")
    assert lab.refused() == [("join.refused", "invitation expired")]


@pytest.mark.parametrize("path", ["edge/lap-1", "workload/w", "gateway/two"])
async def test_M13_a_page_is_a_hop_and_nothing_else(lab: Lab, path: str) -> None:
    page = lab.page()
    await page.greet()
    status, answer = await page.join((await lab.enrolment.invite(path, allow_gateway=True)).encode())
    assert (status, answer["error"]["code"]) == (403, "invitation")
    assert lab.refused() == [("join.refused", "this role does not join this way")]
    assert lab.enrolment.registrations() == []


@pytest.mark.parametrize("path", ["edge/lap-1", "workload/w", "gateway/two"])
async def test_the_key_of_another_role_gets_no_token(lab: Lab, path: str) -> None:
    invitation, page = await lab.enrolment.invite(path, allow_gateway=True), lab.page()
    role = (path.partition("/")[0],)
    await lab.enrolment.register(invitation.token_id, invitation.secret, page.key.public, roles=role)
    await page.greet()
    status, answer = await page.renew()
    assert (status, answer["error"]["code"]) == (403, "refused")
    assert lab.refused() == [("token.refused", "role")]


@pytest.mark.parametrize("body", [
    [], {}, {"invitation": 1}, {"invitation": "x", "more": 1}, {"invitation": None}, "cw1", {"invitation": ["cw1"]},
])
async def test_a_body_of_another_form_is_refused(lab: Lab, body: Any) -> None:
    page = lab.page()
    await page.greet()
    assert (await page.post("/hop/join", body))[0] == 400
    assert (await page.post("/hop/token", body or [1]))[0] == 400


@pytest.mark.parametrize("text", ["", "cw1", "cw1aaaa", "x" * 3_000])
async def test_what_is_no_invitation_is_refused_and_left_unsaid(lab: Lab, text: str) -> None:
    page = lab.page()
    await page.greet()
    before = len(lab.audit())
    status, answer = await page.join(text)
    assert (status, answer["error"]) == (403, {"code": "invitation", "message": "the gateway does not accept this"})
    assert len(lab.audit()) == before


async def test_a_body_is_bounded(lab: Lab) -> None:
    page = lab.page()
    await page.greet()
    assert (await page.post("/hop/join", {"invitation": "c" * 20_000}))[0] == 413


async def test_a_proof_for_one_route_is_none_for_another(lab: Lab) -> None:
    page = await lab.joined()
    for path, body in (("/hop/token", {}), ("/hop/join", {"invitation": await lab.invitation("other")})):
        for made_for in ({"/hop/token", "/hop/join", "/hop/tunnel"} - {path}):
            answer = await page.post(path, body, page.proof("POST", made_for))
            assert (answer[0], answer[1]["error"]["code"]) == (401, "proof")
    assert (await page.post("/hop/token", {}, page.proof("GET", "/hop/token")))[0] == 401
    page.origin = "https://proxy.example"  # where the page was led to by somebody between
    assert (await page.post("/hop/token", {}))[0] == 401
    assert ("token.refused", "address") in lab.refused()


async def test_a_proof_is_taken_once(lab: Lab) -> None:
    page = await lab.joined()
    proof = page.proof("POST", "/hop/token")
    assert (await page.post("/hop/token", {}, proof))[0] == 200
    assert (await page.post("/hop/token", {}, proof))[0] == 401
    invitation = await lab.invitation("phone-2")
    proof = page.proof("POST", "/hop/join")
    assert (await page.post("/hop/join", {"invitation": invitation}, proof))[0] == 200
    assert (await page.post("/hop/join", {"invitation": invitation}, proof))[0] == 401
    assert {rule for _, rule in lab.refused()} == {"replayed"}


async def test_a_refused_proof_is_not_remembered(lab: Lab) -> None:
    """So strangers fill no memory, whatever they sign."""
    stranger, page = lab.page(), await lab.joined()
    await stranger.greet()
    for _ in range(70):  # more than one key may have in use
        assert (await stranger.renew())[0] == 403
    for _ in range(63):  # and one was to join
        assert (await page.renew())[0] == 200
    status, answer = await page.renew()
    assert (status, answer["error"]["code"]) == (503, "overloaded")
    assert (await (await lab.joined("phone-2")).renew())[0] == 200, "another page is not kept out by it"


async def test_strangers_leave_few_records(lab: Lab) -> None:
    stranger = lab.page()
    await stranger.greet()
    before = len(lab.audit())
    for _ in range(3 * PER_MINUTE):
        assert (await stranger.renew())[0] == 403
    assert len(lab.audit()) - before == PER_MINUTE


async def test_who_joins_again_and_again_leaves_few_records(lab: Lab) -> None:
    invitation, page = await lab.invitation(), lab.page()
    await page.greet()
    answers = [(await page.join(invitation))[0] for _ in range(USED_BY_KEY_MAX + 20)]
    assert answers == [200] * USED_BY_KEY_MAX + [503] * 20
    events = Counter(line["event"] for line in lab.audit())
    assert (events["join.attempt"], events["token.issued"]) == (1, USED_BY_KEY_MAX)


async def test_no_secret_is_recorded_or_kept(lab: Lab) -> None:
    invitation, page = await lab.invitation(), lab.page()
    await page.greet()
    await page.join(invitation)
    await page.renew()
    await (await page.open()).receive()
    page.key = SigningKey.generate()
    await (await page.open()).receive()  # and what was refused neither
    await page.join(invitation)
    text = json.dumps(lab.audit())
    assert len(lab.refused()) == 2
    for secret in (invitation[-30:], page.token, page.token.partition(".")[2], page.nonce):
        assert secret and secret not in text
    issued = [line for line in lab.audit() if line["event"] == "token.issued"]
    assert len(issued) == 2
    assert issued[0].items() >= {"id": HOP, "enrolment": 1}.items()


# --- the end of a registration ----------------------------------------------------------------------------------------


async def test_a_replaced_page_gets_no_token_and_no_tunnel(lab: Lab) -> None:
    old = await lab.joined()
    running = await old.open()
    assert await running.receive_json() == {"id": HOP}
    new = await lab.joined()
    status, answer = await old.renew()
    assert (status, answer["error"]["code"]) == (403, "refused")
    assert await refusal(await old.open()) == "refused", "its token has not ended yet"
    assert await (await new.open()).receive_json() == {"id": HOP}
    await running.send_bytes(b"what had begun goes on, as on /v1/tunnel")
    assert (await running.receive()).type is aiohttp.WSMsgType.BINARY
    await running.close()
    assert lab.refused() == [("token.refused", "registration"), ("tunnel.refused", "registration")]


async def test_a_page_that_was_away_for_90_days_is_none_any_more(lab: Lab) -> None:
    page = await lab.joined()
    lab.clock.now += IDLE_MAX_S + 1
    page.nonce = ""
    await page.post("/hop/token", {})
    assert (await page.post("/hop/token", {}))[0] == 403
    assert lab.refused() == [("token.refused", "registration idle")]


async def test_a_page_that_renews_is_seen(lab: Lab) -> None:
    page = await lab.joined()
    lab.clock.now += 30 * 86_400
    page.nonce = ""
    await page.post("/hop/token", {})
    assert (await page.post("/hop/token", {}))[0] == 200
    (registration,) = lab.enrolment.registrations()
    assert registration.last_seen == int(lab.clock.now)


# --- tunnels ----------------------------------------------------------------------------------------------------------


async def refusal(socket: aiohttp.ClientWebSocketResponse) -> str:
    """The code of a refusal, and that it ends as one."""
    answer = await socket.receive_json()
    assert set(answer) == {"error", "nonce"} and set(answer["error"]) == {"code", "message"}
    assert (await socket.receive()).type is aiohttp.WSMsgType.CLOSE
    assert socket.close_code == REFUSED_CODE
    return str(answer["error"]["code"])


async def test_M13_a_stolen_token_is_worth_nothing_without_its_key(lab: Lab) -> None:
    page, thief = await lab.joined(), lab.page()
    thief.token = page.token
    await thief.greet()
    assert await refusal(await thief.open()) == "refused", "a key that nobody knows"
    other = await lab.joined("phone-2")
    other.token = page.token
    assert await refusal(await other.open()) == "token", "one that is known, of another page"
    assert (await thief.post("/hop/token", {}))[0] == 403
    for proof in ("", "x.y.z", page.token):
        assert await refusal(await thief.open(thief.first(proof=proof))) == "proof"
    assert lab.sessions.served == []
    assert await (await page.open()).receive_json() == {"id": HOP}


async def test_M14_a_stolen_token_with_its_last_proof_is_worth_nothing_either(lab: Lab) -> None:
    page = await lab.joined()
    first = page.first()
    assert await (await page.open(first)).receive_json() == {"id": HOP}
    assert await refusal(await page.open(first)) == "proof"
    assert lab.refused() == [("tunnel.refused", "replayed")]


@pytest.mark.parametrize(("claims", "code"), [
    ({"htm": "POST"}, "proof"), ({"htu": ORIGIN + "/hop/token"}, "proof"),
    ({"htu": "wss://gw.example/hop/tunnel"}, "proof"),
    ({"ath": LEFT_OUT}, "proof"), ({"ath": "x"}, "proof"), ({"nonce": ""}, "use_dpop_nonce"), ({"iat": 0}, "clock"),
])
async def test_a_tunnel_s_proof_is_for_this_tunnel(lab: Lab, claims: dict[str, Any], code: str) -> None:
    page = await lab.joined()
    first = page.first(proof=page.proof("GET", "/hop/tunnel", token=page.token, **claims))
    assert await refusal(await page.open(first)) == code


async def test_a_refusal_brings_the_nonce_for_the_next_attempt(lab: Lab) -> None:
    page = await lab.joined()
    page.nonce = ""
    page.nonce = (await (await page.open()).receive_json())["nonce"]
    assert await (await page.open()).receive_json() == {"id": HOP}


async def test_a_token_ends(lab: Lab) -> None:
    page = await lab.joined()
    lab.clock.now += TOKEN_S
    answer = await (await page.open()).receive_json()
    page.nonce = answer["nonce"]
    assert await refusal(await page.open()) == "token"
    assert lab.refused() == [("tunnel.refused", "token")]


@pytest.mark.parametrize("origin", [
    "https://evil.example", "", "null", "https://gw.example:443", "https://gw.example/", "http://gw.example",
    "https://GW.example", "https://gw.example.evil.example",
])
async def test_a_tunnel_is_opened_by_the_page_alone(lab: Lab, origin: str) -> None:
    page = await lab.joined()
    with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
        await page.open(origin=origin)
    assert refused.value.status == 403
    assert lab.refused() == [("tunnel.refused", "origin")]


async def test_what_has_no_origin_is_no_page(lab: Lab) -> None:
    with pytest.raises(aiohttp.WSServerHandshakeError):
        await lab.client.ws_connect(f"{lab.url}/hop/tunnel")
    twice = (
        "GET /hop/tunnel HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade, close\r\n"
        f"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nOrigin: {ORIGIN}\r\n"
        "Origin: https://evil.example\r\n\r\n"
    )
    assert (await lab.raw(twice)).startswith((b"HTTP/1.1 403", b"HTTP/1.1 400"))


@pytest.mark.parametrize("first", [
    "", "{}", "[]", "null", "hello", '{"token": "t"}', '{"token": "t", "proof": "p", "x": 1}',
    '{"token": 1, "proof": 2}', "[" * 2_000, json.dumps({"token": "t", "proof": "p" * FIRST_MAX}),
])
async def test_a_first_message_of_another_form_is_refused(lab: Lab, first: str) -> None:
    page = await lab.joined()
    assert await refusal(await page.open(first)) == "bad_request"
    assert lab.sessions.served == []


async def test_a_first_message_of_bytes_is_refused(lab: Lab) -> None:
    page = await lab.joined()
    socket = await lab.client.ws_connect(f"{lab.url}/hop/tunnel", headers={"Origin": ORIGIN})
    await socket.send_bytes(page.first().encode())
    assert await refusal(socket) == "bad_request"


@pytest.mark.parametrize("kind", [b"\x89", b"\x8a"])
async def test_pings_are_no_first_message_and_nobody_reads_a_flood_of_them(lab: Lab, kind: bytes) -> None:
    reader, writer = await lab.dial()
    try:
        writer.write(UPGRADE.encode() + (kind + b"\x80\0\0\0\0") * 10_000)
        said = await ended(reader)  # it has not closed its own end
    finally:
        writer.close()
    assert b'"bad_request"' in said and said.endswith(REFUSED_CODE.to_bytes(2))
    assert said.count(b"\x8a\0") == 0


async def test_a_first_message_that_is_huge_is_not_even_read(lab: Lab) -> None:
    page = await lab.joined()
    socket = await page.open("x" * 200_000)
    assert (await socket.receive()).type is aiohttp.WSMsgType.CLOSE
    assert socket.close_code == 1009
    assert lab.sessions.served == []


async def test_a_hop_s_note_is_kept_for_its_own_tunnel(lab: Lab) -> None:
    page = await lab.joined()
    socket = await page.open()
    await socket.receive_json()
    await socket.send_bytes(b"the first bytes")
    await socket.receive_bytes()
    note = {"link": LINK_ID, "start_ms": 1.0, "end_ms": 2.0, "up": 15, "down": 15}
    for one in ({**note, "link": "ff" * 8}, "?", note):
        await socket.send_json(one)
    await socket.close()
    while not (kept := await lab.notes()):  # noqa: ASYNC110
        await asyncio.sleep(0)
    assert kept == [(LINK_ID, HOP)]


async def test_a_note_of_another_tunnel_is_not_kept(lab: Lab) -> None:
    page = await lab.joined()
    socket = await page.open()
    await socket.receive_json()
    await socket.send_bytes(b"the first bytes")
    await socket.receive_bytes()
    await socket.send_json({"link": "ff" * 8, "start_ms": 1.0, "end_ms": 2.0, "up": 15, "down": 15})
    await socket.close()
    await lab.closed()
    assert await lab.notes() == []


async def test_a_tunnel_in_which_no_session_comes_about_ends_as_an_error(lab: Lab) -> None:
    lab.sessions.handshakes = False
    page = await lab.joined()
    socket = await page.open()
    await socket.receive_json()
    await socket.send_bytes(b"x")
    assert (await socket.receive()).type is aiohttp.WSMsgType.CLOSE
    assert socket.close_code == 4004


async def test_a_note_that_is_too_long_ends_the_tunnel(lab: Lab) -> None:
    page = await lab.joined()
    socket = await page.open()
    await socket.receive_json()
    await socket.send_str("x" * (NOTE_MAX + 1))
    assert (await socket.receive()).type is aiohttp.WSMsgType.CLOSE
    assert socket.close_code == 1009


# --- strangers --------------------------------------------------------------------------------------------------------


async def test_a_tunnel_holds_no_stranger_s_place(lab: Lab) -> None:
    page = await lab.joined()
    async with aiohttp.ClientSession() as client:
        page.client = client
        socket = await page.open()
        await socket.receive_json()
        connections = list(lab.gate.connections.values())
        assert [connection._end for connection in connections].count(None) == 1
        await socket.close()


UPGRADE = (
    "GET /hop/tunnel HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
    f"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nOrigin: {ORIGIN}\r\n\r\n"
)
BODY = "POST /hop/join HTTP/1.1\r\nHost: x\r\nContent-Length: 900\r\n\r\n{"


@pytest.mark.parametrize(("sent", "limits"), [
    ("", {"idle_s": 0.1}), ("GET /hop HT", {"idle_s": 0.1}), ("GET /hop HTTP/1.1\r\nHost: x\r\n\r\n", {"idle_s": 0.1}),
    (BODY, {"body_s": 0.1}), (BODY, {"life_s": 0.1}),
    (UPGRADE, {"body_s": 0.1}), (UPGRADE, {"life_s": 0.1}), (UPGRADE + "\x81", {"body_s": 0.1}),
])
async def test_slowness_at_any_step_ends(made: Path, tmp_path: Path, sent: str, limits: dict[str, float]) -> None:
    async with running(made, tmp_path / "g", **limits) as lab:
        await lab.raw(sent)
        while lab.gate.places.taken:  # noqa: ASYNC110 - the lab's time-out is the limit
            await asyncio.sleep(0)


async def test_who_says_nothing_in_a_tunnel_is_told_and_let_go(made: Path, tmp_path: Path) -> None:
    async with running(made, tmp_path / "g", body_s=0.1) as lab:
        socket = await lab.client.ws_connect(f"{lab.url}/hop/tunnel", headers={"Origin": ORIGIN})
        assert await refusal(socket) == "timeout"


async def test_one_source_has_a_share_of_the_places(made: Path, tmp_path: Path) -> None:
    async with running(made, tmp_path / "g", per_source=2, **PATIENT) as lab:
        held = [await lab.dial() for _ in range(2)]
        for _, writer in held:
            writer.write(UPGRADE.encode())
        while lab.gate.places.taken < 2:  # noqa: ASYNC110
            await asyncio.sleep(0)
        assert await lab.raw("GET /hop HTTP/1.1\r\nHost: x\r\n\r\n") == b""
        for _, writer in held:
            writer.close()

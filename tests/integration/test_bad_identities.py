"""Whatever is wrong with an identity, at every door: a whole gateway refuses it, its audit says why, the wire does not.

TABLE has it all. Certificates are signed by the gateway's own intermediate, and tokens by its own key, wherever that is
possible: then nothing but the one defect keeps them out. What each defect is like in detail is elsewhere: certificates
in test_spiffe_rules.py, tokens in test_oauth.py, proofs in test_gateway_dpop.py.
"""

import asyncio
import contextlib
import hmac
import json
import re
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import jwt
import pytest

from relay.gateway import app
from relay.gateway.audit import refusals
from relay.gateway.identity.ca import Authority
from relay.gateway.identity.jose import signed
from relay.gateway.identity.token_keys import TokenKeys
from relay.rates import Rate
from tests.support.ca import DAY, Ca, key_usage
from tests.support.dpop_page import jws, pack
from tests.support.gateway_lab import DOMAIN, PASSPHRASE, Clock, make_folder
from tests.support.https_client import CONFIG, Gateway, Workload, https_gateway
from tests.support.mock_provider import MockProvider
from tests.support.oauth_client import TOKEN, TokenClient
from transport.edge_session import EdgeSession, obtain
from transport.errors import IdentityExpired, TransportError
from transport.identity.join import TOKEN_ID_LEN, Invitation
from transport.identity.svid import Svid, make_csr
from transport.identity.tls import client_context, client_refusal, load_svid
from transport.identity.verify import VerifiedPeer, verify_svid
from transport.initiator import Joining, SvidLogin
from transport.links.base import Endpoint, Link, connect
from transport.primitives import SigningKey

NOW = time.time()
FORM = "grant_type=client_credentials"

# --- the table -------------------------------------------------------------------------------------------------------

# At each door: what the other side gets to hear, and what the audit says. "" is nothing at all: the handshake ends.
# `None`: there is no such thing at this door.
Cell = tuple[str, str] | None
DOORS = ("session", "tunnel", "request", "token", "access", "join")
#         a session, as an edge ("reused invitation": one that joins)
#                    GET /v1/tunnel, as a hop
#                              GET /v1/models, by certificate
#                                         POST /oauth/token, by certificate, or by assertion and proof
#                                                  GET /v1/models, by access token
#                                                            POST /v1/join


def tls(reason: str) -> Cell:
    """The handshake of TLS ends, in which there is no other door than the listener."""
    return "", reason


def at_listener(session: str, by_tls: str, access: Cell = None, join: Cell | str = "") -> tuple[Cell, ...]:
    """A defect of a certificate, which ends both kinds of handshake; an access token has other ones."""
    return ("peer_refused", session), tls(by_tls), tls(by_tls), tls(by_tls), access, (
        tls(by_tls) if isinstance(join, str) else join
    )


def bad_token(reason: str) -> Cell:
    return "invalid_token", f"token: {reason}"


def bad_client(reason: str) -> Cell:
    return "invalid_client", f"{'certificate' if reason in _OF_CERTIFICATES else 'assertion'}: {reason}"


_OF_CERTIFICATES = ("none", "serial", "registration", "role")
TABLE: dict[str, tuple[Cell, ...]] = {
    "wrong CA": at_listener("root", "root", bad_token("signature")),
    "expired": at_listener("expired", "expired", bad_token("expired"), ("invitation", "invitation expired")),
    "not yet valid": at_listener("not yet valid", "not yet valid", bad_token("not yet valid")),
    "a clock that is a day ahead": at_listener("not yet valid", "not yet valid", ("invalid_dpop_proof", "proof: time")),
    "a clock that is a day behind": at_listener("expired", "expired", ("invalid_dpop_proof", "proof: time")),
    "an assertion made tomorrow": (None, None, None, bad_client("not yet valid"), None, None),
    "two URIs": at_listener("exactly one URI SAN", "exactly one URI SAN"),
    "DNS only": at_listener("exactly one URI SAN", "exactly one URI SAN"),
    "no SPIFFE ID": at_listener("ID scheme", "ID scheme"),
    "CA as leaf": at_listener("CA as leaf", "CA as leaf"),
    "key usage: encipherment": at_listener("key usage digitalSignature", "purpose"),
    "key usage: certificates": at_listener("key usage keyCertSign", "key usage keyCertSign"),
    "foreign trust domain": at_listener("trust domain", "trust domain", bad_token("issuer")),
    "wrong role": at_listener("role", "role", None, ("invitation", "this role does not join this way")),
    "a role that begins like it": at_listener("role", "role"),
    "the role of another door": (
        ("peer_refused", "role"), ("refused", "role"), ("identity_refused", "certificate: role"), bad_client("role"),
        None, None,
    ),
    "TLS 1.2": (None, *[tls("TLS version")] * 5),
    "no client certificate": (
        None, ("refused", "certificate"), ("identity_unknown", "certificate: none"), bad_client("none"),
        bad_token("binding"), None,
    ),
    "another's certificate": (None, None, None, bad_client("root"), bad_token("binding"), None),
    "never issued": (
        ("peer_refused", "serial"), ("refused", "serial"), ("identity_refused", "certificate: serial"),
        bad_client("serial"), bad_token("registration"), ("invitation", "unknown invitation or wrong secret"),
    ),
    "reused invitation": (
        ("peer_refused", "invitation used with another device key"), None, None, None, None,
        ("invitation", "invitation used with another device key"),
    ),
    "alg:none": (None, None, None, bad_client("form"), bad_token("form"), None),
    "alg:none, with a signature": (None, None, None, bad_client("algorithm"), bad_token("algorithm"), None),
    "key confusion (HS256)": (None, None, None, bad_client("form"), bad_token("form"), None),
    "key confusion (HS512)": (None, None, None, bad_client("algorithm"), bad_token("algorithm"), None),
    "revoked": (  # last of all
        ("peer_refused", "registration"), ("refused", "registration"),
        ("identity_refused", "certificate: registration"), bad_client("registration"), bad_token("registration"),
        ("invitation", "invitation ended by a revocation"),
    ),
}

URI = f"spiffe://{DOMAIN}"
CERTIFICATES: dict[str, Callable[[Ca, str], Svid]] = {  # of role/name, as the door wants it
    "wrong CA": lambda ca, path: Ca(DOMAIN, now=NOW).issue(path),
    "expired": lambda ca, path: ca.issue(path, start=-7200, lifetime=3600),
    "not yet valid": lambda ca, path: ca.issue(path, start=3600),
    "a clock that is a day ahead": lambda ca, path: ca.issue(path, start=DAY),
    "a clock that is a day behind": lambda ca, path: ca.issue(path, start=-DAY, lifetime=3600),
    "two URIs": lambda ca, path: ca.issue(path, uris=[f"{URI}/{path}", f"{URI}/{path}2"]),
    "DNS only": lambda ca, path: ca.issue(path, uris=[], dns=["pi.example"]),
    "no SPIFFE ID": lambda ca, path: ca.issue(path, uris=[f"https://{DOMAIN}/{path}"]),
    "CA as leaf": lambda ca, path: ca.issue(path, ca=True),
    "key usage: encipherment": lambda ca, path: ca.issue(path, usage=key_usage("key_encipherment")),
    "key usage: certificates": lambda ca, path: ca.issue(path, usage=key_usage("digital_signature", "key_cert_sign")),
    "foreign trust domain": lambda ca, path: ca.issue(path, uris=[f"spiffe://other.example/{path}"]),
    "wrong role": lambda ca, path: ca.issue("gateway" + path[path.index("/"):]),
    "a role that begins like it": lambda ca, path: ca.issue(path.replace("/", "s/")),
    "the role of another door": lambda ca, path: ca.issue("workload/x" if path == "hop/pi" else "hop/x"),
    "never issued": lambda ca, path: ca.issue(path),
}


# --- how each door is tried ------------------------------------------------------------------------------------------


@dataclass
class Tried:
    """A gateway, and devices that may come, each by its door."""

    gateway: Gateway
    clock: Clock
    keys: TokenKeys
    ca: Ca
    authority: Authority
    edge: Svid
    hop: Workload
    client: TokenClient
    other: Workload
    invitation: Invitation  # used, by a device of which nothing else is here
    bound: str = ""  # tokens of `client`: for its certificate, for its key
    keyed: str = ""
    seen: int = field(default=0)

    async def reason(self) -> str:
        """Of the one refusal that is written next."""
        while not (found := [one for one in self.gateway.audit()[self.seen:] if "reason" in one]):  # noqa: ASYNC110
            await asyncio.sleep(0)
        self.seen = len(self.gateway.audit())
        assert len(found) == 1 and found[0]["event"].endswith((".refused", ".denied")), found
        return str(found[0]["reason"])

    def look(self) -> None:
        """What has been written so far is no refusal that is waited for."""
        self.seen = len(self.gateway.audit())

    async def at(self, door: str, what: str) -> Any:
        """What the other side gets to hear; all of it."""
        attempts: dict[str, Callable[[str], Awaitable[Any]]] = {
            "session": self._session, "tunnel": self._tunnel, "request": self._request, "token": self._token,
            "access": self._access, "join": self._join,
        }
        return await attempts[door](what)

    def certificate(self, what: str, path: str, revoked: Svid) -> Svid | None:
        if what in ("no client certificate", "reused invitation"):
            return None
        return CERTIFICATES[what](self.ca, path) if what in CERTIFICATES else revoked

    # a session

    def check(self, chain: Any, now: float) -> VerifiedPeer:
        return verify_svid(chain, self.authority.bundle, role="gateway", now=now)

    async def _session(self, what: str) -> Any:
        link = Counted(await connect(Endpoint.parse(self.gateway.ready.session)))
        with pytest.raises(TransportError) as caught:
            if what == "reused invitation":
                device, key = SigningKey.generate(), SigningKey.generate()
                joining = Joining(await self.used_by_an_edge(), device.public.spki, make_csr(key))
                await obtain(link, joining, device, self.check)
            else:
                svid = self.certificate(what, "edge/lap-1", self.edge)
                assert svid is not None
                await EdgeSession(link, SvidLogin(svid.chain, NOW + DAY), svid.key, self.check).open()
        inside = what in ("never issued", "revoked", "reused invitation")  # after a handshake that was well done
        return caught.value.code, str(caught.value), what == "reused invitation", inside, link.came

    async def used_by_an_edge(self) -> Invitation:
        invitation, device = await self.gateway.invite("edge/lap-2"), SigningKey.generate()
        joining = Joining(invitation, device.public.spki, make_csr(SigningKey.generate()))
        await obtain(await connect(Endpoint.parse(self.gateway.ready.session)), joining, device, self.check)
        self.look()
        return invitation

    # HTTPS

    async def _asked(
        self, what: str, svid: Svid | None, line: str, *, headers: dict[str, str] | None = None, body: str = ""
    ) -> Any:
        context = client_context(self.authority.bundle, svid)
        if what == "TLS 1.2":
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
            context.maximum_version = ssl.TLSVersion.TLSv1_2
            load_svid(context, svid_of(self.hop))
        fields = {"Host": "gateway", "Connection": "close", "Content-Length": str(len(body)), **(headers or {})}
        head = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
        host, _, port = self.gateway.ready.https.rpartition(":")
        return await by_tls(host, int(port), context, f"{line} HTTP/1.1\r\n{head}\r\n{body}".encode())

    async def _tunnel(self, what: str) -> Any:
        return await self._asked(what, self.certificate(what, "hop/pi", svid_of(self.hop)), "GET /v1/tunnel")

    async def _request(self, what: str) -> Any:
        path = "workload/report-1"
        return await self._asked(
            what, self.certificate(what, path, svid_of(self.client.workload)), "GET /v1/models"
        )

    async def _token(self, what: str) -> Any:
        client, line, headers = self.client, f"POST {TOKEN}", {"Content-Type": "application/x-www-form-urlencoded"}
        assertion = {
            "an assertion made tomorrow": lambda: client.assertion(iat=int(time.time() + DAY)),
            "another's certificate": lambda: TokenClient(
                client.workload, client.key, Ca(DOMAIN, now=NOW).issue("workload/report-1").chain
            ).assertion(),
            "alg:none": lambda: unsigned(client.assertion({"alg": "none"})),
            "alg:none, with a signature": lambda: client.assertion({"alg": "none"}),
            "key confusion (HS256)": lambda: confused(client.assertion({"alg": "HS256"}), "sha256", client.key),
            "key confusion (HS512)": lambda: confused(client.assertion({"alg": "HS512"}), "sha512", client.key),
        }.get(what)
        if assertion is None:
            svid = self.certificate(what, "workload/report-1", svid_of(client.workload))
            return await self._asked(what, svid, line, headers=headers, body=FORM)
        await fresh_nonce(client)
        fields = client.form(assertion())
        body = "&".join(f"{name}={value}" for name, value in fields.items())
        return await self._asked(what, None, line, headers=headers | {"DPoP": client.proof(TOKEN)}, body=body)

    async def _access(self, what: str) -> Any:
        client, now = self.client, int(self.clock.now)
        claims = jwt.decode(self.keyed, options={"verify_signature": False}) | {"iat": now, "exp": now + 600}

        kid = jwt.get_unverified_header(self.keyed)["kid"]
        header, signer = {"typ": "at+jwt", "kid": kid}, self.keys._keys[kid].signer
        text, proof = signed(signer, header, claims), dict[str, int]()
        match what:
            case "wrong CA":
                text = jws(header | {"alg": "ES256"}, claims, SigningKey.generate())
            case "expired":
                text = signed(signer, header, claims | dict(exp=now - 1, iat=now - 601))
            case "not yet valid":
                text = signed(signer, header, claims | dict(iat=now + 3_600, exp=now + 4_200))
            case "a clock that is a day ahead" | "a clock that is a day behind":
                proof = {"iat": int(time.time() + (DAY if what.endswith("ahead") else -DAY))}
            case "foreign trust domain":
                text = signed(signer, header, claims | dict(iss="https://other.example"))
            case "never issued":
                text = signed(signer, header, claims | dict(enrolment=4_711))
            case "alg:none":
                text = unsigned(jws(header | {"alg": "none"}, claims, client.key))
            case "alg:none, with a signature":
                text = jws(header | {"alg": "none"}, claims, client.key)
            case "key confusion (HS256)":
                text = confused(jws(header | {"alg": "HS256"}, claims, client.key), "sha256", signer)
            case "key confusion (HS512)":
                text = confused(jws(header | {"alg": "HS512"}, claims, client.key), "sha512", signer)
        if what in ("no client certificate", "another's certificate"):
            svid = None if what.startswith("no ") else svid_of(self.other)
            return await self._asked(what, svid, "GET /v1/models", headers={"Authorization": f"Bearer {self.bound}"})
        await fresh_nonce(client)
        shown = client.proof("/v1/models", "GET", token=text, **proof)
        return await self._asked(
            what, None, "GET /v1/models", headers={"Authorization": f"DPoP {text}", "DPoP": shown}
        )

    async def _join(self, what: str) -> Any:
        if what not in ("expired", "wrong role", "never issued", "reused invitation", "revoked"):
            return await self._asked(what, self.certificate(what, "hop/pi", svid_of(self.hop)), "POST /v1/join")
        invitation = self.invitation
        if what == "wrong role":
            invitation = await self.gateway.invite("edge/lap-3")
        if what == "expired":
            invitation = Invitation.parse(
                (await self.gateway.admin("invite", path="workload/late", ttl_s=1))["invitation"]
            )
            self.clock.now += 2
        if what == "never issued":
            invitation = Invitation.parse((await self.gateway.admin("invite", path="workload/x"))["invitation"])
            invitation = replace(invitation, token_id=bytes(TOKEN_ID_LEN))
        self.look()
        status, answer = await Workload(self.gateway, self.authority.bundle).join(invitation)
        return "", b"%d\r\n\r\n%s" % (status, answer)


def svid_of(one: Workload) -> Svid:
    assert one.svid is not None
    return one.svid



class Counted:
    """A link that counts what comes from the gateway."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self.peer, self.send, self.close = link.peer, link.send, link.close
        self.came = 0

    async def receive(self) -> bytes:
        data = await self._link.receive()
        self.came += len(data)
        return data


async def by_tls(host: str, port: int, context: ssl.SSLContext, request: bytes) -> tuple[str, bytes]:
    """What a TLS client learns: how the connection ended, and all that it can decrypt after its own last message."""
    reader, writer = await asyncio.open_connection(host, port)
    came, to_send = ssl.MemoryBIO(), ssl.MemoryBIO()
    connection, after, ended = context.wrap_bio(came, to_send), b"", ""
    finished = False
    with contextlib.suppress(ConnectionError):
        while True:
            try:
                if not finished:
                    connection.do_handshake()
                    finished = True
                    connection.write(request)
                if not (data := connection.read(65536)):
                    break  # it has said that it ends
                after += data
                continue
            except ssl.SSLWantReadError:
                pass
            except ssl.SSLError as error:
                ended = str(error.reason)
                break
            writer.write(to_send.read())
            await writer.drain()
            data = await reader.read(65536)
            if not data:
                break
            came.write(data)
    writer.close()
    return ended, after


async def fresh_nonce(client: TokenClient) -> None:
    client.nonce = ""
    await client.renewed_nonce()


def unsigned(token: str) -> str:
    return token.rpartition(".")[0] + "."


def confused(token: str, digest: str, key: Any) -> str:
    """Signed with the public key, which everybody has, as if it were a secret that two share."""
    body = token.rpartition(".")[0]
    return f"{body}.{pack(hmac.digest(key.public.spki, body.encode(), digest))}"


def told(learned: Any) -> str:
    """The code in what was told, "" if it was nothing."""
    if not isinstance(learned[1], bytes):
        return str(learned[0])
    assert learned[0] in ("", "SSLV3_ALERT_HANDSHAKE_FAILURE", "TLSV1_ALERT_PROTOCOL_VERSION"), learned[0]
    if not learned[1]:
        return ""
    error = json.loads(learned[1].partition(b"\r\n\r\n")[2])["error"]
    return str(error if isinstance(error, str) else error["code"])


def bytes_of(learned: Any) -> Any:
    """All of it but what differs with each answer, whatever it says: date, trace id, and the nonce after a proof."""
    if not isinstance(learned[1], bytes):
        return learned
    changing = rb'DPoP-Nonce: [^\r]+\r\n|(Date: |"trace_id":"|"urn:causeway:trace:)[^\r"]+'
    return learned[0], re.sub(changing, rb"\1", learned[1])


# --- the tests -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_folder(tmp_path_factory.mktemp("bad") / "gateway", now=NOW - 10 * DAY)


@pytest.fixture
async def tried(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Tried]:
    kept: list[TokenKeys] = []
    make, clock = app.make_oauth, Clock()

    def keeping(issuer: str, *, keys: TokenKeys, **others: Any) -> Any:
        kept.append(keys)
        return make(issuer, keys=keys, **others)

    monkeypatch.setattr(app, "make_oauth", keeping)
    monkeypatch.setattr(refusals, "_RATE", Rate(1_000.0, 1_000))  # each has its record
    text = CONFIG.replace("[listen]", '[listen]\nsession = "tcp:127.0.0.1:0"')
    async with MockProvider() as provider, https_gateway(
        made, tmp_path / "gateway", provider, text=text, clock=clock
    ) as gateway:
        authority = await asyncio.to_thread(Authority.open, gateway.folder, PASSPHRASE)
        ca = Ca(DOMAIN, now=NOW)
        ca.signer_key, ca.signer = authority._key.private_key, authority._certificate
        ca.intermediates = (authority._der,)
        hop, other = await Workload.joined(gateway, "hop/pi"), await Workload.joined(gateway, "workload/other")
        client = await TokenClient.joined(gateway)
        used = await gateway.invite("workload/report-2")
        await Workload(gateway, authority.bundle).join(used)
        one = Tried(gateway, clock, kept[0], ca, authority, svid_of(hop), hop, client, other, used)
        one.bound, one.keyed = await client.certificate_token(), await client.token()
        device, key = SigningKey.generate(), SigningKey.generate()
        joining = Joining(await gateway.invite("edge/lap-1"), device.public.spki, make_csr(key))
        issued = await obtain(await connect(Endpoint.parse(gateway.ready.session)), joining, device, one.check)
        one.edge = Svid.from_chain(issued.chain, key)
        one.look()
        yield one


@pytest.mark.parametrize("door", DOORS)
async def test_each_bad_identity_at_each_door(tried: Tried, door: str) -> None:
    heard: dict[str, dict[Any, list[str]]] = {}
    assert list(TABLE)[-1] == "revoked"
    for what, cells in TABLE.items():
        cell = dict(zip(DOORS, cells, strict=True))[door]
        if cell is None:
            continue
        if what == "revoked":
            for who in ("edge/lap-1", "hop/pi", "workload/report-1", "workload/report-2"):
                await tried.gateway.admin("revoke", who=who, reason="lost")
            tried.look()
        learned = await tried.at(door, what)
        assert (told(learned), await tried.reason()) == cell, what
        if what != "TLS 1.2":  # the one that a client is told of, by an alert
            heard.setdefault(cell[0], {}).setdefault(bytes_of(learned), []).append(what)
    for code, kinds in heard.items():  # a session: in its handshake, or within, or joining
        assert len(kinds) == (3 if door == "session" else 1), f"{code} tells more than that: {kinds}"
    assert heard and tried.gateway.provider.calls == 0


async def test_nothing_else_keeps_them_out(tried: Tried) -> None:
    """The same devices, tokens and ways, with nothing wrong about them."""
    client = tried.client
    svid = tried.edge
    link = await connect(Endpoint.parse(tried.gateway.ready.session))
    await (await EdgeSession(link, SvidLogin(svid.chain, svid.not_after), svid.key, tried.check).open()).close()
    models = await client.send("/v1/models", method="GET", with_svid=True)
    bound = await client.send(
        "/v1/models", method="GET", with_svid=True, headers={"Authorization": f"Bearer {tried.bound}"}
    )
    await fresh_nonce(client)
    text = await tried.keys.sign(jwt.decode(tried.keyed, options={"verify_signature": False}), "at+jwt")
    keyed = await client.send("/v1/models", method="GET", headers={
        "Authorization": f"DPoP {text}", "DPoP": client.proof("/v1/models", "GET", token=text),
    })
    assert [answer.status for answer in (models, bound, keyed)] == [200, 200, 200]
    assert (await client.given()).status == 200
    async with tried.hop.client() as http, http.ws_connect("/v1/tunnel"):
        pass
    assert not [line for line in tried.gateway.audit() if line["event"].endswith((".refused", ".denied"))]


@pytest.mark.parametrize(("off", "words"), [(DAY, "clock here is probably ahead"),
                                            (-DAY, "clock here is probably behind")])
async def test_a_device_whose_clock_is_a_day_off_is_told_whose(tried: Tried, off: float, words: str) -> None:
    svid = tried.ca.issue("edge/lap-1", start=off - 300)
    link = await connect(Endpoint.parse(tried.gateway.ready.session))
    login = SvidLogin(svid.chain, NOW + 2 * DAY)
    session = EdgeSession(link, login, svid.key, tried.check, clock=lambda: time.time() + off)
    with pytest.raises(IdentityExpired) as caught:
        await session.open()
    assert words in (caught.value.hint or "")


@pytest.mark.parametrize(("off", "words"), [(DAY, "clock here was probably set back"),
                                            (-DAY, "the peer's clock is probably behind")])
def test_a_gateway_tells_whose_clock_it_suspects(off: float, words: str) -> None:
    ca = Ca(DOMAIN, now=NOW, intermediate_start=-3 * DAY, root_lifetime=90 * DAY)
    with pytest.raises(IdentityExpired) as caught:
        verify_svid(ca.issue("edge/a", start=off).chain, ca.bundle(), role="edge", now=NOW)
    assert words in (caught.value.hint or "")


def test_what_is_no_refusal_of_ours_leaves_no_record() -> None:
    for error in (ConnectionResetError(), TimeoutError(), ssl.SSLError(1, "x")):
        assert client_refusal(error) is None

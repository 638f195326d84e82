"""Access tokens: who gets one, what one is good for, and that a stolen or forged one is good for nothing."""

import asyncio
import hmac
import json
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import jwt
import pytest

from relay.gateway import app
from relay.gateway.identity.jose import TOKEN_MAX
from relay.gateway.identity.token_keys import TokenKeys
from tests.support.ca import Ca
from tests.support.dpop_page import LEFT_OUT, ath, jwk_of, jws, pack, without
from tests.support.gateway_lab import DOMAIN, chat
from tests.support.https_client import CHAT, Gateway, Workload, https_gateway, last_words
from tests.support.mock_provider import WHOLE, MockProvider
from tests.support.oauth_client import ASSERTION_TYPE, TOKEN, TokenClient
from transport.identity.tls import client_context
from transport.primitives import SigningKey, random_bytes, sha256

REVOKED = {"who": "workload/report-1", "reason": "lost"}
KEYS: list[TokenKeys] = []  # of the gateway that was started last: those of its access tokens


@pytest.fixture
async def provider() -> AsyncIterator[MockProvider]:
    async with MockProvider() as provider:
        yield provider


@pytest.fixture
async def gateway(
    made: Path, tmp_path: Path, provider: MockProvider, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Gateway]:
    make = app.make_oauth

    def kept(issuer: str, *, keys: TokenKeys, **others: Any) -> Any:
        KEYS[:] = [keys]
        return make(issuer, keys=keys, **others)

    monkeypatch.setattr(app, "make_oauth", kept)
    async with https_gateway(made, tmp_path / "gateway", provider) as gateway:
        yield gateway


@pytest.fixture
async def client(gateway: Gateway) -> TokenClient:
    return await TokenClient.joined(gateway)


def claims_of(token: str) -> dict[str, Any]:
    return dict(jwt.decode(token, options={"verify_signature": False}))


def reasons(gateway: Gateway, event: str = "https.denied") -> list[str]:
    return [str(line["reason"]) for line in gateway.audit(event)]


# --- who gets one -----------------------------------------------------------------------------------------------------


async def test_a_token_for_a_certificate(gateway: Gateway, client: TokenClient) -> None:
    token = await client.certificate_token()
    claims, svid = claims_of(token), client.workload.svid
    assert svid is not None
    now = time.time()
    assert claims == {
        "iss": gateway.url, "aud": gateway.url, "sub": client.workload.id, "client_id": client.workload.id,
        "iat": claims["iat"], "exp": claims["iat"] + 600, "jti": claims["jti"], "enrolment": client.workload.enrolment,
        "cnf": {"x5t#S256": pack(sha256(svid.chain[0]))},
    }
    assert abs(claims["iat"] - now) < 60 and len(claims["jti"]) == 32
    answer = await client.ask(chat(), token, scheme="Bearer", with_svid=True)
    assert (answer.status, answer.body) == (200, WHOLE)
    (issued,), (intent,) = gateway.audit("token.issued"), gateway.audit("request.intent")
    assert issued["token"] == intent["token"] == claims["jti"] and issued["bound"] == "certificate"
    assert token not in json.dumps(gateway.audit()), "the audit names it and does not hold it"


@pytest.mark.parametrize("by", ["device key", "SVID key"])
async def test_a_token_for_a_key(gateway: Gateway, client: TokenClient, by: str) -> None:
    client = client.by_svid() if by == "SVID key" else client
    token = await client.token()
    claims = claims_of(token)
    members = json.dumps(dict(sorted(jwk_of(client.key).items())), separators=(",", ":"))
    assert claims["cnf"] == {"jkt": pack(sha256(members.encode()))}
    assert claims["sub"] == client.workload.id and claims["exp"] - claims["iat"] == 600
    for _ in range(3):  # for each request another proof
        answer = await client.ask(chat(), token)
        assert (answer.status, answer.body) == (200, WHOLE)
    models = await client.send("/v1/models", method="GET", headers={
        "Authorization": f"dpop {token}", "DPoP": client.proof("/v1/models", "GET", token=token),
    })
    assert [one["id"] for one in models.body["data"]] == ["small"]


async def test_metadata_and_keys_are_what_a_library_needs(gateway: Gateway, client: TokenClient) -> None:
    told = (await client.send("/.well-known/oauth-authorization-server", method="GET")).body
    assert told["issuer"] == gateway.url and told["token_endpoint"] == gateway.url + TOKEN
    assert told["token_endpoint_auth_methods_supported"] == ["tls_client_auth", "private_key_jwt"]
    assert told["tls_client_certificate_bound_access_tokens"] and told["dpop_signing_alg_values_supported"] == ["ES256"]
    answer = await client.send(told["jwks_uri"].removeprefix(gateway.url), method="GET")
    assert answer.headers["Cache-Control"] == "public, max-age=300"
    token = await client.token()
    key = jwt.PyJWKSet.from_dict(answer.body)[jwt.get_unverified_header(token)["kid"]]
    jwt.decode(token, key, algorithms=["ES256"], audience=gateway.url, issuer=gateway.url)
    assert jwt.get_unverified_header(token)["typ"] == "at+jwt"
    assert all(not {"d", "p", "q", "k"} & one.keys() for one in answer.body["keys"])


async def test_a_token_ends_no_later_than_the_svid(made: Path, tmp_path: Path, provider: MockProvider) -> None:
    ahead = 0.0
    async with https_gateway(made, tmp_path / "gateway", provider, clock=lambda: time.time() + ahead) as gateway:
        client = await TokenClient.joined(gateway)
        svid = client.workload.svid
        assert svid is not None
        ahead = svid.not_after - time.time() - 100
        claims = claims_of(await client.certificate_token())
        assert claims["exp"] == int(svid.not_after)
        answer = await client.post_form({"grant_type": "client_credentials"}, with_svid=True)
        assert answer.body["expires_in"] <= 100


@pytest.mark.parametrize(("form", "expected", "reason"), [
    ({}, (400, "invalid_request"), "request: form"), ("", (400, "invalid_request"), "request: form"),
    ({"grant_type": ""}, (400, "invalid_request"), "request: form"),
    ("grant_type=client_credentials&grant_type=client_credentials", (400, "invalid_request"),
     "request: duplicate field"),
    ("grant_type", (400, "invalid_request"), "request: form"), ("&" * 40, (400, "invalid_request"), "request: form"),
    (b"grant_type=\xff", (400, "invalid_request"), "request: form"),
    ("grant_type=%ff", (400, "invalid_request"), "request: form"),
    ({"grant_type": "password", "username": "a", "password": "b"}, (400, "unsupported_grant_type"), "request: grant"),
    ({"grant_type": "authorization_code"}, (400, "unsupported_grant_type"), "request: grant"),
    ({"grant_type": "client_credentials", "scope": "all"}, (400, "invalid_scope"), "request: scope"),
    ({"grant_type": "client_credentials", "client_id": "spiffe://field.example/edge/other"}, (401, "invalid_client"),
     "certificate: client_id"),
    ({"grant_type": "client_credentials", "client_assertion": "x"}, (400, "invalid_request"),
     "request: assertion type"),
    ({"grant_type": "client_credentials", "client_assertion_type": "saml"}, (400, "invalid_request"),
     "request: assertion type"),
])
async def test_requests_for_a_token_that_are_none(
    gateway: Gateway, client: TokenClient, form: Any, expected: tuple[int, str], reason: str
) -> None:
    answer = await client.post_form(form, with_svid=True)
    assert answer.error == expected and answer.body.keys() == {"error"}
    assert answer.headers["Cache-Control"] == "no-store"
    assert reasons(gateway, "oauth.refused") == [reason] and gateway.audit("token.issued") == []


async def test_a_form_is_a_form(gateway: Gateway, client: TokenClient) -> None:
    good = "grant_type=client_credentials"
    for kind in ("application/json", "text/plain", "multipart/form-data"):
        answer = await client.post_form(good, with_svid=True, headers={"Content-Type": kind})
        assert answer.error == (400, "invalid_request")
    plain = await client.post_form(good, with_svid=True, proof=client.proof(TOKEN))
    assert plain.error == (400, "invalid_request"), "bound to the certificate or to the key, but which?"
    big = await client.post_form(good + "&x=" + "y" * 20_000, with_svid=True)
    assert big.status == 413
    assert gateway.audit("token.issued") == []


async def test_who_has_no_svid_of_a_client_gets_none(gateway: Gateway, client: TokenClient) -> None:
    form = {"grant_type": "client_credentials"}
    assert (await client.post_form(form)).error == (401, "invalid_client")
    hop = await TokenClient.joined(gateway, "hop/pi")
    assert (await hop.post_form(form, with_svid=True)).error == (401, "invalid_client")
    forged = Ca()
    forged.signer_key, forged.signer = await authority_of(gateway)
    unknown = forged.issue("workload/report-1")
    unknown = type(unknown).from_chain([unknown.chain[0], client.workload.svid.chain[1]], unknown.key)  # type: ignore[union-attr]
    assert (await client.post_form(form, svid=unknown)).error == (401, "invalid_client")
    await gateway.admin("revoke", **REVOKED)
    assert (await client.post_form(form, with_svid=True)).error == (401, "invalid_client")
    assert reasons(gateway, "oauth.refused") == [
        "certificate: none", "certificate: role", "certificate: serial", "certificate: registration",
    ]


async def authority_of(gateway: Gateway) -> Any:
    """The intermediate's key and certificate: for certificates that are good and were never given out."""
    from relay.gateway.identity.ca import Authority
    from tests.support.gateway_lab import PASSPHRASE

    authority = await asyncio.to_thread(Authority.open, gateway.folder, PASSPHRASE)
    return authority._key.private_key, authority._certificate


THIEF = SigningKey.generate()
ASSERTIONS: list[tuple[str, Callable[[TokenClient], str], str]] = [
    ("alg none", lambda c: c.assertion({"alg": "none"}), "algorithm"),
    ("alg HS256", lambda c: c.assertion({"alg": "HS256"}), "algorithm"),
    ("an access token's type", lambda c: c.assertion({"typ": "at+jwt"}), "type"),
    ("a proof's type", lambda c: c.assertion({"typ": "dpop+jwt"}), "type"),
    ("critical", lambda c: c.assertion({"crit": ["exp"]}), "header"),
    ("signed by another", lambda c: c.assertion(key=THIEF), "signature"),
    ("its own key in jwk", lambda c: c.assertion({"jwk": jwk_of(THIEF)}, key=THIEF), "signature"),
    ("a key elsewhere", lambda c: c.assertion({"jku": "https://evil.example/"}, key=THIEF), "signature"),
    ("a path as key id", lambda c: c.assertion({"kid": "../../dev/null"}, key=THIEF), "signature"),
    ("for another server", lambda c: c.assertion(aud="https://other.example/oauth/token"), "audience"),
    ("for two servers", lambda c: c.assertion(aud=[c.url, "https://other.example"]), "audience"),
    ("for nobody", lambda c: c.assertion(aud=[]), "audience"),
    ("of another issuer", lambda c: c.assertion(iss=f"spiffe://{DOMAIN}/workload/other"), "issuer"),
    ("as another", lambda c: c.assertion(**dict.fromkeys(("iss", "sub"), f"spiffe://{DOMAIN}/workload/other")),
     "subject"),
    ("as a hop", lambda c: c.assertion(**dict.fromkeys(("iss", "sub"), f"spiffe://{DOMAIN}/hop/x")), "role"),
    ("as no ID", lambda c: c.assertion(iss="report-1", sub="report-1"), "subject"),
    ("expired", lambda c: c.assertion(exp=int(time.time()) - 1), "expired"),
    ("for an hour", lambda c: c.assertion(exp=int(time.time()) + 3_600), "too long"),
    ("not yet", lambda c: c.assertion(nbf=int(time.time()) + 600), "not yet valid"),
    ("made tomorrow", lambda c: c.assertion(iat=int(time.time()) + 86_400), "not yet valid"),
    ("without end", lambda c: c.assertion(exp=LEFT_OUT), "claims"),
    ("without a name", lambda c: c.assertion(jti=LEFT_OUT), "claims"),
    ("a text as end", lambda c: c.assertion(exp="4000000000"), "claims"),
    ("too long", lambda c: c.assertion(more="x" * 9_000), "size"),
    ("no token", lambda c: "x", "form"),
    ("certificates that are none", lambda c: c.assertion({"x5c": ["MIIB", 5]}), "chain"),
    ("a certificate that is none", lambda c: c.assertion({"x5c": ["MIIB"]}), "encoding"),
    ("another's certificate", lambda c: TokenClient(c.workload, c.key, Ca().issue("workload/report-1").chain)
     .assertion(), "root"),
]


@pytest.mark.parametrize("by", ["device key", "SVID key"])
async def test_M14_each_assertion_that_is_none(gateway: Gateway, client: TokenClient, by: str) -> None:
    client = client.by_svid() if by == "SVID key" else client
    await client.renewed_nonce()
    for what, make, reason in ASSERTIONS:
        before = len(gateway.audit("oauth.refused"))
        answer = await client.post_form(client.form(make(client)), proof=client.proof(TOKEN))
        assert answer.error == (401, "invalid_client") and answer.body.keys() == {"error"}, what
        (line,) = gateway.audit("oauth.refused")[before:]
        assert line["reason"] == f"assertion: {reason}", what
    assert (await client.given()).status == 200
    assert len(gateway.audit("token.issued")) == 1


async def test_M14_an_assertion_is_used_once_and_with_its_own_key(gateway: Gateway, client: TokenClient) -> None:
    await client.renewed_nonce()
    assertion = client.assertion()
    assert (await client.post_form(client.form(assertion), proof=client.proof(TOKEN, key=THIEF))).error == (
        401, "invalid_client"
    )
    other = await TokenClient.joined(gateway, "workload/other")
    assert (await client.post_form(client.form(assertion), proof=client.proof(TOKEN, key=other.key))).error == (
        401, "invalid_client"
    )
    shown = client.by_svid().assertion()  # the SVID's, with a proof by the device key
    assert (await client.post_form(client.form(shown), proof=client.proof(TOKEN))).error == (401, "invalid_client")
    assert (await client.post_form(client.form(assertion), proof=client.proof(TOKEN))).status == 200
    assert (await client.post_form(client.form(assertion), proof=client.proof(TOKEN))).error == (401, "invalid_client")
    proof = client.proof(TOKEN)
    assert (await client.post_form(client.form(), proof=proof)).status == 200
    assert (await client.post_form(client.form(), proof=proof)).error == (400, "invalid_dpop_proof")
    assert (await client.post_form(client.form())).error == (400, "invalid_dpop_proof")
    assert reasons(gateway, "oauth.refused") == [
        "assertion: registration", "assertion: subject", "assertion: binding", "assertion: replayed",
        "proof: replayed", "proof: form",
    ]


# --- what one is good for ---------------------------------------------------------------------------------------------


async def test_M14_a_thief_with_a_token_has_nothing(gateway: Gateway, client: TokenClient) -> None:
    """He has every token there is, a device and an SVID of his own, and what he overheard of a request."""
    thief = await TokenClient.joined(gateway, "workload/thief")
    bound, keyed = await client.certificate_token(), await client.token()
    await thief.token()
    overheard = client.proof(token=keyed)
    assert (await client.ask(chat(), keyed, proof=overheard)).status == 200
    denied = (401, "invalid_token")
    tries = [
        (await thief.ask(chat(), bound, scheme="Bearer"), denied, "token: binding"),  # without a certificate
        (await thief.ask(chat(), bound, scheme="Bearer", with_svid=True), denied, "token: binding"),
        (await thief.ask(chat(), bound), denied, "token: binding"),  # as if it were bound to his key
        (await thief.ask(chat(), keyed), denied, "token: binding"),
        (await thief.ask(chat(), keyed, scheme="Bearer"), denied, "token: binding"),
        (await thief.ask(chat(), keyed, scheme="Bearer", with_svid=True), denied, "token: binding"),
        (await thief.ask(chat(), keyed, proof=overheard), (401, "invalid_dpop_proof"), "proof: replayed"),
        (await thief.ask(chat(), keyed, proof=client.proof("/v1/models", "GET", token=keyed)),
         (401, "invalid_dpop_proof"), "proof: method"),
        (await thief.ask(chat(), keyed, proof=client.proof(TOKEN, token=keyed)), (401, "invalid_dpop_proof"),
         "proof: address"),
        (await thief.ask(chat(), keyed, proof=client.proof()), (401, "invalid_dpop_proof"), "proof: token hash"),
        (await thief.ask(chat(), keyed, proof=client.proof(token=bound)), (401, "invalid_dpop_proof"),
         "proof: token hash"),
        (await thief.ask(chat(), keyed, proof="x"), (401, "invalid_dpop_proof"), "proof: form"),
        (await thief.ask(chat(), keyed, scheme="Basic", with_svid=True), denied, "token: scheme"),
    ]
    for answer, expected, _ in tries:
        assert answer.error == expected
    assert reasons(gateway) == [reason for _, _, reason in tries]
    assert gateway.provider.calls == 1
    assert all(str(answer.headers["WWW-Authenticate"]).startswith("DPoP algs=") for answer, *_ in tries)


async def test_a_renewed_certificate_has_other_tokens(gateway: Gateway, client: TokenClient) -> None:
    """RFC 8705: a token is for one certificate. Whoever renews the SVID asks for a new token."""
    token, old = await client.certificate_token(), client.workload.svid
    await client.workload.renew()
    assert (await client.ask(chat(), token, scheme="Bearer", with_svid=True)).error == (401, "invalid_token")
    assert (await client.ask(chat(), token, scheme="Bearer", svid=old)).status == 200
    assert (await client.ask(chat(), await client.certificate_token(), scheme="Bearer", with_svid=True)).status == 200
    assert reasons(gateway) == ["token: binding"]


async def test_M14_a_revoked_enrolment_s_tokens_die_at_once(gateway: Gateway, client: TokenClient) -> None:
    bound, keyed = await client.certificate_token(), await client.token()
    await gateway.admin("revoke", **REVOKED)
    for scheme, token in (("Bearer", bound), ("DPoP", keyed)):
        answer = await client.ask(chat(), token, scheme=scheme, with_svid=True)
        assert answer.error == (401, "invalid_token")
    assert (await client.given()).error == (401, "invalid_client")
    await gateway.admin("reinstate", who="workload/report-1")
    assert (await client.ask(chat(), keyed)).error == (401, "invalid_token"), "it was of the old enrolment"
    assert (await client.ask(chat(), await client.token())).status == 200
    assert reasons(gateway) == ["token: registration"] * 3


@pytest.mark.parametrize("by", ["token", "SVID"])
async def test_who_is_revoked_while_the_body_is_on_its_way_calls_nobody(
    gateway: Gateway, client: TokenClient, by: str
) -> None:
    """Who asks is known by the head, and looked at again once the request is whole."""
    body, shown = chat(), {}
    if by == "token":
        token = await client.token()
        shown = {"Authorization": f"DPoP {token}", "DPoP": client.proof(token=token)}
    lines = {
        "Host": "gateway", "Content-Type": "application/json", "Content-Length": str(len(body)),
        "Expect": "100-continue", **shown,
    }
    workload = client.workload
    context = client_context(workload.bundle, workload.svid if by == "SVID" else None)
    host, _, port = gateway.ready.https.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port), ssl=context)
    head = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
    writer.write(f"POST {CHAT} HTTP/1.1\r\n{head}\r\n".encode())
    assert await reader.readline() == b"HTTP/1.1 100 Continue\r\n" and await reader.readline() == b"\r\n"
    await gateway.admin("revoke", **REVOKED)
    writer.write(body)
    assert (await reader.readline()).split()[1] in (b"401", b"403")
    writer.close()
    assert gateway.provider.calls == 0


async def test_a_token_s_stream_is_cut_by_revocation_and_by_keys_in_other_hands(
    gateway: Gateway, provider: MockProvider, client: TokenClient
) -> None:
    other = await TokenClient.joined(gateway, "workload/other")
    provider.mode = "stream_stall"
    codes = []
    for one, end in (
        (client, gateway.admin("revoke", **REVOKED)), (other, gateway.admin("rotate_tokens", compromised=True)),
    ):
        provider.ended.clear()
        token = await one.token()
        async with one.workload.stalled(
            headers={"Authorization": f"DPoP {token}", "DPoP": one.proof(token=token)}, bare=True
        ) as answer:
            await end
            codes.append(await last_words(answer))
        await provider.ended.wait()
    assert codes == ["identity_refused", "invalid_token"]
    provider.mode = "ok"
    assert (await other.ask(chat(), token)).error == (401, "invalid_token")
    assert (await other.ask(chat(), await other.token())).status == 200


async def test_keys_that_turn_leave_tokens_good(gateway: Gateway, client: TokenClient) -> None:
    token = await client.token()
    await gateway.admin("rotate_tokens")
    assert (await client.ask(chat(), token)).status == 200
    again = await client.token()
    assert jwt.get_unverified_header(again)["kid"] != jwt.get_unverified_header(token)["kid"]
    assert (await client.ask(chat(), again)).status == 200


async def test_a_token_ends(made: Path, tmp_path: Path, provider: MockProvider) -> None:
    ahead = 0.0
    async with https_gateway(made, tmp_path / "gateway", provider, clock=lambda: time.time() + ahead) as gateway:
        client = await TokenClient.joined(gateway)
        token = await client.certificate_token()
        end = claims_of(token)["exp"]
        ahead = end - time.time() - 30
        assert (await client.ask(chat(), token, scheme="Bearer", with_svid=True)).status == 200
        ahead = end - time.time()
        assert (await client.ask(chat(), token, scheme="Bearer", with_svid=True)).error == (401, "invalid_token")
        assert reasons(gateway) == ["token: expired"]


# --- forged ones ------------------------------------------------------------------------------------------------------


class Forger:
    """Makes tokens as the gateway would, with any part wrong, from a good one."""

    def __init__(self, client: TokenClient, good: str) -> None:
        self.client, self.good = client, good
        self.kid = KEYS[0].jwks()[0]["kid"]
        signer = KEYS[0]._keys[self.kid].signer
        assert isinstance(signer, SigningKey)
        self.ours = signer

    def made(self, header: dict[str, Any] | None = None, key: SigningKey | None = None, **claims: Any) -> str:
        """Signed by the gateway's own key, unless another is given."""
        head = without({"alg": "ES256", "typ": "at+jwt", "kid": self.kid} | (header or {}))
        return jws(head, without(claims_of(self.good) | claims), key or self.ours)

    def unsigned(self, alg: str) -> str:
        stem = ".".join(self.made({"alg": alg}).split(".")[:2])
        return f"{stem}."

    def confused(self) -> str:
        """HS256 with what everybody can read as its secret."""
        stem = ".".join(self.made({"alg": "HS256"}).split(".")[:2])
        return f"{stem}.{pack(hmac.digest(self.ours.public.spki, stem.encode(), 'sha256'))}"

    def doubled(self) -> str:
        claims = json.dumps(claims_of(self.good))
        head = json.dumps({"alg": "ES256", "typ": "at+jwt", "kid": self.kid})
        twice = claims[:-1] + f', "sub": "{claims_of(self.good)["sub"]}"}}'
        return jws(head.encode(), twice.encode(), self.ours)


FORGED: list[tuple[str, Callable[[Forger], str], str]] = [
    ("alg none", lambda f: f.unsigned("none"), "form"),
    ("alg none, signed", lambda f: f.made({"alg": "none"}), "algorithm"),
    ("alg NONE", lambda f: f.made({"alg": "NONE"}), "algorithm"),
    ("key confusion", lambda f: f.confused(), "form"),
    ("alg HS256, signed", lambda f: f.made({"alg": "HS256"}), "algorithm"),
    ("alg RS256", lambda f: f.made({"alg": "RS256"}), "algorithm"),
    ("another key under our name", lambda f: f.made(key=THIEF), "signature"),
    ("a name of no key", lambda f: f.made({"kid": "x"}, THIEF), "key"),
    ("a path as name", lambda f: f.made({"kid": "../../../../dev/null"}, THIEF), "key"),
    ("a statement as name", lambda f: f.made({"kid": "' OR '1'='1"}, THIEF), "key"),
    ("no name", lambda f: f.made({"kid": LEFT_OUT}), "key"),
    ("its own key in jwk", lambda f: f.made({"jwk": jwk_of(THIEF)}, THIEF), "signature"),
    ("a key set elsewhere", lambda f: f.made({"jku": "https://evil.example/jwks"}, THIEF), "signature"),
    ("a certificate elsewhere", lambda f: f.made({"x5u": "https://evil.example/cert"}, THIEF), "signature"),
    ("critical", lambda f: f.made({"crit": ["exp"]}), "header"),
    ("a JWT-SVID's type", lambda f: f.made({"typ": "JWT"}), "type"),
    ("no type", lambda f: f.made({"typ": LEFT_OUT}), "type"),
    ("a proof's type", lambda f: f.made({"typ": "dpop+jwt"}), "type"),
    ("an assertion", lambda f: f.client.assertion(), "type"),
    ("an assertion that says it is a token", lambda f: f.client.assertion({"typ": "at+jwt"}), "key"),
    ("expired", lambda f: f.made(exp=int(time.time()) - 1), "expired"),
    ("of tomorrow", lambda f: f.made(iat=int(time.time()) + 86_400), "not yet valid"),
    ("for another", lambda f: f.made(aud="https://other.example"), "audience"),
    ("for two", lambda f: f.made(aud=["https://other.example", f.client.url]), "claims"),
    ("by another", lambda f: f.made(iss="https://other.example"), "issuer"),
    ("of another enrolment", lambda f: f.made(enrolment=99), "registration"),
    ("of another ID", lambda f: f.made(**dict.fromkeys(("sub", "client_id"), f"spiffe://{DOMAIN}/workload/x")),
     "registration"),
    ("a client that is not its subject", lambda f: f.made(client_id="x"), "binding"),
    ("bound to nothing", lambda f: f.made(cnf={}), "binding"),
    ("bound to two", lambda f: f.made(cnf={"jkt": "a", "x5t#S256": "b"}), "binding"),
    ("without binding", lambda f: f.made(cnf=LEFT_OUT), "claims"),
    ("bound in another way", lambda f: f.made(cnf={"jwk": jwk_of(THIEF)}), "claims"),
    ("another member", lambda f: f.made(admin=True), "claims"),
    ("a text as end", lambda f: f.made(exp=str(int(time.time()) + 600)), "claims"),
    ("a member twice", lambda f: f.doubled(), "duplicate member"),
    ("oversize", lambda f: f.made(jti="x" * TOKEN_MAX), "size"),
    ("no token", lambda f: "x.y.z", "form"),
    ("of the page's kind", lambda f: f"{int(time.time()) + 600}.{pack(random_bytes(32))}", "form"),
]


async def test_M14_each_forged_token_is_refused_alike_and_audited_apart(gateway: Gateway, client: TokenClient) -> None:
    forger = Forger(client, await client.token())
    assert (await client.ask(chat(), forger.made())).status == 200, "with nothing wrong it passes"
    heard = set()
    for what, make, reason in FORGED:
        before = len(gateway.audit("https.denied"))
        answer = await client.ask(chat(), make(forger))
        del answer.body["error"]["trace_id"], answer.body["instance"]
        heard.add((answer.status, json.dumps(answer.body), answer.headers["WWW-Authenticate"]))
        (line,) = gateway.audit("https.denied")[before:]
        assert line["reason"] == f"token: {reason}", what
    assert len(heard) == 1, "the wire tells nothing of which"
    assert gateway.provider.calls == 1


async def test_tokens_of_another_gateway_are_none(
    made: Path, tmp_path: Path, provider: MockProvider, gateway: Gateway, client: TokenClient
) -> None:
    async with https_gateway(made, tmp_path / "other", provider) as other:
        theirs = await TokenClient.joined(other)
        token = await theirs.token()
        client.key, mine = theirs.key, client.key
        assert (await client.ask(chat(), token, proof=client.proof(token=token))).error == (401, "invalid_token")
        client.key = mine
    assert reasons(gateway) == ["token: key"]


async def test_a_token_is_none_where_an_assertion_is_asked_for(gateway: Gateway, client: TokenClient) -> None:
    token = await client.token()
    answer = await client.post_form(client.form(token), proof=client.proof(TOKEN))
    assert answer.error == (401, "invalid_client")
    assert reasons(gateway, "oauth.refused") == ["assertion: type"]


async def test_two_tokens_in_one_request_are_none(gateway: Gateway, client: TokenClient) -> None:
    from multidict import CIMultiDict

    token = await client.certificate_token()
    async with client.workload.client() as http, http.get("/v1/models", headers=CIMultiDict([
        ("Authorization", f"Bearer {token}"), ("Authorization", f"Bearer {token}"),
    ])) as answer:
        assert answer.status in (400, 401)
    assert not gateway.provider.calls


async def test_a_stock_library_s_proof_and_assertion_pass(gateway: Gateway, client: TokenClient) -> None:
    """Those above are put together by hand: another maker's pass as well."""
    await client.renewed_nonce()
    now = int(time.time())
    private = client.key.private_key
    assertion = jwt.encode({
        "iss": client.workload.id, "sub": client.workload.id, "aud": gateway.url, "exp": now + 30, "iat": now,
        "jti": random_bytes(8).hex(),
    }, private, algorithm="ES256")

    def proof(path: str, **more: str) -> str:
        claims = {"jti": random_bytes(8).hex(), "htm": "POST", "htu": gateway.url + path, "iat": now,
                  "nonce": client.nonce, **more}
        return jwt.encode(claims, private, algorithm="ES256",
                          headers={"typ": "dpop+jwt", "jwk": jwk_of(client.key)})

    form = {"grant_type": "client_credentials", "client_assertion_type": ASSERTION_TYPE, "client_assertion": assertion,
            "client_id": client.workload.id}
    answer = await client.post_form(form, proof=proof(TOKEN))
    assert answer.status == 200
    token = answer.body["access_token"]
    assert (await client.ask(chat(), token, proof=proof(CHAT, ath=ath(token)))).status == 200


async def test_an_edge_may_ask_too(gateway: Gateway) -> None:
    """Its registration was made by a session; here it is made as if by one."""
    client = await Workload.joined(gateway)
    assert (await client.ask(path="/v1/models", method="GET"))[0] == 200

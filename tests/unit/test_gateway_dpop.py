"""Proofs of possession: each rule of RFC 9449 section 4.3 by one that passes and one that fails; tokens; replays."""

import hmac
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.gateway.identity import dpop, jose
from relay.gateway.identity.dpop import AROUND_S, PROOF_MAX, TOKEN_S, Proof, ProofRefused, Proofs, Tokens, hash_of
from relay.gateway.identity.nonces import NONCE_S, Nonces
from tests.support.dpop_page import LEFT_OUT, ath, jwk_of, jws, pack, without
from tests.support.gateway_lab import Clock
from transport.primitives import SigningKey, sha256

ORIGIN = "https://gw.example"
PATH = "/hop/token"
KEY, OTHER = SigningKey.generate(), SigningKey.generate()


class Lab:
    """One verifier, and a page that makes good proofs for it but for what a test says."""

    def __init__(self, now: float = 1_800_000_000.0) -> None:
        self.clock = Clock(now)
        self.proofs = Proofs(ORIGIN, Nonces(self.clock), self.clock)
        self.count = 0

    def claims(self, **changes: Any) -> dict[str, Any]:
        self.count += 1
        return without({
            "jti": f"{self.count:016}", "htm": "POST", "htu": ORIGIN + PATH, "iat": int(self.clock.now),
            "nonce": self.proofs.nonce(),
        } | changes)

    def proof(self, header: dict[str, Any] | None = None, *, key: SigningKey = KEY, **claims: Any) -> str:
        head = {"typ": "dpop+jwt", "alg": "ES256", "jwk": jwk_of(key)}
        return jws(without(head | (header or {})), self.claims(**claims), key)

    def check(self, text: str, token: str | None = None) -> Proof:
        return self.proofs.check(text, method="POST", path=PATH, token=token)

    def rule(self, text: str, token: str | None = None) -> str:
        """By which rule it is refused; "" if it is accepted."""
        try:
            self.check(text, token)
        except ProofRefused as refusal:
            return refusal.rule
        return ""


@pytest.fixture
def lab() -> Lab:
    return Lab()


def test_a_good_proof_names_its_key(lab: Lab) -> None:
    proof = lab.check(lab.proof())
    assert proof.device_id == sha256(KEY.public.spki)
    assert proof.key.spki == KEY.public.spki


def test_the_thing_is_what_a_library_makes_too(lab: Lab) -> None:
    """The tests' proofs are put together by hand: another maker's pass as well."""
    import jwt

    header = {"typ": "dpop+jwt", "jwk": jwk_of(KEY)}
    made = jwt.encode(lab.claims(), KEY.private_key, algorithm="ES256", headers=header)
    assert lab.rule(made) == ""


@pytest.mark.parametrize("header", [
    {"typ": "JWT"}, {"typ": "DPoP+JWT"}, {"typ": LEFT_OUT}, {"typ": None},
    {"alg": "none"}, {"alg": "None"}, {"alg": "HS256"}, {"alg": "ES384"}, {"alg": "ES256K"}, {"alg": "RS256"},
    {"alg": LEFT_OUT}, {"alg": ["ES256"]},
    {"jwk": LEFT_OUT}, {"jwk": None}, {"jwk": "x"}, {"jwk": {}},
    {"crit": ["b64"], "b64": False}, {"b64": False}, {"kid": "1"}, {"jku": "https://evil.example"}, {"x5c": []},
])
def test_M14_the_header_is_exactly_one(lab: Lab, header: dict[str, Any]) -> None:
    assert lab.rule(lab.proof(header)) == "form"


@pytest.mark.parametrize("change", [
    {"kty": "oct"}, {"kty": "OKP"}, {"kty": "RSA"}, {"crv": "P-384"}, {"crv": "secp256k1"}, {"crv": "P-256 "},
    {"d": pack(bytes(31) + b"\1")}, {"k": "AA"}, {"use": "sig"}, {"x": LEFT_OUT}, {"y": ""}, {"x": pack(bytes(31))},
    {"x": pack(bytes(32))}, {"y": pack(b"\xff" * 32)}, {"x": "?"}, {"x": 5}, {"x": "ä" * 43}, {"x": "\ud800" * 43},
])
def test_the_key_is_a_public_one_on_p256(lab: Lab, change: dict[str, Any]) -> None:
    assert lab.rule(lab.proof({"jwk": without(jwk_of(KEY) | change)})) == "form"


def test_the_private_key_is_not_taken_even_if_it_is_right(lab: Lab) -> None:
    d = KEY.private_key.private_numbers().private_value.to_bytes(32, "big")
    assert lab.rule(lab.proof({"jwk": jwk_of(KEY) | {"d": pack(d)}})) == "form"


def signed_otherwise(lab: Lab, header: dict[str, Any], how: str) -> str:
    stem = ".".join(pack(json.dumps(part).encode()) for part in (header, lab.claims()))
    if how == "nothing":
        return stem + "."
    if how == "mac with the public key":
        point = KEY.public.spki
        return f"{stem}.{pack(hmac.digest(point, stem.encode(), 'sha256'))}"
    signature = KEY.sign(stem.encode())
    if how == "der":
        from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

        signature = encode_dss_signature(int.from_bytes(signature[:32], "big"), int.from_bytes(signature[32:], "big"))
    if how == "zeros":
        signature = bytes(64)
    if how == "short":
        signature = signature[:63]
    return f"{stem}.{pack(signature)}"


@pytest.mark.parametrize("how", ["nothing", "mac with the public key", "der", "zeros", "short"])
@pytest.mark.parametrize("alg", ["none", "HS256", "ES256"])
def test_M14_nothing_but_an_es256_signature_is_one(lab: Lab, how: str, alg: str) -> None:
    header = {"typ": "dpop+jwt", "alg": alg, "jwk": jwk_of(KEY)}
    assert lab.rule(signed_otherwise(lab, header, how)) == "form"
    assert lab.rule(signed_otherwise(lab, header | {"alg": "ES256"}, "as it should be")) == ""


def test_the_signature_is_by_the_key_that_is_named(lab: Lab) -> None:
    assert lab.rule(lab.proof({"jwk": jwk_of(OTHER)})) == "form"


@pytest.mark.parametrize("part", [0, 1, 2])
def test_no_part_can_be_swapped_for_that_of_another_proof(lab: Lab, part: int) -> None:
    one, two = lab.proof().split("."), lab.proof(key=OTHER).split(".")
    one[part] = two[part]
    assert lab.rule(".".join(one)) == "form"


@pytest.mark.parametrize(("claims", "rule"), [
    ({"htm": "GET"}, "method"), ({"htm": "post"}, "method"), ({"htm": LEFT_OUT}, "form"),
    ({"htu": "https://evil.example" + PATH}, "address"), ({"htu": ORIGIN + "/hop/join"}, "address"),
    ({"htu": "http://gw.example" + PATH}, "address"), ({"htu": ORIGIN + PATH + "?x=1"}, "address"),
    ({"htu": "https://GW.example" + PATH}, "address"), ({"htu": ORIGIN + ":443" + PATH}, "address"),
    ({"htu": PATH}, "address"), ({"htu": LEFT_OUT}, "form"),
    ({"nonce": LEFT_OUT}, "nonce"), ({"nonce": ""}, "nonce"), ({"nonce": pack(bytes(32))}, "nonce"),
    ({"nonce": "ä"}, "nonce"), ({"nonce": "A"}, "nonce"), ({"nonce": None}, "form"),
    ({"ath": ath("t")}, "token hash"), ({"ath": ""}, "token hash"),
    ({"iat": LEFT_OUT}, "form"), ({"iat": "1800000000"}, "form"), ({"iat": 1_800_000_000.5}, "form"),
    ({"iat": -1}, "form"), ({"iat": 10 ** 400}, "form"), ({"iat": True}, "form"),
    ({"jti": LEFT_OUT}, "form"), ({"jti": ""}, "form"), ({"jti": "short"}, "form"), ({"jti": "a" * 65}, "form"),
    ({"jti": "a" * 15 + "\n"}, "form"), ({"jti": "a" * 16 + "\n"}, "form"), ({"exp": 9_000_000_000}, "form"),
])
def test_M14_each_claim(lab: Lab, claims: dict[str, Any], rule: str) -> None:
    assert lab.rule(lab.proof(**claims)) == rule
    assert lab.rule(lab.proof()) == ""


def test_nesting_is_no_way_in(lab: Lab) -> None:
    deep = b"[" * 1_000
    assert lab.rule(jws(deep, lab.claims(), KEY)) == "form"
    head = {"typ": "dpop+jwt", "alg": "ES256", "jwk": jwk_of(KEY)}
    assert lab.rule(jws(head, b'{"jti":' + deep, KEY)) == "form"


@pytest.mark.parametrize(("off", "rule"), [
    (AROUND_S, ""), (-AROUND_S, ""), (AROUND_S + 1, "time"), (-AROUND_S - 1, "time"),
])
def test_a_device_s_clock_may_be_off_by_a_minute(lab: Lab, off: int, rule: str) -> None:
    assert lab.rule(lab.proof(iat=int(lab.clock.now) + off)) == rule


@pytest.mark.parametrize(("age", "rule"), [(NONCE_S, ""), (NONCE_S + 1, "nonce"), (-2, "nonce")])
def test_a_nonce_is_good_for_a_minute(lab: Lab, age: int, rule: str) -> None:
    nonce = lab.proofs.nonce()
    lab.clock.now += age
    assert lab.rule(lab.proof(nonce=nonce)) == rule


def test_another_server_s_nonce_is_worth_nothing(lab: Lab) -> None:
    assert lab.rule(lab.proof(nonce=Lab().proofs.nonce())) == "nonce"


def test_M14_a_proof_is_for_one_token(lab: Lab) -> None:
    assert lab.rule(lab.proof(ath=ath("token")), "token") == ""
    assert lab.rule(lab.proof(ath=ath("other")), "token") == "token hash"
    assert lab.rule(lab.proof(), "token") == "token hash"
    # RFC 9449 section 4.2's own example
    assert hash_of("Kz~8mXK1EalYznwH-LC-1fBAo.4Ljp~zsPE_NeO.gxU") == "fUHyO2r2Z3DZ53EsNrWBb0xWXoaNy59IiKCAqksmQEo"


def test_too_long_a_proof_is_not_looked_at(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    good = lab.proof()
    monkeypatch.setattr(jose, "_decoded", lambda part: pytest.fail("looked at"))
    assert lab.rule(good + "A" * (PROOF_MAX - len(good) + 1)) == "form"
    assert lab.rule("\udcff" + good) == "form"


@given(st.text(max_size=200) | st.from_regex(r"[A-Za-z0-9_\-=+/]*\.[A-Za-z0-9_\-]*\.[A-Za-z0-9_\-]*", fullmatch=True))
def test_whatever_is_no_proof_is_refused_in_one_way(text: str) -> None:
    assert Lab().rule(text) == "form"


_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3), max_leaves=8,
)


@given(
    st.dictionaries(st.sampled_from(["typ", "alg", "jwk", "crit", "b64", "kid", "x5c"]), _json),
    st.dictionaries(st.sampled_from(["jti", "htm", "htu", "iat", "nonce", "ath", "exp", "nbf"]), _json),
)
def test_no_header_and_no_claim_of_any_type_does_more_than_be_refused(
    header: dict[str, Any], claims: dict[str, Any]
) -> None:
    rule = Lab().rule(Lab().proof(header, **claims))  # two labs: were all else right, the nonce would be another's
    assert rule in {"form", "method", "address", "nonce"}


# --- replays ----------------------------------------------------------------------------------------------------------


def test_M14_a_proof_is_used_once(lab: Lab) -> None:
    text = lab.proof()
    lab.proofs.use(lab.check(text))
    assert lab.rule(text) == "replayed"
    lab.proofs.use(lab.check(lab.proof()))


def test_of_two_at_the_same_time_one_is_used(lab: Lab) -> None:
    text = lab.proof()
    one, two = lab.check(text), lab.check(text)
    lab.proofs.use(one)
    with pytest.raises(ProofRefused, match="replayed"):
        lab.proofs.use(two)


def test_the_same_name_by_another_key_is_another_proof(lab: Lab) -> None:
    """Or one page could keep another's proofs from being taken."""
    lab.proofs.use(lab.check(lab.proof(jti="a" * 22)))
    assert lab.rule(lab.proof(jti="a" * 22)) == "replayed"
    assert lab.rule(lab.proof(key=OTHER, jti="a" * 22)) == ""


def test_M14_a_proof_is_remembered_for_as_long_as_it_could_be_shown(lab: Lab) -> None:
    text = lab.proof()
    lab.proofs.use(lab.check(text))
    for _ in range(NONCE_S + 10):
        lab.clock.now += 1
        lab.proofs.use(lab.check(lab.proof(key=OTHER)))  # forgets what is old
        assert lab.rule(text) in ("replayed", "nonce")
    assert lab.rule(text) == "nonce"


def test_what_is_remembered_is_bounded_for_all_and_for_each(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dpop, "USED_MAX", 6)
    monkeypatch.setattr(dpop, "USED_BY_KEY_MAX", 4)
    lab.proofs = Proofs(ORIGIN, Nonces(lab.clock), lab.clock)
    for _ in range(4):
        lab.proofs.use(lab.check(lab.proof()))
    with pytest.raises(ProofRefused, match="overloaded"):
        lab.proofs.use(lab.check(lab.proof()))
    for _ in range(2):
        lab.proofs.use(lab.check(lab.proof(key=OTHER)))
    with pytest.raises(ProofRefused, match="overloaded"):
        lab.proofs.use(lab.check(lab.proof(key=SigningKey.generate())))
    lab.clock.now += NONCE_S + 3
    for _ in range(4):
        lab.proofs.use(lab.check(lab.proof()))


# --- tokens -----------------------------------------------------------------------------------------------------------


def test_a_token_is_good_for_its_key_for_a_while(lab: Lab) -> None:
    tokens, device, other = Tokens(lab.clock), sha256(KEY.public.spki), sha256(OTHER.public.spki)
    token = tokens.give(device, 7)
    assert tokens.good(token, device, 7)
    assert not tokens.good(token, other, 7), "another key"
    assert not tokens.good(token, device, 8), "another enrolment of it"
    assert not Tokens(lab.clock).good(token, device, 7), "another process"
    lab.clock.now += TOKEN_S - 1
    assert tokens.good(token, device, 7)
    lab.clock.now += 1
    assert not tokens.good(token, device, 7)
    assert TOKEN_S <= 600


def test_a_token_s_end_cannot_be_moved(lab: Lab) -> None:
    tokens, device = Tokens(lab.clock), sha256(KEY.public.spki)
    end, _, mac = tokens.give(device, 7).partition(".")
    for moved in (str(int(end) + 1), "0" + end, " " + end, end + " ", "+" + end, end[:-1], "", "9" * 13, "١" + end[1:]):
        assert not tokens.good(f"{moved}.{mac}", device, 7)
    for text in (f"{end}.{mac}=", f"{end}.\ud800", "9" * 5_000 + ".x", "", "."):
        assert not tokens.good(text, device, 7)
    assert not tokens.good(end, device, 7)


@given(st.text(max_size=100))
def test_no_other_text_is_a_token(text: str) -> None:
    assert not Tokens(Clock(0.0)).good(text, bytes(32), 1)


def test_a_low_and_a_high_s_are_the_same_proof(lab: Lab) -> None:
    """ECDSA's second signature of the same bytes is a proof as well, but no second one."""
    order = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
    head, body, signature = (text := lab.proof()).split(".")
    raw = KEY.sign(f"{head}.{body}".encode())
    assert pack(raw) == signature
    r, s = int.from_bytes(raw[:32], "big"), int.from_bytes(raw[32:], "big")
    twin = f"{head}.{body}.{pack(r.to_bytes(32, 'big') + (order - s).to_bytes(32, 'big'))}"
    lab.proofs.use(lab.check(text))
    assert lab.rule(twin) == "replayed"


@pytest.mark.parametrize("part", ["header", "claims"])
def test_M14_a_proof_has_one_reading(lab: Lab, part: str) -> None:
    """As tokens: what names a member twice, two readers could read differently."""
    header = json.dumps({"typ": "dpop+jwt", "alg": "ES256", "jwk": jwk_of(KEY)}).encode()
    claims = json.dumps(lab.claims()).encode()
    assert lab.rule(jws(header, claims, KEY)) == ""
    if part == "header":
        header = b'{"typ":"JWT",' + header[1:]
    else:
        claims = b'{"htm":"GET",' + claims[1:]
    assert lab.rule(jws(header, claims, KEY)) == "form"


def test_M14_a_proof_has_one_text(lab: Lab) -> None:
    text = lab.proof()
    head, body, signature = text.split(".")
    last = signature[-1]
    others = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    other = others[others.index(last) ^ 1]  # two bits of the last character are of no byte
    assert lab.rule(f"{head}.{body}.{signature[:-1]}{other}") == "form"
    assert lab.rule(f"{head}.{body}.{signature}==") == "form"
    assert lab.rule(text) == ""

"""SPIFFE IDs, certificate requests and SVIDs of our own."""

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from tests.support.ca import Ca
from transport.errors import BadInput, IdentityRefused, ProtocolViolation
from transport.identity.svid import SpiffeId, Svid, TrustBundle, make_csr, parse_csr
from transport.primitives import SigningKey


@pytest.mark.parametrize(("text", "role", "name"), [
    ("spiffe://field.example/edge/lap-1", "edge", "lap-1"),
    ("spiffe://field.example/workload/a/b.C_d", "workload", "a/b.C_d"),
    ("spiffe://a_b-c.9/hop", "hop", ""),
    ("spiffe://field.example", "", ""),
    ("spiffe://field.example/...", "...", ""),
])
def test_ids_that_are_ids(text: str, role: str, name: str) -> None:
    parsed = SpiffeId.parse(text)
    assert (str(parsed), parsed.role, parsed.name) == (text, role, name)


@pytest.mark.parametrize("text", [
    "", "spiffe://", "spiffe:///edge/a", "https://field.example/edge/a", "SPIFFE://field.example/edge/a",
    "spiffe://Field.example/edge/a", "spiffe://field.example:8443/edge/a", "spiffe://me@field.example/edge/a",
    "spiffe://field.example/edge/a?x=1", "spiffe://field.example/edge/a#f", "spiffe://field.example/",
    "spiffe://field.example/edge/", "spiffe://field.example//edge", "spiffe://field.example/./edge",
    "spiffe://field.example/edge/..", "spiffe://field.example/edge/%61", "spiffe://field.example/edge/a b",
    "spiffe://field.example/edge/ä", "spiffe://fiéld/edge/a", "spiffe://field.example/edge/a\n",
    "spiffe://field.example\n", "spiffe://" + "a" * 256 + "/x", "spiffe://a/" + "b" * 2048, "spiffe://[::1]/edge/a",
    "spiffe://field.example/edge/\u0661",
])
def test_what_is_no_id(text: str) -> None:
    with pytest.raises(BadInput) as caught:
        SpiffeId.parse(text)
    assert len(text) < 12 or text not in str(caught.value)


def test_bounds_of_an_id() -> None:
    longest = "spiffe://a/" + "b" * (2048 - 11)
    assert str(SpiffeId.parse(longest)) == longest
    assert SpiffeId.parse("spiffe://" + "a" * 255 + "/x").role == "x"


def test_a_request_carries_the_key_and_nothing_else() -> None:
    key = SigningKey.generate()
    der = make_csr(key)
    assert parse_csr(der).spki == key.public.spki
    request = x509.load_der_x509_csr(der)
    assert list(request.subject) == [] and list(request.extensions) == []


def test_requests_that_are_refused() -> None:
    good = bytearray(make_csr(SigningKey.generate()))
    forged = bytes(good[:-1]) + bytes([good[-1] ^ 1])
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    others = [
        builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.DER)
        for key in (ec.generate_private_key(ec.SECP384R1()), rsa.generate_private_key(65537, 2048))
    ]
    for der in (b"", forged, bytes(good) + b"\0", bytes(good[:-1]), bytes(2000), *others):
        with pytest.raises(ProtocolViolation):
            parse_csr(der)


def test_an_svid_of_our_own_has_to_fit_its_key() -> None:
    ca = Ca()
    issued = ca.issue("hop/pi")
    svid = Svid.from_chain(issued.chain, issued.key)
    assert (str(svid.id), svid.not_after) == ("spiffe://field.example/hop/pi", issued.not_after)
    assert "PRIVATE" not in repr(svid) and "SigningKey" in repr(svid)
    with pytest.raises(IdentityRefused) as caught:
        Svid.from_chain(issued.chain, SigningKey.generate())
    assert caught.value.rule == "key"
    with pytest.raises(IdentityRefused):
        Svid.from_chain((), issued.key)
    with pytest.raises(IdentityRefused):
        Svid.from_chain((b"\x30\x00",), issued.key)


def test_a_bundle_needs_a_trust_domain() -> None:
    with pytest.raises(BadInput):
        TrustBundle("Field", (), 1)
    with pytest.raises(BadInput):
        TrustBundle("field", (), -1)

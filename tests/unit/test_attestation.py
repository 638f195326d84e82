"""Credential activation: our challenge against the TPM's own arithmetic, and every lie about a key."""

import datetime
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given
from hypothesis import strategies as st

import relay.gateway.identity.attestation as attestation_module
from relay.gateway.errors import ConfigError
from relay.gateway.identity.attestation import Attestation, make_credential
from store.tpm import Blob, Endorsement, Tpm
from tests.support.ek_authority import EkAuthority, ek_point
from tests.support.software_tpm import MakeTpm, software_tpms
from transport.errors import IdentityRefused
from transport.messages import Attest, Proof
from transport.primitives import SigningKey, VerifyKey, sha256

NOW = 1_800_000_000.0


@dataclass
class Device:
    tpm: Tpm
    blob: Blob
    key: VerifyKey
    endorsement: Endorsement

    def evidence(self, certificate: bytes = b"") -> Attest:
        return Attest(certificate, self.endorsement.public, self.blob.public)


def spki(point: bytes) -> bytes:
    return ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), point).public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )


@pytest.fixture(scope="module")
def make() -> Iterator[MakeTpm]:
    with software_tpms() as make:
        yield make


@pytest.fixture(scope="module")
def device(make: MakeTpm) -> Device:
    return device_of(make)


def device_of(make: MakeTpm) -> Device:
    tpm = make().tpm
    blob, point = tpm.create_key()
    return Device(tpm, blob, VerifyKey.from_spki(spki(point)), tpm.endorsement())


def refused(rule: str, attestation: Attestation, evidence: Attest | Proof, key: VerifyKey) -> None:
    with pytest.raises(IdentityRefused) as refusal:
        attestation.begin(evidence, key, NOW)
    assert rule in refusal.value.rule


def test_the_tpm_that_holds_the_key_answers(device: Device) -> None:
    pending = Attestation().begin(device.evidence(), device.key, NOW)
    challenge = pending.challenge
    secret = device.tpm.activate(device.blob, challenge.credential, challenge.secret)
    attested = pending.check(Proof(secret))
    assert attested.tpm == "any"
    assert attested.ek_sha256 == sha256(spki(ek_point(device.endorsement.public))).hex()
    with pytest.raises(IdentityRefused, match="not answered"):
        pending.check(Proof(bytes(32)))
    with pytest.raises(IdentityRefused, match="not answered"):
        pending.check(device.evidence())


def test_another_tpm_or_another_key_does_not(device: Device, make: MakeTpm) -> None:
    """A TPM refuses by the integrity of the challenge: it is for another key, or for another Name."""
    other = device_of(make)
    challenge = Attestation().begin(device.evidence(), device.key, NOW).challenge
    with pytest.raises(Exception, match="another TPM"):
        other.tpm.activate(other.blob, challenge.credential, challenge.secret)
    second, _ = device.tpm.create_key()
    with pytest.raises(Exception, match="another TPM"):
        device.tpm.activate(second, challenge.credential, challenge.secret)
    # A key of another TPM beside an endorsement key of this one: the Name is not loaded where the secret is.
    mixed = Attest(b"", device.endorsement.public, other.blob.public)
    challenge = Attestation().begin(mixed, other.key, NOW).challenge
    for one in (device, other):
        with pytest.raises(Exception, match="another TPM"):
            one.tpm.activate(one.blob, challenge.credential, challenge.secret)


def test_the_challenge_is_the_librarys_to_the_byte(device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    """tpm2-pytss makes its own by the same specification; with the same ephemeral key both are the same bytes."""
    from tpm2_pytss import TPM2B_PUBLIC, TPMT_PUBLIC, internal, utils

    ephemeral, name = ec.generate_private_key(ec.SECP256R1()), b"\0\x0b" + sha256(device.blob.public)
    monkeypatch.setattr(internal.crypto.ec, "generate_private_key", lambda *_: ephemeral)
    theirs = utils.make_credential(TPM2B_PUBLIC(TPMT_PUBLIC.unmarshal(device.endorsement.public)[0]), b"s" * 32, name)
    key = ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), ek_point(device.endorsement.public))
    assert make_credential(key, name, b"s" * 32, ephemeral) == (bytes(theirs[0]), bytes(theirs[1]))


def test_every_attribute_of_the_device_key_counts(device: Device) -> None:
    """Each bit of TPMA_OBJECT, turned over: nothing that could leave the TPM, or was not made in it, is taken."""
    for bit in range(32):
        area = bytearray(device.blob.public)
        area[4 + bit // 8] ^= 1 << bit % 8
        evidence = Attest(b"", device.endorsement.public, bytes(area))
        refused("not of the required kind", Attestation(), evidence, device.key)


@pytest.mark.parametrize("cut", ["", "00", "0023000b"])
def test_areas_that_are_none(device: Device, cut: str) -> None:
    area, kind = bytes.fromhex(cut) or b"\0", "not of the"
    refused(kind, Attestation(), Attest(b"", device.endorsement.public, area), device.key)
    refused(kind, Attestation(), Attest(b"", area, device.blob.public), device.key)
    for whole in (device.blob.public + b"\0", device.blob.public[:-1]):
        refused(kind, Attestation(), Attest(b"", device.endorsement.public, whole), device.key)
    bare = device.blob.public[20:]  # the point alone
    refused(kind, Attestation(), Attest(b"", device.endorsement.public, bare), device.key)
    refused(kind, Attestation(), Attest(b"", bare, device.blob.public), device.key)
    off_curve = device.endorsement.public[:-1] + bytes([device.endorsement.public[-1] ^ 1])
    refused("P-256 template", Attestation(), Attest(b"", off_curve, device.blob.public), device.key)


@given(st.binary(min_size=1, max_size=256), st.binary(min_size=1, max_size=256), st.binary(max_size=300))
def test_whatever_is_sent_is_refused_in_one_way(ek: bytes, key: bytes, certificate: bytes) -> None:
    attestation, mine = Attestation([EkAuthority("maker").certificate]), SigningKey.generate().public
    point = mine.spki[-64:]
    good = attestation_module._KEY + b"\0\x20" + point[:32] + b"\0\x20" + point[32:]
    template = attestation_module._EK
    for areas in ((ek, key), (ek, good), (template + ek[:134], good), (template + good[20:], good)):
        with pytest.raises(IdentityRefused):
            attestation.begin(Attest(certificate, *areas), mine, NOW)


def test_the_area_is_of_the_key_that_joins(device: Device) -> None:
    refused("another key", Attestation(), device.evidence(), SigningKey.generate().public)
    refused("out of order", Attestation(), Proof(bytes(32)), device.key)


def test_a_point_without_leading_zeros_is_the_same_point(device: Device) -> None:
    scalar = next(n for n in range(1, 100_000) if _x(n)[0] == 0)
    key = ec.derive_private_key(scalar, ec.SECP256R1())
    point = _point(key)
    area = device.blob.public[:24 - 4] + b"\0\x1f" + point[2:33] + b"\0\x20" + point[33:]
    assert device.blob.public[:20] == area[:20]
    Attestation().begin(Attest(b"", device.endorsement.public, area), SigningKey(key).public, NOW)


def _point(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.public_key().public_bytes(
        serialization.Encoding.X962, serialization.PublicFormat.UncompressedPoint
    )


def _x(scalar: int) -> bytes:
    return _point(ec.derive_private_key(scalar, ec.SECP256R1()))[1:33]


def test_a_makers_certificate(device: Device, tmp_path: Path) -> None:
    maker, stranger = EkAuthority("maker"), EkAuthority("stranger")
    file = tmp_path / "makers.pem"
    file.write_bytes(EkAuthority("first").pem + maker.pem)
    attestation = Attestation.load([file])
    point = ek_point(device.endorsement.public)
    good = maker.issue(point)
    pending = attestation.begin(device.evidence(good), device.key, NOW)
    secret = device.tpm.activate(device.blob, pending.challenge.credential, pending.challenge.secret)
    assert pending.check(Proof(secret)).tpm == "certified"

    def bad(rule: str, certificate: bytes) -> None:
        refused(rule, attestation, device.evidence(certificate), device.key)

    bad("no EK certificate", b"")
    bad("malformed", b"\x30\x03abc")
    bad("another key", maker.issue(_point(ec.generate_private_key(ec.SECP256R1()))))
    bad("no trusted issuer", stranger.issue(point))
    bad("no trusted issuer", EkAuthority("maker").issue(point))  # by the same name
    bad("another purpose", maker.issue(point, purpose="1.3.6.1.5.5.7.3.2"))
    bad("another purpose", maker.issue(point, ca=True))
    bad("outside its validity", maker.issue(point, until=datetime.datetime(2021, 1, 1, tzinfo=datetime.UTC)))
    attestation.begin(device.evidence(maker.issue(point, purpose="")), device.key, NOW)  # profile: it may say none


def test_roots_that_cannot_be_used_are_told(tmp_path: Path) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    with pytest.raises(ConfigError, match=r"attestation\.ek_roots: cannot read"):
        Attestation.load([tmp_path / "none.pem"])
    file = tmp_path / "x.pem"
    file.write_bytes(b"hello")
    with pytest.raises(ConfigError, match="no PEM"):
        Attestation.load([file])
    leaf = x509.load_der_x509_certificate(EkAuthority("maker").issue(_point(key)))
    file.write_bytes(leaf.public_bytes(serialization.Encoding.PEM))
    with pytest.raises(ConfigError, match="may issue none") as refusal:
        Attestation.load([file])
    assert refusal.value.hint is not None

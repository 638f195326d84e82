"""store.tpm against a TPM in software."""

import builtins
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, utils

import store.tpm
from store.errors import ForeignTpm, NoTpm, StoreCorrupt, StoreMisuse, TpmError
from store.tpm import Blob, Tpm
from tests.support.software_tpm import MakeTpm, SoftwareTpm, software_tpms
from transport.primitives import sha256

DIGEST = sha256(b"a transcript")


@pytest.fixture(scope="module")
def make() -> Iterator[MakeTpm]:
    with software_tpms() as make:
        yield make


@pytest.fixture(scope="module")
def machine(make: MakeTpm) -> SoftwareTpm:
    return make()


def check(point: bytes, signature: bytes, digest: bytes) -> None:
    key = ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), point)
    r, s = int.from_bytes(signature[:32], "big"), int.from_bytes(signature[32:], "big")
    key.verify(utils.encode_dss_signature(r, s), digest, ec.ECDSA(utils.Prehashed(hashes.SHA256())))


def test_a_key_signs_and_comes_back_after_the_machine_was_off(make: MakeTpm) -> None:
    machine = make()
    key, point = machine.tpm.create_key()
    signature = machine.tpm.sign(key, DIGEST)
    assert len(signature) == 64 and len(point) == 65
    check(point, signature, DIGEST)
    machine.stop()
    machine.start()
    check(point, machine.tpm.sign(Blob.decode(key.encode()), DIGEST), DIGEST)


def test_what_a_key_is(machine: SoftwareTpm) -> None:
    """TPMA_OBJECT of part 2, section 8.3: fixedTPM, fixedParent, sensitiveDataOrigin, userWithAuth, noDA, sign."""
    key, _ = machine.tpm.create_key()
    assert key.public[:8] == bytes.fromhex("0023 000b 00040472")


def test_sealed_comes_back_and_from_no_other_machine(machine: SoftwareTpm, make: MakeTpm) -> None:
    other, secret = make(), bytes(range(32))
    sealed = machine.tpm.seal(secret)
    assert secret not in sealed.encode()
    assert machine.tpm.unseal(sealed) == secret
    with pytest.raises(ForeignTpm) as refusal:
        other.tpm.unseal(sealed)
    assert refusal.value.code == "foreign_tpm" and refusal.value.hint is not None
    key, _ = machine.tpm.create_key()
    with pytest.raises(ForeignTpm):
        other.tpm.sign(key, DIGEST)
    with pytest.raises(StoreMisuse):
        machine.tpm.seal(b"short")


def test_a_secret_is_hidden_from_who_listens_at_the_tpm(
    machine: SoftwareTpm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard = tmp_path / "heard.pcap"
    monkeypatch.setenv("TCTI_PCAP_FILE", str(heard))
    monkeypatch.setattr(store.tpm, "_WAYS", ("pcap",))
    tpm, secret = Tpm(f"pcap:{machine.name}"), os.urandom(32)
    sealed = tpm.seal(secret)
    assert tpm.unseal(sealed) == secret
    assert sealed.private in heard.read_bytes(), "nothing was heard"
    assert secret not in heard.read_bytes()


def test_a_cleared_tpm_opens_nothing_of_before(make: MakeTpm) -> None:
    machine = make()
    sealed = machine.tpm.seal(bytes(32))
    with machine.raw() as (api, context):
        context.clear(api.ESYS_TR.LOCKOUT)
    with pytest.raises(ForeignTpm):
        machine.tpm.unseal(sealed)


@pytest.mark.parametrize("algorithm", ["ecc256:aes128cfb", "rsa2048:aes128cfb"])
def test_a_root_key_that_is_kept_makes_no_difference(make: MakeTpm, algorithm: str) -> None:
    """Neither that it comes after the key, nor that it is taken away, nor that it is one we do not use."""
    machine = make()
    before = machine.tpm.seal(b"b" * 32)
    machine.keep_root(algorithm)
    after = machine.tpm.seal(b"a" * 32)
    assert machine.tpm.unseal(before) == b"b" * 32
    with machine.raw() as (api, context):
        context.evict_control(api.ESYS_TR.OWNER, context.tr_from_tpmpublic(0x81000001), 0x81000001)
    assert machine.tpm.unseal(after) == b"a" * 32


def test_a_root_key_of_another_kind_is_kept_apart(make: MakeTpm) -> None:
    """A P-256 key by another template has the place: what was made before still opens, and what is made by it."""
    machine = make()
    before = machine.tpm.seal(b"b" * 32)
    machine.keep_root("ecc256:aes256cfb")
    after = machine.tpm.seal(b"a" * 32)
    assert machine.tpm.unseal(before) == b"b" * 32 and machine.tpm.unseal(after) == b"a" * 32
    assert machine.loaded() == 0


def test_fifty_rounds_leave_nothing_in_the_tpm(machine: SoftwareTpm) -> None:
    """It has places for three objects and three sessions."""
    tpm = machine.tpm
    key, _ = tpm.create_key()
    sealed = tpm.seal(bytes(32))
    broken = Blob(sealed.public, sealed.private[:-1] + bytes([sealed.private[-1] ^ 1]))
    for _ in range(50):
        tpm.sign(key, DIGEST)
        tpm.unseal(sealed)
        with pytest.raises(ForeignTpm):
            tpm.unseal(broken)
        with pytest.raises(TpmError):
            tpm.activate(key, b"\0" * 50, b"\0" * 70)
    tpm.endorsement()
    assert machine.loaded() == 0


def test_credential_activation_by_the_librarys_own_challenge(machine: SoftwareTpm) -> None:
    from tpm2_pytss import TPM2B_PUBLIC, TPMT_PUBLIC
    from tpm2_pytss.utils import make_credential

    key, _ = machine.tpm.create_key()
    endorsement = machine.tpm.endorsement()
    assert endorsement == machine.tpm.endorsement() and endorsement.certificate == b""
    public = TPM2B_PUBLIC(TPMT_PUBLIC.unmarshal(endorsement.public)[0])
    name = TPMT_PUBLIC.unmarshal(key.public)[0].get_name()
    credential, secret = make_credential(public, b"s" * 32, name)
    assert machine.tpm.activate(key, bytes(credential), bytes(secret)) == b"s" * 32


def test_the_makers_certificate_is_found(make: MakeTpm) -> None:
    machine, der = make(), b"\x30\x82\x03\x00" + bytes(0x300)
    machine.write_certificate(der)
    assert machine.tpm.endorsement().certificate == der
    assert machine.loaded() == 0


def test_no_tpm_is_told_with_what_to_do(tmp_path: object) -> None:
    for name in ("device:/dev/no-such-tpm", f"swtpm:path={tmp_path}/none"):
        with pytest.raises(NoTpm) as refusal:
            Tpm(name).check()
        assert name in str(refusal.value) and refusal.value.hint is not None
    for name in ("cmd:true", "", "libtss2-tcti-cmd.so:true", "device:\0"):
        with pytest.raises(NoTpm, match="names no TPM"):
            Tpm(name)


def test_without_the_library_that_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *more: object, **others: object) -> object:
        if name == "tpm2_pytss":
            raise ImportError
        return real(name, *more, **others)  # type: ignore[arg-type]

    monkeypatch.delitem(sys.modules, "tpm2_pytss", raising=False)
    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(NoTpm, match="library") as refusal:
        Tpm().check()
    assert refusal.value.hint is not None


@pytest.mark.parametrize("data", [b"", b"\0", b"\0\0", b"\0\1a", b"\0\1a\0\1b!", b"\xff\xff" + bytes(70_000)])
def test_a_damaged_blob_is_refused(data: bytes) -> None:
    with pytest.raises(StoreCorrupt):
        Blob.decode(data)

"""The embedded authority: what it issues verifies, is short-lived and small; its keys lie sealed."""

import time
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID

from relay.gateway.errors import AuthorityExpired, SetupRefused
from relay.gateway.identity.ca import (
    INTERMEDIATE_FILE,
    INTERMEDIATE_LIFETIME_S,
    ROOT_FILE,
    Authority,
    OwnIdentity,
    SealedAuthority,
    create_authority,
    renew_intermediate,
)
from relay.gateway.identity.upstream import write_upstream
from store.errors import WrongKey
from store.keys import Passphrase
from tests.support.gateway_lab import DOMAIN, PASSPHRASE, ROOT_PASSPHRASE, Clock
from transport.errors import BadInput, IdentityExpired
from transport.identity.svid import SpiffeId
from transport.identity.verify import verify_svid
from transport.primitives import SigningKey

NOW = time.time()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("ca")
    create_authority(directory, DOMAIN, passphrase=PASSPHRASE, root_passphrase=ROOT_PASSPHRASE, now=NOW)
    return directory


@pytest.fixture(scope="module")
def authority(folder: Path) -> Authority:
    return Authority.open(folder, PASSPHRASE)


def test_an_issued_svid_verifies_for_its_role(authority: Authority) -> None:
    key = SigningKey.generate()
    issued = authority.issue(SpiffeId(DOMAIN, "/edge/lap-1"), key.public, now=NOW)
    seen = verify_svid(issued.chain, authority.bundle, role="edge", now=NOW)
    assert str(seen.id) == f"spiffe://{DOMAIN}/edge/lap-1"
    assert seen.key.spki == key.public.spki
    assert seen.serial == issued.serial
    assert (seen.not_before, seen.not_after) == (issued.not_before, issued.not_after)


def test_an_svid_is_what_x509_svid_says(authority: Authority) -> None:
    issued = authority.issue(SpiffeId(DOMAIN, "/edge/lap-1"), SigningKey.generate().public, now=NOW)
    leaf = x509.load_der_x509_certificate(issued.chain[0])
    assert leaf.subject == x509.Name([])
    san = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    assert san.critical
    assert list(san.value) == [x509.UniformResourceIdentifier(f"spiffe://{DOMAIN}/edge/lap-1")]
    usage = leaf.extensions.get_extension_for_class(x509.KeyUsage)
    assert usage.critical
    assert usage.value.digital_signature
    assert not usage.value.key_cert_sign
    assert not usage.value.key_agreement
    extended = set(leaf.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value)
    assert extended == {ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH}
    assert issued.not_after - issued.not_before <= 3600
    assert all(len(certificate) <= 2048 for certificate in (*issued.chain, authority.root))
    for certificate in (issued.chain[1], authority.root):
        with pytest.raises(x509.ExtensionNotFound):  # they make every chain fail
            x509.load_der_x509_certificate(certificate).extensions.get_extension_for_class(x509.NameConstraints)


def test_H14_an_svid_begins_five_minutes_ago_for_clocks_that_are_behind(authority: Authority) -> None:
    issued = authority.issue(SpiffeId(DOMAIN, "/edge/lap-1"), SigningKey.generate().public, now=NOW)
    assert issued.not_before == pytest.approx(NOW - 300, abs=1)
    behind = issued.not_before - 60  # six minutes, by the minute of leeway
    assert verify_svid(issued.chain, authority.bundle, role="edge", now=behind).id.name == "lap-1"
    with pytest.raises(IdentityExpired, match="not valid yet") as caught:
        verify_svid(issued.chain, authority.bundle, role="edge", now=behind - 1)
    assert "clock" in (caught.value.hint or "")


def test_the_longest_id_that_fits_is_2048_bytes_of_certificate(authority: Authority) -> None:
    with pytest.raises(SetupRefused):
        authority.issue(SpiffeId(DOMAIN, "/edge/" + "n" * 1900), SigningKey.generate().public, now=NOW)


def test_intermediate_lives_thirty_days_and_signs_no_other_authority(authority: Authority) -> None:
    assert authority.not_after - NOW <= INTERMEDIATE_LIFETIME_S
    issued = authority.issue(SpiffeId(DOMAIN, "/edge/a"), SigningKey.generate().public, now=NOW)
    intermediate = x509.load_der_x509_certificate(issued.chain[1])
    assert intermediate.extensions.get_extension_for_class(x509.BasicConstraints).value.path_length == 0


def test_an_svid_never_outlives_the_intermediate(authority: Authority) -> None:
    late = authority.not_after - 600
    issued = authority.issue(SpiffeId(DOMAIN, "/edge/a"), SigningKey.generate().public, now=late)
    assert issued.not_after <= authority.not_after
    with pytest.raises(AuthorityExpired):
        authority.issue(SpiffeId(DOMAIN, "/edge/a"), SigningKey.generate().public, now=authority.not_after - 30)


def test_no_svid_for_another_trust_domain(authority: Authority) -> None:
    with pytest.raises(SetupRefused):
        authority.issue(SpiffeId("other.example", "/edge/a"), SigningKey.generate().public, now=NOW)


def test_H13_root_and_intermediate_open_with_their_own_passphrase_only(folder: Path) -> None:
    with pytest.raises(WrongKey):
        Authority.open(folder, ROOT_PASSPHRASE)
    with pytest.raises(WrongKey):
        renew_intermediate(folder, passphrase=PASSPHRASE, root_passphrase=PASSPHRASE, now=NOW)


def test_equal_passphrases_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SetupRefused):
        create_authority(tmp_path, DOMAIN, passphrase=Passphrase("x"), root_passphrase=Passphrase("x"), now=NOW)
    assert not list(tmp_path.iterdir())


def test_a_bad_trust_domain_makes_nothing(tmp_path: Path) -> None:
    with pytest.raises(BadInput):
        create_authority(tmp_path, "Bad Domain", passphrase=PASSPHRASE, root_passphrase=ROOT_PASSPHRASE, now=NOW)
    assert not list(tmp_path.iterdir())


def test_a_new_intermediate_keeps_the_root_and_old_svids_good(folder: Path, authority: Authority) -> None:
    old = authority.issue(SpiffeId(DOMAIN, "/edge/a"), SigningKey.generate().public, now=NOW)
    renew_intermediate(folder, passphrase=PASSPHRASE, root_passphrase=ROOT_PASSPHRASE, now=NOW)
    renewed = Authority.open(folder, PASSPHRASE)
    assert renewed.root == authority.root
    new = renewed.issue(SpiffeId(DOMAIN, "/edge/a"), SigningKey.generate().public, now=NOW)
    assert new.chain[1] != old.chain[1]
    for issued in (old, new):
        verify_svid(issued.chain, renewed.bundle, role="edge", now=NOW)


def test_no_key_lies_open_in_the_folder(folder: Path) -> None:
    for name in (ROOT_FILE, INTERMEDIATE_FILE):
        data = (folder / name).read_bytes()
        assert DOMAIN.encode() not in data
        assert (folder / name).stat().st_mode & 0o077 == 0


def test_own_svid_renews_at_half_life_and_says_when(authority: Authority) -> None:
    clock = Clock(NOW)
    own = OwnIdentity(authority, "main", clock=clock)
    first = own.svid()
    assert first.id.role == "gateway"
    clock.now += own.renew_in - 1
    assert own.svid() is first
    clock.now += 2
    second = own.svid()
    assert second is not first
    assert second.key.public.spki != first.key.public.spki
    clock.now = authority.not_after + 10
    assert own.svid() is second  # peers see it expire; the process does not fall over


def test_what_a_sealed_file_holds_does_not_show() -> None:
    key = SigningKey.generate().to_pkcs8().expose()
    held = SealedAuthority(DOMAIN, key, b"c", [], 1)
    assert repr(key)[2:-1] not in f"{held!r} {held} {held.__rich_repr__()}"


def test_a_root_of_before_has_no_room_for_spire(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("relay.gateway.identity.ca.ROOT_DEPTH", 1)
    (tmp_path / "old").mkdir()
    create_authority(tmp_path / "old", DOMAIN, passphrase=PASSPHRASE, root_passphrase=ROOT_PASSPHRASE, now=NOW)
    with pytest.raises(SetupRefused, match="allows one intermediate"):
        write_upstream(tmp_path / "old", tmp_path / "out", root_passphrase=ROOT_PASSPHRASE, now=NOW)
    assert not (tmp_path / "out").exists()

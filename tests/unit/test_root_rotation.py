"""Rotation of the root, step by step: when each may be taken, what is published, and a cut at any write."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509

import store.keys
import store.sealed
from relay.gateway.config import Identity, parse
from relay.gateway.errors import ConfigError, SetupRefused
from relay.gateway.identity import rotation
from relay.gateway.identity.ca import (
    DAY_S,
    INTERMEDIATE_LIFETIME_S,
    ROOT_CERTIFICATE_FILE,
    ROOT_LIFETIME_S,
    ROOT_PURPOSE,
    Authority,
    Lifetimes,
    create_authority,
    renew_intermediate,
    unseal,
)
from relay.gateway.identity.rotation import NEXT_ROOT_FILE, PUBLISHED_S, Rotated, rotate_root
from store.errors import WrongKey
from store.keys import KdfCost, Passphrase
from tests.support.gateway_lab import DOMAIN, PASSPHRASE, ROOT_PASSPHRASE
from transport.identity.svid import SpiffeId, TrustBundle
from transport.identity.verify import SvidVerifier
from transport.primitives import SigningKey, sha256

NOW = 1_800_000_000.0
USED = NOW + PUBLISHED_S


@pytest.fixture(autouse=True)
def quick_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    """These tests seal hundreds of files; what the passphrase is worth is told by others."""
    def stretch(passphrase: Passphrase, cost: KdfCost, salt: bytes) -> bytes:
        return sha256(passphrase.expose(), salt)

    for module in (store.keys, store.sealed):
        monkeypatch.setattr(module, "stretch", stretch)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    create_authority(tmp_path, DOMAIN, passphrase=PASSPHRASE, root_passphrase=ROOT_PASSPHRASE, now=NOW)
    return tmp_path


def rotate(folder: Path, now: float, **options: Any) -> Rotated:
    return rotate_root(folder, passphrase=PASSPHRASE, root_passphrase=ROOT_PASSPHRASE, now=now, **options)


def renew(folder: Path, now: float) -> None:
    renew_intermediate(folder, passphrase=PASSPHRASE, root_passphrase=ROOT_PASSPHRASE, now=now)


def published(folder: Path) -> TrustBundle:
    return Authority.open(folder, PASSPHRASE).bundle


def believed(folder: Path, bundle: TrustBundle, now: float) -> bool:
    """Whether a device with that bundle believes the gateway of today."""
    issued = Authority.open(folder, PASSPHRASE).issue(SpiffeId(DOMAIN, "/gateway/main"), KEY.public, now=now)
    try:
        SvidVerifier().verify(issued.chain, bundle, role="gateway", now=now)
    except Exception:
        return False
    return True


KEY = SigningKey.generate()


def test_three_steps_make_a_new_root(folder: Path) -> None:
    first = published(folder)
    told = rotate(folder, NOW + 60)
    both = published(folder)
    assert (told.step, told.sequence, both.sequence) == ("published", 2, 2)
    assert told.next_at == NOW + 60 + PUBLISHED_S
    assert both.roots[0] == first.roots[0] and len(both.roots) == 2
    assert Authority.open(folder, PASSPHRASE).root == first.roots[0], "invitations name the root in use"
    now = USED + 61
    renew(folder, now - 60)
    assert believed(folder, first, now) and believed(folder, both, now)

    told = rotate(folder, now)
    assert (told.step, told.sequence, told.next_at) == ("used", 3, now + 3600)
    assert Authority.open(folder, PASSPHRASE).root == both.roots[1]
    assert set(published(folder).roots) == set(both.roots)
    assert believed(folder, both, now) and not believed(folder, first, now)
    pem = x509.load_pem_x509_certificate((folder / ROOT_CERTIFICATE_FILE).read_bytes())
    assert pem == x509.load_der_x509_certificate(both.roots[1])
    assert not (folder / NEXT_ROOT_FILE).exists()

    told = rotate(folder, now + 3600)
    assert (told.step, told.sequence, told.next_at) == ("retired", 4, None)
    assert published(folder).roots == both.roots[1:]
    assert believed(folder, both, now + 3600)
    renew(folder, now + 7200)
    assert published(folder) == TrustBundle(DOMAIN, both.roots[1:], 4)
    assert rotate(folder, now + 7200).step == "published"


@pytest.mark.parametrize("before", [1.0, 45 * 86_400.0, PUBLISHED_S - 61.0])
def test_H13_no_root_is_used_that_was_not_published_for_ninety_days(folder: Path, before: float) -> None:
    rotate(folder, NOW)
    files = {file: file.read_bytes() for file in folder.iterdir()}
    with pytest.raises(SetupRefused, match="too early") as caught:
        rotate(folder, USED - before)
    assert "nothing was changed" in (caught.value.hint or "")
    assert {file: file.read_bytes() for file in folder.iterdir()} == files


def test_the_old_root_stays_until_what_it_stood_for_has_run_out(folder: Path) -> None:
    rotate(folder, NOW)
    now = USED + 1
    rotate(folder, now)
    with pytest.raises(SetupRefused, match="still in use"):
        rotate(folder, now + 3_598)
    assert rotate(folder, now + 3_600).step == "retired"


def test_a_root_s_passphrase_is_its_own(folder: Path) -> None:
    with pytest.raises(WrongKey):
        rotate_root(folder, passphrase=PASSPHRASE, root_passphrase=PASSPHRASE, now=NOW)
    rotate(folder, NOW)
    assert {file.stat().st_mode & 0o077 for file in folder.iterdir()} == {0}
    with pytest.raises(WrongKey):
        unseal(folder / NEXT_ROOT_FILE, PASSPHRASE, ROOT_PURPOSE)


class Cut(Exception):
    pass


def cutting(monkeypatch: pytest.MonkeyPatch, after: int) -> None:
    """The next `after` writes of a rotation go through; there it ends."""
    left = [after]

    def counted(act: Callable[..., None]) -> Callable[..., None]:
        def run(*arguments: Any, **named: Any) -> None:
            if not left[0]:
                raise Cut
            left[0] -= 1
            act(*arguments, **named)
        return run

    for name in ("seal", "write_private"):
        monkeypatch.setattr(rotation, name, counted(getattr(rotation, name)))
    monkeypatch.setattr(Path, "unlink", counted(Path.unlink))


@pytest.mark.parametrize("renewed", [False, True])
@pytest.mark.parametrize(("step", "writes"), [("published", 3), ("used", 4), ("retired", 2)])
def test_a_step_that_is_cut_off_anywhere_is_made_good(
    folder: Path, tmp_path: Path, step: str, writes: int, renewed: bool
) -> None:
    """Also if the intermediate is renewed first. No bundle goes back, and who has the latest one is never left out."""
    times = {"published": NOW, "used": USED + 1, "retired": USED + 7_200}
    for name in list(times)[:list(times).index(step)]:
        assert rotate(folder, times[name]).step == name
    renew(folder, times[step] - 3_600)
    start = published(folder)
    for after in range(writes):
        copy, now = tmp_path / f"{after}", times[step]
        shutil.copytree(folder, copy, ignore=shutil.ignore_patterns("[0-9]*"))
        with pytest.MonkeyPatch.context() as monkeypatch:
            cutting(monkeypatch, after)
            with pytest.raises(Cut):
                rotate(copy, now)
        seen = [start]

        def look(copy: Path, now: float, seen: list[TrustBundle]) -> None:
            latest = published(copy)
            assert latest == seen[-1] or latest.sequence > seen[-1].sequence
            assert believed(copy, seen[-1], now) and believed(copy, latest, now)
            seen.append(latest)

        look(copy, now, seen)
        if renewed:
            renew(copy, now)
            look(copy, now, seen)
        while len(seen[-1].roots) > 1 or seen[-1] == start:  # until the old root is gone
            try:
                rotate(copy, now)
            except SetupRefused:
                now += PUBLISHED_S
                renew(copy, now)
                look(copy, now, seen)
                now += 7_200
            else:
                look(copy, now, seen)
        assert seen[-1].roots != start.roots
        assert rotate(copy, now + 7_200).step == "published", "nothing is left over"
        look(copy, now + 7_200, seen)


@pytest.mark.parametrize(("change", "key"), [
    (Lifetimes(intermediate_s=INTERMEDIATE_LIFETIME_S - 1), "identity.intermediate_max_days"),
    (Lifetimes(root_s=ROOT_LIFETIME_S - 1), "identity.root_max_days"),
])
def test_a_certificate_that_lives_too_long_is_not_served_with(folder: Path, change: Lifetimes, key: str) -> None:
    with pytest.raises(ConfigError, match=key) as caught:
        Authority.open(folder, PASSPHRASE, change)
    assert "rotate-key" in (caught.value.hint or "")


def test_new_certificates_live_as_long_as_they_may(folder: Path) -> None:
    short = Identity(svid_max_s=600, intermediate_max_days=7, root_max_days=3_650).lifetimes()
    renew_intermediate(
        folder, passphrase=PASSPHRASE, root_passphrase=ROOT_PASSPHRASE, now=NOW, lifetimes=short
    )
    authority = Authority.open(folder, PASSPHRASE, short)
    assert authority.not_after <= NOW + 7 * DAY_S
    issued = authority.issue(SpiffeId(DOMAIN, "/edge/a"), KEY.public, now=NOW)
    assert issued.not_after - issued.not_before == 600


def test_an_intermediate_does_not_outlive_its_root(folder: Path) -> None:
    late = NOW + ROOT_LIFETIME_S - 10 * DAY_S
    renew(folder, late)
    authority = Authority.open(folder, PASSPHRASE)
    root = x509.load_der_x509_certificate(authority.root)
    assert authority.not_after <= root.not_valid_after_utc.timestamp()


@pytest.mark.parametrize("line", ["svid_max_s = 3601", "svid_max_s = 1", "intermediate_max_days = 31",
                                  "root_max_days = 3651", "root_max_days = 99", "svid_s = 60"])
def test_lifetimes_have_bounds_of_their_own(line: str, tmp_path: Path) -> None:
    text = f'trust_domain = "{DOMAIN}"\n[listen]\nhttps = "127.0.0.1:0"\n[provider]\nbase_url = "https://a.example"\n' \
           f'key_env = "K"\n[identity]\n'
    assert parse(text.encode(), tmp_path).identity == Identity()
    with pytest.raises(ConfigError, match="identity"):
        parse((text + line).encode(), tmp_path)

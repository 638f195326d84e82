"""Key files: what opens them, what does not, and that a planted one can neither weaken nor exhaust."""

import copy
import hashlib
import pickle
import stat
import struct
from pathlib import Path

import pytest

import store.keys
from store.errors import PassphraseRefused, StoreCorrupt, StoreError, StoreExists, StoreMissing, WrongKey
from store.keys import DatabaseKey, KdfCost, Passphrase, create_key, stretch, unlock_key
from tests.support.stores import quick_stretch

PASSPHRASE = Passphrase("correct horse")
COST_AT = 8 + 16 + 1 + 3


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, DatabaseKey]:
    path = tmp_path_factory.mktemp("keys") / "store.key"
    key = create_key(path, PASSPHRASE)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [entry.name for entry in path.parent.iterdir()] == ["store.key"]
    return path.read_bytes(), key


def with_checksum(content: bytes) -> bytes:
    return content + hashlib.sha256(content).digest()


def test_the_passphrase_opens_the_same_key(made: tuple[bytes, DatabaseKey], tmp_path: Path) -> None:
    path = tmp_path / "store.key"
    path.write_bytes(made[0])
    assert unlock_key(path, PASSPHRASE).expose() == made[1].expose()
    assert made[1].expose() not in made[0]
    with pytest.raises(WrongKey) as caught:
        unlock_key(path, Passphrase("Correct horse"))
    assert caught.value.hint and caught.value.fault == "store"


def test_two_keys_differ_in_every_random_part(made: tuple[bytes, DatabaseKey], tmp_path: Path) -> None:
    other = create_key(tmp_path / "store.key", PASSPHRASE)
    data = (tmp_path / "store.key").read_bytes()
    assert other.expose() != made[1].expose()
    for start, length in ((8, 16), (COST_AT + 6, 16), (COST_AT + 22, 12)):  # store id, Argon2 salt, nonce
        assert data[start : start + length] != made[0][start : start + length]
    assert KdfCost.decode(data[COST_AT : COST_AT + 6]) == KdfCost(64 * 1024, 3, 1)


def test_a_key_is_never_overwritten(made: tuple[bytes, DatabaseKey], tmp_path: Path) -> None:
    path = tmp_path / "store.key"
    path.write_bytes(made[0])
    with pytest.raises(StoreExists):
        create_key(path, PASSPHRASE)
    assert path.read_bytes() == made[0]
    assert len(list(tmp_path.iterdir())) == 1
    with pytest.raises(StoreMissing):
        create_key(tmp_path / "nowhere" / "store.key", PASSPHRASE)
    with pytest.raises(StoreMissing):
        unlock_key(tmp_path / "nowhere.key", PASSPHRASE)


def test_damage_of_any_byte_is_told_from_a_wrong_passphrase(made: tuple[bytes, DatabaseKey], tmp_path: Path) -> None:
    path = tmp_path / "store.key"
    for index in range(len(made[0])):
        path.write_bytes(made[0][:index] + bytes([made[0][index] ^ 1]) + made[0][index + 1 :])
        with pytest.raises(StoreCorrupt):
            unlock_key(path, PASSPHRASE)
    for length in (0, 7, 8, 24, 60, len(made[0]) - 1):
        path.write_bytes(made[0][:length])
        with pytest.raises(StoreCorrupt):
            unlock_key(path, PASSPHRASE)
    path.write_bytes(bytes(70_000))
    with pytest.raises(StoreCorrupt):
        unlock_key(path, PASSPHRASE)


def test_no_byte_can_be_changed_on_purpose(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "store.key"
    monkeypatch.setattr(store.keys, "stretch", quick_stretch)
    create_key(path, PASSPHRASE)
    content = path.read_bytes()[:-32]
    for index in range(len(content)):
        path.write_bytes(with_checksum(content[:index] + bytes([content[index] ^ 1]) + content[index + 1 :]))
        with pytest.raises((StoreCorrupt, WrongKey)):
            unlock_key(path, PASSPHRASE)


def test_stretching_heeds_all_it_is_given() -> None:
    """What takes its place where each byte is tried does; so must the real one."""
    cost, salt = KdfCost(64 * 1024, 3, 1), bytes(16)
    others = [
        (Passphrase("correct horsf"), cost, salt), (PASSPHRASE, KdfCost(64 * 1024 + 8, 3, 1), salt),
        (PASSPHRASE, KdfCost(64 * 1024, 4, 1), salt), (PASSPHRASE, cost, b"\1" + bytes(15)),
        (PASSPHRASE, cost, bytes(15) + b"\1"),
    ]  # fmt: skip
    assert len({stretch(*given) for given in [(PASSPHRASE, cost, salt), *others]}) == 6


@pytest.mark.parametrize(
    "cost",
    [
        KdfCost(64 * 1024 - 1, 3, 1), KdfCost(64 * 1024, 2, 1), KdfCost(64 * 1024, 3, 0),
        KdfCost(256 * 1024 + 1, 3, 1), KdfCost(64 * 1024, 11, 1), KdfCost(64 * 1024, 3, 5),
        KdfCost(2**32 - 1, 255, 255), KdfCost(0, 0, 0),
    ],
)
def test_M19_costs_out_of_bounds_are_refused_before_deriving(
    cost: KdfCost, made: tuple[bytes, DatabaseKey], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: object) -> bytes:
        raise AssertionError("derived under a planted cost")

    monkeypatch.setattr(store.keys, "stretch", never)
    path = tmp_path / "store.key"
    content = made[0][:-32]
    path.write_bytes(with_checksum(content[:COST_AT] + cost.encode() + content[COST_AT + 6 :]))
    with pytest.raises(StoreCorrupt, match="out of bounds"):
        unlock_key(path, PASSPHRASE)


def test_wrappings_of_other_kinds_are_skipped(made: tuple[bytes, DatabaseKey], tmp_path: Path) -> None:
    path = tmp_path / "store.key"
    content = made[0][:-32]
    foreign = struct.pack(">BH", 200, 5) + b"other"
    path.write_bytes(with_checksum(content[:24] + bytes([2]) + foreign + content[25:]))
    assert unlock_key(path, PASSPHRASE).expose() == made[1].expose()
    path.write_bytes(with_checksum(content[:24] + bytes([1]) + foreign))
    with pytest.raises(WrongKey, match="not unlocked by a passphrase"):
        unlock_key(path, PASSPHRASE)
    for count, rest in ((0, b""), (9, foreign * 9), (2, foreign), (1, foreign + b"x"), (1, foreign[:-1])):
        path.write_bytes(with_checksum(content[:24] + bytes([count]) + rest))
        with pytest.raises(StoreCorrupt):
            unlock_key(path, PASSPHRASE)


def test_a_later_format_is_named(made: tuple[bytes, DatabaseKey], tmp_path: Path) -> None:
    path = tmp_path / "store.key"
    path.write_bytes(with_checksum(b"cwkeys\x00\x02" + made[0][8:-32]))
    with pytest.raises(StoreCorrupt, match="unknown format"):
        unlock_key(path, PASSPHRASE)


def test_passphrases_from_files(tmp_path: Path) -> None:
    path = tmp_path / "passphrase"
    cases = (
        (b"word\n", b"word"), (b"word\r\n", b"word"), (b"word\n\n", b"word\n"), (b" a b ", b" a b "),
        (b"\xff\xfe\n", b"\xff\xfe"),
    )
    for content, expected in cases:
        path.write_bytes(content)
        assert Passphrase.from_file(path).expose() == expected
    for content in (b"", b"\n", b"x" * 1025):
        path.write_bytes(content)
        with pytest.raises(PassphraseRefused):
            Passphrase.from_file(path)
    with pytest.raises(StoreMissing):
        Passphrase.from_file(tmp_path / "none")
    with pytest.raises(StoreError):
        Passphrase.from_file(tmp_path)


def test_text_means_the_same_bytes_on_every_keyboard() -> None:
    assert Passphrase("e\u0301te\u0301").expose() == Passphrase("\u00e9t\u00e9").expose() == "été".encode()
    with pytest.raises(PassphraseRefused):
        Passphrase("\ud800")


@pytest.mark.parametrize("secret", [Passphrase("hunter2"), DatabaseKey(b"K" * 48)])
def test_secrets_do_not_leave_by_accident(secret: Passphrase | DatabaseKey) -> None:
    for text in (repr(secret), str(secret), f"{secret}", f"{secret:>30}", "%s" % secret):  # noqa: UP031
        assert text in ("<Passphrase>", "<DatabaseKey>")
    for leave in (lambda s: s == s, hash, pickle.dumps, copy.copy, copy.deepcopy):
        with pytest.raises(TypeError):
            leave(secret)

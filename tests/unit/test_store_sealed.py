"""Sealed files: round trips at every chunk boundary, and no byte, order, length or name that can be changed."""

import errno
import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

import store.sealed
from store.errors import DiskFull, StoreCorrupt, StoreMissing, StoreMisuse, StoreUnwritable, WrongKey
from store.keys import KdfCost, Passphrase
from store.sealed import CHUNK_LEN, open_file, seal_file
from tests.support.stores import quick_stretch

PASSPHRASE = Passphrase("correct horse")
HEADER_LEN = 8 + 6 + 16 + 1 + len("test") + 32
Seal = Callable[[bytes], bytes]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "thing.sealed"


def sealed(path: Path, plaintext: bytes) -> bytes:
    seal_file(path, plaintext, PASSPHRASE, purpose="test")
    return path.read_bytes()


def opened(path: Path, data: bytes) -> bytes:
    path.write_bytes(data)
    return open_file(path, PASSPHRASE, purpose="test")


@pytest.mark.parametrize("length", [0, 1, CHUNK_LEN - 1, CHUNK_LEN, CHUNK_LEN + 1, 2 * CHUNK_LEN, 3 * CHUNK_LEN + 5])
def test_round_trip(path: Path, length: int) -> None:
    plaintext = os.urandom(length)
    data = sealed(path, plaintext)
    assert open_file(path, PASSPHRASE, purpose="test") == plaintext
    chunks = max(1, -(-length // CHUNK_LEN))
    assert len(data) == HEADER_LEN + length + 16 * chunks
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


def test_nothing_readable_and_nothing_repeated(path: Path) -> None:
    plaintext = b"canary" * 100
    first, second = sealed(path, plaintext), sealed(path, plaintext)
    assert b"canary" not in first
    assert first[14:30] != second[14:30]
    assert first[-116:] != second[-116:]


def test_every_byte_is_protected(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store.sealed, "stretch", quick_stretch)
    data = sealed(path, b"small")
    for index in range(len(data)):
        with pytest.raises((StoreCorrupt, WrongKey)):
            opened(path, data[:index] + bytes([data[index] ^ 1]) + data[index + 1 :])


def test_every_truncation_and_every_addition_fails(path: Path) -> None:
    data = sealed(path, b"small")
    for length in range(len(data)):
        with pytest.raises((StoreCorrupt, WrongKey)):
            opened(path, data[:length])
    for extra in (b"\x00", bytes(16), data[HEADER_LEN:]):
        with pytest.raises(StoreCorrupt):
            opened(path, data + extra)


def test_chunks_cannot_be_cut_swapped_repeated_or_taken_from_another_file(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store.sealed, "CHUNK_LEN", 32)
    data, other = (sealed(path, fill * 96 + b"end") for fill in (b"a", b"b"))
    header = data[:HEADER_LEN]
    a, b, c, last = (data[HEADER_LEN + index * 48 : HEADER_LEN + (index + 1) * 48] for index in range(4))
    assert opened(path, header + a + b + c + last) == b"a" * 96 + b"end"
    foreign = other[HEADER_LEN : HEADER_LEN + 48]
    for chunks in (
        [a, b, c], [a, b], [a], [], [last], [b, a, c, last], [a, c, last], [a, a, b, c, last], [a, b, last],
        [a, b, c, last, last], [foreign, b, c, last], [a, b, c[:-1], last],
    ):
        with pytest.raises(StoreCorrupt):
            opened(path, header + b"".join(chunks))
    with pytest.raises(StoreCorrupt):
        opened(path, other[:HEADER_LEN] + data[HEADER_LEN:])


def test_an_empty_chunk_after_a_full_one_is_refused(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store.sealed, "CHUNK_LEN", 32)
    data = sealed(path, b"a" * 32)
    key, _ = store.sealed._derive(PASSPHRASE, data[: HEADER_LEN - 32])
    aead, header = store.sealed.AESGCM(key), data[:HEADER_LEN]
    first = aead.encrypt(bytes(12), b"a" * 32, header)
    empty = aead.encrypt(bytes(10) + b"\x01\x01", b"", header)
    with pytest.raises(StoreCorrupt):
        opened(path, header + first + empty)
    assert opened(path, header + first + aead.encrypt(bytes(10) + b"\x01\x01", b"b", header)) == b"a" * 32 + b"b"


def test_wrong_passphrase_and_wrong_purpose(path: Path) -> None:
    sealed(path, b"content")
    with pytest.raises(WrongKey):
        open_file(path, Passphrase("other"), purpose="test")
    for purpose in ("tes", "test2", "ca root"):
        with pytest.raises(StoreCorrupt, match="another purpose"):
            open_file(path, PASSPHRASE, purpose=purpose)
    for purpose in ("", "x" * 256):
        with pytest.raises(StoreMisuse):
            seal_file(path, b"", PASSPHRASE, purpose=purpose)


@pytest.mark.parametrize(
    "cost", [KdfCost(8, 1, 1), KdfCost(64 * 1024, 2, 1), KdfCost(2**31, 3, 1), KdfCost(64 * 1024, 255, 1)]
)
def test_planted_costs_are_refused_before_deriving(path: Path, cost: KdfCost, monkeypatch: pytest.MonkeyPatch) -> None:
    data = sealed(path, b"content")

    def never(*_: object) -> bytes:
        raise AssertionError("derived under a planted cost")

    monkeypatch.setattr(store.sealed, "stretch", never)
    with pytest.raises(StoreCorrupt, match="out of bounds"):
        opened(path, data[:8] + cost.encode() + data[14:])


def test_size_is_bounded(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store.sealed, "CHUNK_LEN", 32)
    data = sealed(path, b"a" * 200)
    monkeypatch.setattr(store.sealed, "MAX_LEN", 96)
    with pytest.raises(StoreMisuse):
        sealed(path, b"a" * 97)
    with pytest.raises(StoreCorrupt, match="too large"):
        opened(path, data)


def test_a_failed_write_leaves_the_old_file(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = sealed(path, b"old")

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "no space")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DiskFull) as caught:
        seal_file(path, b"new", PASSPHRASE, purpose="test")
    assert caught.value.retryable and caught.value.hint
    assert path.read_bytes() == before
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


def test_missing_places(path: Path) -> None:
    with pytest.raises(StoreMissing):
        open_file(path, PASSPHRASE, purpose="test")
    with pytest.raises(StoreMissing):
        seal_file(path.parent / "none" / "x", b"", PASSPHRASE, purpose="test")
    with pytest.raises(StoreUnwritable):
        open_file(path.parent, PASSPHRASE, purpose="test")

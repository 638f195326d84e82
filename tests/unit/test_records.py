"""Records: padding, packing, rekeying, and what the opener refuses."""

import contextlib

import hypothesis.strategies as st
import pytest
from hypothesis import given

from transport import records
from transport.errors import DecryptFailed, LocalMisuse, ProtocolViolation
from transport.messages import RECORD_PLAINTEXT_MAX, AnswerData, Close, Credit, Rekey, encode
from transport.noise import PRODUCT_SUITE, CipherState
from transport.records import RecordOpener, RecordSealer, pad, padded_length, unpack

KEY = bytes(range(32))


def both(*, padding: bool = True) -> tuple[RecordSealer, RecordOpener]:
    return (
        RecordSealer(CipherState(PRODUCT_SUITE, KEY), 0.0, padding=padding),
        RecordOpener(CipherState(PRODUCT_SUITE, KEY), 0.0),
    )


def drain(opener: RecordOpener, now: float = 0.0) -> list[object]:
    out: list[object] = []
    while (messages := opener.next_messages(now)) is not None:
        out.extend(messages)
    return out


@pytest.mark.parametrize(("length", "padded"), [
    (1, 512), (511, 512), (512, 512), (513, 1024), (1025, 2048), (4096, 4096), (4097, 4352), (9000, 9216),
    (100_000, 100_352),
])
def test_padding_ladder(length: int, padded: int) -> None:
    assert padded_length(length, control=False) == padded


@given(st.integers(1, 2_000_000))
def test_padding_costs_at_most_an_eighth_above_4_kib_and_is_monotone(length: int) -> None:
    padded = padded_length(length, control=False)
    assert padded >= length
    assert length <= 4096 or padded <= length * 1.12
    assert padded_length(length + 1, control=False) >= padded
    assert padded_length(length, control=True) % 64 == 0


@given(st.lists(st.binary(min_size=1, max_size=9_000), min_size=1, max_size=12))
def test_record_sizes_are_a_function_of_the_padded_total(bodies: list[bytes]) -> None:
    messages = [encode(AnswerData(1, i, body)) for i, body in enumerate(bodies)]
    plaintexts = pad(records.pack(messages), control=False)
    assert all(len(p) == RECORD_PLAINTEXT_MAX for p in plaintexts[:-1])
    total = sum(map(len, plaintexts))
    assert padded_length(total, control=False) == total
    assert [m for p in plaintexts for m in unpack(p)] == messages


@given(st.lists(st.binary(min_size=1, max_size=3_000), min_size=1, max_size=8), st.integers(1, 997))
def test_bursts_arrive_however_they_are_cut(bodies: list[bytes], size: int) -> None:
    sealer, opener = both()
    sent = [AnswerData(1, i, body) for i, body in enumerate(bodies)]
    wire = sealer.seal_burst([encode(message) for message in sent], 0.0)
    got: list[object] = []
    for start in range(0, len(wire), size):
        opener.feed(wire[start : start + size])
        got.extend(drain(opener))
    assert got == sent


@given(st.binary(max_size=200))
def test_unpack_gives_documented_errors_only(data: bytes) -> None:
    with contextlib.suppress(ProtocolViolation):
        unpack(data)


@pytest.mark.parametrize("plaintext", [b"\0\1", b"\0\0\0\1", b"\1", b"\0\5abc", b"\0\1a\0\0x"])
def test_M7_cut_messages_and_padding_that_is_not_zero_are_refused(plaintext: bytes) -> None:
    with pytest.raises(ProtocolViolation):
        unpack(plaintext)


@pytest.mark.parametrize("length", [0, 1, 16, 16_401, 65_535])
def test_M7_record_length_is_checked_before_anything_is_buffered_for_it(length: int) -> None:
    _, opener = both()
    opener.feed(length.to_bytes(2, "big"))
    with pytest.raises(ProtocolViolation):
        opener.next_record()
    with pytest.raises(LocalMisuse):
        opener.next_record()


def test_M7_length_bytes_are_authenticated() -> None:
    sealer, opener = both()
    wire = bytearray(sealer.seal_record(b"\0" * 40))
    wire[1] -= 1
    opener.feed(bytes(wire))
    with pytest.raises(DecryptFailed):
        opener.next_record()


def test_H6_sender_rekeys_by_age_and_count_and_the_receiver_follows(monkeypatch: pytest.MonkeyPatch) -> None:
    sealer, opener = both()
    for now in (0.0, 899.0, 900.0, 901.0, 1900.0, 1901.0):
        opener.feed(sealer.seal_burst([encode(Credit(1, int(now)))], now))
        assert drain(opener, now) == [Credit(1, int(now))]
    monkeypatch.setattr(records, "REKEY_RECORDS", 3)
    monkeypatch.setattr(records, "REKEY_FLOOR_SECONDS", 0.0)
    sealer, opener = both()
    for i in range(20):
        opener.feed(sealer.seal_burst([encode(Credit(1, i))], 0.0))
        assert drain(opener) == [Credit(1, i)]


def test_H6_the_key_really_changes() -> None:
    sealer, opener = both()
    stale = RecordOpener(CipherState(PRODUCT_SUITE, KEY), 0.0)
    wire = sealer.seal_burst([encode(Credit(1, 1))], 1000.0)  # and the rekey notice
    for one in (opener, stale):
        one.feed(wire)
    drain(opener, 1000.0)
    assert stale.next_record() is not None and stale.next_record() is not None
    wire = sealer.seal_burst([encode(Credit(1, 2))], 1001.0)
    opener.feed(wire)
    assert drain(opener, 1001.0) == [Credit(1, 2)]
    stale.feed(wire)
    with pytest.raises(DecryptFailed):
        stale.next_record()


def test_H6_receiver_ends_the_link_at_twice_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    sealer, opener = both()
    wires = [sealer.seal_burst([encode(Credit(1, i))], 0.0) for i in range(7)]
    monkeypatch.setattr(records, "REKEY_RECORDS", 3)
    for wire in wires[:6]:
        opener.feed(wire)
        drain(opener)
    opener.feed(wires[6])
    with pytest.raises(ProtocolViolation, match="rekey"):
        drain(opener)


def test_H6_rekey_too_often_or_not_last_is_refused() -> None:
    sealer, opener = both()
    opener.feed(sealer.seal_burst([encode(Rekey())], 0.0))
    with pytest.raises(ProtocolViolation, match="too often"):
        drain(opener, 5.0)
    sealer, opener = both()
    opener.feed(sealer.seal_burst([encode(Rekey()), encode(Close("normal"))], 0.0))
    with pytest.raises(ProtocolViolation, match="last"):
        drain(opener, 100.0)


def test_empty_burst_and_oversized_message_are_our_own_mistakes() -> None:
    sealer, _ = both()
    with pytest.raises(LocalMisuse):
        sealer.seal_burst([], 0.0)
    with pytest.raises(LocalMisuse):
        sealer.seal_burst([bytes(RECORD_PLAINTEXT_MAX)], 0.0)


def test_padding_off_adds_nothing() -> None:
    sealer, _ = both(padding=False)
    message = encode(Credit(1, 1))
    assert len(sealer.seal_burst([message], 0.0)) == 2 + 2 + len(message) + 16

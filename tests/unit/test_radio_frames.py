"""The demo's search has to see through fragments and values: words torn in every place are found once put together."""

from pathlib import Path

import pytest

from scripts import radio_frames

WORD = b"fedubagatavasebi"
EVENT = bytes.fromhex("04130501400001 00".replace(" ", ""))  # number of completed packets


def acl(handle: int, payload: bytes, *, first: bool) -> bytes:
    flags = handle | (0b10 if first else 0b01) << 12
    return b"\x02" + flags.to_bytes(2, "little") + len(payload).to_bytes(2, "little") + payload


def frame(pdu: bytes, channel: int = 4) -> bytes:
    return len(pdu).to_bytes(2, "little") + channel.to_bytes(2, "little") + pdu


def fragments(handle: int, whole: bytes, size: int) -> list[bytes]:
    return [acl(handle, whole[at:at + size], first=at == 0) for at in range(0, len(whole), size)]


def notified(value: bytes) -> bytes:
    return frame(b"\x1b\x03\x00" + value)


def recorded(folder: Path, raw: bytes) -> Path:
    (folder / "in").mkdir()
    (folder / "in" / "001.back").write_bytes(raw)
    return folder / "in"


@pytest.mark.parametrize("size", [1, 5, 27])
def test_a_word_torn_by_values_and_fragments_of_two_connections_is_found(tmp_path: Path, size: int) -> None:
    mine, other = [], []
    for number, at in enumerate(range(0, len(WORD), 3)):
        mine += fragments(0x40, notified(bytes([number]) + WORD[at:at + 3]), size)
        other += fragments(0x41, notified(bytes([number]) + bytes(3)), size)
    raw = b"".join(first + EVENT + second for first, second in zip(mine, other, strict=False))
    raw += b"".join(mine[len(other):])
    captured, out = recorded(tmp_path, raw), tmp_path / "out"
    assert WORD not in raw
    assert radio_frames.put_together(captured, out) > len(WORD)
    assert radio_frames.holds(out, "back", WORD) and not radio_frames.holds(out, "out", WORD)
    assert (out / "link" / "040.001.back").read_bytes() == WORD
    assert not radio_frames.holds(out, "back", WORD + b"x")


def test_what_is_no_value_is_in_the_frames(tmp_path: Path) -> None:
    raw = b"".join(fragments(0x40, frame(b"\x0b" + WORD), 7) + fragments(0x40, frame(WORD[::-1], channel=6), 7))
    radio_frames.put_together(recorded(tmp_path, raw), tmp_path / "out")
    together = (tmp_path / "out" / "frames" / "001.back").read_bytes()
    assert WORD not in raw and WORD in together and WORD[::-1] in together
    assert list((tmp_path / "out" / "link").iterdir()) == []


def test_a_control_value_tears_no_word(tmp_path: Path) -> None:
    written = [b"\x00" + WORD[:4], b"\x80" + bytes(8), b"\x01" + WORD[4:]]
    raw = b"".join(acl(0x40, frame(b"\x52\x05\x00" + value), first=True) for value in written)
    radio_frames.put_together(recorded(tmp_path, raw), tmp_path / "out")
    assert (tmp_path / "out" / "link" / "040.001.back").read_bytes() == WORD
    assert (tmp_path / "out" / "values" / "040.001.back").read_bytes() == b"".join(written)


@pytest.mark.parametrize("cut", range(1, 40))
def test_a_recording_that_was_cut_off_shows_what_came(tmp_path: Path, cut: int) -> None:
    raw = b"".join(fragments(0x40, notified(b"\x00" + WORD), 6))
    radio_frames.put_together(recorded(tmp_path, raw[:-cut]), tmp_path / "out")
    together = (tmp_path / "out" / "frames" / "001.back").read_bytes()
    assert together == (b"\x1b\x03\x00\x00" + WORD)[:len(together)]


def test_other_streams_are_refused() -> None:
    with pytest.raises(ValueError, match="not a stream of HCI"):
        list(radio_frames.packets(b"\x16\x03\x01\x02\x00"))

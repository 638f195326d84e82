"""Puts together what a recording of a Bluetooth host holds in pieces, so that a search for words can find them.

The recording is what passed between a host and its controller in one direction (HCI with H4 framing; Core 5.4, vol 4,
parts A and E). A word in it may be torn in two places: an L2CAP frame goes in fragments, and the bytes of a link go in
GATT values with a header each. Nothing is decrypted, since Bluetooth's own encryption is no part of this.
"""

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Final

ACL: Final = 0x02
# By packet type: where the length stands, in which format, and the size of the header.
_HEADERS: Final = {0x01: (2, "<B", 3), ACL: (2, "<H", 4), 0x03: (2, "<B", 3), 0x04: (1, "<B", 2), 0x05: (2, "<H", 4)}
_CONTINUES: Final = 0b01  # a fragment that is not the first of its frame
_ATT: Final = 4  # the channel of GATT
_VALUES: Final = {0x12, 0x52, 0x1B, 0x1D}  # writes with and without response, notifications, indications
_CONTROL: Final = 0x80  # a value of the pipe with this bit carries no bytes of the link (docs/SPEC.md section 9)


def packets(raw: bytes) -> Iterator[tuple[int, bytes]]:
    """The packets of an H4 stream with their types; one that the end cut off comes as it is. Raises ValueError."""
    at = 0
    while at < len(raw):
        kind, start = raw[at], at + 1
        if kind not in _HEADERS:
            raise ValueError("this is not a stream of HCI packets")
        where, form, size = _HEADERS[kind]
        header = raw[start:start + size]
        if len(header) < size:
            return
        at = start + size + int(struct.unpack_from(form, header, where)[0])
        yield kind, raw[start:at]


def frames(raw: bytes) -> Iterator[tuple[int, int, bytes]]:
    """Connection handle, channel and payload of each L2CAP frame, then what is left of those without an end."""
    begun: dict[int, bytearray] = {}
    for kind, packet in packets(raw):
        if kind != ACL:
            continue
        flags = int.from_bytes(packet[:2], "little")
        handle = flags & 0x0FFF
        if flags >> 12 & 0b11 != _CONTINUES:
            begun[handle] = bytearray()
        frame = begun.setdefault(handle, bytearray())
        frame += packet[4:]
        if len(frame) >= 4 and len(frame) >= 4 + int.from_bytes(frame[:2], "little"):
            del begun[handle]
            yield handle, int.from_bytes(frame[2:4], "little"), bytes(frame[4:])
    for handle, frame in begun.items():
        yield handle, int.from_bytes(frame[2:4], "little"), bytes(frame[4:])


def values(raw: bytes) -> Iterator[tuple[int, bytes]]:
    """Connection handle and value of everything that was written or notified, in order."""
    for handle, channel, payload in frames(raw):
        if channel == _ATT and len(payload) > 3 and payload[0] in _VALUES:
            yield handle, payload[3:]


def put_together(captured: Path, out: Path) -> int:
    """For each recording in `captured` writes to `out` what it held: in `frames` all of them; for each connection in
    `values` what was written or notified, and in `link` the bytes of the link, which alone are without headers in
    between. Returns how many bytes the latter are in all.
    """
    for kind in ("frames", "values", "link"):
        (out / kind).mkdir(mode=0o700, parents=True)
    for path in sorted(captured.iterdir()):
        raw = path.read_bytes()
        (out / "frames" / path.name).write_bytes(b"".join(payload for _, _, payload in frames(raw)))
        for handle, value in values(raw):
            name = f"{handle:03x}.{path.name}"
            with (out / "values" / name).open("ab") as file:
                file.write(value)
            if value[0] < _CONTROL:
                with (out / "link" / name).open("ab") as file:
                    file.write(value[1:])
    return sum(path.stat().st_size for path in (out / "link").iterdir())


def holds(out: Path, direction: str, content: bytes) -> bool:
    """Whether a link in `out` holds `content` without a gap. `direction`: out of the recorded host, or back to it."""
    return any(content in path.read_bytes() for path in (out / "link").glob(f"*.{direction}"))

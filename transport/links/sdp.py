"""The one question that an edge asks by Bluetooth's Service Discovery Protocol: a service's RFCOMM channel. Pure.

Bluetooth Core Specification 5.4, volume 3, part B: sections 3 (data elements), 4.7 (ServiceSearchAttribute).
"""

import struct
import uuid
from collections.abc import Iterator
from typing import Final

from transport.errors import ProtocolViolation

PSM: Final = 1  # of L2CAP, where every device answers
ANSWER_MAX: Final = 512  # bytes of attributes that are asked for; ours take some thirty
CHANNEL_MAX: Final = 30
_DEPTH_MAX: Final = 6
_REQUEST, _ANSWER = 0x06, 0x07
_PROTOCOLS: Final = 0x0004  # the attribute: which protocols to speak, lowest first
_RFCOMM: Final = 0x0003
_UINT, _UUID, _SEQUENCE = 1, 3, 6

Element = int | uuid.UUID | list["Element"] | None  # None: of a kind that plays no part here


def question(service: str, number: int) -> bytes:
    """The request for the protocols of `service`, a UUID; `number`, 0 to 65,535, comes back with the answer."""
    pattern = _sequence(bytes([_UUID << 3 | 4]) + uuid.UUID(service).bytes)
    attributes = _sequence(struct.pack(">BH", _UINT << 3 | 1, _PROTOCOLS))
    body = pattern + struct.pack(">H", ANSWER_MAX) + attributes + b"\0"
    return struct.pack(">BHH", _REQUEST, number, len(body)) + body


def channel(answer: bytes, number: int) -> int | None:
    """The channel, 1 to 30, of the first record that has one; None if there is none. Raises ProtocolViolation."""
    if len(answer) < 8:
        raise _garbled()
    kind, again, length, size = struct.unpack_from(">BHHH", answer)
    if (kind, again) != (_ANSWER, number) or length != len(answer) - 5 or size + 3 > length:
        raise _garbled()
    lists, end = _element(answer[7:7 + size], 0, 0)
    if end != size or not isinstance(lists, list):
        raise _garbled()
    return next(_channels(lists), None)


def _channels(element: Element) -> Iterator[int]:
    """From every `[RFCOMM, channel]`, however deep: records may offer alternatives."""
    if not isinstance(element, list):
        return
    if len(element) >= 2 and element[0] == _short(_RFCOMM):
        if isinstance(element[1], int) and 1 <= element[1] <= CHANNEL_MAX:
            yield element[1]
        return
    for part in element:
        yield from _channels(part)


def _element(data: bytes, start: int, depth: int) -> tuple[Element, int]:
    """One data element and where it ends."""
    if start >= len(data) or depth > _DEPTH_MAX:
        raise _garbled()
    kind, code = data[start] >> 3, data[start] & 7
    start += 1
    if code < 5:
        size = 0 if kind == 0 else 1 << code
    else:
        width = 1 << code - 5
        size = int.from_bytes(data[start:start + width])
        start += width
    end = start + size
    if end > len(data):
        raise _garbled()
    if kind == _UINT:
        return int.from_bytes(data[start:end]), end
    if kind == _UUID and size in (2, 4):
        return _short(int.from_bytes(data[start:end])), end
    if kind == _UUID and size == 16:
        return uuid.UUID(bytes=data[start:end]), end
    if kind != _SEQUENCE:
        return None, end
    parts: list[Element] = []
    while start < end:
        part, start = _element(data[:end], start, depth + 1)
        parts.append(part)
    return parts, end


def _short(number: int) -> uuid.UUID:
    return uuid.UUID(f"{number:08x}-0000-1000-8000-00805f9b34fb")


def _sequence(content: bytes) -> bytes:
    return bytes([_SEQUENCE << 3 | 5, len(content)]) + content


def _garbled() -> ProtocolViolation:
    return ProtocolViolation("the device's answer about its services makes no sense")

"""A compact form for streamed answers: what repeats in each server-sent event is said once. docs/SPEC.md section 7.

A provider wraps each token in some 200 bytes that are the same for the whole answer. On a radio that is most of what
travels. So the gateway sends the wrapping once, as a template, and then the texts alone; the edge puts the very bytes
together again that the gateway's pipeline released. This is no compression (review L7): nothing is looked for in the
text, so no length tells whether two texts are alike.

    entry     head || body                                 head = varint(n * 4 + kind), low 7 bits first (LEB128)
    kind 0    n bytes                                      given out as they are
    kind 1    n bytes                                      given out as prefix || bytes || suffix of the template
    kind 2    varint(m) || n bytes || m bytes              prefix and suffix of the template from here on
"""

import re
from collections.abc import Iterator
from typing import Final

from transport.errors import ProtocolViolation

CONTENT_TYPE: Final = "application/x-causeway-events"  # of an answer in this form
PLAIN_TYPE: Final = "text/event-stream"  # of the same answer put together again

BODY_MAX: Final = 65_536  # bytes of one entry
TEMPLATE_MAX: Final = 1_024  # bytes of prefix and suffix together, so that little cannot become much
_VARINT_MAX: Final = 3  # bytes; enough for BODY_MAX * 4 + 3

_LITERAL, _TEXT, _TEMPLATE = range(3)
# Before the text of a token, in JSON with or without spaces.
_MARKERS: Final = (b'"content":"', b'"content": "', b'"arguments":"', b'"arguments": "')
_QUOTE, _BACKSLASH = b'"\\'
# Whose values are not written by the model; a string or number of any other name may be text, or tell of it.
_NOT_TEXT: Final = frozenset((
    b"id", b"object", b"created", b"model", b"system_fingerprint", b"service_tier", b"provider", b"index", b"role",
    b"type",
))
_NAMED: Final = re.compile(rb'"([^"\\]*)"\s*:\s*["0-9-](?=.)', re.DOTALL)  # but for the marker that ends a prefix
_UNNAMED: Final = re.compile(rb'\[\s*["0-9-]')


class EventEncoder:
    """Server-sent events in, entries out. Holds what is not a whole event yet, at most 64 KiB."""

    def __init__(self) -> None:
        self._held = b""
        self._template: tuple[bytes, bytes] | None = None

    def feed(self, data: bytes) -> bytes:
        """Entries for the events that are whole now: those that end in an empty line."""
        *events, self._held = _split(self._held + data)
        out = b"".join(map(self._event, events))
        if len(self._held) > BODY_MAX:
            out += self.finish()
        return out

    def finish(self) -> bytes:
        """Entries for what is left."""
        held, self._held = self._held, b""
        return self._event(held) if held else b""

    def _event(self, event: bytes) -> bytes:
        span = _text_span(event)
        if span is None or span[0] + len(event) - span[1] > TEMPLATE_MAX or span[1] - span[0] > BODY_MAX:
            return self._literal(event)
        prefix, text, suffix = event[:span[0]], event[span[0]:span[1]], event[span[1]:]
        entry = _head(len(text), _TEXT) + text
        if self._template == (prefix, suffix):
            return entry
        if not (_bare(prefix) and _bare(suffix)):
            return self._literal(event)
        self._template = (prefix, suffix)
        return _head(len(prefix), _TEMPLATE) + _varint(len(suffix)) + prefix + suffix + entry

    @staticmethod
    def _literal(event: bytes) -> bytes:
        parts = (event[at:at + BODY_MAX] for at in range(0, len(event), BODY_MAX))
        return b"".join(_head(len(part), _LITERAL) + part for part in parts)


class EventDecoder:
    """Entries in, in any pieces; the bytes they stand for out. Holds one entry that is not whole, at most 64 KiB."""

    def __init__(self) -> None:
        self._held = b""
        self._prefix = self._suffix = b""

    def feed(self, data: bytes) -> Iterator[bytes]:
        """What the entries that are whole now stand for, one by one. Raises ProtocolViolation for what is no entry."""
        held, at = self._held + data, 0
        self._held = b""
        while (parsed := _entry(held, at)) is not None:
            kind, first, second, at = parsed
            if kind == _TEMPLATE:
                self._prefix, self._suffix = first, second
            elif kind == _TEXT:
                yield self._prefix + first + self._suffix
            elif first:
                yield first
        self._held = held[at:]

    def finish(self) -> None:
        """Raises ProtocolViolation if the answer ended within an entry."""
        if self._held:
            raise ProtocolViolation("the answer ends within an event")


def _split(data: bytes) -> list[bytes]:
    """Whole events, and the rest."""
    out: list[bytes] = []
    begin = at = 0
    while (end := data.find(b"\n", at)) >= 0:
        if data[at:end] in (b"", b"\r"):
            out.append(data[begin:end + 1])
            begin = end + 1
        at = end + 1
    out.append(data[begin:])
    return out


def _text_span(event: bytes) -> tuple[int, int] | None:
    """Where the first marked JSON string begins and ends."""
    for marker in _MARKERS:
        begin = event.find(marker)
        if begin >= 0:
            begin = at = begin + len(marker)
            while at < len(event):
                if event[at] == _QUOTE:
                    return begin, at
                at += 2 if event[at] == _BACKSLASH else 1
    return None


def _bare(around: bytes) -> bool:
    """Whether no second text stands here (a thought, a token's name): templates alike must not mean texts alike."""
    return _UNNAMED.search(around) is None and all(match[1] in _NOT_TEXT for match in _NAMED.finditer(around))


def _entry(data: bytes, at: int) -> tuple[int, bytes, bytes, int] | None:
    """(kind, first bytes, second bytes, where it ends), or None if it is not whole."""
    head, at = _read_varint(data, at)
    if at < 0:
        return None
    kind, first_len, second_len = head & 3, head >> 2, 0
    if kind == _TEMPLATE:
        second_len, at = _read_varint(data, at)
        if at < 0:
            return None
    if kind > _TEMPLATE or first_len > BODY_MAX or (kind == _TEMPLATE and first_len + second_len > TEMPLATE_MAX):
        raise ProtocolViolation("a streamed answer is not in the form it says")
    middle, end = at + first_len, at + first_len + second_len
    return (kind, data[at:middle], data[middle:end], end) if end <= len(data) else None


def _head(length: int, kind: int) -> bytes:
    return _varint(length << 2 | kind)


def _varint(number: int) -> bytes:
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


def _read_varint(data: bytes, at: int) -> tuple[int, int]:
    """(number, where it ends); the end is -1 if it is not whole. Raises ProtocolViolation unless it is the shortest."""
    number = 0
    for index in range(_VARINT_MAX):
        if at + index >= len(data):
            return 0, -1
        byte = data[at + index]
        number |= (byte & 0x7F) << 7 * index
        if byte < 0x80:
            if index and not byte:
                break
            return number, at + index + 1
    raise ProtocolViolation("a length in a streamed answer is not canonical")

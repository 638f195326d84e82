"""Is the body JSON that has one meaning? The provider gets the very bytes that were checked, whoever reads them there.

What a second parser could read differently is refused (RFC 8259, sections 4, 6, 8 and 9): duplicate names (also such
that differ in case only, at the top level: some servers do not mind case), numbers beyond 64 bits or a double, half a
surrogate pair, invalid UTF-8, a byte order mark, deep nesting.

All of it but the duplicates comes from one strict parse. That there are none is proved by counting colons: written
again from what was parsed, a body without them has as many as it came with, and one with a name twice has fewer, since
the parser kept one of the two. Only an escaped colon could hide that; a body that has one is read the slow way.
"""

import json
import math
from typing import Any, Final

import msgspec

from relay.gateway.pipeline import Refusal

DEPTH_MAX: Final = 32
NODES_MAX: Final = 100_000  # objects and arrays in one body
DIGITS_MAX: Final = 64  # characters of a number that is no integer

_LONG: Final = 2_048  # bytes; of a longer body the parts are counted faster than the brackets

_MALFORMED: Final = Refusal(400, "malformed_json", "the request body is not a JSON object")
_AMBIGUOUS: Final = Refusal(400, "ambiguous_json", "the request body names the same field twice")
_TOO_DEEP: Final = Refusal(400, "json_too_deep", "the request body is nested too deeply or has too many parts")
_NUMBER: Final = Refusal(400, "malformed_json", "the request body has a number beyond 64 bits or a double")


class _Duplicate(ValueError):
    pass


def _real(text: str) -> float:
    """3.0 becomes 3: to JSON Schema it is an integer."""
    value = float(text)
    if len(text) > DIGITS_MAX or not math.isfinite(value):  # 1e999 is infinity to one parser and an error to another
        raise ValueError("out of range")
    return int(value) if value.is_integer() and abs(value) < 1 << 63 else value


_parse = msgspec.json.Decoder(float_hook=_real).decode


def read(body: bytes) -> dict[str, Any] | Refusal:
    """The JSON object that `body` is, for every parser."""
    try:
        if not body.isascii():
            body.decode()
        value = _parse(body)
        written = msgspec.json.encode(value)
        msgspec.msgpack.encode(value)  # which has no integers beyond 64 bits
    except RecursionError:
        return _TOO_DEEP
    except OverflowError:
        return _NUMBER
    except msgspec.ValidationError as error:
        return _NUMBER if "out of range" in str(error) else _MALFORMED  # where msgspec or `_real` says so
    except ValueError:  # also UnicodeDecodeError and msgspec.DecodeError
        return _MALFORMED
    if type(value) is not dict:
        return _MALFORMED
    if (len(body) > _LONG or body.count(b"{") + body.count(b"[") > DEPTH_MAX) and _too_deep(value):
        return _TOO_DEEP
    return _AMBIGUOUS if _twice(body, value, written) else value


def _twice(body: bytes, value: dict[str, Any], written: bytes) -> bool:
    if len({name.casefold() for name in value}) != len(value):
        return True
    if b"\\" in body and b"\\u003" in body:  # looked for in this order since a single byte is found faster
        try:
            json.loads(body, object_pairs_hook=_unique)
        except _Duplicate:
            return True
        return False
    return body.count(b":") != written.count(b":")


def _unique(pairs: list[tuple[str, Any]]) -> None:
    if len({name for name, _ in pairs}) != len(pairs):
        raise _Duplicate


def _too_deep(value: dict[str, Any]) -> bool:
    level: list[Any] = [value]
    nodes = 0
    for _ in range(DEPTH_MAX):
        nodes += len(level)
        level = [
            child
            for node in level
            for child in (node.values() if isinstance(node, dict) else node)
            if isinstance(child, dict | list)
        ]
        if not level:
            return False
        if nodes + len(level) > NODES_MAX:
            break
    return True

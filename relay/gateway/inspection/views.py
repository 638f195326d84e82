"""What a text says once it is decoded: base64, hex, percent, HTML entities, rot13, leetspeak, spaced letters.

Each reading is a text of its own, to be scored beside the text as it stands. Which decoders are tried is decided by
cheap signs, so that ordinary prose costs next to nothing; readings of readings go two deep, and all that is decoded of
one text is bounded in number and size.
"""

import base64
import binascii
import codecs
import html
from collections.abc import Callable, Iterator, Sequence
from typing import Final
from urllib.parse import unquote_to_bytes

import re2

__all__ = ["DEPTH", "VIEWS_MAX", "View", "views"]

DEPTH: Final = 2
VIEWS_MAX: Final = 8  # readings of one text
DECODED_MAX: Final = 64 << 10  # characters of one reading
_LEAST: Final = 8  # characters: shorter ones say nothing
_PLAIN: Final = 0.8  # share of a decoded text that must be letters, digits and their like: else it was no text
_RUNS: Final = 4_096  # encoded stretches of one kind that are read: all of a piece of a text

View = tuple[str, str]  # by which decoders, as `base64` or `url+rot13`; the text

_BASE64: Final = re2.compile(r"[A-Za-z0-9+/_-]{4}(?:[A-Za-z0-9+/_-]|[A-Za-z0-9+/_-]\r?\n){12,}={0,2}")
_HEX: Final = re2.compile(r"(?i)(?:(?:0x|\\x)?[0-9a-f]{2}[\s:,]?){8,}")
_HEX_MARKS: Final = re2.compile(r"(?i)0x|\\x|[\s:,]")
_SPACED: Final = re2.compile(r"(?:[A-Za-z0-9@$!][ \t._*~|-]{1,3}){5,}[A-Za-z0-9@$!]\b")
_GAPS: Final = re2.compile(r"[ \t]{2,}")
_LEET: Final = re2.compile(r"[A-Za-z]+[0134578@$!|+][A-Za-z0134578@$!|+]*|[0134578@$!|+]+[A-Za-z][A-Za-z0134578@$!|+]*")
_LEET_LETTERS: Final = str.maketrans("0134578@$!|+", "oieastbasilt")
_ROT13: Final = frozenset(
    codecs.encode(word, "rot13")
    for word in ("the", "and", "all", "your", "you", "are", "this", "that", "with", "what", "ignore", "forget",
                 "previous", "instructions", "instruction", "system", "prompt", "password", "secret", "reveal", "print",
                 "repeat", "say", "tell", "now", "rules", "above", "disregard", "from", "will", "must", "not", "have")
)


def views(text: str, words: Sequence[str]) -> list[View]:
    """Readings of a `cleaned` text, whose `words` are given; none of most texts, never more than VIEWS_MAX."""
    found: list[View] = []
    left = 2 * DECODED_MAX
    level: list[tuple[str, str, Sequence[str]]] = [("", text, words)]
    for _ in range(DEPTH):
        below: list[tuple[str, str, Sequence[str]]] = []
        for name, source, its in level:
            for kind, decoded in _readings(source, its):
                if len(found) == VIEWS_MAX:
                    return found
                if _LEAST <= len(decoded) <= left and decoded != source and all(decoded != one for _, one in found):
                    left -= len(decoded)
                    path = f"{name}+{kind}" if name else kind
                    found.append((path, decoded))
                    below.append((path, decoded, decoded.lower().split()))
        level = below
    return found


def _readings(text: str, words: Sequence[str]) -> Iterator[View]:
    if max(map(len, words), default=0) >= _LEAST:  # signs among the letters part it into words
        yield "base64", _decoded(_BASE64, text, _from_base64)
    if len(text) >= 2 * _LEAST and any(digit in text for digit in "0234567"):  # no text in hex is without
        yield "hex", _decoded(_HEX, text, _from_hex)
    if "%" in text:
        yield "url", _text_of(unquote_to_bytes(text[:DECODED_MAX].encode("utf-8", "ignore")))
    if "&" in text and ";" in text:
        yield "html", html.unescape(text[:DECODED_MAX])
    if len(_ROT13.intersection(words)) >= 2:
        yield "rot13", codecs.encode(text[:DECODED_MAX], "rot13")
    if sum(map(len, words)) < 2 * len(words):  # most words are single characters
        yield "spaced", _closed_up(text[:DECODED_MAX])
    if any(mark in text for mark in "0134578@$!|+"):
        yield "leet", _unleet(text[:DECODED_MAX])


def _decoded(pattern: "re2._Regexp[str]", text: str, decode: Callable[[str], bytes]) -> str:
    """The encoded stretches in their clear form, the rest of the text left out: it is scored as it stands."""
    parts, size = [], 0
    for number, match in enumerate(pattern.finditer(text)):
        if number == _RUNS or size > DECODED_MAX:
            break
        try:
            clear = _text_of(decode(match.group()[: DECODED_MAX * 2]))
        except (ValueError, binascii.Error):
            continue
        parts.append(clear)
        size += len(clear)
    return " ".join(part for part in parts if part)[:DECODED_MAX]


def _from_base64(run: str) -> bytes:
    plain = "".join(run.split()).rstrip("=").replace("-", "+").replace("_", "/")
    return base64.b64decode(plain[: len(plain) - (len(plain) % 4 == 1)] + "==="[: -len(plain) % 4])


def _from_hex(run: str) -> bytes:
    digits = _HEX_MARKS.sub("", run)
    return bytes.fromhex(digits[: len(digits) & ~1])


def _text_of(data: bytes) -> str:
    """What is text to a person, or nothing: of bytes that only look encoded, most are none."""
    text = data.decode("utf-8", "replace")
    plain = sum(character.isalnum() or character in " \n\t.,:;!?'\"-_/" for character in text)
    return text if len(text) >= _LEAST and plain >= _PLAIN * len(text) else ""


def _closed_up(text: str) -> str:
    """`i g n o r e   a l l` to `ignore all`: where two spaces end a word; else all in one, for the tokens to part."""
    out, at = [], 0
    for match in _SPACED.finditer(text):
        words = _GAPS.split(match.group())
        out += [text[at : match.start()], " ".join("".join(c for c in word if c.isalnum()) for word in words)]
        at = match.end()
    return "".join([*out, text[at:]]) if out else ""


def _unleet(text: str) -> str:
    """In letters, if some of its words are written with digits or signs in their place; else nothing."""
    written = sum(3 * sum(map(str.isalpha, word)) >= len(word) > 2 for word in _LEET.findall(text))
    return text.translate(_LEET_LETTERS) if written >= 2 and 6 * written >= len(text.split()) else ""

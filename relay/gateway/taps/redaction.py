"""Finds secrets in a text that comes in pieces: what is decided, and what is cut out of it.

The decision on each byte depends on the text alone, not on its pieces. Undecided is only what could still become a
secret: at most `shapes.WINDOW` bytes. A secret is told by its least length; what follows of it is cut as it comes.
"""

import re
from dataclasses import dataclass
from typing import Final

from relay.gateway.taps.shapes import PRIVATE_KEY, WINDOW, Shapes

MARKER: Final = b"[secret removed]"  # the same for all kinds; safe inside JSON, also twice encoded
_CONTEXT: Final = 6  # bytes before a secret that tell whether a word goes before it
_ESCAPED: Final = re.compile(rb"(?:(?<!\\)(?:\\\\)*\\[nrtbf]|\\u00[0-9A-Fa-f]{2}|%[0-9A-Fa-f]{2})\Z")
_PROSE: Final = 256  # bytes without a line of a key after which a private key is over, though its end was not seen
_LINE: Final = 20  # base64 characters in a row that are no prose
_END: Final = re.compile(rb"-----END [A-Z0-9 ]{0,60}-----\Z")
_BODY: Final = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/=")


@dataclass
class Cut:
    """Bytes `start` to `end` of the text, counted from its beginning."""

    kind: str
    start: int
    end: int


class _PrivateKey:
    """Behind the first line of a PEM: up to its last line, or to where no key goes on."""

    def __init__(self) -> None:
        self._run, self._idle, self._last = 0, 0, b""

    def over(self, text: bytes, at: int) -> tuple[int, bool]:
        for place in range(at, len(text)):
            byte = text[place]
            self._last = self._last[-79:] + text[place:place + 1]
            if byte == 0x2D and _END.search(self._last):
                return place + 1, True
            self._run = self._run + 1 if byte in _BODY else 0
            self._idle = 0 if self._run >= _LINE else self._idle + 1
            if self._idle >= _PROSE:
                return place + 1, True
        return len(text), False


class _Run:
    """Behind a key's least length: as long as its characters go on."""

    def __init__(self, of: str) -> None:
        self._rest = re.compile(f"{of}*".encode() if of else b"")

    def over(self, text: bytes, at: int) -> tuple[int, bool]:
        found = self._rest.match(text, at)
        end = found.end() if found else at
        return end, end < len(text) or not self._rest.pattern


class Redaction:
    """One text. `settled` is how many of its bytes are decided; `cuts` are in order, the last one may still grow."""

    def __init__(self, shapes: Shapes, counts: dict[str, int]) -> None:
        """`counts` is how many were found of each kind."""
        self._shapes = shapes
        self._counts = counts
        self._text, self._base = b"", 0
        self._within: _PrivateKey | _Run | None = None
        self.settled = 0
        self.cuts: list[Cut] = []

    def feed(self, text: bytes) -> None:
        if not self.passes(text):
            self._text += text
            self._decide(last=False)

    def passes(self, text: bytes) -> bool:
        """Feeds it if all before it is decided, and it holds nothing that could be a secret; else does nothing."""
        if self._within is not None or self.settled != self._base + len(self._text):
            return False
        seen = self._text + text
        if not self._shapes.clean(seen):
            return False
        self.settled += len(text)
        self._text = seen[-_CONTEXT:]
        self._base = self.settled - len(self._text)
        return True

    def finish(self) -> None:
        """The text is over: what was a possible beginning is none. Another text may begin."""
        self._decide(last=True)
        self._within = None

    def doubt(self) -> None:
        """There is no more time: what is undecided is cut, and the word that it belongs to."""
        end = self._base + len(self._text)
        if self.settled < end:
            self._cut("undecided", self.settled, end)
            self._within, self.settled = _Run("[A-Za-z0-9_-]"), end

    def shown(self, piece: bytes, at: int) -> bytes:
        """What goes on of a settled piece that began at byte `at`."""
        out, done = [], at
        for cut in self.cuts:
            if cut.end > at and cut.start < at + len(piece):
                out.append(piece[done - at:max(cut.start, at) - at])
                if cut.start >= at:
                    out.append(MARKER)
                done = min(cut.end, at + len(piece))
        return b"".join((*out, piece[done - at:]))

    def forget(self, before: int) -> None:
        """Nobody will ask for bytes before `before` again."""
        while self.cuts and self.cuts[0].end <= before and (len(self.cuts) > 1 or self._within is None):
            del self.cuts[0]

    def _decide(self, *, last: bool) -> None:
        text, at = self._text, self.settled - self._base
        look = at
        while at < len(text):
            if self._within is not None:
                at, ended = self._within.over(text, at)
                self.cuts[-1].end = self._base + at
                if ended:
                    self._within = None
                look = at
                continue
            start = self._shapes.first(text, look)
            if start < 0:
                at = len(text)
                break
            told, waits = self._at(text, start, last)
            if told is not None:
                at = look = told
            elif waits:
                at = start
                break
            else:
                look = start + 1
        self.settled = self._base + at
        keep = max(0, at - _CONTEXT)
        self._text, self._base = text[keep:], self._base + keep

    def _cut(self, kind: str, start: int, end: int) -> None:
        self.cuts.append(Cut(kind, start, end))
        self._counts[kind] = self._counts.get(kind, 0) + 1

    def _at(self, text: bytes, start: int, last: bool) -> tuple[int | None, bool]:
        """Where the secret that begins at `start` was told, or whether that is not to be known yet."""
        window = text[start:start + WINDOW]
        for tier in self._shapes.tiers:
            if tier.words and not _begins(text, start):
                continue
            found = tier.told(window)
            if found is not None:
                shape, length = found
                self._within = _PrivateKey() if shape.kind == PRIVATE_KEY else _Run(shape.rest)
                self._cut(shape.kind, self._base + start, self._base + start + length)
                return start + length, False
            if not last and start + len(window) == len(text) and tier.possible(window):
                return None, True
        return None, False


def _begins(text: bytes, start: int) -> bool:
    """Whether no word goes on at `start`; the letter of an escape (`\\n`) is none."""
    def word(byte: int) -> bool:
        return byte == 0x5F or (byte < 0x80 and chr(byte).isalnum())

    if start == 0 or not word(text[start]) or not word(text[start - 1]):
        return True
    return _ESCAPED.search(text[max(0, start - _CONTEXT):start]) is not None

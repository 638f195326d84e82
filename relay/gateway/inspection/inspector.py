"""What the gateway thinks of a text: cleaned, decoded where it is encoded, and judged in windows.

A text that was seen lately is not judged again: a conversation comes with all that was said before, at each turn.
"""

import hashlib
import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final, Literal

from relay.gateway.inspection.model import Model
from relay.gateway.inspection.normalise import cleaned
from relay.gateway.inspection.tokens import words_of
from relay.gateway.inspection.views import views

__all__ = ["READ_MAX", "Finding", "Inspector"]

READ_MAX: Final = 64 << 10  # characters that are read of one text
_TOKENS_MAX: Final = 16_384  # of one reading: of more, so many of the first and the last
_ENDS: Final = 24 << 10  # of a longer one: so much of its beginning and of its end, and
_SLICE: Final = 1 << 10  # slices of what is between, evenly spread
_REMEMBERED: Final = 8_192  # texts

Verdict = Literal["allow", "flag", "block"]


@dataclass(frozen=True, slots=True)
class Finding:
    """`score`: the chance that it is an attack, as the model sees it, of its worst window: at token `at` of the reading
    `view`, which is "" for the text as it stands, else names the decoders.
    """

    score: float
    verdict: Verdict = "allow"
    view: str = ""
    at: int = 0

    def reasons(self) -> list[str]:
        """None if there is nothing against the text; never any of its words."""
        if self.verdict == "allow":
            return []
        found = [f"reads like an attempt to take over the model, from token {self.at} on"]
        return [*found, f"hidden by {self.view}"] if self.view else found


class Inspector:
    """Judges texts by one model."""

    def __init__(self, model: Model) -> None:
        self._model = model
        self._seen: dict[bytes, Finding] = {}
        self._lock = threading.Lock()  # long texts are judged in a thread

    def seen(self, text: str) -> Finding | None:
        """What was thought of it lately."""
        key = _key(text)
        with self._lock:
            found = self._seen.pop(key, None)
            if found is not None:
                self._seen[key] = found  # now the latest
        return found

    def of(self, text: str) -> Finding:
        """Takes any str. Time and memory are linear in the text up to READ_MAX characters, and then constant."""
        found = self.seen(text)
        if found is None:
            found = self.judged(text)
            with self._lock:
                self._seen[_key(text)] = found
                if len(self._seen) > _REMEMBERED:
                    del self._seen[next(iter(self._seen))]
        return found

    def judged(self, text: str) -> Finding:
        """The same without a memory."""
        clean = cleaned(_bounded(text))[: 2 * READ_MAX]
        words = words_of(clean)
        score, view, at = 0.0, "", 0
        for name, reading in self._readings(clean, words):
            numbers = self._model.vocabulary.numbers(reading)
            numbers[_TOKENS_MAX // 2 : max(_TOKENS_MAX // 2, len(numbers) - _TOKENS_MAX // 2)] = []
            worst = self._model.worst(numbers)
            if worst.score > score:
                score, view, at = worst.score, name, worst.at
        verdict: Verdict = "block" if score >= self._model.block else "flag" if score >= self._model.flag else "allow"
        return Finding(score, verdict, view, at)

    def _readings(self, clean: str, words: list[str]) -> Iterator[tuple[str, Iterable[str]]]:
        yield "", words
        for name, text in views(clean, words):
            yield name, words_of(cleaned(text))


def _key(text: str) -> bytes:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()


def _bounded(text: str) -> str:
    if len(text) <= READ_MAX:
        return text
    slices = (READ_MAX - 2 * _ENDS) // _SLICE
    between = len(text) - 2 * _ENDS - _SLICE
    starts = [_ENDS + between * number // (slices - 1) for number in range(slices)]
    return "\n".join([text[:_ENDS], *(text[start : start + _SLICE] for start in starts), text[-_ENDS:]])

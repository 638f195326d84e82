"""What the gateway thinks of a text: cleaned, decoded where it is encoded, and judged in windows.

A text that was seen lately is not judged again: a conversation comes with all that was said before, at each turn.
"""

import hashlib
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Final, Literal

from relay.gateway.inspection.features import WINDOW
from relay.gateway.inspection.model import Model
from relay.gateway.inspection.normalise import cleaned
from relay.gateway.inspection.tokens import words_of
from relay.gateway.inspection.views import views

__all__ = ["READ_MAX", "Finding", "Inspector"]

READ_MAX: Final = 16 << 10  # characters that are read at once: a longer text is read in pieces, none of it left out
_OVERLAP: Final = 1 << 10  # of two pieces: more than a window has
_TOKENS_MAX: Final = 16_384  # that are judged at once
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

    def of(self, text: str, going: Callable[[], bool] = lambda: True) -> Finding:
        """Takes any str. Time is linear in the text, memory constant beyond READ_MAX characters.

        `going` is asked before each piece; raises TimeoutError once it is false.
        """
        found = self.seen(text)
        if found is None:
            found = self.judged(text, going)
            with self._lock:
                self._seen[_key(text)] = found
                if len(self._seen) > _REMEMBERED:
                    del self._seen[next(iter(self._seen))]
        return found

    def judged(self, text: str, going: Callable[[], bool] = lambda: True) -> Finding:
        """The same without a memory."""
        score, view, at, before = 0.0, "", 0, 0
        for start in range(0, max(1, len(text) - _OVERLAP), READ_MAX - _OVERLAP):
            if not going():
                raise TimeoutError
            clean = cleaned(text[start : start + READ_MAX])
            words = words_of(clean)
            for name, reading in self._readings(clean, words):
                numbers = self._model.vocabulary.numbers(reading)
                for first in range(0, max(1, len(numbers) - WINDOW), _TOKENS_MAX - WINDOW):
                    worst = self._model.worst(numbers[first : first + _TOKENS_MAX])
                    if worst.score > score:
                        score, view, at = worst.score, name, before + first + worst.at
            before += len(words)
        verdict: Verdict = "block" if score >= self._model.block else "flag" if score >= self._model.flag else "allow"
        return Finding(score, verdict, view, at)

    def _readings(self, clean: str, words: list[str]) -> Iterator[tuple[str, Iterable[str]]]:
        yield "", words
        for name, text in views(clean, words):
            yield name, words_of(cleaned(text))


def _key(text: str) -> bytes:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()

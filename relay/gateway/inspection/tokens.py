"""Text to tokens: words and signs, and where a word is not known its known pieces, longest first."""

from collections.abc import Iterable, Sequence
from typing import Final

__all__ = ["PAD", "UNKNOWN", "Vocabulary", "words_of"]

PAD: Final = 0
UNKNOWN: Final = 1
_SIGNS: Final = "!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~"
_WORD_MAX: Final = 32  # characters: a longer word is cut there
_PIECES_MAX: Final = 12  # pieces of one word
_APART_MAX: Final = 1_024  # words of one text that are taken apart; further ones are UNKNOWN
_REMEMBERED: Final = 16_384  # words whose pieces are kept


def words_of(text: str) -> list[str]:
    """Words and single signs of a `cleaned` text, in lower case."""
    text = text.lower()
    for sign in _SIGNS:
        if sign in text:
            text = text.replace(sign, f" {sign} ")
    return text.split()


class Vocabulary:
    """Tokens by number. A piece that goes on a word begins with `##`."""

    def __init__(self, tokens: Sequence[str]) -> None:
        """The first two are PAD and UNKNOWN, whatever they are called."""
        self._numbers = {token: number for number, token in enumerate(tokens) if number > UNKNOWN}
        self._longest = max(map(len, tokens))
        self._pieces: dict[str, tuple[int, ...]] = {}

    def numbers(self, words: Iterable[str]) -> list[int]:
        """Of all tokens. Linear in the text."""
        found = list(map(self._numbers.get, words := list(words)))
        if None not in found:
            return found  # type: ignore[return-value]
        numbers: list[int] = []
        left = _APART_MAX
        for word, number in zip(words, found, strict=True):
            if number is None:
                pieces = self._pieces.get(word)
                if pieces is None:
                    left -= 1
                    pieces = self._apart(word) if left >= 0 else (UNKNOWN,)
                numbers += pieces
            else:
                numbers.append(number)
        return numbers

    def _apart(self, word: str) -> tuple[int, ...]:
        pieces: list[int] = []
        at, end = 0, min(len(word), _WORD_MAX)
        while at < end and len(pieces) < _PIECES_MAX:
            for stop in range(min(end, at + self._longest), at, -1):
                number = self._numbers.get("##" + word[at:stop] if at else word[:stop])
                if number is not None:
                    pieces.append(number)
                    at = stop
                    break
            else:
                pieces.append(UNKNOWN)
                break
        found = tuple(pieces)
        if len(self._pieces) >= _REMEMBERED:
            self._pieces.clear()
        if len(word) <= _WORD_MAX:
            self._pieces[word] = found
        return found

"""What a prompt looks like, in numbers: its length, sentences and figures, its words. Pure, no clock, no model.

A mid-sized model fails where a large one does not mostly on long questions, on those with several sentences, numbers to
reckon with and conditions to keep in mind. Words come in as a hashed bag, so that a subject can show through without a
vocabulary to ship.
"""

import math
import re
import zlib
from typing import Final

__all__ = ["BUCKETS", "NAMES", "READ_CHARS", "shape_of", "words_of"]

BUCKETS: Final = 1024
READ_CHARS: Final = 3000  # beyond it only the length counts, so that a pasted log costs no more than a page
NAMES: Final = (
    "length", "sentences", "numbers", "symbols", "negations", "conditions", "word_length", "long_words", "capitals",
    "variety",
)

# No pattern repeats what overlaps with what follows it: each is linear in the text.
_WORD: Final = re.compile(r"[A-Za-z']+")
_TOKEN: Final = re.compile(r"[a-z]+|[0-9]+|[^\sa-z0-9]")
_NUMBER: Final = re.compile(r"[0-9]+(?:[.,][0-9]+)*")
_SENTENCE: Final = re.compile(r"[.?!](?:\s|$)")
_SYMBOL: Final = re.compile(r"[=+*/^<>{}\\()\[\]|%$]")
_NEGATION: Final = re.compile(r"\b(?:not|except|never|least|unless|cannot|incorrect|false|without)\b", re.IGNORECASE)
_CONDITION: Final = re.compile(
    r"\b(?:if|then|because|therefore|since|suppose|assume|given|when|each|every|per|than|how many|how much|calculate|"
    r"find|compute|prove|derive|determine|explain|why|most likely|best|probably|should|would)\b",
    re.IGNORECASE,
)
# Multiple choice is a form of exam, not of questions people ask: its letters tell nothing.
_CHOICE: Final = re.compile(r"\n[A-E]\. |\s*Answer:\s*$")
_DIGIT: Final = re.compile("[0-9]")


def shape_of(prompt: str) -> tuple[float, ...]:
    """One number for each of NAMES: logarithms of counts, but for means and shares."""
    text = _CHOICE.sub("\n", prompt[:READ_CHARS])
    words = _WORD.findall(text)
    count = max(1, len(words))
    return (
        math.log1p(len(prompt)),
        *(math.log1p(len(pattern.findall(text))) for pattern in (_SENTENCE, _NUMBER, _SYMBOL, _NEGATION, _CONDITION)),
        sum(map(len, words)) / count,
        sum(len(word) > 8 for word in words) / count,
        sum(word[0].isupper() for word in words) / count,
        len({word.lower() for word in words}) / count,
    )


def words_of(prompt: str) -> dict[int, float]:
    """Bucket to weight: the distinct words, figures (as zeros) and signs, hashed with a sign, of Euclidean norm 1."""
    text = _DIGIT.sub("0", _CHOICE.sub("\n", prompt[:READ_CHARS]).lower())
    bag: dict[int, float] = {}
    for token in set(_TOKEN.findall(text)):
        code = zlib.crc32(token.encode("utf-8", "surrogatepass"))
        bag[code % BUCKETS] = bag.get(code % BUCKETS, 0.0) + (1.0 if code >> 31 else -1.0)
    norm = math.sqrt(sum(weight * weight for weight in bag.values())) or 1.0
    # In bucket order: sums of floats depend on it, and a set of strings has another order in each process.
    return {bucket: bag[bucket] / norm for bucket in sorted(bag)}

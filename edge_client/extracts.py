"""What a text holds of a question: its telling words, the sentence nearest to it, and whether a statement stands there.

Words are compared by their first letters, which does without a stemmer for each language. Pure, no model.
"""

import re
from collections.abc import Collection
from typing import Final

from store.search import STOP_WORDS

__all__ = ["borne_out", "extract", "nearest", "sentences", "share", "telling", "unnumbered"]

_EXTRACT: Final = 240  # characters
_STEM: Final = 5  # letters by which words are compared: "tight" is in "tightness"
_BORNE_OUT: Final = 0.75  # of the words that a statement adds; the rest may be its way of putting it
_WORD: Final = re.compile(r"\w+(?:[-.]\w+)*")
_FIGURE: Final = re.compile(r"\d+(?:[.,]\d+)*")
# A line of a table or list is a sentence, too. Lines of a PDF break anywhere, so other line ends are none.
_SENTENCE: Final = re.compile(r"(?<=[.!?])\s+|\n\s*\n|\n(?=\s*[|*-])")
_HEADINGS: Final = re.compile(r"[^\n]* > [^\n]*\n")  # with which a piece of a document begins
_HEADING_NUMBER: Final = re.compile(r"(?:^|(?<= > ))\d+(?:\.\d+)*\.?\s+(?=[A-Z])", re.MULTILINE)
# By which people ask for a measure, a use or a doing. The document that answers has figures and units in their place.
_ASKED = (
    "much many long often far heavy deep high large big tight soon wide loud fast old tall one take takes put give"
    " given go goes get gets happen happens mean means use used name kind there answer"
)
_ASKING: Final = frozenset(_ASKED.split())
_COUNTED = "one two three four five six seven eight nine ten"
_NUMBERS: Final = {word: str(number) for number, word in enumerate(_COUNTED.split(), 1)}


def telling(text: str) -> set[str]:
    """The words that say what a text is about, cut to five letters; figures and part numbers whole."""
    found = set()
    for word in _WORD.findall(text.lower().replace(",", "")):
        if word in STOP_WORDS or word in _ASKING:
            continue
        word = _NUMBERS.get(word, word)
        found.add(word[:_STEM] if word.isalpha() else word)
    return found


def share(words: Collection[str], text: str) -> float:
    """The share of these telling words that the text holds; 0 for none."""
    return len(telling(text) & set(words)) / len(words) if words else 0.0


def sentences(text: str) -> list[str]:
    """On one line each, without what a terminal would obey."""
    parts = (" ".join(part.split()) for part in _SENTENCE.split(text))
    return ["".join(filter(str.isprintable, part)) for part in parts if part]


def unnumbered(text: str) -> str:
    """Without the numbers of headings, which a small model takes for the figures that it is asked for."""
    return _HEADING_NUMBER.sub("", text)


def nearest(text: str, *wanted: str) -> tuple[list[str], int]:
    """Sentences, without the headings before them, and which of them shares most with all of `wanted`."""
    found = _HEADINGS.match(text)
    parts = sentences(unnumbered(text[found.end() :] if found else text))
    words = [telling(want) for want in wanted]
    shared = [sum(len(word) for want in words for word in want & telling(part)) for part in parts]
    return parts, shared.index(max(shared)) if parts else 0


def extract(text: str, *wanted: str) -> str:
    """At most 240 characters of the text on one line, around the sentence nearest to `wanted`."""
    parts, first = nearest(text, *wanted)
    if not parts:
        return ""
    last = first
    room = _EXTRACT - 2 - len(parts[first])  # less the marks of what is left out
    while True:  # what follows explains more often than what precedes
        if last + 1 < len(parts) and len(parts[last + 1]) < room:
            last += 1
            room -= 1 + len(parts[last])
        elif first > 0 and len(parts[first - 1]) < room:
            first -= 1
            room -= 1 + len(parts[first])
        else:
            break
    shown = " ".join(parts[first : last + 1])
    if room < 0:
        return shown[: _EXTRACT - 1] + "…"
    return ("…" if first else "") + shown + ("…" if last + 1 < len(parts) else "")


def borne_out(statement: str, question: str, text: str) -> bool:
    """Whether the text holds all figures and most words that the statement adds to the question; it has to add some.

    It tells made-up from copied, no more: what is put together wrongly from the text's own words passes.
    """
    known = set().union(*(telling(held) | _figures(held) for held in (question, text)))
    added = telling(statement) - telling(question)
    return bool(added) and _figures(statement) <= known and share(added, text) >= _BORNE_OUT


def _figures(text: str) -> set[str]:
    return set(_FIGURE.findall(text.replace(",", "")))

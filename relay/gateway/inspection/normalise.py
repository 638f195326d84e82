"""One spelling for texts that a person reads alike: what hides a word from a filter and not from a model is taken out.

Compatibility forms (NFKD), lookalikes of other scripts, invisible and direction characters, combining marks, and the
tag characters, which spell ASCII out of sight. No pattern is used, and each step takes linear time: marks go before
Unicode's normalisation, whose ordering of long runs of them would not.
"""

import unicodedata
from functools import cache
from typing import Final

__all__ = ["GROWTH", "cleaned"]

GROWTH: Final = 4  # times its length is the most that a text may become
_PASSES: Final = 4
_INVISIBLE: Final = (
    (0x00, 0x08), (0x0E, 0x1B), (0x7F, 0x84), (0x86, 0x9F), (0xAD, 0xAD), (0x34F, 0x34F), (0x61C, 0x61C),
    (0x115F, 0x1160), (0x17B4, 0x17B5), (0x180B, 0x180F), (0x200B, 0x200F), (0x202A, 0x202E), (0x2060, 0x206F),
    (0x3164, 0x3164), (0xD800, 0xDFFF), (0xFE00, 0xFE0F), (0xFEFF, 0xFEFF), (0xFFA0, 0xFFA0), (0xFFF9, 0xFFFC),
    (0xE0000, 0xE001F), (0xE007F, 0xE007F), (0xE0100, 0xE01EF),
)
_MARKS: Final = ((0x300, 0x3100), (0xA66F, 0xABFF), (0xFB1E, 0xFB1F), (0xFE20, 0xFE30), (0x101FD, 0x1E950))
_LATIN: Final = (  # blocks whose names say which letter is meant: strokes, small capitals, turned, squared, circled
    (0xC0, 0x2B0), (0x1D00, 0x1DC0), (0x2C60, 0x2C80), (0xA720, 0xA800), (0xAB30, 0xAB70), (0x1F110, 0x1F200),
)
_LONG: Final = (0x321D, 0x321E, 0x327C, *range(0x3300, 0x33B0), 0xFDFA, 0xFDFB)  # some stand for more than that
_ALIKE: Final = {  # letters of other scripts that are drawn as Latin ones
    "a": "аɑαа", "b": "вьƅ", "c": "сϲⅽ", "d": "ԁɗ", "e": "еєεҽ", "f": "ғϝ", "g": "ցɡ", "h": "нһհ", "i": "іιіɩ",
    "j": "јϳյ", "k": "кκқ", "l": "ӏⅼ", "m": "мμ", "n": "ηпռ", "o": "оοօσ", "p": "рρ", "q": "ԛգ", "r": "гя",
    "s": "ѕꜱ", "t": "тτ", "u": "υսц", "v": "νѵ", "w": "ωԝѡ", "x": "хχ", "y": "уүγ", "z": "ζʐ",
    "A": "АΑᎪ", "B": "ВΒᏴ", "C": "СϹᏟ", "D": "Ꭰ", "E": "ЕΕᎬ", "F": "Ϝ", "G": "ԌᏀ", "H": "НΗᎻ", "I": "ІΙӀ",
    "J": "ЈᎫ", "K": "КΚᏦ", "L": "Ꮮ", "M": "МΜᎷ", "N": "Ν", "O": "ОΟՕ", "P": "РΡᏢ", "Q": "Ԛ", "R": "Ꭱ", "S": "ЅᏚ",
    "T": "ТΤᎢ", "V": "ѴᏙ", "W": "ԜᎳ", "X": "ХΧ", "Y": "ҮΥУ", "Z": "ΖᏃ",
    "'": "‘’‛′ʼ`´", '"': "“”„‟″«»", "-": "‐‑‒–—―−", "/": "⁄∕", "!": "ǃ", ":": "꞉ː", " ": "\u2028\u2029\u0085",
}


@cache
def _table() -> dict[int, str | None]:
    """What becomes of single characters. Made when a text first needs it."""
    table: dict[int, str | None] = {}
    for first, end in _LATIN:
        for point in range(first, end):
            _, _, words = unicodedata.name(chr(point), "").partition("LETTER ")
            letter = next((word for word in words.split() if len(word) == 1), "")
            if letter and letter.isascii():
                table[point] = letter if "CAPITAL" in unicodedata.name(chr(point)) else letter.lower()
    table |= {point: None for first, end in _MARKS for point in range(first, end) if _is_mark(chr(point))}
    table |= {ord(other): letter for letter, others in _ALIKE.items() for other in others}
    table |= {point: None for first, last in _INVISIBLE for point in range(first, last + 1)}
    table |= {point: " " for point in _LONG if len(unicodedata.normalize("NFKD", chr(point))) > GROWTH}
    table |= {0xE0000 + point: chr(point) for point in range(0x20, 0x7F)}
    return table


def _is_mark(character: str) -> bool:
    return unicodedata.category(character) in ("Mn", "Me") or unicodedata.combining(character) != 0


def cleaned(text: str) -> str:
    """In one spelling, with its case and line ends. At most GROWTH times as long; the same again if done again.

    Takes any str, lone surrogates too, which go.
    """
    if text.isascii() and text.isprintable():
        return text
    table = _table()
    for _ in range(_PASSES):
        before = text
        text = text.translate(table)
        if not text.isascii():
            text = unicodedata.normalize("NFKD", text).translate(table)
        if text == before:
            break
    return text

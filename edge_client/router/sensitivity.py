"""What in a text should not leave the machine: secrets and personal data, found by form and checksum.

A first set, tuned to find rather than to be quiet: a false alarm keeps a prompt local, a miss sends it out. It cannot
know what is confidential for other reasons; that is what document labels are for.
"""

import re
from collections.abc import Callable, Iterator
from typing import Final

__all__ = ["PERSONAL", "SECRETS", "kinds"]

SECRETS: Final = frozenset({"private key", "access key", "token", "password"})
_LONGEST: Final = 34  # characters of an IBAN; a card has at most 19
PERSONAL: Final = frozenset({"e-mail address", "phone number", "IBAN", "card number"})


def kinds(text: str) -> tuple[str, ...]:
    """Names of what was found, each once, in a fixed order; never the find itself. Linear in the text's length."""
    return tuple(name for name, found in _RULES if next(found(text), None) is not None)


def _pattern(pattern: str, check: Callable[[str], bool] = lambda match: True) -> Callable[[str], Iterator[bool]]:
    # No pattern below repeats a group that itself repeats over the same characters: no catastrophic backtracking.
    compiled = re.compile(pattern)

    def found(text: str) -> Iterator[bool]:
        return (True for match in compiled.finditer(text) if check(match[0]))

    return found


def _digits(text: str) -> str:
    return "".join(character for character in text if character.isdigit())


def _holds(check: Callable[[str], bool]) -> Callable[[str], bool]:
    """Whether any run of groups in a match passes: a number may be followed by a date, or by a word in capitals."""

    def any_run(match: str) -> bool:
        groups = re.split("[ -]", match)
        for start in range(len(groups)):
            run = ""
            for group in groups[start:]:
                run += group
                if len(run) > _LONGEST:
                    break
                if check(run):
                    return True
        return False

    return any_run


def _is_card(number: str) -> bool:
    """ISO/IEC 7812-1 annex B (Luhn)."""
    if not 13 <= len(number) <= 19 or len(set(number)) == 1:
        return False
    digits = [int(digit) for digit in number]
    doubled = [sum(divmod(2 * digit, 10)) if place % 2 else digit for place, digit in enumerate(reversed(digits))]
    return sum(doubled) % 10 == 0


def _is_iban(number: str) -> bool:
    """ISO 13616: moved and spelt out in digits (A = 10), the number is 1 modulo 97."""
    if not 15 <= len(number) <= 34 or not (number[:2].isalpha() and number[2:4].isdigit()):
        return False
    return int("".join(str(int(character, 36)) for character in number[4:] + number[:4])) % 97 == 1


def _is_phone(match: str) -> bool:
    return 8 <= len(_digits(match)) <= 15  # E.164: at most 15


_ASSIGNMENT: Final = (
    r"(?i)\b(?:password|passwort|passwd|passphrase|pwd|secret|api[ _-]?key|access[ _-]?token|auth[ _-]?token)\b"
    r"[\"']?(?:\s{0,3}[:=]\s{0,3}|\s{1,3}is\s{1,3})[\"']?(?!(?:not|a|an|the|my|your|required|wrong|lost|too)\b)[^\s\"']{4,200}"
)

_RULES: Final = (
    ("private key", _pattern(r"-----BEGIN (?:[A-Z0-9]{1,20} ){0,3}PRIVATE KEY(?: BLOCK)?-----")),
    ("access key", _pattern(
        r"\b(?:AKIA|ASIA)[A-Z0-9]{16}\b|\bAIza[A-Za-z0-9_-]{35}|\bsk-[A-Za-z0-9_-]{16,}|\bgh[pousr]_[A-Za-z0-9]{30,}"
        r"|\bgithub_pat_[A-Za-z0-9_]{30,}|\bglpat-[A-Za-z0-9_-]{16,}|\bxox[abprs]-[A-Za-z0-9-]{10,}"
        r"|\b[rs]k_(?:live|test)_[A-Za-z0-9]{16,}|\bcw1[a-z2-7]{60,}"
    )),
    ("token", _pattern(
        r"\beyJ[A-Za-z0-9_-]{10,4000}\.[A-Za-z0-9_-]{10,4000}\.[A-Za-z0-9_-]{10,4000}"
        r"|(?i:\bbearer\s{1,3}[A-Za-z0-9._~+/-]{20,4000})"
    )),
    ("password", _pattern(_ASSIGNMENT)),
    ("e-mail address", _pattern(r"(?<![\w.+-])[\w.+-]{1,64}@[\w-]{1,63}(?:\.[\w-]{1,63}){1,8}\b")),
    # With a country code or a leading zero and separators; plain runs of digits are part numbers too often.
    ("phone number", _pattern(
        r"(?<![\w.])(?:\+|00)\d{1,3}[ ./-]?(?:\(\d{1,5}\)[ ./-]?)?\d{1,5}(?:[ ./-]?\d{2,5}){1,5}(?![\w])"
        r"|(?<![\w.])(?:\(0?\d{2,5}\)[ -]?|0\d{2,4}[ /-]|\d{3}-(?=\d{3}-\d{4}))\d{3,5}(?:[ -]\d{2,5}){0,3}(?![\w])",
        _is_phone,
    )),
    ("IBAN", _pattern(r"\b[A-Z]{2}[0-9]{2}(?: ?[A-Z0-9]){11,60}", _holds(_is_iban))),
    ("card number", _pattern(r"(?<![0-9.])[0-9](?:[ -]?[0-9]){12,60}", _holds(_is_card))),
)

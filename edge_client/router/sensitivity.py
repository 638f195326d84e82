"""What in a text should not leave the machine: secrets and personal data, found by form and checksum.

Tuned to find rather than to be quiet: a false alarm keeps a prompt local, a miss sends it out. It cannot know what is
confidential for other reasons; that is what document labels are for.

The patterns are for `re`, each linear in the text by its form, which a test holds: none repeats over what follows it.
They are slow where every letter might begin a match (40 ms for 64 KiB), and who waits is everybody. So each is tried
only near what every match of it holds, which is found ten times sooner.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

__all__ = ["PERSONAL", "SECRETS", "kinds"]

SECRETS: Final = frozenset({"private key", "access key", "token", "password"})
_LONGEST: Final = 34  # characters of an IBAN; a card has at most 19
PERSONAL: Final = frozenset({"e-mail address", "phone number", "IBAN", "card number", "identity number"})


def kinds(text: str) -> tuple[str, ...]:
    """Names of what was found, each once, in a fixed order; never the find itself. Linear in the text's length."""
    folded = _folded(text)
    return tuple(dict.fromkeys(rule.kind for rule in _RULES if rule.finds(text, folded)))


def _folded(text: str) -> str:
    """In small letters as `re` understands them, and of the same length: dotless i, long s and dotted I are ASCII's."""
    if not text.isascii():
        text = text.replace("\u0130", "i").replace("\u0131", "i").replace("\u017f", "s")
    return text.lower()


@dataclass(frozen=True)
class _Rule:
    """A match begins at most `before` characters ahead of a find of `near`, and ends `after` it, or has no given end.

    So nothing is lost where the pattern sees these places alone: it holds at each with what stands around it. What
    matches holds `needs`, too. `near` is sought in the folded text if `folded`.
    """

    kind: str
    pattern: re.Pattern[str]
    check: Callable[[str], bool] = bool
    needs: str = ""
    near: re.Pattern[str] | None = None
    before: int = 0
    after: int = 1
    folded: bool = False

    def finds(self, text: str, folded: str) -> bool:
        places = self.places(folded if self.folded else text) if self.needs in text else ()
        return any(self.check(m[0]) for start, end in places for m in self.pattern.finditer(text, start, end))

    def places(self, where: str) -> Iterator[tuple[int, int]]:
        """Start and end of what the pattern is to see: in order, and no character twice."""
        if self.near is None:
            yield 0, len(where)
            return
        start = end = 0
        for found in self.near.finditer(where):
            first = max(0, found.start() - self.before)
            if first > end:
                if end:
                    yield start, end
                start = first
            end = min(found.end() + self.after, len(where))
        if end:
            yield start, end


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


def _is_identity(match: str) -> bool:
    """Numbers with a check of their own: by length and letters it is told whose they are."""
    number = re.sub("[ .-]", "", match).upper()
    if re.fullmatch(r"[0-9XYZ][0-9]{7}[A-Z]", number):  # Spain's DNI and NIE: the letter is the number modulo 23
        return "TRWAGMYFPDXBNJZSQVHLCKE"[int(number[:-1].translate(str.maketrans("XYZ", "012"))) % 23] == number[-1]
    if re.fullmatch(r"[12][0-9]{14}", number):  # France's NIR: 97 less the number modulo 97
        return 97 - int(number[:13]) % 97 == int(number[13:])
    if re.fullmatch(r"[0-9]{9}", number):  # US social security: areas, groups and serials that are never given out
        return number[:3] not in ("000", "666") and number[0] != "9" and number[3:5] != "00" and number[5:] != "0000"
    return re.fullmatch(r"[A-Z]{6}[0-9]{2}[A-EHLMPRST][0-9]{2}[A-Z][0-9]{3}[A-Z]", number) is not None and (
        _codice_fiscale(number[:15]) == number[15]
    )


def _codice_fiscale(number: str) -> str:
    """The check letter of Italy's tax code (decree of 23 December 1976): odd places by a table, even ones by value."""
    odd = (1, 0, 5, 7, 9, 13, 15, 17, 19, 21, 2, 4, 18, 20, 11, 3, 6, 8, 12, 14, 16, 10, 22, 25, 24, 23)
    values = [int(character) if character.isdigit() else ord(character) - ord("A") for character in number]
    return chr(ord("A") + sum(odd[value] if place % 2 == 0 else value for place, value in enumerate(values)) % 26)


_ASSIGNMENT: Final = (
    # Not `\b` before it: the names of variables go on with an underscore (DB_PASSWORD, aws_secret_access_key).
    r"(?i)(?<![a-z])(?:password|passwort|kennwort|passwd|passphrase|passcode|pwd|(?:client[ _-])?secret"
    r"(?:[ _-](?:access[ _-])?key)?|(?:api|access|account|auth|private)[ _-]?key"
    r"|(?:access|auth|api|refresh)[ _-]?token)\b"
    r"[\"']?(?:\s{0,3}[:=]\s{0,3}|\s{1,3}is\s{1,3})[\"']?(?!(?:not|a|an|the|my|your|required|wrong|lost|too)\b)[^\s\"']{4,200}"
)

# Each at the beginning of a word.
_ACCESS_KEYS: Final = (
    r"A[KS]IA[A-Z0-9]{16}\b", r"AIza[A-Za-z0-9_-]{35}", r"sk-[A-Za-z0-9_-]{16,}", r"gh[pousr]_[A-Za-z0-9]{30,}",
    r"github_pat_[A-Za-z0-9_]{30,}", r"glpat-[A-Za-z0-9_-]{16,}", r"xox[abprs]-[A-Za-z0-9-]{10,}",
    r"rk_(?:live|test)_[A-Za-z0-9]{16,}", r"sk_(?:live|test)_[A-Za-z0-9]{16,}", r"cw1[a-z2-7]{60,}",
    r"hf_[A-Za-z0-9]{30,}", r"npm_[A-Za-z0-9]{30,}", r"ya29\.[A-Za-z0-9_-]{20,}",
    r"SG\.[A-Za-z0-9_-]{16,}\.[A-Za-z0-9_-]{16,}", r"xapp-[A-Za-z0-9-]{10,}",
)
_NAMED: Final = (
    "passport", "identity card", "id card", "drivers licen", "driver's licen", "social security", "national insurance",
    "tax id", "ssn", "personalausweis", "reisepass", "steuer",
)

# No pattern below repeats a group that itself repeats over the same characters: no catastrophic backtracking.
_RULES: Final = (
    _Rule("private key", re.compile(r"-----BEGIN (?:[A-Z0-9]{1,20} ){0,3}PRIVATE KEY(?: BLOCK)?-----")),
    *(_Rule("access key", re.compile(r"\b" + form), near=re.compile(form), after=64) for form in _ACCESS_KEYS),
    _Rule("token", re.compile(r"\beyJ[A-Za-z0-9_-]{10,4000}\.[A-Za-z0-9_-]{10,4000}\.[A-Za-z0-9_-]{10,4000}"),
          needs="eyJ"),
    _Rule("token", re.compile(r"(?i:\bbearer\s{1,3}[A-Za-z0-9._~+/-]{20,4000})"), folded=True,
          near=re.compile(r"bearer\s{1,3}[a-z0-9._~+/-]{20}")),
    _Rule("password", re.compile(_ASSIGNMENT), folded=True, before=48, after=64,
          near=re.compile(
              r"(?:pass(?:wor[dt]|wd|phrase|code)|kennwort|pwd|secret|key|token)\b[\"']?(?:\s{0,3}[:=]|\s{1,3}is\s)"
          )),
    # In the address of a service, before its name.
    _Rule("password", re.compile(r"\b[a-z][a-z0-9+.-]{1,20}://[^\s:/@]{1,100}:[^\s:/@]{3,200}@"),
          near=re.compile("://"), before=24, after=320),
    _Rule("e-mail address", re.compile(r"(?<![\w.+-])[\w.+-]{1,64}@[\w-]{1,63}(?:\.[\w-]{1,63}){1,8}\b"),
          near=re.compile("@"), before=66, after=640),
    # With a country code or a leading zero and separators; plain runs of digits are part numbers too often.
    _Rule("phone number", re.compile(
        r"(?<![\w.])(?:\+|00)\d{1,3}[ ./-]?(?:\(\d{1,5}\)[ ./-]?)?\d{1,5}(?:[ ./-]?\d{2,5}){1,5}(?![\w])"
        r"|(?<![\w.])(?:\(0?\d{2,5}\)[ -]?|0\d{2,4}[ /-]|\d{3}-(?=\d{3}-\d{4}))\d{3,5}(?:[ -]\d{2,5}){0,3}(?![\w])"
    ), _is_phone, near=re.compile(
        r"[\d+(](?<![\w.].)(?:(?<=[+(0])[\d+() ./-]{7,}|\d\d-\d{3}-[\d+() ./-]{4,})"
    )),
    _Rule("IBAN", re.compile(r"\b[A-Z]{2}[0-9]{2}(?: ?[A-Z0-9]){11,60}"), _holds(_is_iban),
          near=re.compile("[A-Z][A-Z][0-9]{2}[A-Z0-9 ]{11,}")),
    _Rule("identity number", re.compile(
        r"\b\d{3}-\d{2}-\d{4}\b|\b[XYZxyz0-9]\d{7}[ -]?[A-Za-z]\b|\b[12] ?\d{2} ?\d{2} ?\d[\dAB] ?\d{3} ?\d{3} ?\d{2}\b"
        r"|\b[A-Za-z]{6}\d{2}[A-Za-z]\d{2}[A-Za-z]\d{3}[A-Za-z]\b"
    ), _is_identity, before=32, after=32,
          near=re.compile(r"\d(?:-\d\d-\d{4}|\d{6}|\d\d ?\d{3} ?\d\d|\d[A-Za-z]\d\d[A-Za-z]\d)")),
    # Named as one; and the second line of a passport, for machines.
    _Rule("identity number", re.compile(
        r"(?i:\b(?:passport|identity card|id card|driver'?s licen[cs]e|social security|national insurance|tax id|ssn|"
        r"personalausweis|reisepass|steuer-?id)(?: (?:number|no\.?|nr\.?))?\s{0,3}(?::|=|is\b|\b)\s{0,3})"
        r"(?=[A-Z]{0,3} ?\d)[A-Z0-9][A-Z0-9 -]{5,20}\d[A-Z]?\b"
    ), folded=True, near=re.compile("|".join(_NAMED)), before=32, after=96),
    _Rule("identity number", re.compile(r"\b[A-Z0-9<]{9}\d[A-Z<]{3}\d{7}[MFX<]\d{7}[A-Z0-9<]{14}\d\d"),
          near=re.compile(r"[MFX<](?<=\d.)\d{7}"), before=48, after=48),
    _Rule("card number", re.compile(r"(?<![0-9.])[0-9](?:[ -]?[0-9]){12,60}"), _holds(_is_card),
          near=re.compile("[0-9][0-9 -]{12,}")),
)

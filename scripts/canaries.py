"""Looks for words that were said in bytes that were captured or written: raw, in hexadecimal, base64 or UTF-16."""

import base64
import secrets
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

WINDOW = 24  # characters of an answer that count as a find; shorter ones occur by chance in ordinary text


@dataclass(frozen=True)
class Said:
    """What must not be readable on the way, by where it travels."""

    prompt: list[str]
    answer: list[str]
    headers: list[str]
    identity: list[str]

    def needles(self) -> list[str]:
        return [*self.prompt, *self.answer, *self.headers, *self.identity]


def word() -> str:
    """A random pronounceable word of 16 letters: in no text by chance, and nothing a filter would take for a key."""
    vowels, consonants = "aeiu", "bdfgklmnprstvwyz"
    return "".join(secrets.choice(consonants) + secrets.choice(vowels) for _ in range(8))


def windows(text: str) -> list[str]:
    """Pieces of WINDOW characters, each half overlapping the next; the text itself if it is shorter."""
    text = text.strip()
    if len(text) <= WINDOW:
        return [text] if text else []
    return [text[at : at + WINDOW] for at in range(0, len(text) - WINDOW + 1, WINDOW // 2)]


def forms(needle: str) -> set[bytes]:
    """The byte strings under which a needle might lie in a file."""
    return byte_forms(needle.encode()) | {needle.encode("utf-16-le")}


def byte_forms(raw: bytes) -> set[bytes]:
    """As they are, in hexadecimal and in base64, which comes in three, by its place in the stream."""
    found = {raw, raw.hex().encode(), raw.hex().upper().encode()}
    for shift in range(3):
        encoded = base64.b64encode(b"\0" * shift + raw)
        # The first and last characters also depend on the neighbours: only what lies between is the needle's own.
        inner = encoded[-(-shift * 8 // 6) :].rstrip(b"=")[:-1]
        if len(inner) >= 12:
            found |= {inner, inner.replace(b"+", b"-").replace(b"/", b"_")}
    return found


def search_folder(folder: Path, needles: Sequence[str]) -> dict[str, int]:
    """How often each needle lies in the files below a folder, in any form."""
    counts = dict.fromkeys(needles, 0)
    every = {needle: forms(needle) for needle in counts}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and not path.is_symlink():
            content = path.read_bytes()
            for needle, shapes in every.items():
                counts[needle] += sum(content.count(shape) for shape in shapes)
    return counts


def size(folder: Path) -> int:
    """Bytes in all files below a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file() and not path.is_symlink())


def seen(content: bytes, needles: Collection[bytes]) -> set[bytes]:
    """Which of many needles, of 8 bytes or more each, lie in the content: in one pass, whatever their number."""
    import numpy as np

    by_start: dict[int, list[bytes]] = {}
    for needle in needles:
        by_start.setdefault(int.from_bytes(needle[:8], "little"), []).append(needle)
    likely = np.zeros(1 << 16, dtype=bool)  # by the first two bytes
    likely[np.array([start & 0xFFFF for start in by_start], dtype=np.int64)] = True
    found = set()
    for shift in range(min(8, len(content) - 7)):
        words = np.frombuffer(content, dtype="<u8", count=(len(content) - shift) // 8, offset=shift)
        places = np.flatnonzero(likely[words & 0xFFFF])
        for at, word in zip(places.tolist(), words[places].tolist(), strict=True):
            for needle in by_start.get(word, ()):
                if content.startswith(needle, shift + 8 * at):
                    found.add(needle)
    return found

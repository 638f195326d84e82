"""Made-up attacks and harmless neighbours of theirs, for training: how attacks are built, not what any one of them was.

`{a|b}` is one of its parts, `<name>` one of the list of that name. Attacks of each family have harmless counterparts
in the same words: an instruction to a person, a question about a prompt, a role to play.
"""

import random
import re
import tomllib
from pathlib import Path
from typing import Final

PARTS: Final[dict[str, list[str]]] = tomllib.loads(Path(__file__).with_suffix(".toml").read_text("utf-8"))
_REF: Final = re.compile(f"<({'|'.join(PARTS)})>")
_CHOICE: Final = re.compile(r"\{([^{}]*)\}")


def expand(rng: random.Random, text: str) -> str:
    """One text of the grammar: references first, then choices from the inside out."""
    while (found := _REF.search(text)) is not None:
        text = text[: found.start()] + rng.choice(PARTS[found[1]]) + text[found.end() :]
    while (choice := _CHOICE.search(text)) is not None:
        text = text[: choice.start()] + rng.choice(choice[1].split("|")) + text[choice.end() :]
    return " ".join(text.split(" ")).replace("  ", " ").strip()


def made(count: int, name: str, seed: int) -> list[str]:
    """`count` texts of the list `name`, all different, with the case and the ends that people give them."""
    rng = random.Random(seed)  # noqa: S311
    found: dict[str, None] = {}
    while len(found) < count:
        text = expand(rng, f"<{name}>")
        form = rng.random()
        if form < 0.35:
            text = text[:1].upper() + text[1:]
        elif form < 0.45:
            text = text.upper()
        elif form < 0.7:
            text = ". ".join(part[:1].upper() + part[1:] for part in text.split(". "))
        if rng.random() < 0.4 and text[-1:].isalnum():
            text += rng.choice([".", "!", ".", "!!!", "?"])
        found[text] = None
    return list(found)

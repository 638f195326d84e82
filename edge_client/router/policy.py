"""Local, relay or refuse: a pure function from what is known of a prompt to a decision with its reasons.

The first rule that applies decides, in this order: what the user asked for, privacy, what the documents hold, how hard
the prompt looks. Where relaying is not possible the local model answers and says so. A person who sets a threshold
replaces the last two by one figure, the need of a larger model, and thereby says how much to pay for.
"""

import re
from dataclasses import dataclass, field, replace
from typing import Final, Literal

from edge_client.router.difficulty import Difficulty, shipped
from edge_client.router.sensitivity import PERSONAL, SECRETS

__all__ = [
    "CONFIDENT", "EASY_WORDS", "HARD", "HELD", "NEAR", "Decision", "Features", "decide", "features_of", "looks_hard",
    "need",
]

# Evidence that the documents hold an answer: the cosine of the best passage (all-MiniLM-L6-v2) plus half the share of
# the question's telling words that it holds. Chosen on half of the questions of benchmarks/answers.py: of 30 that the
# manual answers 25 have at least this, of 20 about its things that it does not answer 3, of 18 on other subjects none.
# The cosine alone tells the first two kinds apart with an AUC of 0.80, this with 0.90.
HELD: Final = 0.84
# From here on a question is about what the documents are about (19 of those 20; of the 18 on other subjects 4).
NEAR: Final = 0.50
# Cosine from which on a passage may travel with a relayed prompt: what is merely related would leave for nothing.
CONFIDENT: Final = 0.45
# "Who are you?", "What is the opposite of hot?": what a model of 135 million parameters can do without documents, if no
# figure is in it. With eight words it was right in 4 of 7 questions of general knowledge, with figures in none.
EASY_WORDS: Final = 6
# From this difficulty on a prompt is hard whatever its words: a mid-sized model fails two in five such exam questions.
HARD: Final = 0.40
# What a close passage takes from the need of a larger model, and what asking for reasoning or writing adds to it.
_PASSAGE_TAKES: Final = 0.75
_ASKING_ADDS: Final = 0.25

# Words by which people ask for more than looking something up. They say that a prompt may be hard, not that it is.
_HARD: Final = re.compile(
    r"\b(?:why|explain|compare|contrast|analy[sz]e|evaluate|derive|prove|plan|design|draft|write|rewrite|summari[sz]e|"
    r"translate|calculate|compute|estimate|optimi[sz]e|debug|refactor|implement|trade-?offs?|step by step|what if|"
    r"how would|how could|should we|pros and cons)\b",
    re.IGNORECASE,
)
_NUMBER: Final = re.compile(r"(?<![\w-])\d+(?:[.,]\d+)?(?![\w-])")


@dataclass(frozen=True)
class Features:
    """`evidence` is the best passage's (see HELD), None without documents; `sensitive` as from sensitivity.kinds().

    `threshold` is the person's on need(), None if unset.
    """

    flag: Literal["local", "relay"] | None = None
    words: int = 0
    hard: bool = False
    sensitive: tuple[str, ...] = ()
    evidence: float | None = None
    joined: bool = False
    difficulty: Difficulty = field(default_factory=lambda: Difficulty(0.0, ()))
    threshold: float | None = None
    figures: bool = False  # whether a number to reckon with is in it


@dataclass(frozen=True)
class Decision:
    """`rule` is stable and for machines; `reasons` are sentences for people, the deciding one first.

    `features` are what it was made from, for whoever wants it explained.
    """

    route: Literal["local", "relay", "refuse"]
    rule: str
    reasons: tuple[str, ...]
    features: Features | None = field(default=None, compare=False, repr=False)


def looks_hard(prompt: str) -> bool:
    """Whether a prompt asks for reasoning or writing: by its words, or by three numbers to reckon with."""
    return _HARD.search(prompt) is not None or len(_NUMBER.findall(prompt)) >= 3


def features_of(
    prompt: str, *, flag: Literal["local", "relay"] | None, sensitive: tuple[str, ...], evidence: float | None,
    joined: bool, threshold: float | None = None,
) -> Features:
    return Features(
        flag, len(prompt.split()), looks_hard(prompt), sensitive, evidence, joined, shipped().of(prompt), threshold,
        _NUMBER.search(prompt) is not None,
    )


def need(features: Features) -> float:
    """How much a prompt needs a larger model, 0..1: its difficulty, more if it asks for reasoning or writing, less the
    closer a passage of the documents is, which is no help with reasoning."""
    difficulty = features.difficulty.score
    if features.hard:
        return difficulty + _ASKING_ADDS * (1 - difficulty)
    if features.evidence is None:
        return difficulty
    closeness = max(0.0, min(1.0, (features.evidence - NEAR) / (HELD - NEAR)))
    return difficulty * (1 - _PASSAGE_TAKES * closeness)


def decide(features: Features) -> Decision:
    """The same features always give the same decision."""
    return replace(_decide(features), features=features)


def _decide(features: Features) -> Decision:
    secrets = ", ".join(kind for kind in features.sensitive if kind in SECRETS)
    personal = ", ".join(kind for kind in features.sensitive if kind in PERSONAL)
    if features.flag == "local":
        return Decision("local", "flag-local", ("you asked for a local answer",))
    if features.flag == "relay":
        # The flag overrides personal data, which is the user's to send, but not a secret: that is nearly always a slip.
        if secrets:
            return Decision("refuse", "secret", (f"the prompt holds a {secrets}",))
        if not features.joined:
            return Decision("refuse", "not-joined", ("this device has not joined a gateway",))
        note = (f"it holds: {personal}",) if personal else ()
        return Decision("relay", "flag-relay", ("you asked to relay", *note))
    if secrets or personal:
        return Decision("local", "private", (f"private data stays on this device ({secrets or personal})",))
    if features.threshold is not None:
        return _by_threshold(features, features.threshold)
    return _by_rules(features)


def _by_threshold(features: Features, threshold: float) -> Decision:
    # Rounded for people, who would wonder about "0.24 is below your 0.24".
    figure = f"its need of a larger model, {need(features):.3f}, is"
    if need(features) < threshold:
        return Decision("local", "below-threshold", (f"{figure} below your threshold {threshold:.3f}",))
    return _away(features, "above-threshold", f"{figure} at or above your threshold {threshold:.3f}")


def _by_rules(features: Features) -> Decision:
    evidence, hard = features.evidence, features.hard or features.difficulty.score >= HARD
    if evidence is not None and evidence >= HELD and not hard:
        return Decision("local", "documents", (f"your documents hold a close passage (evidence {evidence:.2f})",))
    plain = features.words <= EASY_WORDS and not hard and not features.figures
    if plain and (evidence is None or evidence < NEAR):
        return Decision("local", "easy", ("the prompt is short and simple",))
    if features.hard:
        reason = "the prompt asks for more than looking something up"
    elif hard:
        grounds = " and ".join(features.difficulty.grounds()).replace("_", " ")
        reason = f"the prompt looks hard ({features.difficulty.score:.2f}{', by its ' if grounds else ''}{grounds})"
    elif evidence is not None:
        reason = f"your documents do not seem to answer it (evidence {evidence:.2f} of {HELD:.2f})"
    else:
        reason = "the prompt is beyond a small model and there are no documents"
    return _away(features, "beyond-local", reason)


def _away(features: Features, rule: str, reason: str) -> Decision:
    if features.joined:
        return Decision("relay", rule, (reason,))
    return Decision("local", "not-joined", ("this device has not joined a gateway", reason))

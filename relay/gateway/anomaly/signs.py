"""What is counted of a device, over how long, and how far from its habit a count must be to say anything.

Counts and sizes spread over powers of ten, so all is compared as log(1 + value): a habit is the mean and the spread of
that, begun with what a device is taken to be like of which nothing is known yet, and learnt with a memory that fades.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import log1p, sqrt
from typing import Final

from msgspec import Struct

SLOT_S: Final = 10.0
WINDOW_S: Final = 300.0
HOUR_S: Final = 3_600.0
FAR: Final = 3.0  # standard deviations that are nobody's business
MEMORY_MAX: Final = 500.0  # samples; older ones fade


@dataclass(frozen=True)
class Sign:
    """One kind of count. Over `span` seconds; below `floor` it is never unusual; it gives at most `slot` points in ten
    seconds and `cap` in all. `mean` and `std` are of log(1 + value), before anything is known, and weigh as much as
    `weight` samples; `least` is the smallest spread that is believed. What is not `learnt` is never a habit.
    """

    span: float
    floor: float
    slot: float
    cap: float
    mean: float
    std: float
    least: float = 0.7
    weight: float = 30.0
    learnt: bool = True


SIGNS: Final = {
    "rate": Sign(SLOT_S, 20, 12, 50, 1.6, 0.8),  # requests
    "sizes": Sign(SLOT_S, 32 << 10, 5, 15, 9.0, 1.2),  # bytes of the largest request
    "repetition": Sign(WINDOW_S, 20, 12, 50, 1.4, 0.9, weight=10),  # how often the commonest prompt came
    "refused": Sign(WINDOW_S, 8, 15, 60, 0.7, 0.8, weight=10),  # what was no request, or not allowed at all
    "injection": Sign(WINDOW_S, 2, 20, 100, 0.2, 0.3, 0.5, weight=10),  # scores over one half, added up
    "volume": Sign(HOUR_S, 1 << 20, 8, 90, 13.0, 1.2, weight=3),  # bytes both ways
    "defiance": Sign(SLOT_S, 10, 12, 40, 1.1, 0.5, learnt=False),  # asked although throttled or quarantined
}
MODELS_CAP: Final = 100.0
HOURS_CAP: Final = 10.0  # alone not even a warning: people travel
CAPS: Final = {name: sign.cap for name, sign in SIGNS.items()} | {"models": MODELS_CAP, "hours": HOURS_CAP}
LOAD: Final = frozenset({"rate", "sizes", "repetition", "volume", "defiance"})  # of which one brings the others along
HARM: Final = ("refused", "injection", "volume", "models")  # two of these at once is what no busy device does
HARM_LEAST: Final = 15.0


class Moments(Struct):
    """Mean and variance of log(1 + value)."""

    samples: float
    mean: float
    variance: float

    @classmethod
    def of(cls, sign: Sign) -> "Moments":
        return cls(sign.weight, sign.mean, sign.std**2)

    def learn(self, mean: float, count: float = 1.0) -> None:
        """Takes samples in, `count` of them with that mean of log(1 + value)."""
        self.samples = min(self.samples + count, MEMORY_MAX)
        share = min(count / self.samples, 0.5)
        delta = mean - self.mean
        self.mean += share * delta
        self.variance = (1 - share) * (self.variance + share * delta * delta)


def harmful(scores: Mapping[str, float]) -> bool:
    """Whether it is more than load."""
    return sum(scores.get(kind, 0.0) >= HARM_LEAST for kind in HARM) >= 2


def points(sign: Sign, habit: Moments, value: float) -> float:
    """What a count that has been reached is worth in one slot: 0 up to `FAR` standard deviations, then five each."""
    if value <= sign.floor:
        return 0.0
    beyond = (log1p(value) - habit.mean) / max(sqrt(habit.variance), sign.least) - FAR
    return min(sign.slot, 1.0 + 5.0 * beyond) if beyond > 0 else 0.0

"""How hard a prompt looks, 0 to 1, by a small linear model; and what a threshold on that costs and keeps.

The model is data in this package (`difficulty.json`, made by scripts/train_router.py): weights of the features, a
calibration, and quantiles. Its figure is the chance that a mid-sized model gets an exam question of this form wrong, so
for other prompts it ranks rather than foretells.
"""

import functools
import json
import math
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Final

from edge_client.router.features import BUCKETS, NAMES, shape_of, words_of

__all__ = ["CLIP", "Difficulty", "DifficultyModel", "shipped"]

CLIP: Final = 3.0  # standard deviations: nothing is extrapolated far beyond what was seen in training


@dataclass(frozen=True)
class Difficulty:
    """`score` is in (0, 1); `parts` are the features' contributions to its logit, each with its name."""

    score: float
    parts: tuple[tuple[str, float], ...]

    def grounds(self, most: int = 2) -> tuple[str, ...]:
        """What raised the score most, if anything did by a tenth of a logit."""
        raised = sorted((part for part in self.parts if part[1] >= 0.1), key=lambda part: -part[1])
        return tuple(name for name, _ in raised[:most])


@dataclass(frozen=True)
class DifficultyModel:
    """`thresholds[i]` sends the share i/(n-1) of the calibration questions away, which keeps `kept[i]` of the gain."""

    means: tuple[float, ...]
    scales: tuple[float, ...]
    weights: tuple[float, ...]
    words: tuple[float, ...]
    intercept: float
    thresholds: tuple[float, ...]
    kept: tuple[float, ...]

    @classmethod
    def parse(cls, data: bytes) -> "DifficultyModel":
        """Raises ValueError for a file of another shape."""
        raw = json.loads(data)
        if tuple(raw["features"]) != NAMES or len(raw["words"]) != BUCKETS:
            raise ValueError("the difficulty model is of another version")
        words = tuple(weight * raw["word_unit"] for weight in raw["words"])
        return cls(
            tuple(raw["means"]), tuple(raw["scales"]), tuple(raw["weights"]), words, raw["intercept"],
            tuple(raw["thresholds"]), tuple(raw["kept"]),
        )

    def of(self, prompt: str) -> Difficulty:
        """The same prompt always gives the same figure. Linear in the prompt up to features.READ_CHARS."""
        parts = [
            (name, weight * max(-CLIP, min(CLIP, (value - mean) / scale)))
            for name, value, mean, scale, weight in zip(
                NAMES, shape_of(prompt), self.means, self.scales, self.weights, strict=True
            )
        ]
        parts.append(("words", math.fsum(self.words[bucket] * weight for bucket, weight in words_of(prompt).items())))
        logit = self.intercept + math.fsum(part for _, part in parts)
        return Difficulty(1 / (1 + math.exp(-logit)), tuple(parts))

    def threshold_for_share(self, share: float) -> float:
        """The threshold that about this share (0..1) of exam questions reaches."""
        if share <= 0:
            return 1.0
        return 0.0 if share >= 1 else _at(self.thresholds, share)

    def threshold_for_quality(self, kept: float) -> float:
        """The threshold that keeps this share (0..1) of what always relaying gains over never relaying."""
        if kept <= 0:
            return 1.0
        last = len(self.kept) - 1
        place = bisect_left(self.kept, kept)
        if place > last or kept >= 1:
            return 0.0
        low, high = self.kept[place - 1], self.kept[place]
        return self.threshold_for_share((place - 1 + (kept - low) / (high - low)) / last)


def _at(values: Sequence[float], share: float) -> float:
    place = share * (len(values) - 1)
    below = min(int(place), len(values) - 2)
    return values[below] + (place - below) * (values[below + 1] - values[below])


@functools.cache
def shipped() -> DifficultyModel:
    """The model in this package."""
    return DifficultyModel.parse(resources.files("edge_client.router").joinpath("difficulty.json").read_bytes())

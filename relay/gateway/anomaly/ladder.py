"""How far a device has come: normal, warned, throttled, quarantined, revoked; one step at a time, up and down.

Up and down are at different scores, and each state lasts a while before the next: one spike does not lead to the top,
and a score that trembles about a threshold does not flap. Pure: `now` comes in, in seconds; a clock that goes back
stands still.
"""

from dataclasses import dataclass
from enum import IntEnum
from typing import Final


class Level(IntEnum):
    NORMAL = 0
    WARNED = 1
    THROTTLED = 2
    QUARANTINED = 3
    REVOKED = 4

    @property
    def word(self) -> str:
        return self.name.lower()


UP_AFTER_S: Final = (0.0, 3.0, 10.0, 30.0)  # at least so long in a state before the next one up
DOWN_AFTER_S: Final = (0.0, 60.0, 300.0, 3_600.0)  # and before the next one down
DOWN_AT: Final = 0.5  # of the score at which a state begins


@dataclass(frozen=True)
class Thresholds:
    """Scores at which states begin; `revoke` None: nobody is revoked without a person."""

    warn: float = 20.0
    throttle: float = 40.0
    quarantine: float = 80.0
    revoke: float | None = None

    def of(self, level: Level) -> float:
        return (0.0, self.warn, self.throttle, self.quarantine, self.revoke or float("inf"))[level]


@dataclass
class Standing:
    """`since`: when this state began."""

    level: Level = Level.NORMAL
    since: float = 0.0

    def step(self, score: float, now: float, thresholds: Thresholds, *, harmful: bool = False) -> Level | None:
        """The state that begins now, if one does: the next one up or down. Revocation is for the `harmful` alone."""
        self.since = min(self.since, now)
        lasted = now - self.since
        if self.level is Level.REVOKED:
            return None
        above = Level(self.level + 1)
        if (
            score >= thresholds.of(above) and lasted >= UP_AFTER_S[self.level]
            and (harmful or above is not Level.REVOKED)
        ):
            return self._enter(above, now)
        if self.level and score < thresholds.of(self.level) * DOWN_AT and lasted >= DOWN_AFTER_S[self.level]:
            return self._enter(Level(self.level - 1), now)
        return None

    def lift(self, now: float) -> None:
        """A person says that all is well."""
        self._enter(Level.NORMAL, now)

    def _enter(self, level: Level, now: float) -> Level:
        self.level, self.since = level, now
        return level

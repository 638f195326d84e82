"""What one device does, what it usually does, and how unusual the first is beside the second.

Pure: `now` (unix seconds) and observations in, a score and its reasons out. No text of anybody is held: of a prompt
a keyed hash for some minutes, in memory alone. Each kind of evidence adds up on its own, fades with a half-life of five
minutes and has a cap, so that only some kinds alone can lead far; the score is their sum.

Habit is learnt by the hour and a day late. Of hours in which the device was under suspicion, and of the day before,
nothing is learnt: an attack does not become habit while it is noticed. A person who lifts a state thereby says that its
reasons are all right: for a day these count little, and meanwhile they are learnt.
"""

from collections.abc import Hashable
from dataclasses import dataclass, field
from math import log1p
from typing import Final

import msgspec
from msgspec import Struct

from relay.gateway.anomaly.ladder import Level, Standing, Thresholds
from relay.gateway.anomaly.signs import (
    CAPS,
    HOUR_S,
    LOAD,
    MEMORY_MAX,
    SIGNS,
    SLOT_S,
    WINDOW_S,
    Moments,
    harmful,
    points,
)

DAY_S: Final = 86_400.0
STRIKING: Final = 5.0  # points of a kind that is worth a word to a person
HALF_LIFE_S: Final = 300.0
EXCUSED_S: Final = DAY_S
EXCUSED_SHARE: Final = 0.15  # all that is load together does not come to a throttle
YOUNG: Final = 8.0  # hours learnt, before which hours and models mean nothing
MARKS_MAX: Final = 64
MODELS_MAX: Final = 32
AWAY_S: Final = 3 * DAY_S  # from then on, what a device did not ask meanwhile it may ask in one go
AWAY_MAX_S: Final = 7 * DAY_S  # no longer does an outbox keep anything
AWAY_SLOT: Final = 100.0  # requests of that in one slot
HOURS_A_DAY: Final = 8.0  # that a device works
COMMON: Final = 3  # devices that use a model, from which on it is nobody's oddity
_FADE: Final = 0.995  # of the hours of day, for each hour learnt


class Habit(Struct):
    """`hours`: by hour of day (UTC); `models`: by name, in how many hours; `day_*`: of a working day."""

    signs: dict[str, Moments]
    hours: list[float]
    models: dict[str, float]
    learnt: float = 0.0  # hours
    day_requests: float = 0.0
    day_bytes: float = 0.0

    @classmethod
    def unknown(cls) -> "Habit":
        return cls({name: Moments.of(sign) for name, sign in SIGNS.items() if sign.learnt}, [0.0] * 24, {})


class Hour(Struct):
    """An hour as it is to be learnt: of each sign how many samples there were and their mean."""

    start: float
    signs: dict[str, list[float]] = {}
    models: list[str] = []
    requests: float = 0.0
    bytes: float = 0.0


class Kept(Struct):
    """All of a profile that survives a restart. `excused`: kinds that a person has said are all right, until when."""

    habit: Habit
    hour: Hour
    waiting: list[Hour] = []
    scores: dict[str, float] = {}
    excused: dict[str, float] = {}
    level: int = 0
    since: float = 0.0
    judged: float = 0.0
    active: float = 0.0
    spare_requests: float = 0.0
    spare_bytes: float = 0.0


@dataclass
class Fleet:
    """Which models devices have lately come to use: what several do is nobody's oddity."""

    seen: dict[str, dict[int, float]] = field(default_factory=dict)

    def uses(self, model: str, enrolment: int, now: float) -> bool:
        """Notes it, and says whether so many devices do."""
        if model not in self.seen and len(self.seen) >= 256:
            del self.seen[next(iter(self.seen))]
        by = self.seen.setdefault(model, {})
        if enrolment in by or len(by) < COMMON:
            by[enrolment] = now
        for other in [one for one, at in by.items() if now - at > 7 * DAY_S]:
            del by[other]
        return len(by) >= COMMON


def kind_of(status: int, code: str) -> str:
    """What a refusal says of who asked: it was held back, asked for what it may not, for nothing that is a request."""
    if code in ("throttled", "quarantined"):
        return "barred"
    if code in ("model_not_allowed", "not_allowed"):
        return "denied"
    return "fault" if status in (400, 404, 405, 413, 415, 422) else "other"


class Profile:
    """One device. `note` for each request, `judge` some times a second while it asks, and now and then after."""

    def __init__(self, enrolment: int, now: float, kept: Kept | None = None) -> None:
        self.enrolment = enrolment
        self.requests = self.largest = self.most = self.faults = self.attempts = self.volume = self.denied = 0
        self.injected = 0.0
        self.used: set[str] = set()  # models, since it was judged last
        self._marks: dict[Hashable, int] = {}
        self._slot = self._window = now
        self._values = dict.fromkeys(SIGNS, 0.0)
        self._before = dict.fromkeys(SIGNS, 0.0)
        self._given = dict.fromkeys(CAPS, 0.0)
        self._strange: set[str] = set()  # models outside its habit, this hour
        self._spared = 0.0
        self.restore(kept or Kept(Habit.unknown(), Hour(now), judged=now, active=now), now)

    def restore(self, kept: Kept, now: float) -> None:
        """Goes on from what was kept; what has been noted since stays."""
        self.kept = kept
        self.standing = Standing(Level(kept.level), kept.since)

    def note(
        self, mark: Hashable, model: str, size: int, out: int, injection: float | None = None, refused: str = ""
    ) -> None:
        """One request. `mark`: a keyed hash of its prompt; `model` "" if it named none that it may use; `refused`: see
        `kind_of`.
        """
        self.requests += 1
        self.volume += size + out
        if size > self.largest:
            self.largest = size
        count = self._marks.get(mark, 0) + 1
        self._marks[mark] = count
        if count > self.most:
            self.most = count
        elif len(self._marks) > MARKS_MAX:
            self._marks = {one: count for one, count in self._marks.items() if count > 1}
            if len(self._marks) > MARKS_MAX // 2:
                self._marks.clear()
        if model:
            self.used.add(model)
        if injection is not None and injection > 0.5:
            self.injected += injection
        if refused:
            self.attempts += refused == "barred"
            self.denied += refused == "denied"
            self.faults += refused in ("denied", "fault")

    # --- judging ----------------------------------------------------------------------------------------------------

    def judge(self, now: float, thresholds: Thresholds, fleet: Fleet) -> Level | None:
        """Takes in what was noted; the state that begins now, if one does."""
        kept = self.kept
        passed = now - kept.judged
        kept.judged = now
        if passed < 0:  # the clock was set back: all goes on from here
            self._slot, self._window = min(self._slot, now), min(self._window, now)
            kept.hour.start, kept.active = min(kept.hour.start, now), min(kept.active, now)
        elif kept.scores:
            left = 0.5 ** (passed / HALF_LIFE_S)
            kept.scores = {kind: score * left for kind, score in kept.scores.items() if score * left > 0.01}
        if now >= self._slot + SLOT_S:
            self._roll(now)
        if self.requests or self.attempts:
            self._weigh(now, fleet)
            kept.active = now
        changed = self.standing.step(self.score, now, thresholds, harmful=harmful(kept.scores))
        kept.level, kept.since = self.standing.level, self.standing.since
        if self._suspect():
            kept.waiting.clear()
            kept.hour = Hour(kept.hour.start)
        return changed

    @property
    def score(self) -> float:
        return sum(self.kept.scores.values())

    def reasons(self) -> dict[str, int]:
        """What there is to say of its score, the most first."""
        found = sorted(self.kept.scores.items(), key=lambda one: -one[1])
        return {kind: round(score) for kind, score in found if score >= STRIKING}

    def excuse(self, now: float) -> None:
        """A person says that all is well."""
        kept = self.kept
        kept.excused = {kind: until for kind, until in kept.excused.items() if until > now}
        kinds = {kind for kind, score in kept.scores.items() if score >= 1.0}
        if kinds & LOAD:  # what goes on will show in all of these
            kinds |= LOAD
        kept.excused |= dict.fromkeys(kinds, now + EXCUSED_S)
        kept.scores = {}
        self.standing.lift(now)
        kept.level, kept.since = self.standing.level, self.standing.since

    def encode(self) -> bytes:
        return msgspec.msgpack.encode(self.kept)

    # --- inside -----------------------------------------------------------------------------------------------------

    def _suspect(self) -> bool:
        """Whether what it does now is not to be learnt."""
        lenient = self.kept.habit.learnt < YOUNG or self.kept.excused
        return self.standing.level >= (Level.THROTTLED if lenient else Level.WARNED)

    def _weigh(self, now: float, fleet: Fleet) -> None:
        kept, values = self.kept, self._values
        self._welcome(now)
        spared = min(kept.spare_requests, self.requests, AWAY_SLOT - self._spared)
        kept.spare_requests -= spared
        self._spared += spared
        volume = max(0.0, self.volume - kept.spare_bytes)
        kept.spare_bytes -= self.volume - volume
        values["rate"] += self.requests - spared
        values["sizes"] = max(values["sizes"], self.largest)
        values["repetition"] = max(values["repetition"], self.most)
        values["refused"] += self.faults
        values["injection"] += self.injected
        values["volume"] += volume
        values["defiance"] += self.attempts
        kept.hour.requests += self.requests
        kept.hour.bytes += self.volume
        for kind, sign in SIGNS.items():
            if values[kind] > self._before[kind]:
                habit = kept.habit.signs.get(kind) or Moments.of(sign)
                self._give(kind, points(sign, habit, values[kind]), now)
        self._models(now, fleet)
        self._hour_of_day(now)
        self.requests = self.largest = self.faults = self.attempts = self.volume = self.denied = 0
        self.injected = 0.0
        self.used.clear()

    def _give(self, kind: str, worth: float, now: float) -> None:
        """Brings what this slot gives for a kind up to `worth`."""
        more = worth - self._given[kind]
        if more <= 0:
            return
        self._given[kind] = worth
        share = EXCUSED_SHARE if self.kept.excused.get(kind, 0.0) > now else 1.0
        had = self.kept.scores.get(kind, 0.0)
        self.kept.scores[kind] = max(had, min(CAPS[kind] * share, had + more * share))

    def _welcome(self, now: float) -> None:
        """What it did not ask while it was away it may ask now, as after a week without a link."""
        kept = self.kept
        away = min(now - kept.active, AWAY_MAX_S) / DAY_S
        if away * DAY_S >= AWAY_S:
            kept.spare_requests = 1.5 * away * kept.habit.day_requests
            kept.spare_bytes = 1.5 * away * kept.habit.day_bytes

    def _models(self, now: float, fleet: Fleet) -> None:
        """Models that it has not used before, unless several devices have come to use them; more of them weigh more."""
        habit = self.kept.habit
        worth = 4.0 * self.denied
        for model in self.used:
            if len(self.kept.hour.models) < MODELS_MAX and model not in self.kept.hour.models:
                self.kept.hour.models.append(model)
            if model in habit.models or habit.learnt < YOUNG or fleet.uses(model, self.enrolment, now):
                continue
            if model not in self._strange and len(self._strange) < MODELS_MAX:
                self._strange.add(model)
                worth += 8.0 if len(self._strange) == 1 else 14.0
        if len(self._strange) > 2:
            worth += min(self.requests, 5)
        if worth:
            self._give("models", self._given["models"] + min(worth, 40.0), now)

    def _hour_of_day(self, now: float) -> None:
        habit, hour = self.kept.habit, int(now // HOUR_S) % 24
        near = habit.hours[hour - 1] + habit.hours[hour] + habit.hours[(hour + 1) % 24]
        if habit.learnt >= 2 * YOUNG and near < 0.02 * sum(habit.hours):
            self._give("hours", 3.0, now)

    def _roll(self, now: float) -> None:
        """Ends the slot, and with it whatever else is over by now."""
        ended = [SLOT_S]
        if now >= self._window + WINDOW_S:
            self._window, self._marks, self.most = now, {}, 0
            ended.append(WINDOW_S)
        kept = self.kept
        if now >= kept.hour.start + HOUR_S:
            ended.append(HOUR_S)
        for kind, sign in SIGNS.items():
            if sign.span in ended:
                value = kept.hour.bytes if kind == "volume" else self._values[kind]  # with what was spared
                if value and sign.learnt:
                    sample = kept.hour.signs.setdefault(kind, [0.0, 0.0])
                    sample[0] += 1
                    sample[1] += (log1p(value) - sample[1]) / sample[0]
                self._values[kind] = 0.0
        self._slot, self._spared = now, 0.0
        self._before = dict(self._values)
        self._given = dict.fromkeys(CAPS, 0.0)
        if HOUR_S in ended:
            if kept.hour.signs:
                kept.waiting.append(kept.hour)
            kept.hour = Hour(now)
            kept.excused = {kind: until for kind, until in kept.excused.items() if until > now}
            self._strange.clear()
            while kept.waiting and (kept.excused or kept.waiting[0].start + DAY_S <= now):
                self._learn(kept.waiting.pop(0))

    def _learn(self, hour: Hour) -> None:
        habit = self.kept.habit
        for kind, (count, mean) in hour.signs.items():
            habit.signs.setdefault(kind, Moments.of(SIGNS[kind])).learn(mean, count)
        for model in hour.models:
            habit.models[model] = habit.models.get(model, 0.0) + 1.0
            if len(habit.models) > MODELS_MAX:
                del habit.models[min(habit.models, key=lambda one: habit.models[one])]
        habit.hours = [weight * _FADE for weight in habit.hours]
        habit.hours[int(hour.start // HOUR_S) % 24] += 1.0
        habit.learnt = min(habit.learnt + 1.0, MEMORY_MAX)
        share = max(0.02, 1.0 / habit.learnt)
        habit.day_requests += share * (HOURS_A_DAY * hour.requests - habit.day_requests)
        habit.day_bytes += share * (HOURS_A_DAY * hour.bytes - habit.day_bytes)

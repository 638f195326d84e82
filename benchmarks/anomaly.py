"""How soon a device that has gone astray is noticed, what it has done until then, and how often others are bothered.

`scripts/bench anomaly [--smoke] [--json]`. Scenarios (anomaly_scenarios.py) are replayed in virtual time against the
gateway's profiles and ladder, and in the same run against what is usually set up instead: a fixed limit of requests a
minute, and three standard deviations of requests a minute.
"""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from math import sqrt
from statistics import median
from typing import Final, Protocol

from benchmarks.anomaly_cut import cut_after
from benchmarks.anomaly_scenarios import ATTACKS, BENIGN, DAY, Ask, Scenario, scenario
from benchmarks.measure import Row, arguments, note, show
from relay.gateway.anomaly.ladder import Level, Thresholds
from relay.gateway.anomaly.profile import COMMON, Fleet, Profile, kind_of
from relay.rates import Rate, TokenBucket

TICK_S: Final = 0.5
SWEEP_S: Final = 30.0  # how often who is not normal is judged while nothing comes
THROTTLE: Final = Rate(0.5, 5)
RETRY_AFTER_S: Final = 2.0
REVOKE: Final = 120.0
SEEDS: Final = 20
SMOKE_SEEDS: Final = 2
CUTS: Final = 20


class Watcher(Protocol):
    """Sees each attempt. `alarms`: when it rose, and how far."""

    alarms: list[tuple[float, Level]]

    def take(self, ask: Ask) -> str:
        """"" if it is let through, else the code of the refusal."""
        ...


class Ours:
    """As the gateway does: looks at each attempt, judges twice a second while there is something new."""

    def __init__(self, played: Scenario) -> None:
        self.alarms: list[tuple[float, Level]] = []
        self._thresholds, self._fleet = Thresholds(revoke=REVOKE), Fleet()
        for model in played.fleet_uses:
            for number in range(COMMON):
                self._fleet.uses(model, 100 + number, played.begins)
        self._due = played.asks[0].at
        self._profile = Profile(1, self._due)
        self._bucket = TokenBucket(THROTTLE, self._due)

    def take(self, ask: Ask) -> str:
        self._judge_until(ask.at)
        profile, code = self._profile, ask.refused
        if profile.standing.level >= Level.QUARANTINED:
            code = "quarantined"
        elif profile.standing.level is Level.THROTTLED and not self._bucket.take(ask.at):
            code = "throttled"
        kind = kind_of(400, code) if code else ""
        profile.note(
            ask.mark.to_bytes(8, "big"), "" if code else ask.model, ask.size, 0 if code else ask.out,
            None if kind == "barred" else ask.injection, kind,
        )
        return code

    def _judge_until(self, now: float) -> None:
        while self._due <= now and (self._profile.requests or self._profile.standing.level):
            before = self._profile.standing.level
            level = self._profile.judge(self._due, self._thresholds, self._fleet)
            if level is not None and level > before:
                self.alarms.append((self._due, level))
            if level is Level.THROTTLED:
                self._bucket = TokenBucket(THROTTLE, self._due)
            self._due += TICK_S if now - self._due < 60 else SWEEP_S
        self._due = max(self._due, now)


class FixedRate:
    """More than 60 requests in a minute, whoever it is; refused for the rest of an hour."""

    name = "60 a minute"

    def __init__(self, played: Scenario) -> None:
        self.alarms: list[tuple[float, Level]] = []
        self._last: deque[float] = deque()
        self._until = 0.0

    def take(self, ask: Ask) -> str:
        if ask.at < self._until:
            return "quarantined"
        self._last.append(ask.at)
        while self._last[0] <= ask.at - 60:
            self._last.popleft()
        if self._unusual(ask.at):
            self._until = ask.at + 3_600
            self.alarms.append((ask.at, Level.QUARANTINED))
        return ask.refused

    def _unusual(self, now: float) -> bool:
        return len(self._last) > 60


class ZScore(FixedRate):
    """More than three standard deviations above the device's own mean of requests in a minute in which it asks."""

    name = "z-score of a minute"

    def __init__(self, played: Scenario) -> None:
        super().__init__(played)
        self._minute, self._count, self._samples, self._mean, self._square = 0, 0, 0, 0.0, 0.0

    def _unusual(self, now: float) -> bool:
        if int(now // 60) != self._minute:
            if self._count:
                self._samples += 1
                self._mean += (self._count - self._mean) / self._samples
                self._square += (self._count**2 - self._square) / self._samples
            self._minute, self._count = int(now // 60), 0
        self._count += 1
        spread = sqrt(max(0.25, self._square - self._mean**2))
        return self._samples >= 100 and self._count > self._mean + 3 * spread


@dataclass
class Outcome:
    """Of one scenario: seconds and attempts from its begin to each state, what was let through, device-days."""

    seconds: dict[Level, float]
    attempts: dict[Level, int]
    passed: int
    bytes_passed: int
    rises: list[Level]
    days: float


def replay(played: Scenario, watcher: Watcher) -> Outcome:
    """What is let through and raised from `begins` on. Who is patient keeps away for as long as it is told."""
    passed = volume = attempts = 0
    first, quiet, seen = -1.0, 0.0, 0
    outcome = Outcome({}, {}, 0, 0, [], (played.ends - played.begins) / DAY)
    for ask in played.asks:
        if ask.patient and ask.at < quiet:
            continue
        code = watcher.take(ask)
        if code == "throttled":
            quiet = ask.at + RETRY_AFTER_S
        if ask.at < played.begins:
            seen = len(watcher.alarms)
            continue
        first = ask.at if first < 0 else first
        attempts += 1
        if not code:
            passed, volume = passed + 1, volume + ask.size + ask.out
        for at, level in watcher.alarms[seen:]:
            outcome.rises.append(level)
            outcome.seconds.setdefault(level, max(0.0, at - first))
            outcome.attempts.setdefault(level, attempts)
        seen = len(watcher.alarms)
    outcome.passed, outcome.bytes_passed = passed, volume
    return outcome


def attack_rows(name: str, found: dict[str, list[Outcome]]) -> list[Row]:
    """Ours is cut off by quarantine; a peer at its first alarm. A seed in which that does not come counts as missed."""
    rows = []
    for what, unit, of in (
        ("until it is cut off", "s", lambda one: one.seconds.get(Level.QUARANTINED)),
        ("requests of it let through", "requests", lambda one: one.passed),
        ("bytes of it let through", "KB", lambda one: one.bytes_passed / 1e3),
        ("cut off, share of seeds", "%", lambda one: 100.0 * (Level.QUARANTINED in one.seconds)),
        ("until the first warning", "s", lambda one: one.seconds.get(min(one.seconds, default=Level.WARNED))),
    ):
        middle = {
            who: median(values) if (values := [value for one in outcomes if (value := of(one)) is not None]) else None
            for who, outcomes in found.items()
        }
        ours = middle.pop("ours")
        rows += [
            Row(f"{name}: {what}", -1.0 if ours is None else ours, unit, peer, who, None)
            for who, peer in middle.items()
        ]
    return rows


def benign_rows(name: str, found: dict[str, list[Outcome]]) -> list[Row]:
    """False alarms per device-day, all seeds together: any, of these such that hold the device up, and revocations."""
    rows = []
    for what, least in (
        ("warned", Level.WARNED), ("throttled or worse", Level.THROTTLED), ("revoked", Level.REVOKED),
    ):
        rate = {
            who: sum(level is least if who == "ours" else level >= least for one in outcomes for level in one.rises)
            / sum(max(1.0, one.days) for one in outcomes)
            for who, outcomes in found.items()
        }
        ours = rate.pop("ours")
        rows += [Row(f"{name}: {what}", ours, "a device-day", peer, who, None) for who, peer in rate.items()]
    return rows


def main() -> None:
    asked = arguments(__doc__ or "")
    seeds = SMOKE_SEEDS if asked.smoke else SEEDS
    rows: list[Row] = []
    makers: dict[str, Callable[[Scenario], Watcher]] = {
        "ours": Ours, FixedRate.name: FixedRate, ZScore.name: ZScore
    }
    for play in (*ATTACKS, *BENIGN):
        played = [scenario(play, seed) for seed in range(seeds)]
        note(f"{played[0].name}: {seeds} seeds")
        found = {name: [replay(one, make(one)) for one in played] for name, make in makers.items()}
        rows += (attack_rows if played[0].attack else benign_rows)(played[0].name, found)
    note("a running answer is cut")
    cut = sorted(cut_after(SMOKE_SEEDS if asked.smoke else CUTS))
    rows.append(Row("last word after too much: median", 1e3 * median(cut), "ms", 1e3, "what is wanted at most", None))
    rows.append(Row("last word after too much: worst", 1e3 * cut[-1], "ms", 1e3, "what is wanted at most", None))
    show("anomaly", rows, as_json=asked.json)


if __name__ == "__main__":
    main()

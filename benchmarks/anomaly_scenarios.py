"""What devices do, as lists of requests: ordinary weeks, what goes wrong after them, and what only looks as if.

A list is made by a seed and by nothing else. Times are unix seconds; weeks begin on a Monday.
"""

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

MONDAY: Final = 1_799_625_600.0  # 2027-01-11, 00:00 UTC
DAY: Final = 86_400.0
WEEK: Final = 7 * DAY
BEFORE: Final = 2 * WEEK  # of ordinary use, which all that happens comes after
ALLOWED: Final = ("small", "large", "code", "long", "vision", "fast")
HABITUAL: Final = ("small", "large")


@dataclass(frozen=True)
class Ask:
    """One attempt. `mark` stands for the prompt; `refused`: the code by which a check after ours would refuse it.

    `patient`: who sends it heeds Retry-After.
    """

    at: float
    mark: int
    model: str = "small"
    size: int = 2_000
    out: int = 3_000
    injection: float = 0.02
    refused: str = ""
    patient: bool = True


@dataclass(frozen=True)
class Scenario:
    """`asks` of one device; from `begins` on it is what the name says. `attack`: somebody should be alerted."""

    name: str
    attack: bool
    begins: float
    ends: float
    asks: list[Ask]
    fleet_uses: tuple[str, ...] = ()  # models that others of the fleet have come to use


def _ask(rng: random.Random, at: float, **other: object) -> Ask:
    """As people ask: most prompts once, some 1 in 12 again, one in 150 with words that a classifier flags."""
    values: dict[str, object] = {
        "mark": rng.getrandbits(40) if rng.random() > 0.08 else rng.randrange(12),
        "model": "small" if rng.random() < 0.85 else "large",
        "size": int(rng.lognormvariate(7.6, 0.9)), "out": int(rng.lognormvariate(8.0, 0.7)),
        "injection": rng.uniform(0.5, 0.9) if rng.random() < 1 / 150 else rng.uniform(0, 0.2),
        "refused": "bad_request" if rng.random() < 0.01 else "",
    }
    return Ask(at, **(values | other))  # type: ignore[arg-type]


def ordinary(rng: random.Random, start: float, days: int, *, shift: float = 8.0, more: float = 1.0) -> Iterator[Ask]:
    """Five days a week from `shift` o'clock on, some nine conversations a day."""
    for day in range(days):
        morning = start + day * DAY
        if int((morning - MONDAY) // DAY) % 7 > 4:
            continue
        for _ in range(max(1, round(rng.gauss(9, 2) * more))):
            at = morning + (shift + rng.uniform(0, 9)) * 3_600
            for _ in range(rng.randint(2, 12)):
                yield _ask(rng, at)
                at += rng.lognormvariate(3.2, 0.7)


def _steady(rng: random.Random, start: float, seconds: float, every: float) -> Iterator[float]:
    at = start
    while at < start + seconds:
        yield at
        at += rng.expovariate(1 / every)


def stolen_laptop(rng: random.Random, start: float) -> Iterator[Ask]:
    """At night: it is tried out, asked for much, and led astray where that may work."""
    for at in _steady(rng, start + rng.uniform(0, 4) * 3_600, 7_200, 3.0):
        yield _ask(
            rng, at, mark=rng.getrandbits(40), model=rng.choice(ALLOWED), size=int(rng.lognormvariate(8.5, 1.0)),
            injection=rng.uniform(0.55, 0.98) if rng.random() < 0.25 else 0.1, patient=False,
            refused="model_not_allowed" if rng.random() < 0.1 else "",
        )


def runaway_loop(rng: random.Random, start: float) -> Iterator[Ask]:
    """A program that asks again at once, whatever it hears."""
    for at in _steady(rng, start + 10 * 3_600, 3_600, 1 / 8):
        yield _ask(rng, at, mark=rng.randrange(3), size=1_500, model="small", injection=0.02, refused="", patient=False)


def slow_exfiltration(rng: random.Random, start: float) -> Iterator[Ask]:
    """In working hours, at a person's pace, with documents of 150 KB each."""
    for at in _steady(rng, start + 9 * 3_600, 6 * 3_600, 45.0):
        yield _ask(rng, at, mark=rng.getrandbits(40), size=int(rng.gauss(150_000, 20_000)), injection=0.02, refused="")


def model_shopping(rng: random.Random, start: float) -> Iterator[Ask]:
    """What is there to be had? Allowed or not, every five seconds another."""
    for at in _steady(rng, start + 11 * 3_600, 1_800, 5.0):
        denied = rng.random() < 0.5
        yield _ask(
            rng, at, model=rng.choice(ALLOWED), mark=rng.getrandbits(40), injection=0.02,
            refused="model_not_allowed" if denied else "",
        )


def batch(rng: random.Random, start: float) -> Iterator[Ask]:
    """Somebody has 120 tickets summarised, two a second; and after lunch again."""
    yield from ordinary(rng, start, 1)
    for hour in (10, 13):
        for number in range(120):
            yield _ask(rng, start + hour * 3_600 + number / 2 + rng.random(), mark=rng.getrandbits(40), injection=0.02)


def new_job(rng: random.Random, start: float) -> Iterator[Ask]:
    """A program is set up that has 400 reports read each night, five a second, for as long as nobody slows it down."""
    yield from ordinary(rng, start, 5)
    for night in range(5):
        for number in range(400):
            at = start + night * DAY + 2 * 3_600 + number / 5
            yield _ask(rng, at, mark=rng.getrandbits(40), injection=0.02, refused="", size=9_000)


def shift_change(rng: random.Random, start: float) -> Iterator[Ask]:
    """From now on somebody else has it, at night, and asks half as much again."""
    return ordinary(rng, start, 7, shift=21.0, more=1.5)


def backlog(rng: random.Random, start: float) -> Iterator[Ask]:
    """After a week in the field the outbox goes out, four a second; then a day like others."""
    back = start + WEEK + 8 * 3_600
    for number in range(rng.randint(150, 300)):
        yield _ask(rng, back + number / 4 + rng.random() / 4, mark=rng.getrandbits(40))
    yield from ordinary(rng, start + WEEK, 2)


def new_model(rng: random.Random, start: float) -> Iterator[Ask]:
    """From today on all the team use another model."""
    for one in ordinary(rng, start, 7):
        yield Ask(one.at, one.mark, "vision", one.size, one.out, one.injection, one.refused)


def holiday_return(rng: random.Random, start: float) -> Iterator[Ask]:
    """Two weeks away, and twice as much to do on the first two days."""
    return ordinary(rng, start + 2 * WEEK, 2, more=2.0)


def ordinary_week(rng: random.Random, start: float) -> Iterator[Ask]:
    return ordinary(rng, start, 7)


ATTACKS: Final[tuple[Callable[[random.Random, float], Iterator[Ask]], ...]] = (
    stolen_laptop, runaway_loop, slow_exfiltration, model_shopping,
)
BENIGN: Final[tuple[Callable[[random.Random, float], Iterator[Ask]], ...]] = (
    ordinary_week, batch, new_job, shift_change, backlog, new_model, holiday_return,
)


def scenario(play: Callable[[random.Random, float], Iterator[Ask]], seed: int) -> Scenario:
    """Two ordinary weeks, then that."""
    rng = random.Random(f"{play.__name__} {seed}")
    start = MONDAY + BEFORE
    after = sorted(play(rng, start), key=lambda ask: ask.at)
    before = sorted(ordinary(rng, MONDAY, int(BEFORE // DAY)), key=lambda ask: ask.at)
    return Scenario(
        play.__name__.replace("_", " "), play in ATTACKS, start, after[-1].at, before + after,
        ("vision",) if play is new_model else (),
    )

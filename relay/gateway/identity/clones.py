"""Signs that one device's keys are in two places. Nothing but what a gateway sees goes in; nothing is decided here.

A device's programs share one store, which has its newest SVID, and each handshake takes it from there. So two things
do not happen to a device that is one:

- *an older line*: an SVID is shown again some minutes after a newer one of the device was shown. The answer to a
  renewal that was lost does not count: what nobody has shown is not newer.
- *two places*: two sessions by different ways stand side by side, and both ask, and then both again. When a device
  moves, what it has left falls silent, but for what was on its way there and arrives late, in one go.
"""

from collections import OrderedDict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Final

RACE_S: Final = 300.0  # a handshake that was begun with the older SVID may take so long, over several ways
KEPT_S: Final = 4_000.0  # by then every SVID that is older than this one has run out
OVERLAP_S: Final = 10.0  # side by side before anything counts; and between what one asks and what it asks again


@dataclass(frozen=True)
class Sign:
    """What was seen, and at which two places (a hop's ID, or an address)."""

    kind: str  # "older line" or "two places"
    here: str
    there: str


@dataclass
class _Session:
    place: str
    opened: float


class Clones:
    """What is remembered of each device, by enrolment number. `now`: seconds by a clock that nobody sets."""

    def __init__(self) -> None:
        self._shown: OrderedDict[int, tuple[int, float, str]] = OrderedDict()  # newest serial, since when, first place
        self._live: dict[int, dict[Hashable, _Session]] = {}
        # By pair: who of the two has asked, and when, since both stood for long enough: the one, the other, and again.
        self._turns: dict[int, dict[frozenset[Hashable], list[tuple[Hashable, float]]]] = {}

    def shown(self, enrolment: int, serial: int, line: Sequence[int], place: str, now: float) -> Sign | None:
        """An SVID was shown in a full handshake. `line`: the serials of the device that are good, oldest first."""
        while self._shown and now - next(iter(self._shown.values()))[1] > KEPT_S:
            self._shown.popitem(last=False)
        newest, since, there = self._shown.get(enrolment, (0, now, ""))
        if serial == newest or serial not in line:
            return None
        if newest in line and line.index(serial) < line.index(newest):
            return Sign("older line", place, there) if now - since > RACE_S else None
        self._shown[enrolment] = serial, now, place
        self._shown.move_to_end(enrolment)
        return None

    def opened(self, enrolment: int, session: Hashable, place: str, now: float) -> None:
        self._live.setdefault(enrolment, {})[session] = _Session(place, now)

    def asked(self, enrolment: int, session: Hashable, now: float) -> Sign | None:
        """A session that was opened has asked for something."""
        live = self._live.get(enrolment, {})
        if len(live) < 2 or session not in live:
            return None
        mine, found = live[session], None
        for other, theirs in live.items():
            if theirs.place == mine.place or now < max(mine.opened, theirs.opened) + OVERLAP_S:
                continue
            turns = self._turns.setdefault(enrolment, {}).setdefault(frozenset((session, other)), [])
            match turns:
                case [] | [_] if not turns or turns[0][0] != session:
                    turns.append((session, now))
                case [(who, at), _] | [_, (who, at), _] if who == session and now - at >= OVERLAP_S:
                    turns.append((session, now))
            if len(turns) == 4:
                found = Sign("two places", mine.place, theirs.place)
        return found

    def closed(self, enrolment: int, session: Hashable) -> None:
        live = self._live.get(enrolment, {})
        live.pop(session, None)
        turns = self._turns.get(enrolment, {})
        for pair in [pair for pair in turns if session in pair]:
            del turns[pair]
        if not live:
            self._live.pop(enrolment, None)
        if not turns:
            self._turns.pop(enrolment, None)

"""Which certificates are good: those of our own making that are on record, as a gateway that runs remembers them."""

from typing import Final

LIVE_MAX: Final = 8  # certificates of one registration at a time; it needs two
PRUNE_EVERY_S: Final = 60


class Serials:
    """Serial numbers by registration. What the database holds of them is for `Enrolment` to keep in step."""

    def __init__(self) -> None:
        self._good: dict[int, tuple[int, int]] = {}  # serial: (enrolment, not after)
        self._latest: dict[int, list[int]] = {}  # enrolment: its serials, oldest first, those under way included
        self._pruned = 0.0

    def __len__(self) -> int:
        """How many are good."""
        return len(self._good)

    def clear(self) -> None:
        self._good.clear()
        self._latest.clear()

    def holder(self, serial: int) -> int:
        """The enrolment number of a good certificate; 0 for any other."""
        return self._good.get(serial, (0, 0))[0]

    def line(self, enrolment: int) -> tuple[int, ...]:
        """Those of a registration, in the order in which they were issued."""
        return tuple(self._latest.get(enrolment, ()))

    def enter(self, enrolment: int, serial: int) -> list[int]:
        """Enters the newest serial of a registration, not yet good, and takes out the oldest above the limit, which
        are returned.
        """
        latest = self._latest.setdefault(enrolment, [])
        latest.append(serial)
        dropped, self._latest[enrolment] = latest[:-LIVE_MAX], latest[-LIVE_MAX:]
        for one in dropped:
            self._good.pop(one, None)
        return dropped

    def issued(self, enrolment: int, serial: int, end: int) -> None:
        """What was entered is on record and good, unless so many more have been entered in the meantime."""
        if serial in self._latest.get(enrolment, ()):
            self._good[serial] = (enrolment, end)

    def prune(self, now: float) -> None:
        """Forgets serials that have run out: now and then, since it looks at all of them."""
        if 0 <= now - self._pruned < PRUNE_EVERY_S:
            return
        self._pruned = now
        for serial, (enrolment, end) in list(self._good.items()):
            if end < now - 120:
                del self._good[serial]
                self._latest[enrolment].remove(serial)
                if not self._latest[enrolment]:
                    del self._latest[enrolment]

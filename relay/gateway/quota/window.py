"""One limit, counted over a sliding window. Pure: the time comes in, in whole seconds of a clock that never goes back.

A window is kept in sixty cells and the one that is filling. What was charged is counted for the length of the window at
least, and for a sixtieth of it more at most: the error is on the strict side.
"""

from array import array
from collections.abc import Iterator
from typing import Final

CELLS: Final = 60
SOON_S: Final = 5  # where a limit is reached by what is held alone
_KEPT: Final = CELLS + 1


class Window:
    """`limit` of whatever is counted in `seconds`, a multiple of 60. `held` is reserved and not charged yet; `spent` is
    what was charged within the window, as of the last time that was told. 600 bytes, whatever happens.
    """

    __slots__ = ("_cells", "_head", "_next", "_oldest", "held", "limit", "seconds", "spent", "width")

    def __init__(self, limit: int, seconds: int, now: int) -> None:
        self.limit, self.seconds, self.width = limit, seconds, seconds // CELLS
        self.held = self.spent = 0
        self._cells = array("q", bytes(8 * _KEPT))
        self._head = self._oldest = now // self.width  # no cell before `_oldest` counts anything
        self._next = (self._head + 1) * self.width  # when another cell begins

    def free(self, now: int) -> int:
        """What may still be reserved; below 0 where more was charged than had been reserved."""
        if now >= self._next:
            self._slide(now)
        return self.limit - self.spent - self.held

    def charge(self, amount: int, now: int) -> None:
        """`amount` of at least 0. An earlier `now` than any before is taken for the latest."""
        if now >= self._next:
            self._slide(now)
        self._cells[self._head % _KEPT] += amount
        self.spent += amount

    def wait(self, amount: int, now: int) -> int | None:
        """Seconds until `amount` could be free at the earliest: what is held may be given back soon. None if never."""
        if amount > self.limit:
            return None
        missing = amount - self.free(now) - self.held
        if missing <= 0:
            return SOON_S
        for at, counted in self.counts():
            missing -= counted
            if missing <= 0:
                return self._leaves(at) - now
        raise AssertionError("what was spent is in the cells")

    def counts(self) -> Iterator[tuple[int, int]]:
        """(last second of a cell, what was charged in it) of those that are not empty, the oldest first."""
        for cell in range(self._oldest, self._head + 1):
            if amount := self._cells[cell % _KEPT]:
                yield (cell + 1) * self.width - 1, amount

    def add(self, at: int, amount: int) -> None:
        """Takes over what another window had counted up to the second `at`; nothing if that is too long ago."""
        cell = min(at // self.width, self._head)
        if cell > self._head - _KEPT:
            self._cells[cell % _KEPT] += amount
            self.spent += amount
            self._oldest = min(self._oldest, cell)

    def copy(self) -> "Window":
        """As it is now, for another thread."""
        made = Window.__new__(Window)
        made.limit, made.seconds, made.width, made.held, made.spent = (
            self.limit, self.seconds, self.width, self.held, self.spent
        )
        made._cells, made._head, made._oldest, made._next = self._cells[:], self._head, self._oldest, self._next
        return made

    def idle(self, now: int) -> bool:
        """Whether it is as a new one would be."""
        self.free(now)
        return not self.spent and not self.held

    def frees(self, now: int) -> int:
        """Seconds until the oldest charge leaves the window; 0 if there is none."""
        if now >= self._next:
            self._slide(now)
        if not self.spent:
            return 0
        while not self._cells[self._oldest % _KEPT]:
            self._oldest += 1
        return (self._oldest + _KEPT) * self.width - now

    def reshape(self, limit: int, seconds: int, now: int) -> None:
        """Another limit, and another length, from now on. What was counted stays, as far as it is within that."""
        self.limit = limit
        if seconds != self.seconds:
            self.free(now)
            counts, self.seconds, self.width = list(self.counts()), seconds, seconds // CELLS
            self._cells, self.spent = array("q", bytes(8 * _KEPT)), 0
            self._head = self._oldest = now // self.width
            self._next = (self._head + 1) * self.width
            for at, amount in counts:
                self.add(at, amount)

    def _leaves(self, at: int) -> int:
        return at + 1 + CELLS * self.width

    def _slide(self, now: int) -> None:
        head = now // self.width
        for cell in range(max(self._head + 1, head - CELLS), head + 1):
            self.spent -= self._cells[cell % _KEPT]
            self._cells[cell % _KEPT] = 0
        self._head, self._oldest = head, max(self._oldest, head - CELLS)
        self._next = (head + 1) * self.width

"""What a link may use of a hop beyond its place: a rate, memory for bytes on their way, and the patience with a source.

Pure, but for the callback of `Flight`; times are seconds of any steady clock, and come in as arguments.
"""

import contextlib
from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Final

FREE_FAILURES: Final = 3  # a gateway that restarted makes an honest edge fail once or twice
FAILURES_MAX: Final = 12  # so many count; and one is forgotten every FORGET_S
FORGET_S: Final = 5.0
FIRST_PAUSE_S: Final = 0.25
LONGEST_PAUSE_S: Final = 5.0  # less than what an edge waits for a handshake
SOURCES_MAX: Final = 1024


class Rate:
    """So many bytes a second, of which those of one second may come at once."""

    def __init__(self, per_second: float, now: float) -> None:
        self._per_second = per_second
        self._left, self._at = per_second, now

    def spend(self, size: int, now: float) -> float:
        """Takes `size` bytes; how many seconds to wait before the next ones, which pays a debt off."""
        self._left = min(self._per_second, self._left + (now - self._at) * self._per_second) - size
        self._at = now
        return max(0.0, -self._left / self._per_second)


class Flight:
    """Bytes that have come in at one side and have not left at the other, of all links together.

    Where there is no room for more, whoever has waited longest for its peer to take them makes room: it ends.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._held: OrderedDict[object, tuple[int, Callable[[], None]]] = OrderedDict()  # the longest wait first
        self.size = 0
        self.carried = 0  # bytes that have left, since the start

    @contextlib.contextmanager
    def hold(self, size: int, end: Callable[[], None]) -> Iterator[None]:
        """While `size` bytes are on their way; `end` is called if they have to give way to others'."""
        held = object()
        self._held[held] = size, end
        self.size += size
        while self.size > self._max_bytes and len(self._held) > 1:
            other, give_way = self._held.popitem(last=False)[1]
            self.size -= other
            give_way()
        try:
            yield
            self.carried += size
        finally:
            if self._held.pop(held, None) is not None:
                self.size -= size


class Patience:
    """How long a link must wait whose source has had links that the gateway did not let in."""

    def __init__(self) -> None:
        self._failures: OrderedDict[str, tuple[float, float]] = OrderedDict()  # count and when, oldest first

    def failed(self, source: str, now: float) -> None:
        """The gateway has ended a link of this source in its handshake."""
        count = self._count(source, now)
        self._failures.pop(source, None)
        self._failures[source] = min(count + 1, FAILURES_MAX), now
        if len(self._failures) > SOURCES_MAX:
            self._failures.popitem(last=False)

    def pause(self, source: str, now: float) -> float:
        """Seconds that its next link waits before a byte of it is read."""
        beyond = self._count(source, now) - FREE_FAILURES
        return float(min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2.0 ** beyond)) if beyond >= 0 else 0.0

    def _count(self, source: str, now: float) -> float:
        count, at = self._failures.get(source, (0.0, now))
        return max(0.0, count - (now - at) / FORGET_S)

"""How often strangers may make us work: token buckets, one for each source, in a table that they cannot overflow.

All is counted by the caller's clock, in seconds; it should be one that nobody sets.
"""

from collections import OrderedDict
from dataclasses import dataclass
from typing import Final

BURST_S: Final = 3
SOURCES_MAX: Final = 4_096  # with a bucket of their own; some 300 bytes each


@dataclass(frozen=True)
class Rate:
    """`burst` at once, and `per_second` in the long run: in t seconds at most burst + per_second x t."""

    per_second: float
    burst: int

    @classmethod
    def of(cls, per_second: float) -> "Rate":
        """With a burst of what comes in three seconds, so that something passes of one at least."""
        return cls(per_second, max(1, round(per_second * BURST_S)))


class TokenBucket:
    """One rate, kept. It begins full."""

    __slots__ = ("_last", "_rate", "_tokens")

    def __init__(self, rate: Rate, now: float) -> None:
        self._rate, self._tokens, self._last = rate, float(rate.burst), now

    def take(self, now: float) -> bool:
        """Whether there is a token. A clock that goes back gives none."""
        self._fill(now)
        if self._tokens < 1:
            return False
        self._tokens -= 1
        return True

    def give_back(self) -> None:
        """Undoes a `take`."""
        self._tokens = min(self._rate.burst, self._tokens + 1)

    def full(self, now: float) -> bool:
        """Whether it is as a new one would be, so that nothing is forgotten with it."""
        self._fill(now)
        return self._tokens >= self._rate.burst

    def _fill(self, now: float) -> None:
        self._tokens = min(self._rate.burst, self._tokens + max(0.0, now - self._last) * self._rate.per_second)
        self._last = now


class SourceBuckets:
    """A bucket of the same rate for each source.

    Only a full one makes room for another source's, so that nobody gets a new one by pushing out their old one; who
    finds no room shares one bucket with all others like them.
    """

    def __init__(self, rate: Rate, now: float, *, sources_max: int = SOURCES_MAX) -> None:
        self._rate, self._sources_max = rate, sources_max
        self._by_source: OrderedDict[str, TokenBucket] = OrderedDict()  # the one longest unasked first
        self._others = TokenBucket(rate, now)

    def __len__(self) -> int:
        return len(self._by_source)

    def of(self, source: str, now: float) -> TokenBucket:
        """The bucket that `source` has to take from."""
        bucket = self._by_source.get(source)
        if bucket is None:
            if len(self) >= self._sources_max:
                oldest, unasked = next(iter(self._by_source.items()))
                if not unasked.full(now):
                    return self._others
                del self._by_source[oldest]
            bucket = self._by_source[source] = TokenBucket(self._rate, now)
        self._by_source.move_to_end(source)
        return bucket


def take_all(*buckets: TokenBucket, now: float) -> bool:
    """Takes a token of each, or none. The first is asked first: put the one that a single source can empty there."""
    for count, bucket in enumerate(buckets):
        if not bucket.take(now):
            for taken in buckets[:count]:
                taken.give_back()
            return False
    return True

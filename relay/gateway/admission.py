"""How many handshakes a second a gateway does for whoever asks, asked before any of their costly work.

A full one costs about a millisecond, so one rate is for all of them. One address has a twentieth of it and one hop a
quarter; all addresses together leave a quarter to hops, which are authenticated. Who comes back by a ticket that is
known draws on other buckets, of the same size, so that no flood of strangers keeps out those who were here before.
"""

from relay.rates import Rate, SourceBuckets, TokenBucket, take_all


class Admission:
    """Of one gateway's session links. `now` is by a clock that nobody sets, in seconds."""

    def __init__(self, per_second: float, now: float) -> None:
        self._all = TokenBucket(Rate.of(per_second), now)
        self._direct = TokenBucket(Rate.of(per_second * 3 / 4), now)
        self._addresses = SourceBuckets(Rate.of(per_second / 20), now)
        self._hops = SourceBuckets(Rate.of(per_second / 4), now)
        self._resumed = TokenBucket(Rate.of(per_second), now)
        self._resuming = SourceBuckets(Rate.of(per_second / 4), now)

    def full(self, source: str, now: float, *, direct: bool) -> bool:
        """Whether a full handshake may be done for `source`: an address if `direct`, else a hop's SPIFFE ID."""
        if direct:
            return take_all(self._addresses.of(source, now), self._direct, self._all, now=now)
        return take_all(self._hops.of(source, now), self._all, now=now)

    def resumed(self, source: str, now: float) -> bool:
        """Whether a ticket that is known may be used from `source`."""
        return take_all(self._resuming.of(source, now), self._resumed, now=now)

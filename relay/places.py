"""Places that strangers may hold: so many in all, and so many of them from one source."""

import ipaddress
from collections import Counter


class Places:
    """Counts who holds what. Whoever took a place must leave it."""

    def __init__(self, total: int, share: int) -> None:
        """At most `total` places at once, at most `share` of them for one source."""
        self.total, self.share = total, share
        self.taken = 0
        self._by_source: Counter[str] = Counter()

    def take(self, source: str, *, share: int | None = None) -> bool:
        """Whether there was a place; `share` in place of the usual one, for a source that stands for many."""
        limit = self.share if share is None else share
        if self.taken >= self.total or self._by_source[source] >= limit:
            if not self._by_source[source]:
                del self._by_source[source]  # asking leaves no trace
            return False
        self.taken += 1
        self._by_source[source] += 1
        return True

    def leave(self, source: str) -> None:
        """Gives one place of `source` back."""
        self.taken -= 1
        self._by_source[source] -= 1
        if not self._by_source[source]:
            del self._by_source[source]


def source_of(host: str) -> str:
    """What counts as one source: an IPv4 address, the /64 that one customer has of IPv6, or else the text itself."""
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return host
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is not None:
            return str(address.ipv4_mapped)
        return str(ipaddress.ip_network((address, 64), strict=False))
    return str(address)


def source_of_link(peer: str) -> str:
    """The source of a link that was accepted, from its description: `tcp:HOST:PORT`, or `unix:PATH`, which is one."""
    scheme, _, rest = peer.partition(":")
    return source_of(rest.rpartition(":")[0]) if scheme == "tcp" else peer

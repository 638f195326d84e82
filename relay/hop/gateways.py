"""Which gateway a new tunnel goes to: the one that worked last, then the others; the dead are left alone for a while.

Pure; `now` is seconds of a steady clock. A link whose tunnel has begun stays with its gateway and ends with it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

FIRST_REST_S: Final = 0.5  # a gateway that restarts is soon asked again
LONGEST_REST_S: Final = 60.0


@dataclass
class _Rest:
    since: float
    seconds: float


class Gateways:
    """The base URLs of gateways that serve the same trust domain, best first."""

    def __init__(self, urls: Sequence[str]) -> None:
        self._urls = list(dict.fromkeys(urls))
        self._resting: dict[str, _Rest] = {}
        self.current = ""  # the one that answered last, "" before any has

    def candidates(self, now: float) -> list[str]:
        """Those worth trying now, in order; perhaps none."""
        known = sorted(self._urls, key=lambda url: url != self.current)
        return [url for url in known if self._end_of_rest(url) <= now]

    def all(self) -> list[str]:
        """Every one, those at rest last; for what must not wait."""
        return sorted(self._urls, key=lambda url: (self._end_of_rest(url), url != self.current))

    def worked(self, url: str) -> None:
        self.current = url
        self._resting.pop(url, None)

    def failed(self, url: str, *, began: float, now: float) -> None:
        """An attempt that `began` then has failed. Many that were under way at once count as one."""
        rest = self._resting.get(url)
        if rest is None:
            self._resting[url] = _Rest(now, FIRST_REST_S)
        elif began >= rest.since:
            self._resting[url] = _Rest(now, min(rest.seconds * 2, LONGEST_REST_S))

    def _end_of_rest(self, url: str) -> float:
        rest = self._resting.get(url)
        return float("-inf") if rest is None else rest.since + rest.seconds

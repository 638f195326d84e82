"""What a hop tells about itself: counts so blurred that they say how it does, and not who came when.

Whoever takes a hop away, or looks over its owner's shoulder, shall learn nothing of an edge from it.
"""

from dataclasses import dataclass
from typing import Any, Final

LINKS_FLOOR: Final = 4  # one link would say that somebody is there
BYTES_FLOOR: Final = 1 << 20
HOUR_S: Final = 3600.0


@dataclass
class Counters:
    """Kept in memory only. `began` is on the clock of whoever reads them; `last_error` names no edge."""

    began: float
    links: int = 0
    links_total: int = 0
    last_error: str = ""

    def arrived(self) -> None:
        self.links += 1
        self.links_total += 1

    def left(self) -> None:
        self.links -= 1

    def blurred(self, *, now: float, carried: int, gateway: str) -> dict[str, Any]:
        """`carried`: bytes of both directions; `gateway`: the one in use, or ""."""
        return {
            "links": rounded_up(self.links, LINKS_FLOOR),
            "links_since_start": rounded_up(self.links_total, LINKS_FLOOR),
            "bytes_since_start": rounded_up(carried, BYTES_FLOOR), "uptime_h": int((now - self.began) // HOUR_S),
            "gateway": gateway, "last_error": self.last_error,
        }


def rounded_up(count: int, floor: int) -> int:
    """0, or the next power of two, at least `floor` (a power of two itself)."""
    return 0 if count <= 0 else max(floor, 1 << (count - 1).bit_length())

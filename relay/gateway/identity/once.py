"""What may be shown once: by whom what was used, for as long as it could be shown again."""

from collections import OrderedDict
from collections.abc import Callable
from typing import Literal

from relay.places import Places


class UsedOnce:
    """Names that were used, of one holder each; asked once the holder is known, so that strangers fill no memory."""

    def __init__(self, clock: Callable[[], float], *, kept_s: float, total: int, by_holder: int) -> None:
        """At most `total` names are remembered, `by_holder` of one holder, each for `kept_s` seconds."""
        self._clock, self._kept_s = clock, kept_s
        self._used: OrderedDict[tuple[str, str], float] = OrderedDict()
        self._places = Places(total, by_holder)

    def used(self, holder: str, name: str) -> bool:
        return (holder, name) in self._used

    def use(self, holder: str, name: str) -> Literal["", "replayed", "overloaded"]:
        """Marks a name as used, or says why it cannot be."""
        now, entry = self._clock(), (holder, name)
        while self._used and next(iter(self._used.values())) < now - self._kept_s:
            (oldest, _), _ = self._used.popitem(last=False)
            self._places.leave(oldest)
        if entry in self._used:
            return "replayed"
        if not self._places.take(holder):
            return "overloaded"
        self._used[entry] = now
        return ""

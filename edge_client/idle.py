"""How long nobody has used this `edge serve`, and locking its store after so long."""

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable, Iterator
from typing import Final

__all__ = ["Activity", "lock_when_idle"]

_log = logging.getLogger(__name__)
_LOOK_S: Final = 30.0  # a machine that slept has not waited, and is to lock soon after it wakes


def _since_boot() -> float:
    """Seconds, also those in which the machine slept, which time.monotonic() leaves out on Linux."""
    if hasattr(time, "CLOCK_BOOTTIME"):
        return time.clock_gettime(time.CLOCK_BOOTTIME)
    return time.monotonic()


class Activity:
    """What counts as use: requests, from their beginning to their end, and commands."""

    def __init__(self, now: Callable[[], float] = _since_boot) -> None:
        self._now, self._last = now, now()
        self._under_way = 0

    def touch(self) -> None:
        self._last = self._now()

    @contextlib.contextmanager
    def lasting(self) -> Iterator[None]:
        self._under_way += 1
        try:
            yield
        finally:
            self._under_way -= 1
            self.touch()

    def idle_s(self) -> float:
        return 0.0 if self._under_way else self._now() - self._last


async def lock_when_idle(
    activity: Activity, lock: Callable[[], Awaitable[object]], after_s: float, *,
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
) -> None:
    """Runs until it is cancelled. `lock` is awaited each time that nobody has done anything for `after_s` seconds."""
    while True:
        left = after_s - activity.idle_s()
        if left <= 0:
            try:
                await lock()
            except Exception as error:  # the last door: what fails in ending a session is no end of locking when idle
                _log.error("locking ended in %s", type(error).__name__)
            activity.touch()
            left = after_s
        await sleep(min(left, _LOOK_S))

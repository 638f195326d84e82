"""The event loop of a serving gateway: libuv's where it runs, else asyncio's own, which costs more."""

import asyncio
import gc
import sys
from collections.abc import Coroutine
from typing import Any, Final

try:
    import uvloop
except ImportError:
    uvloop = None  # type: ignore[assignment]

SWITCH_S: Final = 0.000_5  # the loop waits so long, at most, for a thread that computes; Python's own is 5 ms

_GC: Final = (5_000, 10, 20)  # a request makes no cycles (its test says so); Python's own looks each 700 objects


def run(main: Coroutine[Any, Any, None]) -> None:
    """As `asyncio.run`."""
    sys.setswitchinterval(SWITCH_S)
    gc.set_threshold(*_GC)
    gc.freeze()  # what has been imported stays
    with asyncio.Runner(loop_factory=None if uvloop is None else uvloop.new_event_loop) as runner:
        runner.run(main)

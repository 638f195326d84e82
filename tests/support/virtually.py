"""Tests that run in virtual time."""

import functools
from collections.abc import Callable, Coroutine
from typing import Any

from transport.links import virtual_time


def in_virtual_time(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """Makes an async test a plain one, on a loop of its own whose time jumps. Its fixtures must not be async."""

    @functools.wraps(test)
    def run(*arguments: Any, **named: Any) -> None:
        virtual_time.run(test(*arguments, **named))

    return run

"""When not to ask a provider: after failures in a row nobody asks it for a while, then one does, and the rest follow.

Pure: `now` comes in. What a call reports that was begun before the last change of state is not news, and is ignored.
"""

from typing import Literal

State = Literal["closed", "open", "half-open"]


class Breaker:
    """Of one provider. `ask` before each call; then one of `began`, `failed` and `gone`, and after `began` one of
    `ended` and `failed`.
    """

    def __init__(self, failures: int = 5, open_s: float = 15.0) -> None:
        """Opens after so many `failures` in a row, for `open_s` seconds."""
        self._limit, self._open_s = failures, open_s
        self._failed = 0
        self._opened: float | None = None
        self._probing = False
        self._turn = 0  # counts changes of state

    def state(self, now: float) -> State:
        if self._opened is None:
            return "closed"
        return "open" if now < self._opened + self._open_s else "half-open"

    def ask(self, now: float) -> int | None:
        """Whether it may be called: what to report by, or None. While half open, one call at a time may."""
        state = self.state(now)
        if state == "open" or (state == "half-open" and self._probing):
            return None
        self._probing = state == "half-open"
        return self._turn

    def began(self, turn: int) -> None:
        """The provider answers, if only to refuse."""
        if turn == self._turn and self._opened is not None:
            self._change(None)

    def ended(self, turn: int) -> None:
        """It has answered to the end."""
        self._failed = 0

    def failed(self, turn: int, now: float) -> None:
        """It could not be reached, was too slow, failed or answered garbage."""
        if self._opened is not None:
            if turn == self._turn:
                self._change(now)
            return
        self._failed += 1
        if self._failed >= self._limit:
            self._change(now)

    def gone(self, turn: int) -> None:
        """Whoever called has gone away before anything was known."""
        if turn == self._turn:
            self._probing = False

    def _change(self, opened: float | None) -> None:
        self._opened, self._probing, self._failed = opened, False, 0
        self._turn += 1

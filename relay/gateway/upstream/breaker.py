"""When not to ask a provider: after failures in a row nobody asks it for a while, then one does, and the rest follow.

Pure: `now` comes in. What a call reports that was begun before the last change of state is not news, and is ignored; so
is a failure of one that was begun before the last good answer. Else a few slow questions of one device, which run out
of time together, would close a provider to all others, whom it answers meanwhile.
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
        self._probe: tuple[int, float] | None = None  # its turn, and when it was begun
        self._turn = 0  # counts changes of state, probes and good answers
        self._since = 0  # turn of the last change of state

    def state(self, now: float) -> State:
        if self._opened is None:
            return "closed"
        return "open" if now < self._opened + self._open_s else "half-open"

    def ask(self, now: float) -> int | None:
        """Whether it may be called: what to report by, or None. While half open, one call at a time may; one of which
        nothing is heard for `open_s` makes way for another, as slow questions would keep out everybody.
        """
        state = self.state(now)
        if state == "open":
            return None
        if state == "half-open":
            if self._probe is not None and now < self._probe[1] + self._open_s:
                return None
            self._turn += 1
            self._probe = self._turn, now
        return self._turn

    def began(self, turn: int) -> None:
        """The provider answers, if only to refuse."""
        if turn >= self._since and self._opened is not None:
            self._change(None)

    def ended(self, turn: int) -> None:
        """It has answered to the end."""
        self._failed = 0
        self._turn += 1

    def failed(self, turn: int, now: float) -> None:
        """It could not be reached, was too slow, failed or answered garbage."""
        if self._opened is not None:
            if turn >= self._since:
                self._change(now)
        elif turn == self._turn:
            self._failed += 1
            if self._failed >= self._limit:
                self._change(now)

    def gone(self, turn: int) -> None:
        """Whoever called has gone away before anything was known."""
        if self._probe is not None and turn == self._probe[0]:
            self._probe = None

    def _change(self, opened: float | None) -> None:
        self._opened, self._probe, self._failed = opened, None, 0
        self._turn += 1
        self._since = self._turn

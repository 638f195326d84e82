"""When to come back after a failure, and when to give up. Pure: time and dice are arguments.

Full jitter: the n-th pause is drawn evenly between nothing and a ceiling that doubles from 0.2 s to 30 s, so that many
edges which lost one hop do not come back as one.
"""

from typing import Final

from transport.errors import IdentityExpired, PeerRefused, ProtocolViolation, SignerFailed, TransportError

FIRST_CEILING_S: Final = 0.2
LAST_CEILING_S: Final = 30.0
SESSION_LIFETIME: Final = "session lifetime"  # the rule that IdentityExpired names when a session has run its time
_LATER: Final = ("overloaded", "shutdown")  # what a gateway says that may be otherwise in a minute


def worth_retrying(error: TransportError) -> bool:
    """Whether another link may succeed where this one failed.

    Bytes that a hop has garbled (ProtocolViolation, DecryptFailed) end a link, not a request. A refused identity is
    refused tomorrow, too.
    """
    if isinstance(error, PeerRefused):
        return error.reason in _LATER
    if isinstance(error, IdentityExpired):
        return error.rule == SESSION_LIFETIME
    return error.retryable or isinstance(error, ProtocolViolation)


def is_final(error: TransportError) -> bool:
    """Whether the gateway itself, under the session's keys, has said no, or this device cannot sign: then another way
    to it ends the same.
    """
    return isinstance(error, SignerFailed) or (
        isinstance(error, PeerRefused) and error.reason in ("refused", "revoked")
    )


def pause(attempt: int, dice: float) -> float:
    """Seconds before attempt number `attempt` (from 0); `dice` is evenly drawn from [0, 1)."""
    return dice * min(LAST_CEILING_S, FIRST_CEILING_S * 2.0 ** min(attempt, 16))


class Reconnect:
    """One outage: counts attempts up to a deadline. `give_up_s` is counted from the first failure."""

    def __init__(self, give_up_s: float) -> None:
        self._give_up_s = give_up_s
        self._attempt = 0
        self._deadline: float | None = None

    def next_pause(self, now: float, dice: float, *, not_after: float) -> float | None:
        """Seconds to wait before the next attempt; None: give up, the outage has lasted too long.

        No attempt begins at or after `not_after` (the request's expiry, on the clock of `now`).
        """
        if self._deadline is None:
            self._deadline = now + self._give_up_s
        end = min(self._deadline, not_after)
        if now >= end:
            return None
        wait = pause(self._attempt, dice)
        self._attempt += 1
        return min(wait, end - now)

    def over(self) -> None:
        """The outage has ended."""
        self._attempt, self._deadline = 0, None

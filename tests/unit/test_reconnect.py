"""The policy of coming back: bounds of the pauses, which failures pass, and the end of an outage."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from transport.errors import (
    BadInput,
    DecryptFailed,
    HandshakeTimeout,
    IdentityExpired,
    IdentityRefused,
    LinkLost,
    LocalMisuse,
    Overloaded,
    PeerRefused,
    ProtocolViolation,
    RequestRefused,
    TicketRefused,
    TransportError,
)
from transport.reconnect import LAST_CEILING_S, Reconnect, is_final, pause, worth_retrying


@given(st.integers(0, 10_000), st.floats(0, 1, exclude_max=True))
def test_pauses_are_within_a_growing_ceiling(attempt: int, dice: float) -> None:
    assert 0 <= pause(attempt, dice) <= min(LAST_CEILING_S, 0.2 * 2 ** min(attempt, 40))


def test_first_and_last_ceiling() -> None:
    assert pause(0, 0.999) == pytest.approx(0.2, rel=0.01)
    assert pause(50, 0.999) == pytest.approx(30, rel=0.01)


@pytest.mark.parametrize(("error", "worth"), [
    (LinkLost("x"), True),
    (HandshakeTimeout("x"), True),
    (Overloaded("x"), True),
    (TicketRefused("x"), True),
    (DecryptFailed(), True),
    (ProtocolViolation("x"), True),
    (IdentityExpired("x", rule="session lifetime"), True),
    (IdentityExpired("x", rule="validity"), False),
    (IdentityRefused("x", rule="role"), False),
    (PeerRefused("x", reason="overloaded"), True),
    (PeerRefused("x", reason="shutdown"), True),
    (PeerRefused("x", reason="refused"), False),
    (PeerRefused("x", reason="not_spoken_here"), False),
    (RequestRefused("x", status=403, reason="not_allowed", retryable=False), False),
    (BadInput("x"), False),
    (LocalMisuse("x"), False),
])
def test_what_is_worth_retrying(error: TransportError, worth: bool) -> None:
    assert worth_retrying(error) is worth
    assert is_final(error) is (isinstance(error, PeerRefused) and error.reason == "refused")


@given(st.lists(st.floats(0, 1, exclude_max=True), min_size=300, max_size=300), st.floats(1, 600))
def test_an_outage_ends_at_its_deadline(dice: list[float], give_up_s: float) -> None:
    outage, now = Reconnect(give_up_s), 1000.0
    for draw in dice:
        wait = outage.next_pause(now, draw, not_after=1e9)
        if wait is None:
            assert now >= 1000 + give_up_s - 1e-6
            break
        now += max(wait, 0.05)  # an attempt takes some time
        assert now <= 1000 + give_up_s + 0.06


def test_request_that_expires_first() -> None:
    outage = Reconnect(60)
    assert outage.next_pause(100.0, 0.5, not_after=100.05) == pytest.approx(0.05)
    assert outage.next_pause(100.05, 0.5, not_after=100.05) is None


def test_next_outage_begins_anew() -> None:
    outage = Reconnect(60)
    for _ in range(8):
        outage.next_pause(0.0, 0.9, not_after=1e9)
    assert outage.next_pause(60.0, 0.9, not_after=1e9) is None
    outage.over()
    assert outage.next_pause(500.0, 0.9, not_after=1e9) == pytest.approx(0.18)

"""What a link may use of a hop: the rate, the bytes on their way, patience, the order of gateways, blurred counts."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.hop.counters import Counters, rounded_up
from relay.hop.gateways import FIRST_REST_S, LONGEST_REST_S, Gateways
from relay.hop.quotas import (
    FAILURES_MAX,
    FORGET_S,
    FREE_FAILURES,
    LONGEST_PAUSE_S,
    SOURCES_MAX,
    Flight,
    Patience,
    Rate,
)


@given(st.lists(st.tuples(st.integers(1, 65_536), st.floats(0, 10)), max_size=50))
def test_who_waits_as_told_never_goes_over_the_rate_and_a_second_s_burst(sends: list[tuple[int, float]]) -> None:
    rate, now, sent = Rate(10_000, 0.0), 0.0, 0
    for size, idle in sends:
        sent += size
        now += rate.spend(size, now)
        assert sent <= 10_000 * (now + 1) * 1.000_001
        now += idle


def test_a_rate_leaves_a_second_s_worth_alone() -> None:
    rate = Rate(1000, 5.0)
    assert rate.spend(1000, 5.0) == 0
    assert rate.spend(500, 5.0) == 0.5
    assert rate.spend(1, 5.5) == pytest.approx(0.001)
    assert rate.spend(1000, 100.0) == 0, "an old debt is paid, and no credit is kept beyond a second's"
    assert rate.spend(1000, 100.0) == 1


def test_the_longest_wait_makes_room_for_new_bytes() -> None:
    flight, ended = Flight(100), list[str]()
    with flight.hold(60, lambda: ended.append("a")), flight.hold(40, lambda: ended.append("b")):
        assert (flight.size, ended) == (100, [])
        with flight.hold(50, lambda: ended.append("c")):
            assert (flight.size, ended) == (90, ["a"])
    assert (flight.size, flight.carried) == (0, 150)


def test_one_alone_may_hold_more_and_a_failure_carries_nothing() -> None:
    flight = Flight(10)
    with pytest.raises(RuntimeError), flight.hold(60, lambda: pytest.fail("it is the only one")):
        raise RuntimeError
    assert (flight.size, flight.carried) == (0, 0)


def test_patience_grows_thin_and_comes_back() -> None:
    patience = Patience()
    for _ in range(FREE_FAILURES):
        assert patience.pause("a", 0.0) == 0
        patience.failed("a", 0.0)
    pauses = []
    for _ in range(30):
        pauses.append(patience.pause("a", 0.0))
        patience.failed("a", 0.0)
    assert pauses == sorted(pauses) and pauses[0] > 0 and pauses[-1] == LONGEST_PAUSE_S
    assert patience.pause("b", 0.0) == 0
    later = FORGET_S * (FAILURES_MAX - FREE_FAILURES)
    assert 0 < patience.pause("a", later - 1) < 1 and patience.pause("a", later + 1) == 0
    patience.failed("a", 10 * later)
    assert patience.pause("a", 10 * later) == 0, "what was forgotten does not count again"


def test_patience_is_bounded() -> None:
    patience = Patience()
    for number in range(3 * SOURCES_MAX):
        patience.failed(str(number), 0.0)
    assert len(patience._failures) == SOURCES_MAX


def test_the_gateway_that_worked_last_comes_first_and_the_dead_rest() -> None:
    gateways = Gateways(["a", "b", "c", "b"])
    assert gateways.candidates(0) == gateways.all() == ["a", "b", "c"]
    gateways.failed("a", began=0, now=1)
    gateways.worked("b")
    assert (gateways.candidates(1), gateways.current) == (["b", "c"], "b")
    assert gateways.candidates(1 + FIRST_REST_S) == ["b", "a", "c"]
    assert gateways.all() == ["b", "c", "a"]


def test_the_rest_of_a_dead_gateway_grows_to_a_bound_and_ends_with_its_first_answer() -> None:
    gateways, now, rests = Gateways(["a"]), 0.0, list[float]()
    for _ in range(12):
        gateways.failed("a", began=now, now=now)
        start = now
        while not gateways.candidates(now):
            now += FIRST_REST_S / 2
        rests.append(now - start)
    assert rests[:3] == [FIRST_REST_S, 2 * FIRST_REST_S, 4 * FIRST_REST_S] and rests[-1] == LONGEST_REST_S
    gateways.worked("a")
    gateways.failed("a", began=now, now=now)
    assert gateways.candidates(now + FIRST_REST_S) == ["a"]


def test_a_hundred_attempts_under_way_when_it_died_count_as_one() -> None:
    gateways = Gateways(["a"])
    for number in range(100):
        gateways.failed("a", began=0.0, now=10 + number / 1000)
    assert gateways.candidates(10 + FIRST_REST_S) == ["a"]


@given(st.integers(0, 1 << 70))
def test_counts_are_rounded_up_to_powers_of_two(count: int) -> None:
    shown = rounded_up(count, 4)
    assert shown >= count and shown & (shown - 1) == 0
    assert shown in (0, 4) or shown < 2 * count


def test_one_link_more_or_less_does_not_show() -> None:
    def shown(links: int, carried: int) -> dict[str, Any]:
        counters = Counters(began=100.0)
        for _ in range(links):
            counters.arrived()
        return counters.blurred(now=100.0 + 3599, carried=carried, gateway="https://gw")

    assert shown(1, 1) == shown(4, 1 << 20) == {
        "links": 4, "links_since_start": 4, "bytes_since_start": 1 << 20, "uptime_h": 0, "gateway": "https://gw",
        "last_error": "",
    }
    assert shown(0, 0)["links"] == 0

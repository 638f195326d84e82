"""Token buckets: no window of time sees more than burst and rate allow, and no source gets a new bucket by a trick."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.gateway.admission import Admission
from relay.gateway.listening import Gate, HttpsLimits
from relay.rates import Rate, SourceBuckets, TokenBucket, take_all

PAUSES = st.one_of(st.just(0.0), st.floats(0.0, 5.0), st.floats(0.0, 100.0))
RATES = st.builds(Rate, st.floats(0.01, 50.0), st.integers(1, 20))


def within(rate: Rate, times: list[float]) -> bool:
    """Whether no window that begins with one of `times` and ends with another holds more than the rate allows."""
    return all(
        count <= rate.burst + rate.per_second * (times[first + count - 1] - times[first]) + 1e-6
        for first in range(len(times))
        for count in range(1, len(times) - first + 1)
    )


def test_a_bucket_fills_with_time_up_to_its_burst() -> None:
    bucket = TokenBucket(Rate(0.5, 3), 100.0)
    assert [bucket.take(100.0) for _ in range(4)] == [True, True, True, False]
    assert not bucket.take(101.9)
    assert bucket.take(102.0)
    assert [bucket.take(1e6) for _ in range(4)] == [True, True, True, False]
    assert not bucket.take(0.0)  # a clock that goes back
    assert bucket.take(2.0)


@given(RATES, st.lists(PAUSES, max_size=60))
def test_no_window_sees_more_than_burst_and_rate(rate: Rate, pauses: list[float]) -> None:
    now, bucket, taken = 0.0, TokenBucket(rate, 0.0), []
    for pause in pauses:
        now += pause
        if bucket.take(now):
            taken.append(now)
    assert within(rate, taken)
    assert bool(taken) is bool(pauses)


@given(
    st.builds(Rate, st.floats(0.01, 5.0), st.integers(1, 2)),
    st.lists(st.tuples(st.sampled_from([0.0, 0.0, 0.0, 0.3, 2.0, 500.0]), st.sampled_from("abcd")), min_size=10),
)
def test_a_table_that_is_full_gives_nobody_a_new_bucket(rate: Rate, asked: list[tuple[float, str]]) -> None:
    """Each source within its rate, those who find no room within one rate together; never more than two buckets."""
    now, table, taken = 0.0, SourceBuckets(rate, 0.0, sources_max=2), dict[str, list[float]]()
    for pause, source in asked:
        now += pause
        bucket = table.of(source, now)
        assert len(table) <= 2
        if bucket.take(now):
            taken.setdefault("others" if bucket is table._others else source, []).append(now)
    assert all(within(rate, times) for times in taken.values())


def test_a_source_is_forgotten_only_when_its_bucket_is_full_again() -> None:
    table = SourceBuckets(Rate(1, 2), 0.0, sources_max=2)
    for source in "ab":
        assert [table.of(source, 0.0).take(0.0) for _ in range(3)] == [True, True, False]
    assert [table.of(source, 1.9).take(1.9) for source in "cde"] == [True, True, False], "one bucket for them all"
    assert [table.of("a", 1.9).take(1.9) for _ in range(2)] == [True, False], "no new one"
    assert table.of("c", 9.0) is not table._others
    assert len(table) == 2


def test_taking_of_several_takes_of_all_or_of_none() -> None:
    first, second, third = (TokenBucket(Rate(1, burst), 0.0) for burst in (3, 2, 1))
    assert take_all(first, second, third, now=0.0)
    assert not take_all(first, second, third, now=0.0)
    assert take_all(first, second, now=0.0)
    assert not take_all(first, second, now=0.0)
    assert first.take(0.0) and not first.take(0.0)


def full(admission: Admission, source: str, now: float = 0.0, *, direct: bool = True) -> int:
    count = 0
    while admission.full(source, now, direct=direct):
        count += 1
    return count


def test_H15_shares_of_full_handshakes_by_default() -> None:
    """20 a second of one address, 100 of one hop, 400 in all, of which no address has the hops' quarter."""
    admission = Admission(400, 0.0)
    assert (full(admission, "192.0.2.1"), full(admission, "192.0.2.1", 1.0)) == (60, 20)
    admission = Admission(400, 0.0)
    assert (full(admission, "hop/a", direct=False), full(admission, "hop/a", 1.0, direct=False)) == (300, 100)
    admission = Admission(400, 0.0)
    assert sum(full(admission, f"192.0.2.{number}") for number in range(100)) == 900
    assert sum(full(admission, f"hop/{number}", direct=False) for number in range(3)) == 300
    assert sum(full(admission, f"192.0.2.{number}", 1.0) for number in range(100)) == 300


def test_H15_tickets_have_buckets_of_their_own() -> None:
    admission = Admission(4, 0.0)
    assert sum(full(admission, f"hop/{number}", direct=False) for number in range(9)) == 12
    assert sum(admission.resumed("hop/1", 0.0) for _ in range(9)) == 3
    assert admission.resumed("192.0.2.1", 0.0)
    assert full(admission, "hop/10", direct=False) == 0


@pytest.mark.parametrize("per_second", [1, 0.1])
def test_the_smallest_rate_lets_somebody_in(per_second: float) -> None:
    assert full(Admission(per_second, 0.0), "192.0.2.1") == 1


def test_H15_tls_handshakes_are_counted_by_address() -> None:
    gate = Gate(HttpsLimits(per_second=4, per_second_of_source=1))

    def begun(source: str, now: float) -> int:
        return sum(gate.take_handshake(source, now) for _ in range(20))

    assert [begun(source, 5.0) for source in ("a", "b", "c", "d", "e")] == [3, 3, 3, 3, 0]
    assert [begun(source, 6.0) for source in ("a", "e")] == [1, 3]

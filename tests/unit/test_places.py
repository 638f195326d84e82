"""Places for strangers: a total, a share for each source, and what counts as one source."""

import pytest

from relay.places import Places, source_of, source_of_link


def test_no_source_has_more_than_its_share_and_all_no_more_than_the_total() -> None:
    places = Places(5, 2)
    assert [places.take("a") for _ in range(3)] == [True, True, False]
    assert [places.take(name) for name in ("b", "b", "c", "d")] == [True, True, True, False]
    places.leave("a")
    assert places.take("d")
    assert places.taken == 5


def test_a_source_may_be_given_another_share() -> None:
    places = Places(5, 1)
    assert [places.take("unix:/s", share=3) for _ in range(4)] == [True, True, True, False]


def test_nothing_is_kept_of_who_has_left_or_never_came_in() -> None:
    places = Places(1, 1)
    assert places.take("a")
    for number in range(100):
        assert not places.take(f"stranger {number}")
    places.leave("a")
    assert places.taken == 0
    assert not places._by_source


@pytest.mark.parametrize(("one", "other", "same"), [
    ("192.0.2.1", "192.0.2.1", True), ("192.0.2.1", "192.0.2.2", False),
    ("2001:db8::1", "2001:db8:0:0:ffff::2", True), ("2001:db8::1", "2001:db8:0:1::1", False),
    ("::ffff:192.0.2.1", "192.0.2.1", True), ("::ffff:192.0.2.1", "::ffff:192.0.2.2", False),
    ("fe80::1%eth0", "fe80::2%eth0", True), ("no address", "no address", True),
])
def test_what_counts_as_one_source(one: str, other: str, same: bool) -> None:
    assert (source_of(one) == source_of(other)) is same


def test_sources_of_links() -> None:
    assert source_of_link("tcp:192.0.2.1:4711") == source_of_link("tcp:192.0.2.1:4712") == "192.0.2.1"
    assert source_of_link("tcp:2001:db8::1:4711") == source_of("2001:db8::1")
    assert source_of_link("unix:/run/hop.sock") == "unix:/run/hop.sock"

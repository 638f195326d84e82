"""A gateway's tickets leave its memory: when their time is over, or when there are too many."""

from tests.support.gateway_lab import peer
from transport.primitives import Secret
from transport.tickets import Ticket, TicketStore


def family(name: int, not_after: float) -> list[Ticket]:
    holder = peer()
    return [Ticket(bytes([name, index]) * 8, Secret(bytes(32)), holder, not_after) for index in range(4)]


def test_a_ticket_whose_time_is_over_is_forgotten_with_its_siblings() -> None:
    store = TicketStore()
    store.put(family(1, 1_000.0), 0.0)
    store.put(family(2, 1_500.0), 500.0)
    assert len(store) == 8
    store.put(family(3, 2_000.0), 1_000.0)
    assert len(store) == 8  # the first family is not only refused, it is gone
    assert store.find(family(2, 0)[0].id, 1_000.0) is not None
    store.put(family(4, 9_000.0), 5_000.0)
    assert len(store) == 4


def test_what_is_left_of_a_used_family_is_forgotten_too() -> None:
    store = TicketStore()
    first = family(1, 1_000.0)
    store.put(first, 0.0)
    store.consume(first[0].id)
    assert len(store) == 3
    store.put(family(2, 3_000.0), 2_000.0)
    assert len(store) == 4
    assert store.find(first[1].id, 0.0) is None


def test_there_are_never_more_families_than_allowed() -> None:
    store = TicketStore(families_max=3)
    for name in range(9):
        store.put(family(name, 10_000.0), float(name))
    assert len(store) == 12
    assert store.find(family(8, 0)[0].id, 10.0) is not None and store.find(family(5, 0)[0].id, 10.0) is None

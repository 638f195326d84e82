"""Which way to the gateway comes first: by what became of each, and by kind where nothing is known."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_client.ways import CountedLink, Traffic, Ways
from tests.support.memory_link import memory_links
from transport.links.base import Endpoint

TCP, OTHER, WSS, BLE, UNIX, SIM_BLE = map(Endpoint.parse, (
    "tcp:10.0.0.1:1", "tcp:10.0.0.2:1", "wss://hop.example", "ble:", "unix:/run/hop", "sim:mobile-4g@ble:field",
))


def test_nothing_is_known_so_kind_decides_and_among_equals_who_was_named_first() -> None:
    assert Ways().order([BLE, SIM_BLE, WSS, OTHER, TCP, UNIX], 0) == [UNIX, OTHER, TCP, WSS, BLE, SIM_BLE]


def test_what_works_stays_first_until_another_is_clearly_better() -> None:
    ways = Ways()
    ways.succeeded(OTHER, 0.3)
    assert ways.order([TCP, OTHER], 0) == [OTHER, TCP], "0.2 s is what such a way usually takes, and not clearly less"
    ways.succeeded(TCP, 0.16)
    ways.worked = OTHER
    assert ways.order([TCP, OTHER], 0)[0] == OTHER
    ways.succeeded(TCP, 0.05)  # 0.105 by now
    ways.worked = OTHER
    assert ways.order([OTHER, TCP], 0)[0] == TCP
    ways.succeeded(BLE, 1.4)
    assert ways.order([BLE, WSS], 0) == [WSS, BLE], "a kind that is faster, though nobody has tried this one"


def test_what_fails_comes_last_and_longer_each_time() -> None:
    ways = Ways()
    for rest in (30, 60, 120, 240, 480, 960, 960):
        ways.failed(TCP, 1000)
        assert ways.order([TCP, BLE], 1000 + rest - 1) == [BLE, TCP]
        assert ways.order([TCP, BLE], 1000 + rest) == [TCP, BLE]
    ways.failed(BLE, 1500)
    assert ways.order([TCP, BLE], 1501) == [BLE, TCP], "the one whose rest is over first"
    ways.succeeded(TCP, 0.1)
    assert ways.order([TCP, BLE], 1501) == [TCP, BLE]
    ways.failed(TCP, 1600)
    assert ways.order([TCP], 1629)[0] == TCP and ways.told(TCP).state == "failed"
    assert ways.order([TCP, UNIX], 1630) == [TCP, UNIX], "one success makes up for all before it"


def test_the_way_that_worked_is_tried_though_nobody_names_it() -> None:
    ways = Ways()
    ways.succeeded(OTHER, 0.1)
    assert ways.order([TCP], 0) == [OTHER, TCP]


def test_what_a_person_is_told() -> None:
    ways = Ways()
    ways.succeeded(TCP, 0.1)
    ways.succeeded(TCP, 0.3)
    ways.failed(BLE, 0)
    assert [(way.endpoint, way.state, way.opened_ms) for way in map(ways.told, (TCP, BLE, WSS))] == [
        ("tcp:10.0.0.1:1", "worked", 200), ("ble:", "failed", None), ("wss://hop.example", "untried", None),
    ]


_ENDPOINTS = st.sampled_from([TCP, OTHER, WSS, BLE, UNIX, SIM_BLE])


@given(st.lists(st.tuples(_ENDPOINTS, st.booleans(), st.floats(0, 60))), st.lists(_ENDPOINTS), st.floats(0, 1e6))
def test_every_way_is_tried_once(
    history: list[tuple[Endpoint, bool, float]], asked: list[Endpoint], now: float
) -> None:
    ways = Ways()
    for endpoint, good, at in history:
        if good:
            ways.succeeded(endpoint, at)
        else:
            ways.failed(endpoint, at)
    order = ways.order(asked, now)
    assert len(order) == len(set(order)) and set(asked) <= set(order) <= {*asked, ways.worked}


async def test_links_are_counted_and_the_first_round_trip_is_taken() -> None:
    now, traffic = 10.0, Traffic()
    ours, theirs = memory_links()
    link = CountedLink(ours, traffic, lambda: now)
    assert link.peer == ours.peer
    await link.send(b"hello")
    assert (await theirs.receive(), traffic.round_trip_s) == (b"hello", None)
    now = 10.25
    await theirs.send(b"you")
    assert await link.receive() == b"you"
    assert traffic.round_trip_s == pytest.approx(0.25)
    now = 60.0
    await theirs.send(b"more")
    await link.receive()
    assert (traffic.sent, traffic.received) == (5, 7) and traffic.round_trip_s == pytest.approx(0.25)
    await link.close()
    assert await theirs.receive() == b""

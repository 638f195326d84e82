"""The trace store: joined by trace and link id, bounded, and no sender can speak for another."""

import asyncio
import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.gateway import trace
from relay.gateway.state.sqlcipher import open_state
from relay.gateway.trace import HopNote, TraceStore, parse_note
from relay.gateway.tunnels import TunnelNotes
from tests.support.gateway_lab import PASSPHRASE, Clock
from transport.messages import SpanRecord

TRACE, LINK = "a" * 32, "b" * 16
EDGE, OTHER, HOP = "spiffe://field.example/edge/a", "spiffe://field.example/edge/b", "spiffe://field.example/hop/h"


def span(name: str, number: int = 1, *, role: str = "gateway", trace_id: str = TRACE, **attributes: str) -> SpanRecord:
    return SpanRecord(trace_id, f"{number:016x}", "", name, role, 1000.0 + number, 1001.0 + number, attributes)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def store(made: Path, tmp_path: Path, clock: Clock) -> AsyncIterator[TraceStore]:
    shutil.copytree(made, tmp_path / "gateway")
    with open_state(tmp_path / "gateway", PASSPHRASE) as database:
        yield TraceStore(database, clock=clock)


async def test_spans_of_all_roles_join(store: TraceStore) -> None:
    own = [span("request", 2, **{"causeway.link.id": LINK}), span("call", 3, role="provider")]
    await store.save(TRACE, EDGE, LINK, own)
    await store.add_from_edge(EDGE, [span("ask", 1, role="edge")])
    await store.note(HOP, HopNote(LINK, 1001.5, 1009.0, 10, 20))
    found = await store.find(TRACE)
    assert [(one.role, one.name) for one in found] == [
        ("edge", "ask"), ("hop", "tunnel"), ("gateway", "request"), ("provider", "call")
    ]
    assert found[1].attributes["causeway.node"] == HOP
    assert (found[1].attributes["causeway.bytes.in"], found[1].attributes["causeway.bytes.out"]) == (10, 20)
    assert await store.find("c" * 32) == []


async def test_M12_a_later_note_replaces_an_earlier_one_of_the_same_hop_only(store: TraceStore) -> None:
    await store.save(TRACE, EDGE, LINK, [span("request")])
    await store.note(HOP, HopNote(LINK, 1.0, 2.0, 1, 1))
    await store.note("spiffe://field.example/hop/liar", HopNote(LINK, 1.0, 2.0, 99, 99))
    await store.note(HOP, HopNote(LINK, 1.0, 5.0, 7, 8))
    (tunnel,) = [one for one in await store.find(TRACE) if one.role == "hop"]
    assert (tunnel.attributes["causeway.node"], tunnel.attributes["causeway.bytes.in"]) == (HOP, 7)


async def test_M12_a_hop_that_claims_another_s_link_id_changes_nothing(store: TraceStore) -> None:
    """The gateway hashes what came through a tunnel itself; a note counts for that link alone, and only once known."""
    await store.save(TRACE, EDGE, LINK, [span("request")])
    lie = f'{{"link":"{LINK}","start_ms":1.0,"end_ms":2.0,"up":99,"down":99}}'
    for own in ("", "c" * 16):
        tunnel = TunnelNotes("spiffe://field.example/hop/liar", store)
        tunnel.take(lie)
        tunnel.bind(own)
        await tunnel.save()
    assert [one.role for one in await store.find(TRACE)] == ["gateway"]
    honest = TunnelNotes(HOP, store)
    honest.bind(LINK)
    honest.take(lie)
    await honest.save()
    assert [one.role for one in await store.find(TRACE)] == ["hop", "gateway"]


async def test_an_edge_adds_to_its_own_traces_only(store: TraceStore) -> None:
    await store.save(TRACE, EDGE, LINK, [span("request")])
    assert await store.add_from_edge(OTHER, [span("lie", 9)]) == 0
    assert await store.add_from_edge(EDGE, [span("mine", 9), span("other", 8, trace_id="d" * 32)]) == 1
    assert [one.name for one in await store.find(TRACE)] == ["request", "mine"]


async def test_an_edge_cannot_overwrite_or_pose(store: TraceStore) -> None:
    await store.save(TRACE, EDGE, LINK, [span("request", 1)])
    await store.add_from_edge(EDGE, [span("fake", 1, prompt="CANARY", **{"causeway.node": HOP})])
    own, claimed = sorted(await store.find(TRACE), key=lambda one: one.name, reverse=True)
    assert (own.name, own.role) == ("request", "gateway")
    assert (claimed.name, claimed.role) == ("fake", "edge")
    assert claimed.attributes == {"causeway.node": EDGE}


async def test_one_sender_s_spans_of_one_trace_are_bounded(store: TraceStore) -> None:
    await store.save(TRACE, EDGE, LINK, [span("request")])
    for start in range(100, 300, 20):
        await store.add_from_edge(EDGE, [span("many", start + number) for number in range(20)])
    assert len(await store.find(TRACE)) == 1 + trace.PER_TRACE_MAX


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
async def test_numbers_that_are_none_are_not_kept(store: TraceStore, value: float) -> None:
    await store.save(TRACE, EDGE, LINK, [span("request")])
    bad = SpanRecord(TRACE, "9" * 16, "", "bad", "edge", value, 2.0, {})
    worse = SpanRecord(TRACE, "8" * 16, "", "worse", "edge", 1.0, 2.0, {"causeway.bytes.in": value})
    assert await store.add_from_edge(EDGE, [bad, worse, span("good", 7)]) == 1
    assert [one.name for one in await store.find(TRACE)] == ["request", "good"]


async def test_old_traces_go(store: TraceStore, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trace, "_PRUNE_EVERY", 1)
    await store.save(TRACE, EDGE, LINK, [span("request")])
    clock.now += 8 * 86_400
    await store.save("e" * 32, EDGE, LINK, [span("request", trace_id="e" * 32)])
    assert await store.find(TRACE) == []
    assert len(await store.find("e" * 32)) == 1


async def test_what_waits_is_found_and_of_too_much_the_oldest_gives_way(store: TraceStore) -> None:
    ids = [f"{number:032x}" for number in range(trace.WAITING_MAX + 1)]
    for one in ids:
        await store.save(one, EDGE, LINK, lambda one=one: [span("request", trace_id=one)])  # type: ignore[misc]
    assert await store.add_from_edge(EDGE, [span("ask", 9, trace_id=ids[-1])]) == 1  # for which another one gives way
    assert store.dropped == 2
    assert [len(await store.find(one)) for one in (ids[0], ids[1], ids[2], ids[-1])] == [0, 0, 1, 2]


def test_a_hop_s_note_as_hops_write_it() -> None:
    note = parse_note(f'{{"link":"{LINK}","start_ms":1.5,"end_ms":2.0,"up":3,"down":4,"final":true}}')
    assert note == HopNote(LINK, 1.5, 2.0, 3, 4)


@pytest.mark.parametrize("text", [
    f'{{"link":"{LINK}\\n","start_ms":1.5,"end_ms":2.0,"up":3,"down":4}}',
    f'{{"link":"{LINK}","start_ms":NaN,"end_ms":2.0,"up":3,"down":4}}',
    f'{{"link":"{LINK}","start_ms":1.5,"end_ms":1e999,"up":3,"down":4}}',
    f'{{"link":"{LINK}","start_ms":1.5,"end_ms":2.0,"up":-3,"down":4}}',
])
def test_a_note_that_is_almost_one_is_none(text: str) -> None:
    assert parse_note(text) is None


@given(st.text(max_size=100))
def test_no_note_breaks_anything(text: str) -> None:
    assert parse_note(text) is None


async def test_where_most_give_way_they_are_written_less_often(
    store: TraceStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trace, "_EVERY_S", 1e3)
    monkeypatch.setattr(trace, "_BUSY_S", 1e6)
    loop = asyncio.get_running_loop()

    async def until_next(lost: int) -> float:
        for number in range(trace.WAITING_MAX - len(store._waiting) + lost):
            await store.save(f"{number:032x}", EDGE, LINK, [])
        await store._flush(trace._AT_ONCE)
        assert store._timer is not None
        return store._timer.when() - loop.time()

    assert await until_next(0) < 1e4
    assert await until_next(3 * trace._AT_ONCE + 1) > 1e5
    assert await until_next(3 * trace._AT_ONCE) < 1e4  # as many as there is room for, written as often as before

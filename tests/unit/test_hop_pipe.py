"""The hop's pipe between in-memory links: it copies, counts, stops, and can do nothing else."""

import asyncio
import json
import os
from typing import Any

import pytest

from relay.hop.pipe import Pipe, PipeLimits, PipeReport, link_id
from relay.hop.quotas import Flight
from tests.support.memory_link import MemoryLink, memory_links
from transport.errors import LinkLost
from transport.links import virtual_time
from transport.primitives import sha256


class FakeTunnel(MemoryLink):
    """A memory link that keeps the notes it is sent."""

    notes: list[dict[str, Any]]

    async def send_note(self, text: str) -> None:
        self._check()
        assert len(text) <= 4096
        self.notes.append(json.loads(text))


class Setting:
    """edge <-> (hop's edge link | pipe | hop's tunnel) <-> gateway."""

    def __init__(self, **limits: Any) -> None:
        self.edge, hop_edge = memory_links()
        tunnel, self.gateway = memory_links(record=True)
        tunnel.__class__ = FakeTunnel
        assert isinstance(tunnel, FakeTunnel)
        tunnel.notes = self.notes = []
        self.tunnel, self.hop_edge = tunnel, hop_edge
        self.now = 1000.0
        self.pipe = Pipe(hop_edge, tunnel, PipeLimits(**limits), clock=lambda: self.now)

    def start(self) -> "asyncio.Task[PipeReport]":
        return asyncio.create_task(self.pipe.run())


async def drain(link: MemoryLink, count: int) -> bytes:
    data = b""
    while len(data) < count:
        part = await link.receive()
        assert part
        data += part
    return data


async def test_bytes_cross_unchanged_both_ways() -> None:
    s = Setting()
    running = s.start()
    up, down = os.urandom(500_000), os.urandom(700_000)
    results = await asyncio.gather(
        s.edge.send(up), s.gateway.send(down), drain(s.gateway, len(up)), drain(s.edge, len(down)))
    assert results[2] == up and results[3] == down
    await s.edge.close()
    report = await running
    assert report == PipeReport("edge", link_id(up), len(up), len(down))
    assert bytes(s.tunnel.sent) == up  # nothing of the hop's own is among the bytes
    assert await s.gateway.receive() == b""


async def test_the_link_id_is_a_hash_of_the_first_64_bytes_however_they_come() -> None:
    start = bytes(range(100))
    want = sha256(b"causeway link" + start[:64])[:8].hex()
    assert link_id(start) == want
    s = Setting(note_every_s=0.0)
    running = s.start()
    for at in range(100):
        await s.edge.send(start[at:at + 1])
    assert await drain(s.gateway, 100) == start
    await s.edge.close()
    assert (await running).link_id == want
    assert {note["link"] for note in s.notes} == {want}


async def test_notes_tell_times_and_sizes_and_the_last_one_is_final() -> None:
    s = Setting(note_every_s=0.0)
    running = s.start()
    await s.edge.send(bytes(80))
    await drain(s.gateway, 80)
    s.now = 1002.5
    await s.gateway.send(bytes(1000))
    await drain(s.edge, 1000)
    await s.edge.close()
    await running
    first, last = s.notes[0], s.notes[-1]
    assert first["final"] is False and (first["start_ms"], first["up"]) == (1_000_000, 80)
    assert last == {"link": link_id(bytes(80)), "start_ms": 1_000_000, "end_ms": 1_002_500, "up": 80, "down": 1000,
                    "final": True}
    assert [note["final"] for note in s.notes].count(True) == 1


async def test_notes_are_rare_while_there_is_traffic() -> None:
    s = Setting(note_every_s=3600.0)
    running = s.start()
    for _ in range(50):
        await s.edge.send(bytes(100))
        await drain(s.gateway, 100)
    await s.edge.close()
    await running
    assert [note["final"] for note in s.notes] == [False, True]


async def test_no_note_without_a_link_id() -> None:
    s = Setting(note_every_s=0.0)
    running = s.start()
    await s.edge.send(bytes(63))
    await drain(s.gateway, 63)
    await s.edge.close()
    assert (await running).link_id == "" and s.notes == []


async def test_the_gateways_end_closes_the_edge_after_its_last_byte() -> None:
    s = Setting()
    running = s.start()
    await s.gateway.send(b"last words")
    await s.gateway.close()
    assert await s.edge.receive() == b"last words"
    assert await s.edge.receive() == b""
    assert (await running).reason == "gateway"


async def test_a_refused_handshake_is_told_from_an_end_and_its_hint_arrives() -> None:
    s = Setting()
    running = s.start()
    await s.gateway.send(b"\x04\x01")
    await s.gateway.close("error")
    assert await s.edge.receive() == b"\x04\x01"
    assert await s.edge.receive() == b""
    assert (await running).reason == "refused"


@pytest.mark.parametrize("side", ["edge", "gateway"])
async def test_a_broken_side_ends_the_other(side: str) -> None:
    s = Setting()
    running = s.start()
    await s.edge.send(b"x")
    await drain(s.gateway, 1)
    await getattr(s, side).abort()
    assert (await running).reason == side
    other = s.gateway if side == "edge" else s.edge
    assert await other.receive() == b""
    with pytest.raises(LinkLost):
        await other.send(b"x")


async def test_the_byte_limit_holds_and_nothing_beyond_it_passes() -> None:
    s = Setting(max_bytes=1000)
    running = s.start()
    await s.edge.send(bytes(900))
    await drain(s.gateway, 900)
    await s.edge.send(bytes(101))
    report = await running
    assert (report.reason, report.up) == ("bytes", 900)
    with pytest.raises(LinkLost) as told:
        await s.edge.receive()
    assert told.value.reason == "limit"
    assert await s.gateway.receive() == b""


async def test_an_idle_pipe_ends() -> None:
    s = Setting(idle_s=0.01)
    assert (await s.start()).reason == "idle"
    with pytest.raises(LinkLost) as told:
        await s.edge.receive()
    assert told.value.reason == "idle"
    assert await s.gateway.receive() == b""


async def test_a_stalled_reader_stalls_the_sender_and_is_idle_in_the_end() -> None:
    s = Setting(idle_s=0.05)
    running = s.start()
    with pytest.raises(LinkLost):
        for _ in range(1000):
            await s.gateway.send(bytes(64 * 1024))  # nobody reads at the edge
    assert (await running).reason == "idle"
    assert len(s.tunnel.sent) == 0


def test_who_trickles_is_never_idle_but_ends_by_time() -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        s = Setting(idle_s=300.0, max_s=6 * 3600.0)
        running, began = s.start(), loop.time()
        with pytest.raises(LinkLost):
            for _ in range(7 * 60):
                await s.edge.send(b"x")
                await drain(s.gateway, 1)
                await asyncio.sleep(60)
        assert (await running).reason == "time"
        assert 6 * 3600 <= loop.time() - began < 6 * 3600 + 61

    virtual_time.run(main())


def test_a_peer_that_takes_nothing_ends_though_the_other_goes_on() -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        s = Setting(idle_s=300.0, stuck_s=120.0)
        running, began = s.start(), loop.time()
        flood = asyncio.create_task(s.gateway.send(bytes(1 << 20)))  # nobody reads at the edge
        with pytest.raises(LinkLost):
            for _ in range(300):
                await s.edge.send(b"x")
                await asyncio.sleep(1)
        assert (await running).reason == "stuck"
        await asyncio.gather(flood, return_exceptions=True)
        assert 120 <= loop.time() - began < 122

    virtual_time.run(main())


def test_the_rate_holds_for_both_directions_together() -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        s = Setting(max_rate=100_000.0)
        running, began = s.start(), loop.time()
        await asyncio.gather(
            s.edge.send(bytes(500_000)), s.gateway.send(bytes(500_000)), drain(s.gateway, 500_000),
            drain(s.edge, 500_000))
        assert 8 < loop.time() - began < 11
        await s.edge.close()
        await running

    virtual_time.run(main())


async def test_bytes_that_nobody_takes_give_way_to_those_of_others() -> None:
    flight = Flight(200_000)
    stuck, other = Setting(), Setting()
    for s in (stuck, other):
        s.pipe = Pipe(s.hop_edge, s.tunnel, PipeLimits(), flight=flight)
    running, second = stuck.start(), other.start()
    flood = asyncio.create_task(stuck.gateway.send(bytes(1 << 20)))  # nobody reads at its edge
    while flight.size < 65_536:  # noqa: ASYNC110 - a full link is what is waited for
        await asyncio.sleep(0)
    data = os.urandom(1 << 20)
    sending = asyncio.create_task(other.gateway.send(data))
    assert await drain(other.edge, len(data)) == data
    assert not running.done(), "there was room"
    flight._max_bytes = 65_536
    sending = asyncio.create_task(other.gateway.send(data))
    assert await drain(other.edge, len(data)) == data
    async with asyncio.timeout(60):
        assert (await running).reason == "crowded"
    await asyncio.gather(flood, sending, return_exceptions=True)
    await other.edge.close()
    assert (await second).reason == "edge"


async def test_cancelling_closes_both_sides() -> None:
    s = Setting()
    running = s.start()
    await s.edge.send(bytes(64))
    await drain(s.gateway, 64)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert await s.edge.receive() == b"" and await s.gateway.receive() == b""
    assert s.notes[-1]["final"] is True


async def test_what_the_edge_sent_before_the_tunnel_was_there_comes_first() -> None:
    s = Setting()
    s.pipe = Pipe(s.hop_edge, s.tunnel, PipeLimits(), first=b"first ", clock=lambda: s.now)
    running = s.start()
    await s.edge.send(b"second")
    assert await drain(s.gateway, 12) == b"first second"
    await s.edge.close()
    assert (await running).up == 12

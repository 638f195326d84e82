"""The timing model alone: packets that cross an air, without Bluetooth."""

import asyncio
import random
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.virtually import in_virtual_time
from transport.links import virtual_time
from transport.links.virtual_air import PHYS, Air, Antenna, Phy, Sky

CONTINUOUS = Phy(rate_bps=1e6, overhead_us=460)
EVENTS = PHYS["1m"]


class Lab:
    """One connection or more; `crossed` is a list of (loop time since the start, side, packet)."""

    def __init__(self, phy: Phy, *, seed: int = 1) -> None:
        self.sky = Sky(phy, random.Random(seed))
        self.loop = asyncio.get_running_loop()
        self.start = self.loop.time()
        self.crossed: list[tuple[float, object, object]] = []
        self.lost: list[tuple[float, object]] = []

    @property
    def now(self) -> float:
        return self.loop.time() - self.start

    def join(self, central: Antenna, peripheral: Antenna, name: str = "") -> Air:
        def lost() -> None:
            self.lost.append((self.now, name))
            air.close()

        air = Air(self.sky, (central, lambda packet: self.crossed.append((self.now, name + "up", packet))),
                  (peripheral, lambda packet: self.crossed.append((self.now, name + "down", packet))), lost)
        return air


@in_virtual_time
async def test_a_packet_takes_its_air_time_and_what_belongs_to_an_exchange() -> None:
    lab = Lab(CONTINUOUS)
    lab.join(Antenna(), Antenna()).submit(0, "a", 251)
    await asyncio.sleep(1)
    assert lab.crossed == [(pytest.approx(251 * 8e-6 + 460e-6), "up", "a")]


@in_virtual_time
async def test_an_idle_connection_waits_for_its_next_event_and_then_goes_on_without_a_gap() -> None:
    lab = Lab(EVENTS)
    air = lab.join(Antenna(), Antenna())
    await asyncio.sleep(0.1)
    for number in range(3):
        air.submit(0, number, 251)
    await asyncio.sleep(1)
    once = EVENTS.exchange_s(251, 0)
    assert [at for at, _, _ in lab.crossed] == pytest.approx([0.12 + once, 0.12 + 2 * once, 0.12 + 3 * once])


@in_virtual_time
async def test_both_directions_share_the_air() -> None:
    lab = Lab(CONTINUOUS)
    air = lab.join(Antenna(), Antenna())
    for number in range(10):
        air.submit(0, number, 251)
        air.submit(1, number, 251)
    await asyncio.sleep(1)
    assert len(lab.crossed) == 20
    assert lab.crossed[-1][0] == pytest.approx(10 * (2 * 251 * 8e-6 + 460e-6))


@in_virtual_time
async def test_no_more_packets_than_allowed_leave_in_one_event() -> None:
    lab = Lab(PHYS["ios"])
    air = lab.join(Antenna(), Antenna())
    for number in range(10):
        air.submit(0, number, 189)
    await asyncio.sleep(1)
    assert [int(at / 0.03) for at, _, _ in lab.crossed] == [1] * 4 + [2] * 4 + [3] * 2


@in_virtual_time
async def test_connections_of_one_device_take_turns() -> None:
    lab = Lab(CONTINUOUS)
    hop = Antenna()
    airs = [lab.join(Antenna(), hop, name) for name in "abc"]
    for air in airs:
        for number in range(20):
            air.submit(0, number, 251)
    await asyncio.sleep(1)
    assert lab.crossed[-1][0] == pytest.approx(60 * CONTINUOUS.exchange_s(251, 0))
    for turn in range(0, 60, 3):
        assert {side for _, side, _ in lab.crossed[turn:turn + 3]} == {"aup", "bup", "cup"}


@in_virtual_time
async def test_connections_of_different_devices_do_not() -> None:
    lab = Lab(CONTINUOUS)
    for name in "ab":
        air = lab.join(Antenna(), Antenna(), name)
        for number in range(20):
            air.submit(0, number, 251)
    await asyncio.sleep(1)
    assert lab.crossed[-1][0] == pytest.approx(20 * CONTINUOUS.exchange_s(251, 0))


@in_virtual_time
async def test_silence_ends_a_connection_and_a_short_one_only_delays() -> None:
    lab = Lab(EVENTS)
    away = Antenna()
    air = lab.join(Antenna(), away)
    away.in_range = False
    air.reach_changed()
    air.submit(0, "late", 251)
    await asyncio.sleep(3)
    away.in_range = True
    air.reach_changed()
    await asyncio.sleep(1)
    assert [packet for _, _, packet in lab.crossed] == ["late"]
    assert lab.crossed[0][0] > 3
    away.in_range = False
    air.reach_changed()
    await asyncio.sleep(10)
    assert lab.lost == [(pytest.approx(8.0), "")]


@in_virtual_time
async def test_nothing_but_errors_is_silence_too() -> None:
    lab = Lab(replace(EVENTS, per=1.0))
    lab.join(Antenna(), Antenna()).submit(0, "never", 251)
    await asyncio.sleep(10)
    assert lab.crossed == []
    assert [at for at, _ in lab.lost] == [pytest.approx(4.03, abs=0.1)]


@in_virtual_time
async def test_a_host_that_does_not_read_holds_back_its_peer_for_a_while() -> None:
    lab = Lab(EVENTS)
    slow = Antenna()
    air = lab.join(Antenna(), slow)
    expected: list[str] = []
    for number, full in enumerate((True, False, True)):
        slow.full = full
        air.reach_changed()
        air.submit(0, f"up {number}", 251)
        air.submit(1, f"down {number}", 251)
        await asyncio.sleep(3.9)
        expected += [f"down {number}"] + ([] if full else ["up 0", "up 1"])
        assert sorted(str(packet) for _, _, packet in lab.crossed) == sorted(expected)
    assert lab.lost == []
    await asyncio.sleep(0.2)
    assert lab.lost == [(pytest.approx(2 * 3.9 + 4.0), "")]


@in_virtual_time
async def test_a_closed_connection_leaves_the_air_to_others() -> None:
    lab = Lab(CONTINUOUS)
    hop = Antenna()
    first, second = (lab.join(Antenna(), hop, name) for name in "ab")
    for air in (first, second):
        for number in range(20):
            air.submit(0, number, 251)
    first.close()  # in the middle of an exchange
    await asyncio.sleep(1)
    assert [side for _, side, _ in lab.crossed] == ["bup"] * 20
    assert hop.airs == [second]


@in_virtual_time
async def test_errors_cost_the_time_of_what_is_repeated() -> None:
    lab = Lab(replace(CONTINUOUS, per=0.2))
    air = lab.join(Antenna(), Antenna())
    for number in range(1000):
        air.submit(0, number, 251)
    await asyncio.sleep(10)
    assert [packet for _, _, packet in lab.crossed] == list(range(1000))
    assert lab.crossed[-1][0] == pytest.approx(1000 / 0.8 * CONTINUOUS.exchange_s(251, 0), rel=0.05)


PACKETS = st.lists(st.tuples(st.integers(0, 1), st.integers(1, 251), st.floats(0, 0.2)), min_size=1, max_size=60)


@given(packets=PACKETS, per=st.sampled_from([0.0, 0.1, 0.5]), seed=st.integers(0, 9), phy=st.sampled_from(sorted(PHYS)))
def test_errors_delay_and_never_lose_double_or_reorder(
    packets: list[tuple[int, int, float]], per: float, seed: int, phy: str
) -> None:
    async def play(per: float) -> list[tuple[float, object, object]]:
        lab = Lab(replace(PHYS[phy], per=per, supervision_s=1e9), seed=seed)
        air = lab.join(Antenna(), Antenna())
        for number, (side, size, wait_s) in enumerate(packets):
            air.submit(side, number, size)
            await asyncio.sleep(wait_s)
        await asyncio.sleep(100)
        return lab.crossed

    crossed = virtual_time.run(play(per))
    for side, name in enumerate(("up", "down")):
        expected = [number for number, packet in enumerate(packets) if packet[0] == side]
        assert [packet for _, at, packet in crossed if at == name] == expected
    assert crossed == virtual_time.run(play(per))  # the same seed, the same course

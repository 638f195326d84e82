"""The contract of links, kept in every weather that damages no byte; in virtual time."""

import asyncio
import contextlib
import hashlib
from collections.abc import Callable

import pytest

from tests.support.virtually import in_virtual_time
from transport.errors import LinkLost
from transport.links.base import RECEIVE_MAX, Endpoint, Link, connect
from transport.links.memory import memory_pair
from transport.links.simulated import Air, SimulatedLink, pair, parse_weather
from transport.links.tcp import listen_stream

Make = Callable[[], tuple[Link, Link]]
# Each with another shape: no delay at all, intervals, tiny values with pauses, long latency, a loss in every third.
WEATHERS = ("clear", "ble-1m", "ble-bluez-worst?rate=50000", "sat", "wifi-cafe?loss=0.3&seed=5")


@pytest.fixture(params=[f"{way} {weather}" for weather in WEATHERS for way in ("out", "back")] + ["memory"])
def ends(request: pytest.FixtureRequest) -> Make:
    """Makes two ends; "back" exchanges them."""
    way, _, weather = request.param.partition(" ")
    if way == "memory":
        return memory_pair
    return lambda: pair(weather)[:: 1 if way == "out" else -1]


def pattern(size: int, seed: bytes) -> bytes:
    return hashlib.shake_128(seed).digest(size)


async def read(link: Link, count: int) -> bytes:
    data = bytearray()
    while len(data) < count:
        part = await link.receive()
        assert 0 < len(part) <= RECEIVE_MAX
        data += part
    return bytes(data)


@in_virtual_time
async def test_bytes_arrive_in_order(ends: Make) -> None:
    near, far = ends()
    for size in (1, 2, 255, 4096, RECEIVE_MAX, RECEIVE_MAX + 1):
        data = pattern(size, b"%d" % size)
        _, got = await asyncio.gather(near.send(data), read(far, size))
        assert got == data
        _, got = await asyncio.gather(far.send(data), read(near, size))
        assert got == data


@in_virtual_time
async def test_big_transfers_cross_both_ways_at_once(ends: Make) -> None:
    near, far = ends()
    one, two = pattern(300_000, b"one"), pattern(300_000, b"two")
    results = await asyncio.gather(near.send(one), far.send(two), read(far, len(one)), read(near, len(two)))
    assert results[2] == one and results[3] == two


@in_virtual_time
async def test_a_sender_that_outruns_the_reader_waits(ends: Make) -> None:
    near, far = ends()
    sent = 0

    async def flood() -> None:
        nonlocal sent
        while sent < 4 << 20:  # without back-pressure this would be an endless loop in which no time passes
            await near.send(bytes(8 * 1024))
            sent += 8 * 1024

    task = asyncio.create_task(flood())
    await asyncio.sleep(600)
    stuck = sent
    assert 0 < stuck < 1 << 20
    await asyncio.sleep(600)
    assert sent == stuck and not task.done()
    await read(far, stuck)
    await asyncio.sleep(600)
    assert sent > stuck
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


@in_virtual_time
async def test_close_is_a_clean_end_after_all_bytes(ends: Make) -> None:
    near, far = ends()
    data = pattern(10_000, b"end")
    await near.send(data)
    closing = asyncio.create_task(near.close())
    assert await read(far, len(data)) == data
    assert await far.receive() == b""
    assert await far.receive() == b""
    await far.close()
    await closing


@in_virtual_time
async def test_a_close_with_a_reason_is_never_a_clean_end(ends: Make) -> None:
    near, far = ends()
    await near.send(b"hello")
    assert await read(far, 5) == b"hello"
    await near.close("limit")
    with pytest.raises(LinkLost) as raised:
        await far.receive()
    assert raised.value.reason == "limit"
    with pytest.raises(LinkLost):
        while True:
            await far.send(bytes(1000))
            await asyncio.sleep(1)


@in_virtual_time
async def test_close_is_idempotent_and_final(ends: Make) -> None:
    near, far = ends()
    await asyncio.gather(near.close(), far.close())
    await near.close()
    await far.close()
    with pytest.raises(LinkLost):
        await near.send(b"x")
    with pytest.raises(LinkLost):
        await near.receive()


@in_virtual_time
async def test_close_wakes_a_receiver_and_a_sender(ends: Make) -> None:
    near, far = ends()
    waiting = asyncio.create_task(near.receive())
    stuck = asyncio.create_task(near.send(bytes(2_000_000)))
    await asyncio.sleep(60)
    assert not waiting.done() and not stuck.done()
    begun = asyncio.get_running_loop().time()
    await near.close()
    assert asyncio.get_running_loop().time() - begun <= 5.0
    with pytest.raises(LinkLost):
        await waiting
    with pytest.raises(LinkLost):
        await stuck
    await far.close()


@in_virtual_time
async def test_a_cancelled_receive_loses_no_byte(ends: Make) -> None:
    near, far = ends()
    data = pattern(20_000, b"cancel")
    sender = asyncio.create_task(far.send(data))
    got, turn = bytearray(), 0
    while len(got) < len(data):
        task = asyncio.create_task(near.receive())
        await asyncio.sleep(0.001 * (turn % 7))
        turn += 1
        if turn % 3:
            task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            got += await task
    await sender
    assert bytes(got) == data


# --- what weather does to a link ------------------------------------------------------------------------------------


async def ends_with(link: Link) -> tuple[bytes, str]:
    """All bytes until the link breaks, and its reason; "done" for a clean end."""
    data = b""
    while True:
        try:
            part = await link.receive()
        except LinkLost as error:
            return data, error.reason
        if not part:
            return data, "done"
        data += part


@pytest.mark.parametrize("cut", [1, 494, 495, 496, 2_000])
@in_virtual_time
async def test_a_link_breaks_at_the_byte_it_is_told_to(cut: int) -> None:
    near, far = pair(f"ble-1m?cut_bytes={cut}")
    data = pattern(5_000, b"cut")
    sending = asyncio.create_task(near.send(data))
    begun = asyncio.get_running_loop().time()
    assert await ends_with(far) == (data[:cut], "lost")
    assert asyncio.get_running_loop().time() - begun > 2.0  # nobody knows before the supervision time is over
    with pytest.raises(LinkLost) as raised:
        await near.receive()
    assert raised.value.reason == "lost" and raised.value.hint
    await asyncio.gather(sending, near.close(), far.close(), return_exceptions=True)


@in_virtual_time
async def test_a_link_breaks_at_its_time_also_when_it_is_idle_or_full() -> None:
    near, far = pair("ble-1m?cut_after=30")
    full = asyncio.create_task(near.send(bytes(4_000_000)))
    begun = asyncio.get_running_loop().time()
    with pytest.raises(LinkLost):
        await near.receive()
    assert asyncio.get_running_loop().time() == begun + 32.0
    with pytest.raises(LinkLost):
        await full
    data, reason = await ends_with(far)
    assert reason == "lost" and data.strip(b"\0") == b""
    await asyncio.gather(near.close(), far.close())


@in_virtual_time
async def test_who_sends_into_the_silence_waits_and_learns_of_it() -> None:
    near, far = pair("ble-1m")
    near.cut()
    with pytest.raises(LinkLost):
        for _ in range(1_000):  # no window swallows a megabyte
            await near.send(bytes(1_000))
    assert await ends_with(far) == (b"", "lost")
    await asyncio.gather(near.close(), far.close())


@in_virtual_time
async def test_a_walker_is_out_of_reach_in_turns_and_connecting_says_so() -> None:
    air = Air(parse_weather("walk-away?seed=3"))
    loop = asyncio.get_running_loop()
    reached = refused = 0
    for _ in range(1_000):
        ours, theirs = memory_pair()

        async def inner(link: Link = ours) -> Link:
            return link

        begun = loop.time()
        try:
            link = await air.connect(inner, timeout_s=5.0)
        except LinkLost as error:
            assert error.reason == "out_of_range" and loop.time() - begun < 5.001
            refused += 1
            continue
        reached += 1
        await link.send(b"hello")
        got, reason = await ends_with(theirs)
        assert got in (b"", b"hello") and reason == "out_of_range"
        assert not air.in_reach(loop.time())  # the supervision time is over
        await asyncio.gather(link.close(), theirs.close())
    assert reached > 20 and refused > 20
    assert not {one for one in air.links if not one.closed}


@in_virtual_time
async def test_loss_is_time_and_no_byte() -> None:
    near, far = pair("clear?loss=0.5&retry=0.1", seed=2)
    data = pattern(144_800, b"loss")
    begun = asyncio.get_running_loop().time()
    _, got = await asyncio.gather(near.send(data), read(far, len(data)))
    assert got == data
    assert 5.0 < asyncio.get_running_loop().time() - begun < 20.0  # 100 values, each sent twice on average
    await asyncio.gather(near.close(), far.close())


@in_virtual_time
async def test_a_gap_shorter_than_the_supervision_time_only_holds_up() -> None:
    near, far = pair("walk-away?near=30&away=10&supervision=100&loss=0", seed=6)
    loop = asyncio.get_running_loop()
    waits = []
    for _ in range(300):
        begun = loop.time()
        await near.send(b"tick")
        assert await read(far, 4) == b"tick"
        waits.append(loop.time() - begun)
        await asyncio.sleep(0.5)
    assert near.lost is None and max(waits) > 3.0 and sorted(waits)[len(waits) // 2] < 0.1
    await asyncio.gather(near.close(), far.close())


@in_virtual_time
async def test_what_does_not_leave_in_time_makes_no_clean_end() -> None:
    near, far = pair("ble-1m?rate=100")
    await near.send(bytes(5_000))
    begun = asyncio.get_running_loop().time()
    await near.close()
    assert asyncio.get_running_loop().time() == begun + 5.0
    assert (await ends_with(far))[1] == "error"
    await far.close()


@in_virtual_time
async def test_a_close_into_the_silence_is_no_clean_end() -> None:
    near, far = pair("ble-1m")
    near.cut()
    await near.close()
    assert (await ends_with(far))[1] == "error"
    await far.close()


@in_virtual_time
async def test_whoever_leaves_while_connecting_is_out_of_reach() -> None:
    air = Air(parse_weather("walk-away?connect=400"))

    async def inner() -> Link:
        raise AssertionError("nobody was there to connect to")

    with pytest.raises(LinkLost) as raised:
        await air.connect(inner, timeout_s=1_000.0)
    assert raised.value.reason == "out_of_range"


@in_virtual_time
async def test_stalls_hold_up_and_lose_nothing() -> None:
    near, far = pair("clear?rate=10000&stall_every=2&stall=3", seed=4)
    data = pattern(100_000, b"stall")
    begun = asyncio.get_running_loop().time()
    _, got = await asyncio.gather(near.send(data), read(far, len(data)))
    assert got == data
    assert asyncio.get_running_loop().time() - begun > 10.0 + 2 * 3.0
    await asyncio.gather(near.close(), far.close())


@pytest.mark.parametrize(("damage", "length"), [("drop", -1), ("duplicate", 1), ("reorder", 0), ("corrupt", 0)])
@in_virtual_time
async def test_damage_is_real(damage: str, length: int) -> None:
    near, far = pair(f"clear?{damage}=0.2&rate=100000", seed=9)
    data = pattern(100_000, b"damage")
    await near.send(data)
    closing = asyncio.create_task(near.close())
    got, reason = await ends_with(far)
    await asyncio.gather(closing, far.close())
    assert got != data and reason == "done"
    assert (len(got) > len(data)) - (len(got) < len(data)) == length


@in_virtual_time
async def test_the_rate_of_a_profile_is_what_passes() -> None:
    for profile, rate in (("ble-1m?loss=0", 100_000), ("ble-2m?loss=0", 178_000), ("ble-ios?loss=0", 24_200)):
        near, far = pair(profile)
        begun = asyncio.get_running_loop().time()
        await asyncio.gather(near.send(bytes(500_000)), read(far, 500_000))
        measured = 500_000 / (asyncio.get_running_loop().time() - begun)
        assert 0.98 * rate < measured <= rate
        await asyncio.gather(near.close(), far.close())


@in_virtual_time
async def test_an_endpoint_with_weather_reaches_the_endpoint_beneath() -> None:
    async def echo(link: Link) -> None:
        while data := await link.receive():
            await link.send(data)

    listener = await listen_stream(Endpoint.parse("tcp:127.0.0.1:0"), echo)
    link = await connect(Endpoint.parse(f"sim:ble-1m?latency=0.5&seed=2@{listener.endpoint}"))
    assert isinstance(link, SimulatedLink)
    begun = asyncio.get_running_loop().time()
    await link.send(b"there and back")
    assert await read(link, 14) == b"there and back"
    assert asyncio.get_running_loop().time() - begun >= 1.0
    await link.close()
    await listener.close()


@in_virtual_time
async def test_nothing_is_left_of_links_that_have_gone() -> None:
    for number in range(50):
        near, far = pair("walk-away?near=10&away=5", seed=number)
        await near.send(b"x")
        if number % 2:
            await ends_with(far)
        await asyncio.gather(near.close(), far.close())
    assert asyncio.all_tasks() == {asyncio.current_task()}

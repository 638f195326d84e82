"""Weather: what is written is read back, what is clean arrives whole, and the same seed takes the same course."""

import asyncio
import math
import random
from dataclasses import fields, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from transport.errors import BadInput, LinkLost
from transport.links import virtual_time
from transport.links.base import Endpoint
from transport.links.simulated import PROFILES, pair, parse_weather
from transport.links.weather import Channel, Reach, Weather

NAMES = [one.name for one in fields(Weather)[1:]]
DAMAGE = ("drop", "duplicate", "reorder", "corrupt")
shares = st.floats(0, 0.9).map(lambda share: round(share, 4))
seconds = st.floats(0, 20).map(lambda value: round(value, 6))
turns = st.sampled_from([0.0, 3.0, 400.0])


@st.composite
def weathers(draw: st.DrawFn, *, clean: bool = False) -> Weather:
    value = draw(st.sampled_from([1, 20, 182, 495, 2_000]))
    changes: dict[str, int | float] = {
        "value": value, "window": draw(st.integers(value, 300_000)), "seed": draw(st.integers(0, 10**9)),
        "rate": draw(st.sampled_from([0.0, 999.5, 1e6])), "up": draw(st.sampled_from([0.0, 5e4])),
        "loss": draw(shares), "retry": draw(st.floats(0, 1).map(lambda value: round(value, 6))),
    }
    for name in ("interval", "latency", "jitter", "stall"):
        changes[name] = draw(seconds)
    changes["stall_every"] = draw(turns)
    if not clean:
        changes |= {name: draw(shares) for name in DAMAGE}
        changes |= {name: draw(seconds) for name in ("cut_after", "supervision", "connect")}
        changes |= {name: draw(turns) for name in ("near", "away")}
        changes["cut_bytes"] = draw(st.integers(0, 100_000))
    return replace(PROFILES[draw(st.sampled_from(sorted(PROFILES)))], **changes)


@given(weathers())
def test_weather_is_read_back_as_it_was_written(weather: Weather) -> None:
    assert parse_weather(str(weather)) == weather


@given(st.sampled_from(sorted(PROFILES)), st.sampled_from(NAMES))
def test_a_changed_parameter_fits_into_an_endpoint(profile: str, name: str) -> None:
    number = {"value": "7", "window": "70000", "seed": "7", "cut_bytes": "7"}.get(name, "0.5")
    weather = parse_weather(f"{profile}?{name}={number}")
    assert getattr(weather, name) == float(number)
    endpoint = Endpoint.parse(f"sim:{weather}@tcp:127.0.0.1:4711")
    assert parse_weather(endpoint.address.partition("@")[0]) == weather


@pytest.mark.parametrize("text", [
    "", "nowhere", "ble-1m?", "ble-1m?loss", "ble-1m?loss=", "ble-1m?loss=nan", "ble-1m?loss=inf", "ble-1m?loss=-1",
    "ble-1m?loss=0.91", "ble-1m?loss=0.1&loss=0.1", "ble-1m?profile=sat", "ble-1m?value=0", "ble-1m?value=65537",
    "ble-1m?value=1.5", "ble-1m?window=494", "ble-1m?seed=1e3", "ble-1m?rate=1e999", "ble-1m?x=1", "ble-1m?loss=0,1",
    "ble-1m?loss=1_0", "walk-away?near=0.01", "sat?stall_every=0.099", "ble-1m?loss=\u0661",
])
def test_what_is_no_weather_is_refused_with_a_hint(text: str) -> None:
    with pytest.raises(BadInput):
        parse_weather(text)


def test_the_refusal_names_what_there_is() -> None:
    with pytest.raises(BadInput) as raised:
        parse_weather("fog")
    assert "walk-away" in (raised.value.hint or "")
    with pytest.raises(BadInput) as raised:
        parse_weather("sat?fog=1")
    assert "stall_every" in (raised.value.hint or "")


Trace = list[tuple[float, bytes]]


async def course(weather: Weather, sends: list[tuple[float, int]]) -> Trace:
    """What the far end sees, and when, until the near end has sent all and closed, or the link broke."""
    near, far = pair(weather)
    trace: Trace = []
    dice = random.Random(0)

    async def watch() -> None:
        try:
            while data := await far.receive():
                trace.append((asyncio.get_running_loop().time(), data))
        except LinkLost as error:
            trace.append((asyncio.get_running_loop().time(), error.reason.encode()))

    async def write() -> None:
        try:
            for pause, size in sends:
                await asyncio.sleep(pause)
                await near.send(dice.randbytes(size))
        except LinkLost:
            pass

    watching = asyncio.create_task(watch())
    await write()
    while near.up.under_way and near.lost is None:  # close() waits 5 s and no longer  # noqa: ASYNC110
        await asyncio.sleep(1_000.0)
    await near.close()
    await asyncio.wait_for(watching, 10.0)
    await far.close()
    return trace


sendings = st.lists(st.tuples(seconds, st.integers(1, 600)), min_size=1, max_size=8)


@settings(max_examples=60, deadline=None)
@given(weathers(clean=True), sendings)
def test_clean_weather_delivers_every_byte_in_order(weather: Weather, sends: list[tuple[float, int]]) -> None:
    weather = replace(weather, near=0.0, away=0.0)
    dice = random.Random(0)
    expected = b"".join(dice.randbytes(size) for _, size in sends)
    got = b"".join(data for _, data in virtual_time.run(course(weather, sends)))
    assert got == expected


@settings(max_examples=40, deadline=None)
@given(weathers(), sendings)
def test_the_same_seed_takes_the_same_course(weather: Weather, sends: list[tuple[float, int]]) -> None:
    assert virtual_time.run(course(weather, sends)) == virtual_time.run(course(weather, sends))


def test_another_seed_takes_another_course() -> None:
    weather, sends = parse_weather("wifi-cafe"), [(0.1, 3_000)] * 20
    one = virtual_time.run(course(weather, sends))
    assert one == virtual_time.run(course(weather, sends))
    assert one != virtual_time.run(course(replace(weather, seed=1), sends))


@given(weathers(), st.lists(st.tuples(seconds, st.integers(1, 2_000)), min_size=1, max_size=20))
def test_a_channel_counts_what_is_under_way_and_never_turns_back(
    weather: Weather, sends: list[tuple[float, int]]
) -> None:
    channel = Channel(weather, weather.rate, random.Random(weather.seed), Reach(weather.near, weather.away, "x"))
    now = last = 5_000.0
    for pause, size in sends:
        now += pause
        arrival = channel.carry(bytes(size), now)
        assert arrival >= max(now, last)
        last = arrival
        before = channel.under_way
        assert channel.most_under_way >= before
        got = channel.arrived(now, 700)
        assert len(got) <= 700 and channel.under_way == before - len(got)
    while (at := channel.next_arrival()) is not None and at < math.inf:
        assert channel.arrived(at, 700)
    assert channel.under_way == 0
    assert channel.take_most() >= 0 and channel.take_most() == 0


@given(st.floats(1, 1_000), st.floats(1, 1_000), st.integers(0, 100), st.floats(0, 1e6))
def test_reach_has_no_memory(near: float, away: float, seed: int, now: float) -> None:
    reach = Reach(near, away, str(seed))
    begin, end = reach.gap(now)
    assert begin < end and now < end
    assert reach.gap(max(now, begin)) == (begin, end)  # asked again within the gap


def test_a_walker_is_in_reach_for_about_the_time_asked_for() -> None:
    reach, now, apart = Reach(240.0, 120.0, "w"), 0.0, 0.0
    while now < 1e6:
        begin, end = reach.gap(now)
        apart += end - begin
        now = end
    assert 0.28 < apart / now < 0.42

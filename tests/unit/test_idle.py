"""Locking when nobody has used it for a while, in a time of the test's own."""

import asyncio

import pytest

from edge_client.idle import Activity, lock_when_idle


class Day:
    """A clock, and a sleep that moves it and lets the test do what is due by then."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.locked: list[float] = []
        self.due: list[tuple[float, object]] = []
        self.slept: list[float] = []
        self.ends = 0.0

    def clock(self) -> float:
        return self.now

    async def lock(self) -> None:
        self.locked.append(self.now - 1000)

    async def sleep(self, seconds: float) -> None:
        assert seconds > 0
        self.slept.append(seconds)
        self.now += seconds
        while self.due and self.due[0][0] <= self.now - 1000:
            self.due.pop(0)[1]()  # type: ignore[operator]
        if self.now - 1000 >= self.ends:
            raise asyncio.CancelledError

    async def pass_by(self, activity: Activity, after_s: float, until: float) -> list[float]:
        self.ends = until
        with pytest.raises(asyncio.CancelledError):
            await lock_when_idle(activity, self.lock, after_s, sleep=self.sleep)
        return self.locked


async def test_it_locks_when_the_time_is_over_and_not_before() -> None:
    day = Day()
    assert await day.pass_by(Activity(day.clock), 28_800, 28_799) == []
    day = Day()
    assert await day.pass_by(Activity(day.clock), 28_800, 30_000) == [28_800]
    assert max(day.slept) <= 30, "a machine that wakes after a night is looked at soon"


async def test_a_lock_that_fails_is_not_the_last(caplog: pytest.LogCaptureFixture) -> None:
    day = Day()
    lock = day.lock

    async def fails_once() -> None:
        await lock()
        if len(day.locked) == 1:
            raise OSError("secret")

    day.lock = fails_once  # type: ignore[method-assign]
    assert await day.pass_by(Activity(day.clock), 100, 250) == [100, 200]
    assert "locking ended in OSError" in caplog.text and "secret" not in caplog.text


async def test_use_begins_the_time_anew() -> None:
    day = Day()
    activity = Activity(day.clock)
    day.due = [(60, activity.touch), (150, activity.touch)]
    assert await day.pass_by(activity, 100, 400) == [250, 350], "after locking it waits as long again"


async def test_what_lasts_is_use_until_it_ends() -> None:
    day = Day()
    activity = Activity(day.clock)
    one, two = activity.lasting(), activity.lasting()
    day.due = [(30, one.__enter__), (60, two.__enter__), (90, lambda: one.__exit__(None, None, None)),
               (600, lambda: two.__exit__(None, None, None))]  # fmt: skip
    assert await day.pass_by(activity, 100, 750) == [700]


async def test_the_time_a_machine_sleeps_counts() -> None:
    day = Day()
    activity = Activity(day.clock)

    def suspend() -> None:
        day.now += 8 * 3600

    day.due = [(60, suspend)]
    assert await day.pass_by(activity, 3600, 9 * 3600) == [60 + 8 * 3600]


def test_an_activity_by_the_machines_own_clock() -> None:
    activity = Activity()
    assert activity.idle_s() >= 0
    with pytest.raises(KeyError), activity.lasting():
        assert activity.idle_s() == 0
        raise KeyError
    assert activity._under_way == 0

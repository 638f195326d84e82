"""Whole systems on the simulator's stage: what is promised holds in bad weather, and the stage tells if it does not."""

import asyncio
import itertools
from pathlib import Path
from typing import Any

import msgspec
import pytest

from edge_client import identity
from relay.sim import runner
from relay.sim.lifelines import Course
from relay.sim.scenario import Fault, Prompts, Scenario, read
from relay.sim.scripted_provider import ScriptedProvider

SCENARIOS = Path(__file__).resolve().parent.parent.parent / "examples" / "scenarios"


def play(**fields: Any) -> Course:
    return runner.run(Scenario(**fields))


def none_lost(course: Course) -> dict[str, Any]:
    numbers = course.numbers()
    assert (numbers["lost"], numbers["doubled"], numbers["failed"]) == (0, 0, {})
    assert numbers["delivered"] + numbers["interrupted"] == numbers["prompts"] > 0
    return numbers


def test_people_who_walk_about_lose_nothing() -> None:
    scenario = msgspec.structs.replace(read(str(SCENARIOS / "building.toml")), prompts=Prompts(every="40s"))
    shares: list[float] = []
    course = runner.run(scenario, seed=5, duration_s=1_200.0, progress=shares.append)
    numbers = none_lost(course)
    assert numbers["interrupted"] == 0
    assert numbers["prompts"] > 60 and numbers["drops"] > 5 and numbers["resumes"] > 0
    assert {one.edge for one in course.lifelines} == {"edge-1", "edge-2", "edge-3"}
    assert all(course.apart.values()), "nobody was ever out of reach"
    assert abs(numbers["tasks_growth"]) < 20 and abs(numbers["descriptors_growth"]) < 3
    assert shares == sorted(shares) and shares[-1] > 0.99
    # What the provider wrote at 30 a second was heard about as soon, where the link stood.
    assert 0.03 < numbers["token_delay_p50_s"] < 0.15


def test_whatever_is_killed_each_prompt_is_called_once_and_has_an_outcome() -> None:
    course = play(
        duration="6m", edges=2, hops=2, weather="ble-1m", seed=3,
        prompts=Prompts(every="9s", tokens=120, rate=20.0),
        faults=[
            Fault("20s", "drop link", every="17s"), Fault("31s", "kill edge", "edge-1", every="50s"),
            Fault("90s", "kill hop", "hop-1", lasts="20s", every="2m"), Fault("200s", "kill gateway", lasts="15s"),
        ],
    )
    numbers = none_lost(course)
    assert numbers["interrupted"] >= 1, "the gateway was killed while answers were under way"
    assert numbers["resumes"] >= 5
    assert {what for _, what in course.faults} == {
        "drop link", "kill edge edge-1", "kill hop hop-1", "kill gateway"
    }
    assert sum(course.accepted.values()) <= numbers["prompts"]


def test_svids_of_an_hour_are_renewed_on_the_way(monkeypatch: pytest.MonkeyPatch) -> None:
    renewals: list[float] = []
    renew = identity.renew

    async def counted(*arguments: Any, **named: Any) -> identity.DeviceIdentity:
        renewals.append(asyncio.get_running_loop().time())
        return await renew(*arguments, **named)

    monkeypatch.setattr("edge_client.sessions.renew", counted)
    course = play(duration="4h", weather="wifi-cafe", prompts=Prompts(every="10m", tokens=10))
    assert none_lost(course)["interrupted"] == 0
    assert max(one.asked for one in course.lifelines) > 3 * 3_600
    assert 6 <= len(renewals) <= 12
    assert max(later - sooner for sooner, later in itertools.pairwise(renewals)) < 3_600


def test_the_same_seed_takes_the_same_course_and_another_one_does_not() -> None:
    def played(seed: int) -> tuple[list[tuple[float, str, str]], list[float]]:
        course = play(
            duration="5m", weather="wifi-cafe", hops=2, seed=seed, prompts=Prompts(every="15s", tokens=40),
            faults=[Fault("12s", "drop link", every="23s")],
        )
        none_lost(course)
        moments = [at for at, _ in course.drops] + [one.ended or 0.0 for one in course.lifelines]
        return [(one.asked, one.edge, one.outcome) for one in course.lifelines], moments

    one, same, other = played(1), played(1), played(2)
    assert one[0] == same[0] != other[0]
    # Keys and certificates are new each time, some a byte longer than others: a tick may pass between.
    assert one[1] == pytest.approx(same[1], abs=0.5)


def test_an_answer_that_is_not_the_providers_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """The check of the check: half an answer counts as lost."""
    events = ScriptedProvider.events

    def shorter(self: ScriptedProvider, number: int) -> list[bytes]:
        return events(self, number)[1:] if self.accepted[number] and number not in whole else events(self, number)

    whole: set[int] = set()
    original = ScriptedProvider._stream

    async def stream(self: ScriptedProvider, number: int) -> Any:
        async for event in original(self, number):
            yield event
        whole.add(number)

    monkeypatch.setattr(ScriptedProvider, "events", shorter)
    monkeypatch.setattr(ScriptedProvider, "_stream", stream)
    numbers = play(duration="1m", weather="clear", prompts=Prompts(every="20s", tokens=5)).numbers()
    assert numbers["lost"] == numbers["prompts"] > 0


def test_an_error_of_our_own_ends_the_play(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(self: object, line: object, chunk: bytes) -> None:
        raise RuntimeError("broken on purpose")

    monkeypatch.setattr(runner._Stage, "_heard", broken)
    with pytest.raises(RuntimeError, match="on purpose"):
        play(duration="2m", weather="clear", prompts=Prompts(every="10s", tokens=5))

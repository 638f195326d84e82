"""Scenarios: what is read, what is refused, and what a run amounts to."""

import re
from collections import Counter
from pathlib import Path

import pytest

from relay.sim.lifelines import Course, Lifeline, Sample
from relay.sim.page import clock, page
from relay.sim.scenario import Scenario, of_profile, read, seconds
from relay.sim.scripted_provider import ScriptedProvider
from transport.errors import BadInput
from transport.messages import Padding

SCENARIOS = sorted((Path(__file__).resolve().parent.parent.parent / "examples" / "scenarios").glob("*.toml"))


def test_the_examples_are_found() -> None:
    assert len(SCENARIOS) >= 3


@pytest.mark.parametrize("path", SCENARIOS, ids=lambda path: path.stem)
def test_every_example_reads(path: Path) -> None:
    assert read(str(path)).title


def test_a_profile_is_a_scenario() -> None:
    scenario = read("ble-1m?loss=0.2")
    weather = scenario.weather_between("edge-1", "hop-1")
    assert weather is not None and (weather.rate, weather.loss) == (100_000, 0.2)
    assert scenario.padding is Padding.BUCKET


@pytest.mark.parametrize(("text", "value"), [
    ("400ms", 0.4), ("90s", 90.0), ("1.5h", 5_400.0), ("2d", 172_800.0), ("11m30s", 690.0), ("0s", 0.0),
])
def test_durations(text: str, value: float) -> None:
    assert seconds(text) == pytest.approx(value)


@pytest.mark.parametrize("text", ["", "90", "s", "1 h", "-1s", "1e3s", "1h,5m", "\u0661s", "99999999s", "1.s"])
def test_what_is_no_duration(text: str) -> None:
    with pytest.raises(BadInput) as raised:
        seconds(text)
    assert raised.value.hint


@pytest.mark.parametrize("text", [
    "edges = 0", "edges = 33", "hops = -1", 'weather = "fog"', 'duration = "0s"', 'duration = "32d"', "colour = 1",
    "edges = 1.5", "not toml", '[prompts]\nevery = "0.01s"', "[prompts]\ntokens = 0", "[prompts]\nrate = 0.0",
    '[[links]]\nedge = "edge-2"\nhop = "hop-1"\nweather = "sat"', '[[faults]]\nat = "1s"\ndo = "rain"',
    '[[links]]\nedge = "edge-1"\nhop = "hop-1"\nweather = "none"', '[[faults]]\nat = "soon"\ndo = "drop link"',
    '[[faults]]\nat = "1s"\ndo = "kill hop"\nwho = "hop-9"', '[[faults]]\nat = "1s"\ndo = "drop link"\nevery = "1ms"',
])
def test_what_is_no_scenario_is_refused(text: str) -> None:
    with pytest.raises(BadInput):
        Scenario.load(text)


@pytest.mark.parametrize(("text", "told"), [
    ("edges = 'two'", "edges: expected `int`"), ("edges = 1\nedges = 2\n", "line 2"),
    ("a = " + "[" * 3_000, "too deeply"), ("durations = '1h'", "`durations`"),
    ('duration = "soon"', "duration is not a duration"), ('duration = "0s"', "1ms"),
    ('[prompts]\nfirst = "x"', "prompts.first"), ('[prompts]\nevery = "1ms"', "prompts.every"),
    ('weather = "none"', "edge-1 never meets a hop"), ('weather = "sat?loss=2"', "0 to 0.9"),
    ('title = "a\\u001b[31m"', "title"),
    ('[[links]]\nedge = "edge-1"\nhop = "hop-1"\nweather = "sat"\n' * 2, "links[1]"),
    ('edges = 2\n[[faults]]\nat = "1s"\ndo = "kill edge"', "faults[0]: which edge"),
    ('hops = 2\n[[faults]]\nat = "1s"\ndo = "kill hop"', "faults[0]: which hop"),
    ('[[faults]]\nat = "1s"\ndo = "kill hop"\nwho = "edge-1"', "faults[0].who is no hop"),
    ('[[faults]]\nat = "1s"\ndo = "drop link"\nwho = "hop-1"', "faults[0].who is no edge"),
    ('[[faults]]\nat = "1s"\ndo = "kill gateway"\nwho = "hop-1"', "faults[0].who"),
    ('[[faults]]\nat = "59m56s"\ndo = "drop link"', "the fault at 59m56s never comes"),
])
def test_a_refusal_names_the_place_and_says_what_to_do(text: str, told: str) -> None:
    with pytest.raises(BadInput, match=re.escape(told)) as raised:
        Scenario.load(text)
    assert raised.value.hint


def test_a_fault_that_ends_just_before_the_run_is_played() -> None:
    assert Scenario.load('[[faults]]\nat = "59m54.999s"\ndo = "drop link"').faults


def test_a_file_that_cannot_be_read_says_why(tmp_path: Path) -> None:
    (tmp_path / "binary.toml").write_bytes(bytes(range(256)))
    (tmp_path / "folder.toml").mkdir()
    (tmp_path / "endless.toml").symlink_to("/dev/zero")
    for name, told in (
        ("binary", "UTF-8"), ("folder", "is a directory"), ("none", "no such file"), ("endless", "over 1 MiB"),
        ("x" * 5_000, "name too long"), ("\0", "cannot be a name"),
    ):
        with pytest.raises(BadInput, match=told) as raised:
            read(str(tmp_path / f"{name}.toml"))
        assert raised.value.hint


def test_what_is_neither_file_nor_weather_is_refused_with_a_hint(tmp_path: Path) -> None:
    for name in ("fog", "", "\0", "x" * 5_000, str(tmp_path), str(tmp_path / "none.toml")):
        with pytest.raises(BadInput) as raised:
            read(name)
        assert "profile" in (raised.value.hint or "") or "ble-1m" in (raised.value.hint or "")


def course(*lines: Lifeline) -> Course:
    return Course("t", 1, 100.0, ["edge-1"], lifelines=list(lines))


def line(number: int, outcome: str, *, whole: bool = True) -> Lifeline:
    return Lifeline(number, "edge-1", 1.0, began=2.0, ended=3.0, outcome=outcome, whole=whole)


def test_a_prompt_without_an_outcome_and_an_answer_that_is_not_whole_are_lost() -> None:
    lines = [line(0, "delivered"), line(1, ""), line(2, "delivered", whole=False), line(3, "interrupted", whole=False)]
    numbers = course(*lines, line(4, "provider_failed", whole=False)).numbers()
    assert (numbers["delivered"], numbers["lost"], numbers["interrupted"]) == (1, 2, 1)
    assert numbers["failed"] == {"provider_failed": 1}


def test_a_prompt_that_was_called_twice_is_doubled() -> None:
    one = course(line(0, "delivered"))
    one.accepted = Counter({0: 2, 1: 1})
    assert one.numbers()["doubled"] == 1


def test_growth_is_seen_and_a_warm_start_is_not() -> None:
    one = course()
    one.samples = [Sample(at, 0, 0, min(at, 20), at, 7, 9) for at in range(100)]
    numbers = one.numbers()
    assert (numbers["tasks_growth"], numbers["descriptors_growth"], numbers["memory_growth"]) == (0.0, 50.0, 0.0)


def test_answers_are_of_the_seed_and_the_number() -> None:
    prompts = of_profile("sat").prompts
    one, same, other = (ScriptedProvider(prompts, seed) for seed in (1, 1, 2))
    assert one.events(5) == same.events(5) != one.events(6)
    assert one.events(5) != other.events(5)
    assert one.number_of(one.body(17)) == 17
    assert len(one.body(3)) >= prompts.size


def test_the_page_holds_all_and_nothing_of_elsewhere() -> None:
    one = course(line(0, "delivered"), line(1, ""))
    one.title = "<script>alert(1)</script>"
    one.lifelines[0].gaps = ((2.2, 2.5),)
    one.samples = [Sample(at, at * 10, at, 1, 1, 1, 1) for at in range(1, 100)]
    one.drops, one.faults, one.apart = [(2.2, "edge-1")], [(50.0, "drop link")], {"edge-1": [(60.0, 70.0)]}
    text = page(one)
    assert "<script" not in text and "&lt;script&gt;" in text
    assert "http:" not in text and "https:" not in text and "url(" not in text and "@import" not in text
    assert "prefers-color-scheme: dark" in text and "Content-Security-Policy" in text
    for shape in ('class="gap"', 'class="away"', 'class="drop"', 'class="resume"', 'class="fault"', 'class="flow"'):
        assert text.count(shape) >= 1, shape
    assert "$" not in text


def test_a_page_of_a_run_in_which_nothing_happened() -> None:
    assert "delivered whole" in page(course())


@pytest.mark.parametrize(("value", "text"), [
    (0.0304, "30 ms"), (12.34, "12.3 s"), (60, "1 min"), (245, "4 min 5 s"), (12_000, "3 h 20 min"), (86_400, "24 h"),
])
def test_times_are_written_as_people_do(value: float, text: str) -> None:
    assert clock(value) == text

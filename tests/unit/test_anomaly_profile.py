"""What a device's habit is, what is unusual beside it, and what a person's word changes."""

import random

import msgspec
import pytest

from benchmarks.anomaly import Ours, Outcome, replay
from benchmarks.anomaly_scenarios import (
    ATTACKS,
    BENIGN,
    MONDAY,
    new_job,
    ordinary,
    runaway_loop,
    scenario,
    slow_exfiltration,
)
from relay.gateway.anomaly.ladder import Level, Thresholds
from relay.gateway.anomaly.profile import DAY_S, MARKS_MAX, MODELS_MAX, Fleet, Kept, Profile
from relay.gateway.anomaly.signs import CAPS, SIGNS, Moments, points

THRESHOLDS = Thresholds()


def settled(days: int = 14) -> Profile:
    """A device that has been at work for some weeks."""
    profile, fleet = Profile(1, MONDAY), Fleet()
    for ask in sorted(ordinary(random.Random(7), MONDAY, days), key=lambda one: one.at):
        profile.note(ask.mark.to_bytes(8, "big"), ask.model, ask.size, ask.out, ask.injection)
        profile.judge(ask.at, THRESHOLDS, fleet)
    return profile


def looped(profile: Profile, start: float, seconds: float, per_second: int = 20) -> list[Level]:
    found = []
    for half in range(int(seconds * 2)):
        for _ in range(per_second // 2):
            profile.note(b"again", "small", 2_000, 3_000)
        level = profile.judge(start + half / 2, THRESHOLDS, Fleet())
        found += [] if level is None else [level]
    return found


@pytest.mark.parametrize("play", BENIGN)
def test_no_benign_device_is_revoked_or_quarantined(play) -> None:  # type: ignore[no-untyped-def]
    for seed in range(12):
        outcome = replay(played := scenario(play, 1_000 + seed), Ours(played))
        assert Level.REVOKED not in outcome.rises, (play.__name__, seed)
        assert Level.QUARANTINED not in outcome.rises, (play.__name__, seed)


@pytest.mark.parametrize("play", ATTACKS)
def test_each_attack_is_cut_off(play) -> None:  # type: ignore[no-untyped-def]
    for seed in range(5):
        outcome = replay(played := scenario(play, 2_000 + seed), Ours(played))
        assert Level.QUARANTINED in outcome.seconds, (play.__name__, seed)
        assert outcome.rises[:3] == [Level.WARNED, Level.THROTTLED, Level.QUARANTINED]


def test_the_scenarios_are_the_same_for_a_seed_and_others_for_another() -> None:
    assert scenario(slow_exfiltration, 3) == scenario(slow_exfiltration, 3)
    assert scenario(slow_exfiltration, 3) != scenario(slow_exfiltration, 4)
    outcome = replay(played := scenario(runaway_loop, 1), Ours(played))
    assert isinstance(outcome, Outcome) and outcome.passed < 400 < len(played.asks)


def test_one_spike_warns_at_most() -> None:
    profile = settled()
    start = profile.kept.judged + 60
    for _ in range(5_000):
        profile.note(b"x", "small", 900_000, 0, 0.99)
    assert profile.judge(start, THRESHOLDS, Fleet()) is Level.WARNED
    assert [profile.judge(start + n, THRESHOLDS, Fleet()) for n in range(1, 120)].count(Level.QUARANTINED) == 0


def test_what_was_noticed_does_not_become_habit() -> None:
    profile = settled()
    start = profile.kept.judged + 3_600
    profile.judge(start - 1, THRESHOLDS, Fleet())  # what is a day old is learnt
    before = msgspec.msgpack.encode(profile.kept.habit)
    assert Level.QUARANTINED in looped(profile, start, 120)
    assert not profile.kept.waiting and not profile.kept.hour.signs
    for hour in range(1, 60):  # silence: all that could be learnt has been by then
        profile.judge(start + hour * 3_600, THRESHOLDS, Fleet())
    assert msgspec.msgpack.encode(profile.kept.habit) == before
    assert profile.standing.level is Level.NORMAL


def test_a_person_s_word_lifts_the_state_and_the_same_evidence_does_not_bring_it_back() -> None:
    profile = settled()
    start = profile.kept.judged + 3_600
    looped(profile, start, 120)
    assert profile.standing.level is Level.QUARANTINED and "repetition" in profile.reasons()
    profile.excuse(start + 121)
    excused = profile.encode()
    assert profile.standing.level is Level.NORMAL and profile.score == 0
    assert max(looped(profile, start + 122, 600), default=Level.NORMAL) <= Level.WARNED
    other = Profile(1, start, msgspec.msgpack.decode(excused, type=Kept))
    for half in range(240):  # something else is not excused
        other.note(b"%d" % half, "small", 2_000, 0, 0.95)
        other.judge(start + 800 + half / 2, THRESHOLDS, Fleet())
    assert other.standing.level >= Level.THROTTLED
    later = Profile(1, start, msgspec.msgpack.decode(excused, type=Kept))
    rises = looped(later, start + 3 * DAY_S, 120)
    assert rises == [Level.WARNED, Level.THROTTLED, Level.QUARANTINED], "excused for a day alone"


def test_all_that_is_known_survives_a_restart() -> None:
    profile = settled()
    looped(profile, profile.kept.judged + 60, 30)
    again = Profile(1, profile.kept.judged, msgspec.msgpack.decode(profile.encode(), type=Kept))
    assert again.kept == profile.kept and again.standing == profile.standing
    assert again.score == profile.score > 0


def test_a_profile_holds_no_more_whatever_comes() -> None:
    profile, rng = settled(), random.Random(1)
    now = profile.kept.judged
    for number in range(20_000):
        profile.note(rng.randbytes(8), f"model-{number}", 100, 100)
        if number % 50 == 0:
            now += 30
            profile.judge(now, THRESHOLDS, Fleet())
    assert len(profile._marks) <= MARKS_MAX + 1
    assert len(profile.kept.habit.models) <= MODELS_MAX and len(profile._strange) <= MODELS_MAX
    assert len(profile.kept.waiting) <= 25 and len(profile.encode()) < 40_000


def test_no_kind_of_evidence_goes_beyond_its_cap() -> None:
    profile = settled()
    start = profile.kept.judged + 60
    for half in range(1_000):
        for number in range(40):
            profile.note(b"x", f"odd-{number}", 1 << 20, 1 << 20, 1.0, "fault")
        profile.judge(start + half / 2, THRESHOLDS, Fleet())
        for kind, score in profile.kept.scores.items():
            assert score <= CAPS[kind]
    assert set(profile.kept.scores) >= {"rate", "volume", "injection", "refused", "models", "repetition"}


def test_hours_and_load_alone_end_nobody() -> None:
    assert CAPS["hours"] < THRESHOLDS.warn
    assert CAPS["rate"] < THRESHOLDS.quarantine and CAPS["sizes"] < THRESHOLDS.warn


def test_a_clock_that_goes_back_gives_no_evidence_and_takes_none() -> None:
    profile = settled()
    start = profile.kept.judged + 60
    looped(profile, start, 30)
    level, score = profile.standing.level, profile.score
    profile.judge(start - 10 * DAY_S, THRESHOLDS, Fleet())
    assert profile.standing.level is level and profile.score == score
    assert looped(profile, start - 10 * DAY_S + 1, 120)[-1:] == [Level.QUARANTINED] or level is Level.QUARANTINED
    for hour in range(200):
        profile.judge(start + hour * 3_600, THRESHOLDS, Fleet())
    assert profile.standing.level is Level.NORMAL, "and time heals as ever"


def test_a_model_that_several_use_is_nobody_s_oddity() -> None:
    fleet = Fleet()
    assert [fleet.uses("new", number, 0.0) for number in range(4)] == [False, False, True, True]
    assert not fleet.uses("new", 1, 30 * DAY_S), "and is forgotten with them"
    for number in range(2_000):
        fleet.uses(f"m{number}", number, 0.0)
    assert len(fleet.seen) <= 256


def test_points_need_both_a_floor_and_a_distance() -> None:
    sign, habit = SIGNS["rate"], Moments(100, 0.7, 0.01)
    assert points(sign, habit, sign.floor) == 0, "however far from habit"
    assert 0 < points(sign, habit, 30) <= points(sign, habit, 10_000) == sign.slot
    assert points(sign, Moments(100, 5.0, 1.0), 100) == 0, "who is always busy"


def test_a_new_job_is_slowed_down_and_no_more() -> None:
    """What it costs whoever sets one up: the ladder's middle, and a word to the administrator."""
    outcomes = [replay(played := scenario(new_job, seed), Ours(played)) for seed in range(3)]
    assert all(max(one.rises, default=Level.NORMAL) <= Level.THROTTLED for one in outcomes)

"""Whatever scores come whenever: no state is skipped on the way up, none comes too soon, a person's word ends it."""

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from relay.gateway.anomaly.ladder import DOWN_AFTER_S, UP_AFTER_S, Level, Standing, Thresholds

SCORES = st.floats(0, 500) | st.sampled_from([0.0, 10.0, 20.0, 40.0, 80.0, 120.0])


class Ladder(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.now = 1_000.0
        self.standing = Standing(Level.NORMAL, self.now)
        self.thresholds = Thresholds(revoke=120.0)
        self.rises: list[Level] = []
        self.reached = 0.0  # how long the present state has really lasted

    @rule(score=SCORES, passed=st.floats(0, 4_000), harmful=st.booleans())
    def judge(self, score: float, passed: float, harmful: bool) -> None:
        self.now += passed
        self.reached += passed
        before = self.standing.level
        found = self.standing.step(score, self.now, self.thresholds, harmful=harmful)
        assert (found is None) == (self.standing.level is before)
        if found is None:
            return
        assert abs(found - before) == 1, "one at a time"
        if found > before:
            assert score >= self.thresholds.of(found)
            assert self.reached >= UP_AFTER_S[before] - 1e-6
            assert found is not Level.REVOKED or harmful
            self.rises.append(found)
        else:
            assert score < self.thresholds.of(before) / 2
            assert self.reached >= DOWN_AFTER_S[before] - 1e-6
            self.rises = [level for level in self.rises if level < before]
        self.reached = 0.0

    @rule(back=st.floats(0, 1e6), score=SCORES)
    def clock_back(self, back: float, score: float) -> None:
        before = self.standing.level
        self.now -= back
        found = self.standing.step(score, self.now, self.thresholds)
        if self.standing.since == self.now:  # it would have begun later than now: it begins now
            self.reached = 0.0
        else:
            self.reached = self.now - self.standing.since
        if found is not None:
            assert found - before in (1, -1)
            if found > before:
                self.rises.append(found)
            else:
                self.rises = [level for level in self.rises if level < before]

    @rule()
    def undone(self) -> None:
        self.standing.lift(self.now)
        assert self.standing.level is Level.NORMAL
        self.rises, self.reached = [], 0.0

    @invariant()
    def one_rise_for_each_state(self) -> None:
        """What is alerted: each state once, until it falls and rises again."""
        assert self.rises == [Level(number) for number in range(1, self.standing.level + 1)]


Ladder.TestCase.settings = settings(max_examples=150, stateful_step_count=30, deadline=None)
TestLadder = Ladder.TestCase


def test_without_leave_nobody_is_revoked() -> None:
    standing, now = Standing(), 0.0
    for _ in range(1_000):
        now += 60
        standing.step(1e6, now, Thresholds(), harmful=True)
    assert standing.level is Level.QUARANTINED


def test_a_trembling_score_does_not_flap() -> None:
    standing, changes = Standing(), 0
    for number in range(3_600):
        changes += standing.step(20.5 if number % 2 else 19.5, float(number), Thresholds()) is not None
    assert changes == 1


def test_a_clock_set_back_for_years_holds_nobody_where_he_is() -> None:
    standing = Standing(Level.WARNED, 2e9)
    assert standing.step(50, 1e9, Thresholds()) is None
    assert standing.step(50, 1e9 + 3, Thresholds()) is Level.THROTTLED
    standing.since = 2e9
    assert standing.step(0, 1e9, Thresholds()) is None
    assert standing.step(0, 1e9 + 300, Thresholds()) is Level.WARNED

"""The breaker against a plain model of it: never asked while open, one probe in its time, old news ignored."""

from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, rule

from relay.gateway.upstream.breaker import Breaker

FAILURES, OPEN_S = 3, 10.0


class Breakers(RuleBasedStateMachine):
    """`calls`: the state in which each was begun, by what it reports by."""

    calls = Bundle("calls")
    begun = Bundle("begun")

    @initialize()
    def fresh(self) -> None:
        self.breaker = Breaker(FAILURES, OPEN_S)
        self.now = 100.0
        self.opened: float | None = None
        self.row = 0
        self.era = 0  # of the model's own: grows with each change of state
        self.probe: int | None = None
        self.probe_at = 0.0
        self.number = 0
        self.good = 0  # number of the last call that was begun before the last good answer

    def state(self) -> str:
        if self.opened is None:
            return "closed"
        return "open" if self.now < self.opened + OPEN_S else "half-open"

    def change(self, opened: float | None) -> None:
        self.opened, self.row, self.probe = opened, 0, None
        self.era += 1

    @rule(seconds=st.sampled_from([0.0, 0.5, 4.0, OPEN_S, 60.0]))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @rule(target=calls)
    def ask(self) -> tuple[int, int, int]:
        state, turn = self.state(), self.breaker.ask(self.now)
        free = self.probe is None or self.now >= self.probe_at + OPEN_S
        may = state == "closed" or (state == "half-open" and free)
        assert (turn is not None) == may
        self.number += 1
        if turn is None:
            return -1, self.era, self.number
        if state == "half-open":
            self.probe, self.probe_at = self.number, self.now
        return turn, self.era, self.number

    @rule(target=begun, call=consumes(calls))
    def begins(self, call: tuple[int, int, int]) -> tuple[int, int, int]:
        turn, era, _ = call
        if turn >= 0:
            self.breaker.began(turn)
            if era == self.era and self.opened is not None:
                self.change(None)
        return call

    @rule(call=consumes(begun))
    def ends(self, call: tuple[int, int, int]) -> None:
        if call[0] >= 0:
            self.breaker.ended(call[0])
            self.row, self.good = 0, self.number

    @rule(call=consumes(calls) | consumes(begun))
    def fails(self, call: tuple[int, int, int]) -> None:
        turn, era, number = call
        if turn < 0:
            return
        self.breaker.failed(turn, self.now)
        if self.opened is None:
            self.row += era == self.era and number > self.good
            if self.row >= FAILURES:
                self.change(self.now)
        elif era == self.era:
            self.change(self.now)

    @rule(call=consumes(calls))
    def goes_away(self, call: tuple[int, int, int]) -> None:
        turn, era, number = call
        if turn >= 0:
            self.breaker.gone(turn)
            if era == self.era and number == self.probe:
                self.probe = None

    @invariant()
    def states_agree(self) -> None:
        if hasattr(self, "breaker"):
            assert self.breaker.state(self.now) == self.state()


TestBreakers = Breakers.TestCase


def test_after_failures_in_a_row_nobody_asks_then_one_and_then_all() -> None:
    breaker = Breaker(2, 10.0)
    for now in (0.0, 1.0):
        turn = breaker.ask(now)
        assert turn is not None
        breaker.failed(turn, now)
    assert breaker.ask(10.9) is None
    probe = breaker.ask(11.0)
    assert probe is not None and breaker.ask(11.0) is None
    breaker.failed(probe, 12.0)
    assert breaker.ask(21.9) is None
    probe = breaker.ask(22.0)
    assert probe is not None
    breaker.began(probe)
    assert all(breaker.ask(22.0) is not None for _ in range(5))


def test_who_goes_away_leaves_the_place_of_the_probe() -> None:
    breaker = Breaker(1, 10.0)
    turn = breaker.ask(0.0)
    assert turn is not None
    breaker.failed(turn, 0.0)
    probe = breaker.ask(10.0)
    assert probe is not None
    breaker.gone(probe)
    assert breaker.ask(10.0) is not None


def test_what_comes_of_a_call_of_before_is_no_news() -> None:
    breaker = Breaker(2, 10.0)
    early, *late = (breaker.ask(0.0) for _ in range(3))
    assert early is not None
    for turn in late:
        assert turn is not None
        breaker.failed(turn, 0.0)
    breaker.began(early)  # it was asked before the others failed, and answers while nobody may ask
    assert breaker.state(5.0) == "open"
    probe = breaker.ask(10.0)
    assert probe is not None
    breaker.failed(early, 11.0)
    breaker.gone(early)
    assert breaker.state(12.0) == "half-open" and breaker.ask(12.0) is None


def test_who_is_slow_together_closes_the_provider_to_nobody_whom_it_answers() -> None:
    breaker = Breaker(3, 10.0)
    slow = [breaker.ask(0.0) for _ in range(32)]  # of one device, that asks for more than can come in time
    other = breaker.ask(60.0)
    assert other is not None
    breaker.began(other)
    breaker.ended(other)
    for turn in slow:
        assert turn is not None
        breaker.failed(turn, 120.0)
    assert breaker.ask(120.0) is not None


def test_a_slow_probe_keeps_out_nobody_for_longer_than_the_breaker_does() -> None:
    breaker = Breaker(1, 10.0)
    turn = breaker.ask(0.0)
    assert turn is not None
    breaker.failed(turn, 0.0)
    slow = breaker.ask(10.0)
    assert slow is not None and breaker.ask(19.9) is None
    quick = breaker.ask(20.0)
    assert quick is not None
    breaker.began(quick)
    breaker.failed(slow, 130.0)  # old news
    assert breaker.state(130.0) == "closed"

"""Quotas against a plain model: every charge is kept in a list with its second, and added up anew each time."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from relay.gateway.quota.ledger import MONEY, REQUESTS, TOKENS, Denied, Hold, Ledger, Price, Rule
from relay.gateway.quota.window import CELLS, Window

MINUTE, HOUR = 60, 3600
PRICES = {"small": Price(150_000, 600_000, 100), "large": Price(3_000_000, 12_000_000, 100), "free": Price()}
RULES = (
    Rule("devices", "/edge/*", (("edge", "*"),), MINUTE, (6, 2_000, None)),
    Rule("floor", "/edge/*", (("edge", "*"),), HOUR, (None, 5_000, None), shared=True),
    Rule("large", "/edge/*", (("edge", "*"),), HOUR, (4, None, 20_000), models=frozenset({"large"})),
)
DEVICES = ("/edge/a", "/edge/b", "/edge/c")
MODELS = ("small", "large", "free")


@given(
    st.sampled_from([MINUTE, HOUR, 7 * HOUR]),
    st.lists(st.tuples(st.integers(0, 2 * HOUR), st.integers(0, 1_000)), max_size=60),
)
def test_a_window_counts_all_of_its_length_and_a_sixtieth_more_at_most(
    seconds: int, steps: Sequence[tuple[int, int]]
) -> None:
    window, now, charged = Window(10**6, seconds, 1_000_000), 1_000_000, []
    for step, amount in steps:
        now += step
        window.charge(amount, now)
        charged.append((now, amount))
        spent = window.limit - window.free(now)
        assert sum(n for at, n in charged if at > now - seconds) <= spent
        assert spent <= sum(n for at, n in charged if at > now - seconds - seconds // CELLS)
        assert all((at + 1) % window.width == 0 for at, _ in window.counts())
        assert sum(n for _, n in window.counts()) == spent
    now += seconds + seconds // CELLS
    assert window.idle(now) and window.frees(now) == 0 and list(window.counts()) == []


@given(
    st.lists(st.tuples(st.integers(0, 200), st.integers(1, 500)), min_size=1, max_size=20), st.integers(1, 1_000),
)
def test_what_is_said_to_be_free_again_is_so_then_and_not_a_second_before(
    steps: Sequence[tuple[int, int]], wanted: int
) -> None:
    window, now = Window(1_000, HOUR, 5_000), 5_000
    for step, amount in steps:
        now += step
        window.charge(amount, now)
    if window.free(now) < wanted:
        wait = window.wait(wanted, now)
        assert wait is not None and wait >= 1
        assert window.free(now + wait - 1) < wanted <= window.free(now + wait)


@given(st.lists(st.tuples(st.integers(0, 300), st.integers(0, 9)), max_size=30), st.sampled_from([60, 600, HOUR]))
def test_another_length_keeps_what_was_counted_and_errs_on_the_strict_side(
    steps: Sequence[tuple[int, int]], seconds: int
) -> None:
    window, now, charged = Window(100, 600, 9_000), 9_000, []
    for step, amount in steps:
        now += step
        window.charge(amount, now)
        charged.append((now, amount))
    window.reshape(50, seconds, now)
    assert window.limit == 50
    assert window.limit - window.free(now) >= sum(n for at, n in charged if at > now - min(seconds, 600))


def test_a_clock_that_goes_back_resets_nothing() -> None:
    window = Window(10, MINUTE, 1_000)
    window.charge(10, 1_000)
    assert window.free(10) == 0 and window.free(1_000) == 0
    window.charge(1, 10)
    assert window.free(1_000) == -1 and window.free(1_061) == 10


@dataclass
class Running:
    hold: Hold
    device: str
    model: str
    rules: list[Rule] = field(default_factory=list)


class Quotas(RuleBasedStateMachine):
    """Reservations in the ledger, and in a list."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 1_700_000_000
        self.ledger = Ledger()
        self.in_force = RULES
        self.ledger.replace(RULES, PRICES, self.now)
        self.running: list[Running] = []
        self.charged: list[tuple[int, str, str, tuple[int, int, int]]] = []  # second, device, model, amounts

    def falls(self, one: Rule, device: str, model: str, whose: str) -> bool:
        return (one.models is None or model in one.models) and (one.shared or device == whose)

    def spent(self, one: Rule, device: str, kind: int, seconds: int) -> int:
        return sum(
            amounts[kind] for at, who, model, amounts in self.charged
            if at > self.now - seconds and self.falls(one, who, model, device)
        )

    def held(self, one: Rule, device: str, kind: int) -> int:
        return sum(
            run.hold.amounts[kind] for run in self.running if self.falls(one, run.device, run.model, device)
        )

    @rule(
        device=st.sampled_from(DEVICES), model=st.sampled_from(MODELS), given=st.integers(0, 900),
        wanted=st.integers(0, 1_500), least=st.none() | st.integers(0, 64),
    )
    def ask(self, device: str, model: str, given: int, wanted: int, least: int | None) -> None:
        found = self.ledger.reserve(device, model, given, wanted, self.now, least=least)
        floor = wanted if least is None else min(least, wanted)
        price = PRICES[model]
        room = {}
        for one in self.in_force:
            if one.models is not None and model not in one.models:
                continue
            for kind, limit in enumerate(one.limits):
                if limit is None:
                    continue
                taken = self.held(one, device, kind)
                certain = limit - taken - self.spent(one, device, kind, one.seconds)
                strict = limit - taken - self.spent(one, device, kind, one.seconds + one.seconds // CELLS)
                room[one.name, kind] = (strict, certain)
        needed = (1, given + floor, price.cost(given, floor))
        if isinstance(found, Denied):
            assert any(needed[kind] > strict for (_, kind), (strict, _) in room.items())
            assert needed[found.kind] > room[found.slot.rule.name, found.kind][0]
            assert found.slot.who == ("" if found.slot.rule.shared else device)  # nobody else's
            return
        assert floor <= found.output <= wanted
        amounts = (1, given + found.output, price.cost(given, found.output))
        assert found.amounts == amounts
        assert all(amounts[kind] <= certain for (_, kind), (_, certain) in room.items())
        self.running.append(Running(found, device, model))

    @precondition(lambda self: self.running)
    @rule(data=st.data(), more=st.integers(0, 400))
    def grow(self, data: Any, more: int) -> None:
        run = data.draw(st.sampled_from(self.running))
        before = run.hold.output
        short = self.ledger.extend(run.hold, before + more, self.now)
        assert run.hold.output == (before if short is not None else before + more)
        assert run.hold.amounts[TOKENS] == run.hold.input + run.hold.output

    @precondition(lambda self: self.running)
    @rule(data=st.data(), part=st.integers(0, 100), requests=st.integers(0, 2))
    def end(self, data: Any, part: int, requests: int) -> None:
        """With any part of what was reserved: answered, cancelled or cut; and 0 of it where nobody was called."""
        run = data.draw(st.sampled_from(self.running))
        self.settle(run, requests, run.hold.input * part // 100, run.hold.output * part // 100)

    @precondition(lambda self: self.running)
    @rule(data=st.data(), more=st.integers(1, 3_000))
    def reports_more(self, data: Any, more: int) -> None:
        """A provider reports more than was reserved: it is charged, and missing to the next."""
        run = data.draw(st.sampled_from(self.running))
        self.settle(run, 1, run.hold.input, run.hold.output + more)

    def settle(self, run: Running, requests: int, given: int, got: int) -> None:
        amounts = (requests, given + got, PRICES[run.model].cost(given, got))
        assert self.ledger.settle(run.hold, requests, given, got, self.now) == amounts[MONEY]
        assert self.ledger.settle(run.hold, requests, given, got, self.now) == 0  # and only once
        self.charged.append((self.now, run.device, run.model, amounts))
        self.running.remove(run)

    @rule(seconds=st.sampled_from([0, 1, 7, 59, 60, 61, 300, HOUR, HOUR + 61]))
    def wait(self, seconds: int) -> None:
        self.now += seconds

    @rule(limit=st.integers(1, 3_000))
    def other_limits(self, limit: int) -> None:
        self.in_force = (Rule("devices", "/edge/*", (("edge", "*"),), MINUTE, (6, limit, None)), *RULES[1:])
        self.ledger.replace(self.in_force, PRICES, self.now)

    @invariant()
    def counts_agree(self) -> None:
        for slot in self.ledger.slots():
            one, who = slot.rule, slot.who
            for kind, window in slot.windows.items():
                window.free(self.now)
                assert window.held == self.held(one, who, kind) >= 0
                assert self.spent(one, who, kind, one.seconds) <= window.spent
                assert window.spent <= self.spent(one, who, kind, one.seconds + one.seconds // CELLS)
                if not self.running:
                    assert window.held == 0

    def teardown(self) -> None:
        """Whatever ran is refunded and slides out of every window: nothing is left."""
        for run in list(self.running):
            self.settle(run, 0, 0, 0)
        self.now += HOUR + MINUTE
        assert all(w.idle(self.now) for slot in self.ledger.slots() for w in slot.windows.values())


Quotas.TestCase.settings = settings(max_examples=100, stateful_step_count=30)
TestQuotas = Quotas.TestCase


def ledger(*rules: Rule, slots_max: int = 20_000) -> Ledger:
    made = Ledger(slots_max=slots_max)
    made.replace(rules, PRICES, 1_000)
    return made


def one_rule(**limits: int) -> Rule:
    return Rule(
        "only", "/edge/*", (("edge", "*"),), MINUTE,
        (limits.get("requests"), limits.get("tokens"), limits.get("money")),
    )


def test_pushing_others_in_gives_nobody_a_new_count() -> None:
    made = ledger(one_rule(requests=1), slots_max=3)
    for name in "abc":
        hold = made.reserve(f"/edge/{name}", "small", 1, 1, 1_000)
        assert isinstance(hold, Hold)
        made.settle(hold, 1, 1, 1, 1_000)
    assert isinstance(made.reserve("/edge/d", "small", 1, 1, 1_000), Hold)  # with all others who find no place
    assert isinstance(made.reserve("/edge/e", "small", 1, 1, 1_000), Denied)
    for name in "abcd":
        assert isinstance(made.reserve(f"/edge/{name}", "small", 1, 1, 1_000), Denied)
    assert len(made) == 4
    assert isinstance(made.reserve("/edge/f", "small", 1, 1, 1_061), Hold)  # an idle one has made room
    assert len(made) == 4


def test_a_device_that_was_forgotten_while_idle_is_counted_again() -> None:
    made = ledger(one_rule(requests=1), slots_max=1)
    first = made.reserve("/edge/a", "small", 1, 1, 1_000)
    assert isinstance(first, Hold)
    made.settle(first, 1, 1, 1, 1_000)
    second = made.reserve("/edge/b", "small", 1, 1, 1_100)  # takes the idle one's place
    assert isinstance(second, Hold)
    third = made.reserve("/edge/a", "small", 1, 1, 1_100)
    assert isinstance(third, Hold)
    assert isinstance(made.reserve("/edge/a", "small", 1, 1, 1_100), Denied)


def test_a_model_without_a_price_spends_no_money_that_is_limited() -> None:
    made = ledger(one_rule(money=10**9))
    denied = made.reserve("/edge/a", "unknown", 1, 1, 1_000)
    assert isinstance(denied, Denied) and denied.kind == MONEY and denied.wait is None


def test_all_windows_or_none_are_reserved_in() -> None:
    made = ledger(one_rule(requests=1, tokens=100))
    assert isinstance(made.reserve("/edge/a", "small", 90, 11, 1_000), Denied)
    assert all(not window.held for slot in made.slots() for window in slot.windows.values())
    assert isinstance(made.reserve("/edge/a", "small", 90, 10, 1_000), Hold)
    denied = made.reserve("/edge/a", "small", 200, 1, 1_000)
    assert isinstance(denied, Denied) and denied.kind == TOKENS and denied.wait is None  # the one that never fits
    denied = made.reserve("/edge/a", "small", 0, 0, 1_000)
    assert isinstance(denied, Denied) and denied.kind == REQUESTS


def test_a_thousand_streams_overshoot_by_one_piece_each_at_most() -> None:
    """They share one limit, and grow in turn until it is gone. Each piece is charged before the next is asked for."""
    limit, piece = 50_000, 37
    made = ledger(Rule("all", "/edge/*", (("edge", "*"),), HOUR, (None, limit, None), shared=True))
    streams = [made.reserve(f"/edge/{n}", "small", 5, 20, 1_000, least=1) for n in range(1_000)]
    holds = {n: hold for n, hold in enumerate(streams) if isinstance(hold, Hold)}
    assert len(holds) == 1_000
    passed, cut, now = dict.fromkeys(holds, 0), set[int](), 1_000
    while len(cut) < len(holds):
        now += 1
        for n, hold in holds.items():
            if n in cut:
                continue
            passed[n] += piece  # it has come, and goes on to the device
            if passed[n] > hold.output and made.extend(hold, passed[n], now) is not None:
                cut.add(n)
        (window,) = next(made.slots()).windows.values()
        assert window.spent + window.held <= limit
    released = 5 * len(holds) + sum(passed.values())
    assert limit - piece * len(holds) < released <= limit + piece * len(holds)
    for n, hold in holds.items():
        assert passed[n] - hold.output <= piece
        made.settle(hold, 1, 5, passed[n], now)
    assert window.spent == released and window.held == 0
    assert isinstance(made.reserve("/edge/0", "small", 1, 0, now), Denied)

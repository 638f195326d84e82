"""Signs of a copied key, against a model that goes through all that has ever happened; and what never gives one."""

import random
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from relay.gateway.identity.clones import OVERLAP_S, RACE_S, Clones
from relay.gateway.identity.serials import LIVE_MAX

PLACES = ("hop a", "hop b", "192.0.2.1")
DEVICES = (1, 2)


class Machine(RuleBasedStateMachine):
    """`history` has everything: the model looks at it anew each time, and remembers nothing else."""

    def __init__(self) -> None:
        super().__init__()
        self.clones, self.now, self.count = Clones(), 0.0, 0
        self.lines: dict[int, list[int]] = {device: [] for device in DEVICES}
        self.live: dict[int, tuple[int, str]] = {}
        self.history: list[tuple[float, str, int, Any]] = []

    @rule(seconds=st.sampled_from((0.0, 1.0, 4.0, 9.0, 60.0)))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @rule(device=st.sampled_from(DEVICES))
    def issue(self, device: int) -> None:
        self.count += 1
        self.lines[device].append(self.count)

    @precondition(lambda self: any(self.lines.values()))
    @rule(data=st.data(), place=st.sampled_from(PLACES))
    def show(self, data: st.DataObject, place: str) -> None:
        device = data.draw(st.sampled_from([device for device in DEVICES if self.lines[device]]))
        line = self.lines[device][-LIVE_MAX:]
        serial = data.draw(st.sampled_from(line))
        earlier = [(at, one) for at, what, who, one in self.history if what == "show" and who == device]
        newest = max((one for _, one in earlier), default=0)
        expected = serial < newest and self.now - min(at for at, one in earlier if one == newest) > RACE_S
        found = self.clones.shown(device, serial, line, place, self.now)
        assert (found is not None) == expected
        assert found is None or (found.kind, found.here) == ("older line", place)
        self.history.append((self.now, "show", device, serial))

    @precondition(lambda self: len(self.live) < 5)
    @rule(device=st.sampled_from(DEVICES), place=st.sampled_from(PLACES))
    def open(self, device: int, place: str) -> None:
        self.count += 1
        self.live[self.count] = (device, place)
        self.history.append((self.now, "open", device, self.count))
        self.clones.opened(device, self.count, place, self.now)

    @precondition(lambda self: self.live)
    @rule(data=st.data())
    def close(self, data: st.DataObject) -> None:
        session = data.draw(st.sampled_from(sorted(self.live)))
        device, _ = self.live.pop(session)
        self.clones.closed(device, session)

    @precondition(lambda self: self.live)
    @rule(data=st.data())
    def ask(self, data: st.DataObject) -> None:
        self.ask_by(data.draw(st.sampled_from(sorted(self.live))))

    @precondition(lambda self: len(self.live) > 1)
    @rule(data=st.data(), pauses=st.lists(st.sampled_from((0.0, 1.0, 6.0, 11.0)), min_size=2, max_size=5))
    def ask_in_turns(self, data: st.DataObject, pauses: list[float]) -> None:
        both = data.draw(st.lists(st.sampled_from(sorted(self.live)), min_size=2, max_size=2, unique=True))
        for number, pause in enumerate(pauses):
            self.now += pause
            self.ask_by(both[number % 2])

    def ask_by(self, session: int) -> None:
        device, place = self.live[session]
        self.history.append((self.now, "ask", device, session))
        found = self.clones.asked(device, session, self.now)
        suspects = {
            other_place for other, (owner, other_place) in self.live.items()
            if owner == device and other_place != place and self.in_turns(session, other)
        }
        assert (found is not None) == bool(suspects)
        assert found is None or (found.kind == "two places" and found.here == place and found.there in suspects)

    def in_turns(self, one: int, other: int) -> bool:
        """Whether one has asked, then the other, and then both again, each ten seconds after its first, in this order;
        all of it after they stood side by side for ten seconds. The first is whoever asked first.
        """
        start = OVERLAP_S + max(
            at for at, what, _, session in self.history if what == "open" and session in (one, other)
        )
        asks = [(at, who) for at, what, _, who in self.history if what == "ask" and who in (one, other) and at >= start]
        if not asks:
            return False
        first = asks[0]
        second = next((number for number, ask in enumerate(asks) if ask[1] != first[1]), len(asks))
        for number, (at, who) in enumerate(asks[second + 1:], second + 1):
            if who == first[1] and at >= first[0] + OVERLAP_S:
                return any(
                    again == asks[second][1] and later >= asks[second][0] + OVERLAP_S
                    for later, again in asks[number + 1:]
                )
        return False

    @invariant()
    def nothing_is_kept_of_what_is_gone(self) -> None:
        kept = {session for sessions in self.clones._live.values() for session in sessions}
        assert kept == set(self.live) and set(self.clones._live) == {device for device, _ in self.live.values()}
        assert {one for pairs in self.clones._turns.values() for pair in pairs for one in pair} <= kept


def test_signs_against_a_model() -> None:
    run_state_machine_as_test(  # type: ignore[no-untyped-call]
        Machine, settings=settings(max_examples=100, stateful_step_count=50, deadline=None)
    )


@given(st.randoms(use_true_random=False))
@settings(max_examples=150, deadline=None)
def test_one_device_however_it_lives_gives_no_sign(dice: random.Random) -> None:
    """It renews and loses answers, roams, asks by several programs at one place, resumes, and its gateway restarts."""
    clones, now, serial, line = Clones(), 0.0, 1, [1]
    stored, place = 1, 0
    sessions: list[tuple[int, int]] = []  # number, place
    late: set[int] = set()  # those by which something may arrive yet, once
    for number in range(120):
        now += dice.choice((0.1, 1.0, 5.0, 30.0, 400.0))
        match dice.choice(("renew", "lose", "move", "open", "open", "ask", "ask", "ask", "late", "end", "restart")):
            case "renew":
                serial += 1
                line.append(serial)
                stored = serial
            case "lose":
                serial += 1
                line.append(serial)
            case "move":  # sessions by the old way are left; the gateway hears of their end later, or never
                place += 1
                late = {one for one, where in sessions if where == place - 1}
            case "late":  # what was on its way arrives
                for one in dice.sample(sorted(late), len(late)):
                    for _ in range(dice.randrange(4)):
                        now += dice.random()
                        assert clones.asked(1, one, now) is None
                late = set()
            case "open":
                if dice.random() < 0.5:  # else by a ticket
                    assert clones.shown(1, stored, line[-LIVE_MAX:], f"hop {place}", now) is None
                clones.opened(1, number, f"hop {place}", now)
                sessions.append((number, place))
            case "ask":
                here = [one for one, where in sessions if where == place]
                if here:
                    assert clones.asked(1, dice.choice(here), now) is None
            case "end":
                if sessions:
                    gone, _ = sessions.pop(dice.randrange(len(sessions)))
                    clones.closed(1, gone)
                    late.discard(gone)
            case "restart":
                clones, sessions, late = Clones(), [], set()
        if stored not in line[-LIVE_MAX:]:  # so many answers lost that its own is good no more
            return


def test_what_is_forgotten_in_time() -> None:
    clones = Clones()
    for device in range(100):
        clones.shown(device, 1, [1], "a", float(device))
    clones.shown(100, 1, [1], "a", 10_000.0)
    assert len(clones._shown) == 1

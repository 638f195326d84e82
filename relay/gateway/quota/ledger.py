"""Who may still spend what: reservations and charges of all calls, in memory. Pure; several gateways that share their
counts would put another in its place that has `reserve`, `extend` and `settle`.

A call reserves what it may cost at most, in every window of every rule that it falls under, or in none. While it runs,
that stays reserved; a running answer that grows beyond it is given more or ends there. At its end the reservation goes
and what the call really cost is charged. So what is charged within a window is never more than its limit, but for what
a provider reports beyond what a call had reserved, and that is then missing to the next.
"""

from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from relay.gateway.policy.patterns import Groups
from relay.gateway.quota.shown import MILLION
from relay.gateway.quota.window import Window

REQUESTS, TOKENS, MONEY = range(3)
SLOTS_MAX: Final = 20_000  # counted each by itself; some 2 KiB each
OTHERS: Final = "*"  # who found no place of their own, as one
_LANES_MAX: Final = 65_536
_TRIES: Final = 32


@dataclass(frozen=True)
class Price:
    """Micro-units of money for a million tokens; `output_max`: tokens of an answer whose request says no limit."""

    input: int = 0
    output: int = 0
    output_max: int = 4_096

    def cost(self, input_tokens: int, output_tokens: int) -> int:
        """Micro-units, rounded up."""
        return -(-(input_tokens * self.input + output_tokens * self.output) // MILLION)

    def affords(self, money: int, input_tokens: int) -> int:
        """How many tokens of output `money` pays for, after the input; below 0 if not even that."""
        left = money * MILLION - input_tokens * self.input
        return left // self.output if self.output and left >= 0 else (1 << 62 if left >= 0 else -1)


FREE: Final = Price()


@dataclass(frozen=True)
class Rule:
    """Limits by kind, in `seconds`. `shared`: all whom it is for are counted as one. `models`: those that are counted,
    as one; None for any. `shown` is whom it is for, in the words of the file.
    """

    name: str
    shown: str
    patterns: tuple[tuple[str, ...], ...]
    seconds: int
    limits: tuple[int | None, int | None, int | None]
    shared: bool = False
    models: frozenset[str] | None = None


class Slot:
    """What one rule counts of one device, or of all that share it: a window for each of its limits."""

    __slots__ = ("rule", "who", "windows")

    def __init__(self, rule: Rule, who: str, now: int) -> None:
        self.rule, self.who = rule, who
        self.windows = {
            kind: Window(limit, rule.seconds, now) for kind, limit in enumerate(rule.limits) if limit is not None
        }

    def idle(self, now: int) -> bool:
        return all(window.idle(now) for window in self.windows.values())


class Lane(tuple[tuple[int, Window, Slot], ...]):
    """All that a call of one device and model is counted in: (kind, window, whose)."""

    told: tuple[str, list[tuple[str, Window]]] | None = None  # what of it is the same in each answer, once that is made


@dataclass(frozen=True)
class Denied:
    """By which limit, and in how many seconds it may be otherwise; None if never."""

    slot: Slot
    kind: int
    wait: int | None


@dataclass(slots=True)
class Hold:
    """A reservation. `amounts` by kind; `input` and `output` are the tokens in it."""

    lane: Lane = field(repr=False)
    price: Price
    input: int
    output: int
    amounts: tuple[int, int, int]
    open: bool = True


class Ledger:
    """All counts of a gateway. `changed`: slots in which something was charged, for whoever writes them down."""

    def __init__(self, *, slots_max: int = SLOTS_MAX) -> None:
        self.changed: set[Slot] = set()
        self._slots_max = slots_max
        self._rules: dict[str, Rule] = {}
        self._prices: Mapping[str, Price] = {}
        self._groups = Groups(())
        self._slots: OrderedDict[tuple[str, str], Slot] = OrderedDict()
        self._lanes: dict[tuple[str, str], Lane] = {}

    def replace(self, rules: Sequence[Rule], prices: Mapping[str, Price], now: int) -> None:
        """Other limits from now on. What was counted under a rule's name stays counted, whatever its window is now."""
        self._rules, self._prices = {rule.name: rule for rule in rules}, dict(prices)
        self._groups = Groups((rule.name, pattern) for rule in rules for pattern in rule.patterns)
        self._lanes.clear()
        for key, slot in list(self._slots.items()):
            rule = self._rules.get(slot.rule.name)
            if rule is None or rule.shared != slot.rule.shared:
                del self._slots[key]
                continue
            old, slot.rule = slot.windows, rule
            slot.windows = {}
            for kind, limit in enumerate(rule.limits):
                if limit is None:
                    continue
                window = slot.windows[kind] = old.get(kind) or Window(limit, rule.seconds, now)
                window.reshape(limit, rule.seconds, now)
            self.changed.add(slot)

    def price(self, model: str) -> Price | None:
        return self._prices.get(model)

    def reserve(
        self, path: str, model: str, input_tokens: int, output_tokens: int, now: int, *, least: int | None = None
    ) -> Hold | Denied:
        """For one call. Where not all of `output_tokens` is to be had, as much as there is, but not below `least`.

        A rule on money refuses a model that has no price. Denied names the limit that takes the longest.
        """
        lane = self._lanes.get((path, model))
        if lane is None:
            lane = self._lane(path, model, now)
        price, granted = self._prices.get(model, FREE), output_tokens
        least = output_tokens if least is None else min(least, output_tokens)
        short = False
        for kind, window, _ in lane:
            free = window.free(now)
            if kind == REQUESTS:
                short = short or free < 1
                continue
            room = free - input_tokens if kind == TOKENS else price.affords(free, input_tokens)
            if kind == MONEY and self._unpriced(model, input_tokens + output_tokens):
                room = -1
            granted = min(granted, room)
        if short or granted < least:
            return self._denied(lane, model, (1, input_tokens + least, price.cost(input_tokens, least)), now)
        amounts = (1, input_tokens + granted, price.cost(input_tokens, granted))
        for kind, window, _ in lane:
            window.held += amounts[kind]
        return Hold(lane, price, input_tokens, granted, amounts)

    def extend(self, hold: Hold, output_tokens: int, now: int) -> int | None:
        """Makes it `output_tokens` in all, if every window has room for that; else the kind of one that has not."""
        amounts = (1, hold.input + output_tokens, hold.price.cost(hold.input, output_tokens))
        more = [after - before for after, before in zip(amounts, hold.amounts, strict=True)]
        for kind, window, _ in hold.lane:
            if more[kind] > max(0, window.free(now)):
                return kind
        for kind, window, _ in hold.lane:
            window.held += more[kind]
        hold.output, hold.amounts = output_tokens, amounts
        return None

    def settle(self, hold: Hold, requests: int, input_tokens: int, output_tokens: int, now: int) -> int:
        """Ends a reservation, once, and charges what it came to; the money in it."""
        if not hold.open:
            return 0
        hold.open = False
        charged = (requests, input_tokens + output_tokens, hold.price.cost(input_tokens, output_tokens))
        for kind, window, slot in hold.lane:
            window.held -= hold.amounts[kind]
            if charged[kind]:
                window.charge(charged[kind], now)
                self.changed.add(slot)
        return charged[MONEY]

    def charge(self, path: str, model: str, amounts: tuple[int, int, int], now: int) -> None:
        """What an earlier process did not get to."""
        for kind, window, slot in self._lane(path, model, now):
            window.charge(amounts[kind], now)
            self.changed.add(slot)

    def restore(self, name: str, who: str, counts: Mapping[int, Sequence[tuple[int, int]]], now: int) -> None:
        """What was counted before, as `Window.counts` has it, by kind. Nothing for a rule that there is no more."""
        rule = self._rules.get(name)
        if rule is None or rule.shared != (not who):
            return
        slot = self._slot(rule, who, now)
        for kind, window in slot.windows.items():
            for at, amount in counts.get(kind, ()):
                window.add(at, amount)

    def slots(self) -> Iterator[Slot]:
        yield from self._slots.values()

    def rules(self) -> list[Rule]:
        return list(self._rules.values())

    def __len__(self) -> int:
        return len(self._slots)

    # --- inside -----------------------------------------------------------------------------------------------------

    def _lane(self, path: str, model: str, now: int) -> Lane:
        found = []
        for name in self._groups.of(path):
            rule = self._rules[name]
            if rule.models is None or model in rule.models:
                slot = self._slot(rule, "" if rule.shared else path, now)
                found += [(kind, window, slot) for kind, window in slot.windows.items()]
        if len(self._lanes) >= _LANES_MAX:
            self._lanes.clear()
        lane = self._lanes[path, model] = Lane(found)
        return lane

    def _slot(self, rule: Rule, who: str, now: int) -> Slot:
        slot = self._slots.get((rule.name, who))
        if slot is None and len(self._slots) >= self._slots_max and not self._room(now):
            who = OTHERS
            slot = self._slots.get((rule.name, who))
        if slot is None:
            slot = self._slots[rule.name, who] = Slot(rule, who, now)
        return slot

    def _room(self, now: int) -> bool:
        """Forgets one that counts nothing any more, so that nobody gets a new count by pushing out their old one."""
        for _ in range(min(_TRIES, len(self._slots))):
            key, slot = self._slots.popitem(last=False)
            if slot.idle(now):
                self._lanes.clear()
                return True
            self._slots[key] = slot
        return False

    def _unpriced(self, model: str, tokens: int) -> bool:
        return tokens > 0 and model not in self._prices

    def _denied(self, lane: Lane, model: str, wanted: tuple[int, int, int], now: int) -> Denied:
        unpriced = self._unpriced(model, wanted[TOKENS])
        found = [
            Denied(slot, kind, None if kind == MONEY and unpriced else window.wait(wanted[kind], now))
            for kind, window, slot in lane if wanted[kind] > window.free(now) or (kind == MONEY and unpriced)
        ]
        return max(found, key=lambda one: 1 << 62 if one.wait is None else one.wait)

"""Quotas of a gateway that runs: the ledger with a clock, and what one call has reserved of it."""

import time
from collections.abc import Callable
from typing import Any, Final

from relay.gateway.errors import ProviderFailure
from relay.gateway.pipeline import Refusal, RequestContext
from relay.gateway.quota import estimate
from relay.gateway.quota.ledger import FREE, MONEY, Denied, Hold, Ledger, Slot
from relay.gateway.quota.settings import Limiting
from relay.gateway.quota.shown import KINDS, shown, span
from relay.gateway.quota.window import Window

PER: Final = ("device", "role")
LEAST: Final = 64  # tokens of output for which a stream is begun at all
CODES: Final = ("rate_limited", "quota_exceeded", "budget_exceeded")
_SHOWN_MAX: Final = 8
_RETRY_S: Final = 60  # whoever may come again so soon may do it unasked
_UNBILLED: Final = ("provider_auth", "provider_rejected", "provider_error", "model_not_on_route")  # it said no


class Quotas:
    """Admission is in memory and waits for nothing. `running`: what calls under way have reserved."""

    def __init__(
        self, limiting: Limiting, *, clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """The time of day is looked at once: afterwards nobody who sets it moves a window."""
        self.ledger = Ledger()
        self.running: dict[tuple[str, bytes], CallHold] = {}  # by device and request, whose ids are its own choice
        self._monotonic = monotonic
        self._offset = 0.0
        self.not_before(clock())
        self.ledger.replace(limiting.rules, limiting.prices, self.now())

    def now(self) -> int:
        """Seconds of the quotas' own clock, about unix time."""
        return int(self._offset + self._monotonic())

    def not_before(self, seconds: float) -> None:
        """Puts the clock forward to that, if it is behind: where an earlier process had got to."""
        self._offset = max(self._offset, seconds - self._monotonic())

    def replace(self, limiting: Limiting) -> None:
        """Other limits from the next request on; counts stay."""
        self.ledger.replace(limiting.rules, limiting.prices, self.now())

    def admit(self, context: RequestContext, counted: bool, wanted: int | None) -> "CallHold | Refusal":
        """`counted`: the answer has tokens, at most `wanted` if the request says so."""
        path, now = context.peer.id.path, self.now()
        given = estimate.at_most(context.body, context.said) if counted else 0
        if wanted is None:
            wanted = (self.ledger.price(context.model) or FREE).output_max * context.answers
        least = LEAST if context.stream else None
        found = self.ledger.reserve(path, context.model, given, wanted, now, least=least)
        if isinstance(found, Denied):
            return _refusal(found, given + wanted, now, priced=self.ledger.price(context.model) is not None)
        hold = self.running[path, context.request_id] = CallHold(self, found, context)
        return hold

    async def usage(self) -> dict[str, Any]:
        """The control socket's operation: each limit of each device or role of which something is counted, and those of
        which nothing is, once.
        """
        now, ledger = self.now(), self.ledger
        rules = ledger.rules()
        slots = [slot for slot in ledger.slots() if not slot.idle(now)]
        slots += [Slot(rule, "", now) for rule in rules if rule not in [slot.rule for slot in slots]]
        slots.sort(key=lambda slot: (rules.index(slot.rule), slot.who))
        return {"quotas": [
            {
                "quota": slot.rule.name, "for": slot.who or slot.rule.shown, "per": PER[slot.rule.shared],
                "models": None if slot.rule.models is None else sorted(slot.rule.models),
                "window_s": slot.rule.seconds, "counts": KINDS[kind], "used": window.spent, "reserved": window.held,
                "limit": window.limit, "frees_s": window.frees(now),
            }
            for slot in slots for kind, window in slot.windows.items()
        ]}


class CallHold:
    """A call's reservation (`pipeline.Hold`), and how much of its answer has come."""

    __slots__ = ("_events", "_most", "_quotas", "_size", "context", "hold")

    def __init__(self, quotas: Quotas, hold: Hold, context: RequestContext) -> None:
        self.hold, self.context = hold, context
        self._quotas, self._most = quotas, context.output_max
        self._events = self._size = 0

    @property
    def output(self) -> int:
        """Tokens of output that have passed, by estimate."""
        return estimate.passed(self._events, self._size, self._most)

    def take(self, size: int) -> str:
        """An event has come that holds so many bytes of text. The code of the limit that is used up by it, or "".

        Beyond what is reserved more is taken than that at once, so that the windows are not asked for each event.
        """
        self.count(size)
        output = self.output
        if output <= self.hold.output:
            return ""
        ledger, now = self._quotas.ledger, self._quotas.now()
        if ledger.extend(self.hold, output + LEAST, now) is None:
            return ""
        short = ledger.extend(self.hold, output, now)
        return "" if short is None else CODES[short]

    def count(self, size: int) -> None:
        self._events, self._size = self._events + 1, self._size + size

    def reserved(self) -> dict[str, int]:
        return {} if not self.hold.lane else {"reserved_tokens": self.hold.amounts[1], "reserved": self.hold.amounts[2]}

    def settle(self, result: str, failure: ProviderFailure | None = None) -> dict[str, int]:
        if not self.hold.open:
            return {}
        self._quotas.running.pop((self.context.peer.id.path, self.context.request_id), None)
        requests, given, got = self._came_to(result, failure)
        cost = self._quotas.ledger.settle(self.hold, requests, given, got, self._quotas.now())
        del self.context  # it holds this, and a cycle would keep its body until somebody looks for cycles
        return {} if not self.hold.lane else {"attempts": requests, "charged_tokens": given + got, "charged": cost}

    def _came_to(self, result: str, failure: ProviderFailure | None) -> tuple[int, int, int]:
        """Requests, and tokens in and out."""
        context, usage, hold = self.context, self.context.usage, self.hold
        if not result:
            return 0, 0, 0
        begun = bool(context.answer_type)
        if failure is not None and not begun and (failure.again or failure.kind in _UNBILLED):
            return context.attempts, 0, 0
        attempts, whole = max(1, context.attempts), result == "answered"
        if not whole and not (context.stream and begun):
            return attempts, hold.input, hold.output  # nobody can know what of it was done
        given = usage.input_tokens
        if given is None:  # of token numbers each has two bytes, of text a token has more
            given = estimate.likely(hold.input) if context.said or hold.output else hold.input
        if usage.output_tokens is not None and (whole or usage.output_tokens > self.output):
            return attempts, given, usage.output_tokens
        return attempts, given, self.output if hold.output else 0  # embeddings are no text

    def headers(self) -> dict[str, str]:
        """Of the limits that are this device's alone: what others have left of a shared one is not its business."""
        lane = self.hold.lane
        if lane.told is None:
            lane.told = _told([one for one in lane if not one[2].rule.shared][:_SHOWN_MAX])
        return _headers(lane.told, self._quotas.now()) if lane.told[1] else {}


def _headers(told: tuple[str, list[tuple[str, Window]]], now: int) -> dict[str, str]:
    """draft-ietf-httpapi-ratelimit-headers-10, sections 3 and 4 (RFC 9651 lists)."""
    left = [f"{name};r={max(0, window.free(now))};t={window.frees(now)}" for name, window in told[1]]
    return {"RateLimit-Policy": told[0], "RateLimit": ", ".join(left)}


def _told(lane: list[tuple[int, Window, Slot]]) -> tuple[str, list[tuple[str, Window]]]:
    policies, windows = [], []
    for kind, window, slot in lane:
        name, unit = f'"{slot.rule.name}.{KINDS[kind]}"', ("request", "tokens", "micro-units")[kind]
        policies.append(f'{name};q={window.limit};w={slot.rule.seconds};qu="{unit}"')
        windows.append((name, window))
    return ", ".join(policies), windows


def _refusal(denied: Denied, tokens: int, now: int, *, priced: bool) -> Refusal:
    """In words, which a session has, too, and by headers; nothing of it is another device's."""
    rule, kind, wait = denied.slot.rule, denied.kind, denied.wait
    allowed = shown(kind, rule.limits[kind] or 0)
    limit = f"quota {rule.name}: {allowed} in {span(rule.seconds)}{' for all' * rule.shared}"
    if wait is not None:
        text = f"{limit}, of which too little is left; again in {span(wait)}"
    elif kind == MONEY and not priced:
        text = f"{limit}, and this model has no price"
    else:
        text = f"{limit}, and this request may come to {tokens:,} tokens; ask for fewer by max_tokens"
    headers = _headers(_told([(kind, denied.slot.windows[kind], denied.slot)]), now) if not rule.shared else {}
    if wait is not None:
        headers["Retry-After"] = str(wait)
    again = wait is not None and wait <= _RETRY_S
    return (
        Refusal(429, "rate_limited", text, again, headers=headers),
        Refusal(429, "quota_exceeded", text, again, headers=headers),
        Refusal(429, "budget_exceeded", text, again, headers=headers),
    )[kind]

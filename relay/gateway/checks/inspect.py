"""Does the request try to take over the model? A soft signal: the words of a conversation, judged before anybody is
called, streams like the rest.

What could not be judged never counts as passed: where a rule blocks, it is refused, and the audit says so in any case.
"""

import asyncio
import logging
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from math import inf
from typing import Final

from relay.gateway.inspection.inspector import Finding, Inspector, Verdict
from relay.gateway.inspection.model import ModelUnusable, shipped
from relay.gateway.inspection.settings import Inspections, Rule
from relay.gateway.pipeline import Refusal, RequestContext, Said

__all__ = ["Inspect", "made_inspector"]

INLINE_MAX: Final = 4 << 10  # characters of new text that are judged at once, in some milliseconds; more in a thread
WAITING_MAX: Final = 64  # devices whose texts a thread is to judge
EACH_MAX: Final = 1 << 20  # characters of them of one device: as much as a body, so that nobody fills the queue alone
TIMEOUT_S: Final = 5.0
JUDGED_S: Final = 2.0  # of the thread for one request; a million characters of prose take a tenth of that
_REFUSED: Final = Refusal(403, "prompt_refused", "the gateway does not pass on a request of this wording")
_UNAVAILABLE: Final = Refusal(
    503, "inspection_unavailable", "the gateway cannot inspect requests now and refuses this one", retryable=True
)
_RULED_MAX: Final = 4_096  # callers and models whose rule is kept
_NOTHING: Final = ("", Finding(0.0))
_log = logging.getLogger(__name__)


class Inspect:
    """After schema, of whose `context.said` it reads. Sets `context.inspected` and `context.injection`."""

    def __init__(self, rules: Inspections, inspector: Inspector | None) -> None:
        """`inspector` None: there is no usable model."""
        self._rules, self._inspector = rules, inspector
        self._ruled: dict[tuple[str, str], Rule] = {}
        self._executor = ThreadPoolExecutor(1, "inspect")
        self._waiting: Counter[int] = Counter()  # characters, by enrolment

    def replace(self, rules: Inspections) -> None:
        """From now on; what has been let through stays so."""
        self._rules = rules
        self._ruled.clear()

    def close(self) -> None:
        self._executor.shutdown(wait=False, cancel_futures=True)

    async def check(self, context: RequestContext) -> Refusal | None:
        if not context.said:
            return None
        rule = self._rule(context.peer.id.path, context.model)
        if rule.mode == "off":
            context.inspected = "off"
            return None
        try:
            role, worst = await self._worst(context, rule.roles)
        except Exception as error:  # whatever it is, nothing was judged; its words could quote the prompt
            _log.error("request %s was not inspected: %s", context.trace_id, type(error).__name__)
            context.inspected = "unavailable"
            return _UNAVAILABLE if rule.mode == "block" else None
        context.injection = worst.score
        verdict = _verdict(rule, worst)
        refused = verdict == "block" and rule.mode == "block"
        word = "blocked" if refused else "passed" if verdict == "allow" else "flagged"
        context.inspected = f"{word} {worst.score:.3f}"
        if verdict != "allow":
            view = f" by {worst.view}" if worst.view else ""
            context.inspected += f" {role} at {worst.at}{view}, mode {rule.mode}"
            context.flagged = rule.mode != "log"
        return _REFUSED if refused else None

    def _rule(self, path: str, model: str) -> Rule:
        rule = self._ruled.get((path, model))
        if rule is None:
            if len(self._ruled) >= _RULED_MAX:
                self._ruled.clear()
            rule = self._ruled[path, model] = self._rules.of(path, model)
        return rule

    async def _worst(self, context: RequestContext, roles: tuple[str, ...]) -> tuple[str, Finding]:
        """Of the texts of these roles, with whose it is. Raises whatever is the matter."""
        inspector = self._inspector
        if inspector is None:
            raise ModelUnusable("there is no model")
        worst, new, size = _NOTHING, [], 0
        for one in context.said:
            if one.role in roles and one.text:
                found = inspector.seen(one.text)
                if found is None:
                    new.append(one)
                    size += len(one.text)
                elif found.score > worst[1].score:
                    worst = one.role, found
        if not new:
            return worst
        fresh = _worst_of(inspector, new) if size <= INLINE_MAX else await self._beside(
            inspector, new, size, context.enrolment)
        return max(worst, fresh, key=lambda found: found[1].score)

    async def _beside(self, inspector: Inspector, said: list[Said], size: int, who: int) -> tuple[str, Finding]:
        had = self._waiting[who]
        if len(self._waiting) >= WAITING_MAX or (had and had + size > EACH_MAX):
            raise TimeoutError
        self._waiting[who] += size
        try:
            work = asyncio.get_running_loop().run_in_executor(self._executor, _worst_of, inspector, said, JUDGED_S)
            return await asyncio.wait_for(work, TIMEOUT_S)
        finally:
            self._waiting[who] -= size
            if not self._waiting[who]:
                del self._waiting[who]


def _worst_of(inspector: Inspector, said: list[Said], seconds: float = inf) -> tuple[str, Finding]:
    end = time.monotonic() + seconds
    found = ((one.role, inspector.of(one.text, lambda: time.monotonic() < end)) for one in said)
    return max(found, key=lambda one: one[1].score, default=_NOTHING)


def _verdict(rule: Rule, finding: Finding) -> Verdict:
    """By the model's thresholds, or the rule's own."""
    if rule.flag_at is None and rule.block_at is None:
        return finding.verdict
    levels = {"allow": 0, "flag": 1, "block": 2}
    block = finding.score >= rule.block_at if rule.block_at is not None else levels[finding.verdict] == 2
    flag = finding.score >= rule.flag_at if rule.flag_at is not None else levels[finding.verdict] >= 1
    return "block" if block else "flag" if flag else "allow"


def made_inspector() -> Inspector | None:
    """Of the model that comes with this package; None, and an error in the log, if that cannot be used."""
    try:
        return Inspector(shipped())
    except ModelUnusable as error:
        _log.error("%s: where [[inspect]] blocks, every request is refused", error)
        return None

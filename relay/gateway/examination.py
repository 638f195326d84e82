"""What a running gateway finds out about itself for `relay doctor`: all that only it can know.

It alone has the authority open, decides by the rules that are in force, and holds the provider's key. Findings are one
line each, with a hint where there is something to do; no key, and no word of a provider's, gets into one.
"""

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final, Literal

from relay.gateway.answers import pack, unpack
from relay.gateway.config import Config, load
from relay.gateway.errors import ConfigError, PolicyUnavailable, ProviderFailure, SetupRefused
from relay.gateway.identity.ca import DAY_S, Authority, root_ends
from relay.gateway.identity.invitations import PROBE_NAME
from relay.gateway.identity.probes import Probes
from relay.gateway.identity.rotation import PUBLISHED_S
from relay.gateway.policy.decisions import Policy
from relay.gateway.policy.questions import Question
from relay.gateway.upstream.providers import Provided
from transport.identity.svid import SpiffeId

AHEAD_S: Final = 10 * DAY_S
_NO_MODEL: Final = "no-model-has-this-name"
_NAMED_MAX: Final = 5

Status = Literal["ok", "warning", "failed"]


@dataclass(frozen=True)
class Finding:
    """One line for a person, lower case, without a final period."""

    status: Status
    finding: str
    hint: str | None = None


class Examination:
    """The control socket's operation `examine`."""

    def __init__(
        self, config: Config, *, node: str, listening: tuple[str, str], authority: Authority, probes: Probes,
        policy: Policy, providers: Sequence[Provided], clock: Callable[[], float] = time.time,
        agent: Callable[[], Finding | None] = lambda: None,
    ) -> None:
        """`listening`: where sessions and HTTPS really are, "" where they are not. `agent`: what is wrong with the
        SPIFFE agent, where the gateway's own identity comes from one.
        """
        self._agent = agent
        self._config, self._node, self._listening = config, node, listening
        self._authority, self._probes, self._policy, self._providers = authority, probes, policy, providers
        self._clock = clock

    async def __call__(
        self, stage: str, timeout_s: float = 10.0, requests: dict[str, str] | None = None
    ) -> dict[str, Any]:
        """Raises SetupRefused for a stage that is none, and what `Probes.issue` raises."""
        match stage:
            case "source":
                await self._authority.aside(self._authority.try_key)
                found = self._agent() or source_of(self._authority, self._clock())
                return asdict(found) | {"id": self._node}
            case "issuance":
                return await self._issued(requests or {})
            case "authorisation":
                return asdict(await self._authorisation())
            case "provider":
                return asdict(await self._provider(timeout_s))
        raise SetupRefused("there is no such stage", hint="are command and gateway of the same version?")

    async def _issued(self, requests: dict[str, str]) -> dict[str, Any]:
        made = await self._probes.issue({role: unpack(csr) for role, csr in requests.items()})
        bundle = self._authority.bundle
        return {
            "chains": {role: [pack(der) for der in one.chain] for role, one in made.items()},
            "roots": [pack(der) for der in bundle.roots], "sequence": bundle.sequence,
            "session": self._listening[0], "https": self._listening[1],
        }

    async def _authorisation(self) -> Finding:
        try:
            rules = load(self._config.directory / self._config.file).rules
            current = Policy(rules)
        except ConfigError as error:
            return Finding("failed", f"the rules on disk have a mistake: {error}",
                           "the gateway goes on with those of before and would not start anew; mend the file")
        await current.close()
        anybody = SpiffeId(self._authority.trust_domain, f"/edge/{PROBE_NAME}")
        question = Question(anybody, "model:invoke", _NO_MODEL)
        try:
            allowed = await self._policy.models(question)
        except PolicyUnavailable:
            allowed = None
        decision = await self._policy.decide(question)
        if allowed is None or decision.unavailable:
            return Finding("failed", decision.reason, "is OPA running where policy.opa says?")
        if decision.allowed:
            return Finding("warning", "policy allows a model that does not exist to a device that nobody has named",
                           "is there a rule without conditions? `relay gateway policy explain` names it")
        if current.version != self._policy.version:
            return Finding("warning", "the rules on disk are not those in force",
                           "run `relay gateway policy reload` to bring them into force")
        may = f"any edge may use {_listed(allowed)}" if allowed else "an edge of no group may use nothing"
        return Finding("ok", f"what no rule allows is denied; {may}")

    async def _provider(self, timeout_s: float) -> Finding:
        findings = []
        for one in self._providers:
            findings.append(await _reached(one, timeout_s))
        worst = max(findings, key=lambda one: ("ok", "warning", "failed").index(one.status))
        told = [one.finding for one in findings if one.status == worst.status]
        return Finding(worst.status, "; ".join(told), worst.hint)


def source_of(authority: Authority, now: float) -> Finding:
    """Whether an embedded authority can issue, and for how long: its intermediate, and the roots of its bundle."""
    left = authority.not_after - now
    if left < 60:
        return Finding("failed", f"the intermediate certificate has expired, at {_day(authority.not_after)}",
                       "stop the gateway and run `relay gateway rotate-key`, or set the clock")
    ends = root_ends(authority)
    current, latest = ends[0], max(ends)
    if now > current - AHEAD_S:
        return Finding("warning", f"the root in use ends {_day(current)}", "run `relay gateway rotate-key root`")
    if left < AHEAD_S:
        return Finding("warning", f"the intermediate ends {_day(authority.not_after)}, in {left / DAY_S:.0f} days",
                       "stop the gateway and run `relay gateway rotate-key`")
    if now > latest - PUBLISHED_S - AHEAD_S:
        return Finding("warning", f"the root ends {_day(latest)}, and a new one has to be published 90 days before",
                       "run `relay gateway rotate-key root`")
    return Finding("ok", f"the embedded authority issues; its intermediate ends {_day(authority.not_after)}, "
                         f"its root {_day(current)}")


async def _reached(one: Provided, timeout_s: float) -> Finding:
    host, where = f"{one.upstream.name} at {one.upstream.host}", f"{one.section}.base_url"
    try:
        async with asyncio.timeout(timeout_s):
            status, json = await one.upstream.ping(key=None if one.key is None else one.key.current())
    except TimeoutError:
        return Finding("failed", f"{host} did not answer in {timeout_s:g} s", f"is {where} right, and is it up?")
    except ProviderFailure as failure:
        return Finding("failed", f"{host}: {failure}", f"is {where} right? is there a way out from this machine?")
    if status in (401, 403):
        return Finding("failed", f"{host} refuses the key, with status {status}",
                       f"put a key that is good where {one.section}.key_file says; one from key_env needs a new start")
    if 300 <= status < 400:
        return Finding("failed", f"{host} sends elsewhere, with status {status}, which is never followed",
                       f"write the address where it ends into {where}")
    if status == 429 or status in (404, 405):
        why = "limits the rate" if status == 429 else "does not say which models it has"
        return Finding("warning", f"{host} is there but {why}, so its key was not tried")
    if status != 200:
        return Finding("failed", f"{host} answered with status {status}", "look at the provider's own status")
    if one.key is not None and not json:
        return Finding("failed", f"{host} answers, but not as an API", f"is {where} right? is a portal in between?")
    return Finding("ok", f"{host} is reached" + ("" if one.key is None else " and takes the key"))


def _listed(names: Sequence[str]) -> str:
    more = len(names) - _NAMED_MAX
    return ", ".join(names[:_NAMED_MAX]) + (f" and {more} more" if more > 0 else "")


def _day(seconds: float) -> str:
    return time.strftime("%Y-%m-%d", time.gmtime(seconds))

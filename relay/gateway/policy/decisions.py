"""The gateway's policy as it stands: groups, one engine, the decisions that are kept meanwhile, and its exchange."""

import hashlib
from collections import OrderedDict
from collections.abc import Callable
from typing import Final

import msgspec

from relay.gateway.errors import PolicyUnavailable
from relay.gateway.policy.cedar import Cedar
from relay.gateway.policy.opa import Opa
from relay.gateway.policy.patterns import Groups
from relay.gateway.policy.questions import UNKNOWN, Decision, Engine, Question
from relay.gateway.policy.settings import Rules
from relay.gateway.upstream.keys import key_from_file
from transport.identity.svid import SpiffeId
from transport.messages import Posture

KEPT_MAX: Final = 65_536  # decisions; all go when there are more
RECENT_MAX: Final = 4_096  # of them, those that are found without making the question
POSTURES_MAX: Final = 100_000  # devices of which what they said of themselves is kept


class Policy:
    """Decides for every door of the gateway. `version` changes with everything that decisions depend on."""

    def __init__(self, rules: Rules, attested_tpm: Callable[[int], str] = lambda enrolment: "none") -> None:
        """`attested_tpm`: what a device has shown of its TPM. Raises ConfigError if OPA's token cannot be read."""
        self.attested_tpm = attested_tpm
        self.changed: list[Callable[[], None]] = []  # called when other rules have come into force
        self._take(rules)
        self._postures: OrderedDict[int, Posture] = OrderedDict()

    async def decide(self, question: Question) -> Decision:
        """Never raises."""
        if (found := self._kept.get(question)) is not None:
            return found
        kept, engine = self._kept, self._engine  # a policy that takes their place meanwhile has its own
        decision = await engine.decide(question, self._groups.of(question.id.path))
        if engine.cacheable:
            if len(kept) >= KEPT_MAX:
                kept.clear()
            kept[question] = decision
        return decision

    async def decide_about(self, identity: SpiffeId, enrolment: int, verb: str, resource: str, via: str) -> Decision:
        """`decide`, of a device as it stands; what was asked a moment ago costs a look-up."""
        posture, tpm, recent, engine = self.posture(enrolment), self.attested_tpm(enrolment), self._recent, self._engine
        key = identity.trust_domain, identity.path, enrolment, verb, resource, via
        found = recent.get(key)
        if found is not None and found[0] is posture and found[1] == tpm:
            return found[2]
        decision = await self.decide(Question(identity, verb, resource, via, posture, tpm))
        if engine.cacheable:
            if len(recent) >= RECENT_MAX:
                recent.clear()
            recent[key] = posture, tpm, decision
        return decision

    async def models(self, question: Question) -> list[str]:
        """Those of the names that gateway.toml knows which `question` would be allowed for, sorted.

        Raises PolicyUnavailable: a list that lacks what could not be asked about would be taken for the whole.
        """
        decisions = {name: await self.decide(question.about(name)) for name in self._models}
        if any(decision.unavailable for decision in decisions.values()):
            raise PolicyUnavailable("the policy engine cannot be reached")
        return [name for name, decision in decisions.items() if decision.allowed]

    async def by_hop(self, identity: SpiffeId, enrolment: int, via: str) -> Decision | None:
        """Why a device may not come by the hop `via`; None if it may, or if it comes straight."""
        if not via:
            return None
        decision = await self.decide(
            Question(identity, "relay:use", via, via, self.posture(enrolment), self.attested_tpm(enrolment))
        )
        return None if decision.allowed else decision

    async def replace(self, rules: Rules) -> None:
        """From the next decision on. Raises ConfigError like the constructor, and then nothing has changed."""
        old = self._engine
        self._take(rules)
        for tell in self.changed:
            tell()
        await old.close()

    def groups(self, identity: SpiffeId) -> tuple[str, ...]:
        return self._groups.of(identity.path)

    def posture(self, enrolment: int) -> Posture:
        """What a device last said of itself, of this process's time."""
        return self._postures.get(enrolment, UNKNOWN)

    def take_posture(self, enrolment: int, posture: Posture) -> None:
        self._postures[enrolment] = posture
        self._postures.move_to_end(enrolment)
        if len(self._postures) > POSTURES_MAX:
            self._postures.popitem(last=False)

    async def close(self) -> None:
        await self._engine.close()

    def _take(self, rules: Rules) -> None:
        engine: Engine
        if rules.opa is None:
            engine = Cedar(rules.cedar)
        else:
            token = rules.opa.token_file
            engine = Opa(rules.opa, None if token is None else key_from_file(token, "OPA's token"))
        self._engine, self._models = engine, rules.models
        self._groups = Groups(rules.patterns)
        self._kept: dict[Question, Decision] = {}
        self._recent: dict[tuple[str | int, ...], tuple[Posture, str, Decision]] = {}
        self.version = hashlib.sha256(msgspec.json.encode(rules, enc_hook=str)).hexdigest()[:16]

"""Cedar, embedded: decides by rules that have been validated against our schema.

Cedar skips a rule that fails, also one that forbids, and may then allow; here any failure is a denial. Of many rules
only those are evaluated whose scope can fit the principal's groups and the verb: the others could neither apply nor
fail.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any, Final

import msgspec
from cedarpy import AuthzResult, Entities, PolicySet, Schema, is_authorized, validate_policies

from relay.gateway.policy.questions import Decision, Question, principal
from transport.identity.svid import SpiffeId
from transport.messages import Posture

SCHEMA: Final = files("relay.gateway.policy").joinpath("causeway.cedarschema").read_text("utf-8")
KEPT_MAX: Final = 16_384  # entities and slices that are kept; all go when there are more

Json = dict[str, Any]


@dataclass(frozen=True)
class Rule:
    """One policy in Cedar's JSON form. `name` is unique: where it stands; `label` is its @id, or ""."""

    name: str
    policy: Json
    label: str = ""

    @property
    def shown(self) -> str:
        return f"{self.name} ({self.label})" if self.label else self.name

    def may_fit(self, verb: str, groups: Sequence[str]) -> bool:
        """False only if the rule's scope leaves out whoever is in these groups, or this verb."""
        principal, action = self.policy["principal"], self.policy["action"]
        if principal["op"] == "in" and principal["entity"]["type"] == "Group":
            return principal["entity"]["id"] in groups and _may_be(action, verb)
        return _may_be(action, verb)


def _may_be(action: Json, verb: str) -> bool:
    return bool(action["op"] != "==" or action["entity"]["id"] == verb)


class Cedar:
    """See `Engine`. Its rules never change; a reload makes another."""

    cacheable = True

    def __init__(self, rules: Sequence[Rule]) -> None:
        """Raises ValueError for what `defects` finds."""
        self._rules = {rule.name: rule for rule in rules}
        self._schema = Schema.from_str(SCHEMA)
        policy_set(rules)
        self._slices: dict[tuple[str, tuple[str, ...]], PolicySet] = {}
        self._nodes: dict[tuple[SpiffeId, Posture, str, tuple[str, ...]], Entities] = {}

    async def decide(self, question: Question, groups: tuple[str, ...]) -> Decision:
        """See `Engine`."""
        try:
            result = is_authorized(
                {
                    "principal": {"type": "Node", "id": str(question.id)},
                    "action": {"type": "Action", "id": question.verb},
                    "resource": question.entity(),
                    "context": msgspec.json.encode({"via": question.via}).decode(),
                },
                self._slice(question.verb, groups), self._node(question, groups),
            )
        except ValueError as error:
            return Decision(False, (), f"the question could not be evaluated: {error}")
        return self._told(question, groups, result)

    async def close(self) -> None:
        pass

    def _told(self, question: Question, groups: Sequence[str], result: AuthzResult) -> Decision:
        found = result.diagnostics
        rules = tuple(sorted(found.reasons))
        shown = ", ".join(self._rules[name].shown for name in rules)
        if found.errors:
            return Decision(False, rules, "denied, since a rule failed: " + "; ".join(found.errors))
        if result.allowed:
            return Decision(True, rules, f"allowed by {shown}")
        if rules:
            return Decision(False, rules, f"denied: {shown} forbids it")
        within = f"in {', '.join(groups)}" if groups else "in no group"
        return Decision(
            False, (), f"denied: no rule allows {question.verb} on {question.resource} to this ID, which is {within}"
        )

    def _slice(self, verb: str, groups: tuple[str, ...]) -> PolicySet:
        key = (verb, groups)
        if (found := self._slices.get(key)) is None:
            if len(self._slices) >= KEPT_MAX:
                self._slices.clear()
            found = policy_set([rule for rule in self._rules.values() if rule.may_fit(verb, groups)])
            self._slices[key] = found
        return found

    def _node(self, question: Question, groups: tuple[str, ...]) -> Entities:
        """Raises ValueError for what the schema does not know; so the question needs no looking at it again."""
        key = (question.id, question.posture, question.attested_tpm, groups)
        if (found := self._nodes.get(key)) is None:
            if len(self._nodes) >= KEPT_MAX:
                self._nodes.clear()
            found = self._nodes[key] = Entities.from_json_str(json.dumps([{
                "uid": {"type": "Node", "id": str(question.id)},
                "attrs": principal(question.id, question.posture, question.attested_tpm),
                "parents": [{"type": "Group", "id": group} for group in groups],
            }]), self._schema)
        return found


def policy_set(rules: Sequence[Rule]) -> PolicySet:
    """Raises ValueError."""
    return PolicySet.from_json_str(json.dumps(
        {"staticPolicies": {rule.name: rule.policy for rule in rules}, "templates": {}, "templateLinks": []}
    ))


def defects(text: str) -> list[str]:
    """What Cedar's validator says against one policy, by our schema; empty if nothing."""
    return [error.error.replace("for policy `policy0`, ", "") for error in validate_policies(text, SCHEMA).errors]


def named(kind: str, value: object) -> Iterator[str]:
    """Every entity of a kind that a policy in JSON form names, wherever in it."""
    if isinstance(value, dict):
        if value.get("type") == kind and isinstance(value.get("id"), str):
            yield value["id"]
        for part in value.values():
            yield from named(kind, part)
    elif isinstance(value, list):
        for part in value:
            yield from named(kind, part)

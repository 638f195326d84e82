"""The sections [[inspect]] of gateway.toml: whose requests to which models are looked at, and what comes of it."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Annotated, Final, Literal

from msgspec import Meta, Struct

from relay.gateway.errors import ConfigError
from relay.gateway.policy.patterns import Pattern, covers, pattern_at

Mode = Literal["off", "log", "flag", "block"]
Said = Literal["system", "developer", "user", "assistant", "tool"]
Threshold = Annotated[float, Meta(gt=0, lt=1)]
_CALLERS: Final = ("edge", "workload")  # the roles whose IDs ask models


class Rule(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Who fits `id` (left out: everybody) and asks one of `models` (left out: any). The first that fits decides.

    `roles`: whose words in the conversation are looked at; what a device gives as `system` counts as its user's.
    """

    mode: Mode
    id: str | None = None
    models: list[str] | None = None
    roles: tuple[Said, ...] = ("system", "developer", "user", "tool")
    flag_at: Threshold | None = None
    block_at: Threshold | None = None


FLAG_ALL: Final = Rule(mode="flag")


@dataclass(frozen=True)
class Inspections:
    """Rules in their order, with the segments of their patterns."""

    rules: tuple[tuple[Pattern | None, Rule], ...] = ()

    def of(self, path: str, model: str) -> Rule:
        """For a caller's path, with its leading slash; FLAG_ALL where no rule fits."""
        if not self.rules:
            return FLAG_ALL
        segments = path.split("/")[1:]
        for pattern, rule in self.rules:
            if (pattern is None or covers(pattern, segments)) and (rule.models is None or model in rule.models):
                return rule
        return FLAG_ALL


FLAG: Final = Inspections()


def checked_inspections(rules: Sequence[Rule], models: Collection[str]) -> Inspections:
    """`models`: all names that the configuration knows. Raises ConfigError for a rule that could never decide."""
    found: list[tuple[Pattern | None, Rule]] = []
    for number, rule in enumerate(rules):
        where = f"inspect[{number}]"
        pattern = None if rule.id is None else pattern_at(f"{where}.id", rule.id)
        if pattern is not None and (pattern[0] not in _CALLERS or len(pattern) < 2):
            raise ConfigError(f"{where}.id: nobody with such an ID asks models", hint='as in id = "/edge/*"')
        if rule.models is not None:
            if not rule.models:
                raise ConfigError(f"{where}.models: a rule names at least one model", hint="or leave `models` out")
            for model in rule.models:
                if model not in models:
                    raise ConfigError(f"{where}.models: no provider and no rule has the model {model}",
                                      hint="name it as devices do; provider.models may list it")
        if not rule.roles:
            raise ConfigError(f"{where}.roles: a rule looks at one role at least", hint='or set mode = "off"')
        if rule.flag_at is not None and rule.block_at is not None and rule.flag_at > rule.block_at:
            raise ConfigError(f"{where}.flag_at: this is above block_at", hint="what is blocked is flagged, too")
        for earlier, (before, other) in enumerate(found):
            if _covers(before, pattern) and (other.models is None or set(other.models) >= set(rule.models or [""])):
                raise ConfigError(f"{where}: inspect[{earlier}] always decides first", hint="put this one before it")
        found.append((pattern, rule))
    return Inspections(tuple(found))


def _covers(wide: Pattern | None, narrow: Pattern | None) -> bool:
    return wide is None or (narrow is not None and covers(wide, narrow))

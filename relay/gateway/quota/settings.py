"""What gateway.toml says of quotas and prices, checked: a rule that could never apply is an error, not a comfort."""

import itertools
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Final, Literal

from msgspec import Meta, Struct

from relay.gateway.errors import ConfigError
from relay.gateway.policy.patterns import WILD, Pattern, covers, parse_pattern, pattern_at
from relay.gateway.policy.settings import Allow, Group
from relay.gateway.quota.ledger import MONEY, Price, Rule
from relay.gateway.quota.shown import MILLION
from relay.gateway.quota.window import CELLS

_UNITS: Final = {"m": 60, "h": 3_600, "d": 86_400}
_WINDOW: Final = re.compile(r"([1-9][0-9]{0,4})([mhd])", re.ASCII)
_MONEY: Final = re.compile(r"([0-9]{1,7})(?:\.([0-9]{1,6}))?", re.ASCII)
_LONGEST_S: Final = 31 * 86_400
Count = Annotated[int, Meta(ge=1, le=1 << 50)]


class Quota(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """So much in any `window`, for who fits `id` or is in `group`: each device by itself, or all of them as one role.
    `models`: those that are counted, together; left out, any.
    """

    name: Annotated[str, Meta(pattern=r"^[a-z0-9][a-z0-9-]{0,31}\Z")]
    id: str | None = None
    group: str | None = None
    per: Literal["device", "role"] = "device"
    models: list[str] | None = None
    window: str
    requests: Count | None = None
    tokens: Count | None = None
    money: str | None = None


class PriceEntry(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Money for a million tokens, in decimal; both, since what had no price would be free. `output_max`: what is
    reserved for an answer without a limit.
    """

    model: str
    input: str
    output: str
    output_max: Annotated[int, Meta(ge=1, le=1_000_000)] = Price.output_max


@dataclass(frozen=True)
class Limiting:
    """All that quotas go by."""

    rules: tuple[Rule, ...] = ()
    prices: Mapping[str, Price] = field(default_factory=dict)


UNLIMITED: Final = Limiting()


def checked_quotas(
    quotas: Sequence[Quota], prices: Sequence[PriceEntry], *, groups: Sequence[Group], allows: Sequence[Allow] | None,
    models: Collection[str], uncounted: Collection[str] = (),
) -> Limiting:
    """`allows` None: other rules say who may do what, which cannot be looked through. `models`: all that there are,
    among them `uncounted`, whose answers have no tokens.

    Raises ConfigError that names the key.
    """
    made = {one.model: one for one in prices}
    for number, price in enumerate(prices):
        if price.model not in models:
            raise ConfigError(f"price[{number}].model: there is no model {price.model[:64]!r}", hint=_known(models))
        if made[price.model] is not price:
            raise ConfigError(f"price[{number}].model: {price.model} has a price already", hint="leave out one of them")
    priced = {
        one.model: Price(_money(f"price[{one.model}]", one.input), _money(f"price[{one.model}]", one.output),
                         one.output_max) for one in prices
    }
    rules: list[Rule] = []
    for quota in quotas:
        where = f"quota[{quota.name}]"
        if any(quota.name == other.name for other in rules):
            raise ConfigError(f"{where}: two have this name", hint="their counts are kept by it; rename one")
        rules.append(rule := _rule(where, quota, groups))
        _applies(where, rule, quota.models, allows, models, uncounted)
        wanted = set(models if rule.models is None else rule.models) - set(uncounted) - priced.keys()
        if rule.limits[MONEY] is not None and wanted:
            raise ConfigError(f"{where}.money: {sorted(wanted)[0]} has no price, so it would cost nothing",
                              hint='add [[price]] with model, input and output; "0" if it costs nothing')
    for one, other in itertools.permutations(rules, 2):
        if _shadows(one, other) and not (_shadows(other, one) and rules.index(one) > rules.index(other)):
            raise ConfigError(f"quota[{other.name}]: it can never be reached, {one.name} is as strict for all of them",
                              hint="leave it out, or make it stricter")
    return Limiting(tuple(rules), priced)


def uncovered(limiting: Limiting, patterns: Collection[Pattern]) -> list[str]:
    """Those of `patterns` some of whose IDs no rule is for; none where there are no rules."""
    return sorted({
        "/" + "/".join(one) for one in patterns
        if limiting.rules and not any(covers(ours, one) for rule in limiting.rules for ours in rule.patterns)
    })


def _rule(where: str, quota: Quota, groups: Sequence[Group]) -> Rule:
    if (quota.id is None) == (quota.group is None):
        raise ConfigError(f"{where}: set one of `id` and `group`", hint='as in id = "/edge/*"')
    texts = [quota.id] if quota.id is not None else [
        text for group in groups if group.name == quota.group for text in group.ids
    ]
    if not texts:
        raise ConfigError(f"{where}.group: there is no group {(quota.group or '')[:64]!r}",
                          hint="groups are [[group]] in gateway.toml")
    patterns = tuple(pattern_at(f"{where}.id", text) for text in texts)
    money = None if quota.money is None else _money(f"{where}.money", quota.money)
    if money == 0 or (quota.requests, quota.tokens, money) == (None, None, None):
        raise ConfigError(f"{where}: it limits nothing, or to nothing",
                          hint="set requests, tokens or money; who may do nothing is left out of [[allow]]")
    models = None if quota.models is None else frozenset(quota.models)
    return Rule(quota.name, quota.id or f"group {quota.group}", patterns, _seconds(where, quota.window),
                (quota.requests, quota.tokens, money), quota.per == "role", models)


def _applies(
    where: str, rule: Rule, named: Sequence[str] | None, allows: Sequence[Allow] | None, models: Collection[str],
    uncounted: Collection[str],
) -> None:
    """Raises ConfigError for a rule that no request could ever fall under."""
    if named is not None and not named:
        raise ConfigError(f"{where}.models: it names none", hint="leave it out for any model")
    for name in named or ():
        if name not in models:
            raise ConfigError(f"{where}.models: there is no model {name[:64]!r}", hint=_known(models))
    counted = set(models if rule.models is None else rule.models)
    if rule.limits[0] is None and counted and not counted - set(uncounted):
        raise ConfigError(f"{where}: its models have no tokens, so there is nothing to count", hint="set requests")
    if allows is not None and not any(
        _meet(parse_pattern(allow.id), ours) and (rule.models is None or rule.models & set(allow.models))
        for allow in allows for ours in rule.patterns
    ):
        raise ConfigError(f"{where}: no rule in [[allow]] lets anybody it is for use these models",
                          hint="is the ID, or the model, that of an [[allow]]?")


def _shadows(one: Rule, other: Rule) -> bool:
    """Whether `other` is never reached before `one` is."""
    return (
        all(any(covers(a, b) for a in one.patterns) for b in other.patterns)
        and (one.models is None or (other.models is not None and one.models >= other.models))
        and (one.shared or not other.shared) and one.seconds >= other.seconds
        and all(b is None or (a is not None and a <= b) for a, b in zip(one.limits, other.limits, strict=True))
    )


def _meet(one: Pattern, other: Pattern) -> bool:
    return len(one) == len(other) and all(WILD in (a, b) or a == b for a, b in zip(one, other, strict=True))


def _seconds(where: str, text: str) -> int:
    found = _WINDOW.fullmatch(text)
    seconds = 0 if found is None else int(found[1]) * _UNITS[found[2]]
    if not CELLS <= seconds <= _LONGEST_S:
        raise ConfigError(f"{where}.window: this is not a length from 1m to 31d", hint='as in "1m", "1h", "1d", "30d"')
    return seconds


def _money(where: str, text: str) -> int:
    """Micro-units. No fractions of these, and no binary ones: "0.1" is 100,000 of them."""
    found = _MONEY.fullmatch(text)
    if found is None:
        raise ConfigError(f"{where}: this is not an amount of money",
                          hint='a decimal number in quotes, with six digits behind the point at most: "2.50"')
    return int(found[1]) * MILLION + int((found[2] or "").ljust(6, "0"))


def _known(models: Collection[str]) -> str:
    listed: Iterator[str] = itertools.islice(sorted(models), 5)
    return f"there are {', '.join(listed)}" if models else "name it in provider.models"

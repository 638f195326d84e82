"""Amounts, lengths of time and lines of `relay gateway usage`, for people. Light: a command needs it."""

from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from relay.gateway.quota.ledger import Rule

MILLION: Final = 1_000_000
KINDS: Final = ("requests", "tokens", "money")
COLUMNS: Final = ["quota", "for", "models", "window", "of", "used", "reserved", "limit", "frees in"]


def row(one: dict[str, Any]) -> list[str]:
    """Of a line that the operation `usage` gives, the cells."""
    return [
        one["quota"], f"{one['for']}{', all' * (one['per'] == 'role')}",
        ", ".join(one["models"]) if one["models"] is not None else "any", span(one["window_s"]), one["counts"],
        *(number(one["counts"], one[name]) for name in ("used", "reserved", "limit")),
        span(one["frees_s"]) if one["frees_s"] else "",
    ]


def told(rule: "Rule") -> str:
    """A rule in a line."""
    limits = [shown(kind, limit) for kind, limit in enumerate(rule.limits) if limit is not None]
    models = "any model" if rule.models is None else " or ".join(sorted(rule.models))
    whom = f"all of {rule.shown} together" if rule.shared else f"each of {rule.shown}"
    return f"quota {rule.name}: {' and '.join(limits)} of {models} in {span(rule.seconds)} for {whom}"


def shown(kind: int, amount: int) -> str:
    """`1,200 tokens`, `money 2.50`."""
    name = KINDS[kind]
    return f"money {number(name, amount)}" if name == "money" else (
        f"{amount:,} {name if amount != 1 else name[:-1]}")


def number(counts: str, amount: int) -> str:
    """Money in whole units, which it is counted in millionths of."""
    if counts != "money":
        return f"{amount:,}"
    whole, rest = divmod(amount, MILLION)
    return f"{whole:,}.{f'{rest:06}'.rstrip('0').ljust(2, '0')}"


def span(seconds: int) -> str:
    """In the largest unit that says it: `90 s`, `2 h`."""
    for unit, name in ((86_400, "d"), (3_600, "h"), (60, "min")):
        if seconds >= 2 * unit or seconds == unit:
            return f"{-(-seconds // unit)} {name}"
    return f"{seconds} s"

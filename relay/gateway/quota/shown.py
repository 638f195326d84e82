"""Amounts, lengths of time and lines of `relay gateway usage`, for people. Light: a command needs it."""

from typing import Any, Final

MILLION: Final = 1_000_000
KINDS: Final = ("requests", "tokens", "money")
COLUMNS: Final = ["quota", "for", "models", "window", "used", "reserved", "limit", "frees in"]


def row(one: dict[str, Any]) -> list[str]:
    """Of a line that the operation `usage` gives, the cells."""
    kind = KINDS.index(one["counts"])
    return [
        one["quota"], f"{one['for']}{', all' * (one['per'] == 'role')}",
        ", ".join(one["models"]) if one["models"] is not None else "any", span(one["window_s"]),
        *(shown(kind, one[name]).removeprefix("money ") if name != "limit" else shown(kind, one[name])
          for name in ("used", "reserved", "limit")),
        span(one["frees_s"]) if one["frees_s"] else "",
    ]


def shown(kind: int, amount: int) -> str:
    """For people: `1,200 tokens`, `money 2.50`."""
    if KINDS[kind] != "money":
        return f"{amount:,} {KINDS[kind] if amount != 1 else KINDS[kind][:-1]}"
    whole, rest = divmod(abs(amount), MILLION)
    digits = f"{rest:06}".rstrip("0").ljust(2, "0")
    return f"money {'-' * (amount < 0)}{whole:,}.{digits}"


def span(seconds: int) -> str:
    """In the largest unit that says it: `90 s`, `2 h`."""
    for unit, name in ((86_400, "d"), (3_600, "h"), (60, "min")):
        if seconds >= 2 * unit or seconds == unit:
            return f"{-(-seconds // unit)} {name}"
    return f"{seconds} s"

"""[[quota]] and [[price]]: a limit that could never apply is an error that names it."""

import re
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.gateway.config import EXAMPLE, parse
from relay.gateway.errors import ConfigError
from relay.gateway.policy.settings import Allow, Group
from relay.gateway.quota.estimate import FILE_TOKENS
from relay.gateway.quota.ledger import SLOTS_MAX, Hold, Ledger, Price, Rule
from relay.gateway.quota.quotas import LEAST
from relay.gateway.quota.settings import (
    UNLIMITED,
    Limiting,
    PriceEntry,
    Quota,
    checked_quotas,
    uncovered,
)
from relay.gateway.quota.shown import row, shown, span, told

ALLOWS = [Allow(id="/edge/*", models=["small"]), Allow(id="/workload/*", models=["large"])]
GROUPS = [Group(name="floor", ids=["/edge/floor", "/workload/*"]), Group(name="far", ids=["/hop/*"])]
MODELS = {"small", "large", "pump"}


def checked(*quotas: dict[str, Any], prices: tuple[PriceEntry, ...] = (), closed: bool = True) -> Limiting:
    made = [Quota(**({"name": f"q{n}", "window": "1h"} | one)) for n, one in enumerate(quotas)]
    return checked_quotas(
        made, prices, groups=GROUPS, allows=ALLOWS if closed else None, models=MODELS, uncounted=["pump"]
    )


def test_a_rule_is_taken_as_it_is_written() -> None:
    found = checked({"id": "/edge/*", "models": ["small"], "window": "2d", "requests": 3, "money": "1.5"},
                    {"group": "floor", "per": "role", "tokens": 9},
                    prices=(PriceEntry(model="small", input="0.15", output="10", output_max=77),))
    assert found.rules == (
        Rule("q0", "/edge/*", (("edge", "*"),), 172_800, (3, None, 1_500_000), False, frozenset({"small"})),
        Rule("q1", "group floor", (("edge", "floor"), ("workload", "*")), 3_600, (None, 9, None), True),
    )
    assert found.prices == {"small": Price(150_000, 10_000_000, 77)}


@pytest.mark.parametrize(("fields", "said"), [
    ({"requests": 1}, "q0]: set one of `id` and `group`"),
    ({"id": "/edge/*", "group": "floor", "requests": 1}, "q0]: set one of"),
    ({"group": "nobody", "requests": 1}, "q0].group: there is no group 'nobody'"),
    ({"id": "edge/*", "requests": 1}, "q0].id: an ID pattern starts with a slash"),
    ({"id": "/edge/a b", "requests": 1}, "q0].id: an ID pattern has a segment that no ID can have"),
    ({"id": "/edge/*"}, "q0]: it limits nothing"),
    ({"id": "/edge/*", "money": "0.000"}, "q0]: it limits nothing, or to nothing"),
    ({"id": "/edge/*", "requests": 1, "models": ["smal"]}, "q0].models: there is no model 'smal'"),
    ({"id": "/edge/*", "requests": 1, "models": []}, "q0].models: it names none"),
    ({"id": "/edge/*", "requests": 1, "models": ["large"]}, "q0]: no rule in [[allow]] lets anybody"),
    ({"id": "/edge/*/cam", "requests": 1}, "q0]: no rule in [[allow]] lets anybody"),
    ({"group": "far", "requests": 1}, "q0]: no rule in [[allow]] lets anybody"),
    ({"id": "/edge/*", "tokens": 1, "models": ["pump"]}, "q0]: its models have no tokens"),
    ({"id": "/edge/*", "money": "1", "models": ["small"]}, "q0].money: small has no price"),
    ({"id": "/edge/*", "money": "1"}, "q0].money: large has no price"),
    ({"id": "/edge/*", "money": "1e3"}, "q0].money: this is not an amount of money"),
    ({"id": "/edge/*", "money": "0.0000001"}, "q0].money: this is not an amount of money"),
    ({"id": "/edge/*", "money": "-1"}, "q0].money: this is not an amount of money"),
    *(({"id": "/edge/*", "requests": 1, "window": text}, "q0].window: this is not a length")
      for text in ("", "1", "h", "0h", "59s", "1.5h", "32d", "99999d", "1 h", "1h ")),
])
def test_what_could_never_apply_is_an_error_that_names_it(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError) as wrong:
        checked(fields)
    assert str(wrong.value).startswith(f"quota[{said}")
    assert wrong.value.hint


@pytest.mark.parametrize(("fields", "said"), [
    ({"model": "smal", "input": "0", "output": "0"}, "price[0].model: there is no model 'smal'"),
    ({"model": "small", "input": "0,15", "output": "0"}, "price[small]: this is not an amount of money"),
])
def test_a_price_of_nothing_known_is_an_error(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError) as wrong:
        checked(prices=(PriceEntry(**fields),))
    assert str(wrong.value).startswith(said)


def test_two_prices_or_two_names_are_an_error() -> None:
    with pytest.raises(ConfigError, match="small has a price already"):
        checked(prices=tuple(PriceEntry(model="small", input=much, output="1") for much in ("0", "1")))
    with pytest.raises(ConfigError, match="two have this name"):
        checked({"name": "a", "id": "/edge/*", "requests": 1}, {"name": "a", "id": "/workload/*", "requests": 1})


@pytest.mark.parametrize(("first", "second", "shadowed"), [
    ({"id": "/edge/*", "requests": 5}, {"id": "/edge/lap-1", "requests": 5}, "q1"),
    ({"id": "/edge/lap-1", "requests": 5}, {"id": "/edge/*", "requests": 5, "window": "2h"}, "q0"),
    ({"id": "/edge/*", "requests": 5, "per": "role"}, {"id": "/edge/*", "requests": 5}, "q1"),
    ({"id": "/edge/*", "requests": 5, "tokens": 9}, {"id": "/edge/*", "tokens": 10, "models": ["small"]}, "q1"),
    ({"id": "/edge/*", "requests": 5}, {"id": "/edge/*", "requests": 5}, "q1"),
    ({"id": "/edge/*", "requests": 5}, {"id": "/edge/lap-1", "requests": 4}, ""),
    ({"id": "/edge/*", "requests": 5}, {"id": "/edge/lap-1", "requests": 9, "window": "1d"}, ""),
    ({"id": "/edge/*", "requests": 5}, {"id": "/edge/*", "requests": 9, "per": "role"}, ""),
    ({"id": "/edge/*", "requests": 5}, {"id": "/edge/*", "tokens": 9}, ""),
    ({"id": "/edge/*", "requests": 5, "models": ["small"]}, {"id": "/edge/*", "requests": 5, "tokens": 7}, "q0"),
    ({"id": "/edge/*", "requests": 5, "models": ["small"]}, {"id": "/edge/*", "requests": 6}, ""),
])
def test_a_rule_in_the_shadow_of_another_is_an_error(
    first: dict[str, Any], second: dict[str, Any], shadowed: str
) -> None:
    if not shadowed:
        assert len(checked(first, second).rules) == 2
        return
    for one, other, name in ((first, second, shadowed), (second, first, "q1" if shadowed == "q0" else "q0")):
        equal = first.get("requests") == second.get("requests") and first | {"id": 0} == second | {"id": 0} \
            and first["id"] == second["id"]
        with pytest.raises(ConfigError) as wrong:
            checked(one, other)
        assert str(wrong.value).startswith(f"quota[{'q1' if equal else name}]: it can never be reached")


def test_where_other_rules_decide_who_may_a_quota_is_believed() -> None:
    assert checked({"id": "/hop/*", "requests": 1}, closed=False).rules


def test_ids_without_a_quota_are_told() -> None:
    found = checked({"id": "/edge/*", "requests": 1})
    assert uncovered(found, [("edge", "*"), ("edge", "lap-1"), ("workload", "*"), ("edge", "a", "b")]) == [
        "/edge/a/b", "/workload/*"]
    assert uncovered(UNLIMITED, [("edge", "*")]) == []


def test_a_rule_is_told_in_a_line() -> None:
    found = checked({"id": "/edge/*", "models": ["small"], "tokens": 9_000, "requests": 1},
                    {"group": "floor", "per": "role", "window": "1d", "requests": 40})
    assert [told(rule) for rule in found.rules] == [
        "quota q0: 1 request and 9,000 tokens of small in 1 h for each of /edge/*",
        "quota q1: 40 requests of any model in 1 d for all of group floor together",
    ]


@given(st.integers(0, 9_999_999), st.integers(0, 999_999))
def test_money_is_counted_in_whole_millionths(whole: int, rest: int) -> None:
    found = checked(prices=(PriceEntry(model="small", input=f"{whole}.{rest:06}", output="0"),)).prices["small"]
    assert found.input == whole * 1_000_000 + rest
    assert found.cost(1_000_000, 0) == found.input
    assert found.cost(1, 0) == -(-found.input // 1_000_000)
    money = 5 * found.input + 3
    if found.input:
        assert Price(0, found.input).cost(0, Price(0, found.input).affords(money, 0)) <= money
        assert Price(0, found.input).cost(0, Price(0, found.input).affords(money, 0) + 1) > money


def test_amounts_and_times_are_readable() -> None:
    assert [shown(0, 1), shown(1, 1_200), shown(2, 2_500_000), shown(2, 1)] == [
        "1 request", "1,200 tokens", "money 2.50", "money 0.000001"]
    assert [span(n) for n in (1, 60, 61, 119, 3_600, 3_601, 86_400, 90_000, 200_000)] == [
        "1 s", "1 min", "61 s", "119 s", "1 h", "61 min", "1 d", "25 h", "3 d"]


def test_a_line_of_usage_is_readable() -> None:
    line = {"quota": "floor", "for": "group floor", "per": "role", "models": ["large", "small"], "window_s": 86_400,
            "counts": "money", "used": 1_250_000, "reserved": 0, "limit": 20_000_000, "frees_s": 90}
    assert row(line) == ["floor", "group floor, all", "large, small", "1 d", "money", "1.25", "0.00", "20.00", "90 s"]
    more = {"per": "device", "models": None, "counts": "tokens", "frees_s": 0}
    assert row(line | more)[4:] == ["tokens", "1,250,000", "0", "20,000,000", ""]


def test_the_example_of_the_configuration_is_one() -> None:
    text = EXAMPLE.format(trust_domain="field.example")
    assert parse(text.encode(), Path()).quotas == UNLIMITED
    lines = text.splitlines()
    start = next(n for n, line in enumerate(lines) if line == "# [[quota]]")
    end = next(n for n in range(start, len(lines)) if not lines[n])
    with_quotas = [*lines[:start], *(line.removeprefix("# ") for line in lines[start:end]), *lines[end:]]
    found = parse("\n".join(with_quotas).encode(), Path()).quotas
    assert found.rules[0].limits == (600, 200_000, 500_000)
    assert found.prices["gpt-4o-mini"] == Price(150_000, 600_000, 4_096)


def test_the_page_has_an_example_that_works_out_as_it_says() -> None:
    page = (Path(__file__).parents[2] / "docs" / "QUOTAS.md").read_text()
    example = re.search(r"(?s)```toml\n(.*?)```", page)
    assert example is not None
    start = EXAMPLE.format(trust_domain="field.example").replace('["gpt-4o-mini"]', '["gpt-4o-mini", "gpt-4o"]')
    found = parse((start + example[1]).encode(), Path())
    price = found.quotas.prices["gpt-4o-mini"]
    assert (price.cost(312, 500), price.cost(74, 180), price.output_max) == (347, 120, 4_096)
    ledger = Ledger()
    ledger.replace(found.quotas.rules, found.quotas.prices, 0)
    hold = ledger.reserve("/edge/lap-1", "gpt-4o-mini", 312, 500, 0)
    assert isinstance(hold, Hold) and hold.amounts == (1, 812, 347) and len(hold.lane) == 3
    assert LEAST == 64 and FILE_TOKENS == 2_048 and SLOTS_MAX == 20_000
    assert [row[0] for row in re.findall(r"(?m)^(edge-\w+) +(\S+) ", page)] == ["edge-hour", "edge-hour", "edge-month"]


@pytest.mark.parametrize("absent", ["input", "output"])
def test_half_a_price_is_no_price(absent: str) -> None:
    fields = {"model": "small", "input": "1", "output": "1"}
    del fields[absent]
    with pytest.raises(msgspec.ValidationError, match=absent):
        msgspec.convert(fields, PriceEntry)

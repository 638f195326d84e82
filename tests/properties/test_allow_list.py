"""Allow-list patterns against a second, naive reading of them; no prefix is ever confused with another."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.gateway.checks.authorise import AllowList, AllowRule
from relay.gateway.errors import ConfigError

segment = st.text("ab.-_1", min_size=1, max_size=3).filter(lambda text: text not in (".", ".."))
role = st.sampled_from(["edge", "hop", "workload"])
paths = st.builds(lambda first, rest: "/" + "/".join([first, *rest]), role, st.lists(segment, max_size=3))
patterns = st.builds(
    lambda first, rest: "/" + "/".join([first, *rest]), role, st.lists(st.one_of(st.just("*"), segment), max_size=3)
)


def naive(pattern: str, path: str) -> bool:
    return re.fullmatch("".join("[^/]+" if part == "*" else re.escape(part)
                                for part in re.split(r"(\*)", pattern)), path) is not None


@given(pattern=patterns, path=paths)
def test_matching_agrees_with_a_second_reading(pattern: str, path: str) -> None:
    assert AllowRule.parse(pattern, ["m"]).fits(path) == naive(pattern, path)


@given(path=paths, tail=segment)
def test_a_rule_for_a_path_fits_neither_longer_nor_deeper_nor_shorter_ones(path: str, tail: str) -> None:
    rule = AllowRule.parse(path, ["m"])
    assert rule.fits(path)
    assert not rule.fits(path + tail)
    assert not rule.fits(f"{path}/{tail}")
    assert not rule.fits(path.rpartition("/")[0])
    assert not rule.fits(path + "/")


@given(rules=st.lists(st.tuples(patterns, st.sets(st.sampled_from("mnop"), min_size=1)), max_size=5), path=paths,
       model=st.sampled_from("mnop"))
def test_default_deny_and_rules_only_add(rules: list[tuple[str, set[str]]], path: str, model: str) -> None:
    allowed = AllowList([AllowRule.parse(pattern, models) for pattern, models in rules])
    expected = any(naive(pattern, path) and model in models for pattern, models in rules)
    assert allowed.allows(path, model) == expected
    assert (model in allowed.models(path)) == expected


@pytest.mark.parametrize("pattern", [
    "", "edge/*", "/", "//", "/edge/", "/edge//a", "/edge/a*", "/*", "/*/a", "/edge/**", "/edge/..", "/edge/a b",
    "/edge/[a]", "/edge/é", "/edge/%61",
])
def test_patterns_that_mean_nothing_are_refused(pattern: str) -> None:
    with pytest.raises(ConfigError):
        AllowRule.parse(pattern, ["m"])


@pytest.mark.parametrize("models", [[], ["*"], ["gpt-*"]])
def test_models_are_named_in_full(models: list[str]) -> None:
    with pytest.raises(ConfigError):
        AllowRule.parse("/edge/*", models)

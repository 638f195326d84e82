"""ID patterns and the simple form against a second, naive reading; no prefix is ever confused with another."""

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.gateway.errors import ConfigError
from relay.gateway.policy.patterns import Groups, parse_pattern
from relay.gateway.policy.questions import Question
from relay.gateway.policy.settings import Allow, Group, Policies, checked
from tests.support.gateway_lab import allowing
from transport.identity.svid import SpiffeId

segment = st.text("ab.-_1", min_size=1, max_size=3).filter(lambda text: text not in (".", ".."))
role = st.sampled_from(["edge", "hop", "workload"])
paths = st.builds(lambda first, rest: "/" + "/".join([first, *rest]), role, st.lists(segment, max_size=3))
patterns = st.builds(
    lambda first, rest: "/" + "/".join([first, *rest]), role, st.lists(st.one_of(st.just("*"), segment), max_size=3)
)


def naive(pattern: str, path: str) -> bool:
    return re.fullmatch("".join("[^/]+" if part == "*" else re.escape(part)
                                for part in re.split(r"(\*)", pattern)), path) is not None


def fits(pattern: str, path: str) -> bool:
    return Groups([("g", parse_pattern(pattern))]).of(path) == ("g",)


@given(wanted=st.lists(patterns, max_size=6), path=paths)
def test_matching_agrees_with_a_second_reading(wanted: list[str], path: str) -> None:
    groups = Groups([(f"g{number}", parse_pattern(pattern)) for number, pattern in enumerate(wanted)])
    assert groups.of(path) == tuple(sorted(f"g{number}" for number, text in enumerate(wanted) if naive(text, path)))


@given(path=paths, tail=segment)
def test_a_rule_for_a_path_fits_neither_longer_nor_deeper_nor_shorter_ones(path: str, tail: str) -> None:
    assert fits(path, path)
    assert not fits(path, path + tail)
    assert not fits(path, f"{path}/{tail}")
    assert not fits(path, path.rpartition("/")[0])
    assert not fits(path, path + "/")
    assert not fits(path, "")


@given(rules=st.lists(st.tuples(patterns, st.sets(st.sampled_from("mnop"), min_size=1)), max_size=5), path=paths,
       model=st.sampled_from("mnop"))
async def test_default_deny_and_rules_only_add(rules: list[tuple[str, set[str]]], path: str, model: str) -> None:
    allows = [Allow(id=pattern, models=sorted(models)) for pattern, models in rules]
    policy = allowing(allows)
    expected = any(naive(pattern, path) and model in models for pattern, models in rules)
    question = Question(SpiffeId("field.example", path), "model:invoke", model)
    assert (await policy.decide(question)).allowed == expected
    assert (model in await policy.models(question)) == expected
    by_hop = Question(SpiffeId("field.example", path), "relay:use", "spiffe://field.example/hop/a")
    assert (await policy.decide(by_hop)).allowed == any(naive(pattern, path) for pattern, _ in rules)


@pytest.mark.parametrize("pattern", [
    "", "edge/*", "/", "//", "/edge/", "/edge//a", "/edge/a*", "/*", "/*/a", "/edge/**", "/edge/..", "/edge/a b",
    "/edge/[a]", "/edge/é", "/edge/%61",
])
def test_patterns_that_mean_nothing_are_refused(pattern: str) -> None:
    with pytest.raises(ConfigError, match=r"allow\[0\]"):
        checked(Path(), [], [Allow(id=pattern, models=["m"])], Policies(), [])
    with pytest.raises(ConfigError, match=r"group\[0\]"):
        checked(Path(), [Group(name="g", ids=[pattern])], [], Policies(), [])


@pytest.mark.parametrize("models", [[], ["*"], ["gpt-*"]])
def test_models_are_named_in_full(models: list[str]) -> None:
    with pytest.raises(ConfigError):
        checked(Path(), [], [Allow(id="/edge/*", models=models)], Policies(), [])

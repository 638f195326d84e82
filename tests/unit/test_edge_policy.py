"""The router: flag, then privacy, then documents, then difficulty; always with a reason."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_client.router.difficulty import Difficulty
from edge_client.router.policy import EASY_WORDS, HELD, NEAR, Decision, Features, decide, features_of, looks_hard
from edge_client.router.sensitivity import PERSONAL, SECRETS

features = st.builds(
    Features,
    flag=st.sampled_from([None, "local", "relay"]),
    words=st.integers(0, 500),
    hard=st.booleans(),
    sensitive=st.lists(st.sampled_from(sorted(SECRETS | PERSONAL)), unique=True, max_size=3).map(tuple),
    evidence=st.one_of(st.none(), st.floats(-1, 1.5)),
    joined=st.booleans(),
    difficulty=st.floats(0, 1).map(lambda score: Difficulty(score, ())),
    threshold=st.one_of(st.none(), st.floats(0, 1)),
)


@given(features)
def test_what_must_hold_for_every_prompt(given_features: Features) -> None:
    decision = decide(given_features)
    assert decision.reasons and all(decision.reasons)
    assert decision == decide(given_features)
    assert decision.features == given_features
    if decision.route == "relay":
        assert given_features.joined, "never relayed without an identity"
        assert given_features.flag != "local", "never against the user's word"
        assert not SECRETS & set(given_features.sensitive), "a secret never travels"
        if given_features.flag is None:
            assert not given_features.sensitive, "personal data travels only by the user's flag"
    if decision.route == "refuse":
        assert given_features.flag == "relay", "only what cannot be done is refused"


def route(prompt: str, **more: object) -> Decision:
    settings = {"flag": None, "sensitive": (), "evidence": None, "joined": True} | more
    return decide(features_of(prompt, **settings))  # type: ignore[arg-type]


@pytest.mark.parametrize(("prompt", "more", "expected", "rule"), [
    ("What is the pressure?", {"flag": "local"}, "local", "flag-local"),
    ("What is the pressure?", {"flag": "relay"}, "relay", "flag-relay"),
    ("What is the pressure?", {"flag": "relay", "joined": False}, "refuse", "not-joined"),
    ("Log in with it", {"flag": "relay", "sensitive": ("password",)}, "refuse", "secret"),
    ("Write to her", {"flag": "relay", "sensitive": ("e-mail address",)}, "relay", "flag-relay"),
    ("Write a long letter to her", {"sensitive": ("e-mail address",)}, "local", "private"),
    ("What is the working pressure of pump P-101?", {"evidence": HELD}, "local", "documents"),
    ("Explain why pump P-101 loses pressure", {"evidence": 1.2}, "relay", "beyond-local"),
    ("Who are you?", {}, "local", "easy"),
    ("What is 17 multiplied by 24?", {}, "relay", "beyond-local"),
    ("What is the boiling point of ethanol two kilometres up?", {"evidence": 0.2}, "relay", "beyond-local"),
    ("Who is the engineer?", {"evidence": NEAR}, "relay", "beyond-local"),
    ("Who is the engineer?", {"evidence": NEAR - 0.01}, "local", "easy"),
    ("What is the boiling point of ethanol two kilometres up?", {"joined": False}, "local", "not-joined"),
])  # fmt: skip
def test_rules(prompt: str, more: dict[str, object], expected: str, rule: str) -> None:
    decision = route(prompt, **more)
    assert (decision.route, decision.rule) == (expected, rule)


def test_a_difficult_prompt_is_relayed_whatever_its_words_or_passages() -> None:
    for difficulty, expected in ((0.39, "documents"), (0.40, "beyond-local")):
        given_features = Features(joined=True, evidence=1.2, words=30, difficulty=Difficulty(difficulty, ()))
        assert decide(given_features).rule == expected
    hard = Features(joined=True, difficulty=Difficulty(0.5, (("length", 0.6), ("long_words", 0.2))))
    assert decide(hard).reasons == ("the prompt looks hard (0.50, by its length and long words)",)


def test_easy_is_a_matter_of_words() -> None:
    assert route("word " * EASY_WORDS).rule == "easy"
    assert route("word " * (EASY_WORDS + 1)).rule == "beyond-local"


@pytest.mark.parametrize(("prompt", "hard"), [
    ("Explain the difference", True),
    ("what are the trade-offs", True),
    ("3 pumps, 22 cubic metres each, one fails after 90 minutes", True),
    ("What does the P-101 weigh?", False),
    ("Which channel is for emergencies?", False),
    ("Is the plane late?", False),
])  # fmt: skip
def test_looks_hard(prompt: str, hard: bool) -> None:
    assert looks_hard(prompt) is hard

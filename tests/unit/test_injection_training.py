"""The script that fits the injection classifier: the same file each time, and what serves is what was fitted."""

import json

import numpy as np
import pytest

from relay.gateway.inspection.model import Model
from scripts import injection_grammar, train_injection
from scripts.injection_measures import auc, calibrated, recall_at, separation

ATTACKS = injection_grammar.made(40, "attack", 1)
HARMLESS = injection_grammar.made(40, "harmless", 2)


def test_made_up_texts_are_the_same_each_time_and_leave_nothing_open() -> None:
    assert injection_grammar.made(40, "attack", 1) == ATTACKS != injection_grammar.made(40, "attack", 3)
    assert not set(ATTACKS) & set(HARMLESS)
    for name in injection_grammar.PARTS:
        assert not any(f"<{name}>" in text for text in ATTACKS + HARMLESS)


@pytest.fixture(scope="module")
def tokens() -> list[str]:
    words = {word for text in ATTACKS + HARMLESS for word in train_injection.words_of(train_injection.cleaned(text))}
    return ["[PAD]", "[UNK]", *sorted(words)]


def fitted(tokens: list[str], patch: pytest.MonkeyPatch) -> tuple[bytes, train_injection.Judges, train_injection.Texts]:
    patch.setattr(train_injection, "EPOCHS", 2)
    dice = np.random.default_rng(5)
    whole = dice.standard_normal((len(tokens), train_injection.DIMENSIONS)).astype(np.float32)
    unit = (np.abs(whole).max(0) / 127).astype(np.float32)
    rounded = np.rint(whole / unit).astype(np.int8)
    texts = train_injection.made_of(
        [*((text, 1, "a") for text in ATTACKS), *((text, 0, "b") for text in HARMLESS * 2)],
        train_injection.Vocabulary(tokens),
    )
    judges = train_injection.fit(texts, rounded * unit, train_injection.spelled(tokens), 2)
    settings = {"slope": 1.0, "offset": 0.0, "flag": 0.5, "block": 0.6}
    return train_injection.file_of(judges, tokens, rounded, unit, settings), judges, texts


def test_the_same_data_give_the_same_file_which_judges_as_what_was_fitted(
    tokens: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    data, judges, texts = fitted(tokens, monkeypatch)
    assert fitted(tokens, monkeypatch)[0] == data
    model = Model(data)
    long = [np.concatenate(texts.tokens[at : at + 20]) for at in (0, 40, 80)]
    some = [*texts.tokens[::7], *long]
    scores = np.array([model.worst(one.tolist()).score for one in some])
    assert np.corrcoef(np.log(scores / (1 - scores)), judges.logits(some))[0, 1] > 0.99  # weights are rounded to bytes
    assert separation(texts.labels, judges.logits(texts.tokens))["auc"] > 0.95


def test_measures_are_what_their_names_say() -> None:
    labels, scores = [1, 1, 1, 0, 0, 0, 0], [0.9, 0.8, 0.2, 0.8, 0.3, 0.1, 0.0]
    assert auc(labels, scores) == pytest.approx((4 + 3.5 + 2) / 12)
    assert recall_at(labels, scores, 0.01) == pytest.approx(1 / 3)


@pytest.mark.parametrize("scale", [0.01, 1.0, 100.0])
def test_thresholds_let_through_what_they_say(scale: float) -> None:
    dice = np.random.default_rng(3)
    harmless, attacks = dice.normal(-1, 1, 4000) * scale, dice.normal(1, 1, 400) * scale
    found = calibrated(
        [*(("b", 0, float(one)) for one in harmless), *(("a", 1, float(one)) for one in attacks)],
        flagged=0.05, blocked=0.01,
    )  # fmt: skip

    def share(logits: np.ndarray, threshold: float) -> float:  # type: ignore[type-arg]
        return float(np.mean(1 / (1 + np.exp(-(found["slope"] * logits + found["offset"]))) >= threshold))

    assert share(harmless, found["flag"]) == pytest.approx(0.05, abs=0.003)
    assert share(harmless, found["block"]) == pytest.approx(0.01, abs=0.003)
    assert share(attacks, 0.5) > 0.7 and json.dumps(found)

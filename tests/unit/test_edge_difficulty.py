"""Difficulty: the same for the same prompt, bounded, linear in its length; thresholds that mean shares."""

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_client.config import Config
from edge_client.errors import BadUse
from edge_client.router.difficulty import Difficulty, DifficultyModel, shipped
from edge_client.router.features import BUCKETS, NAMES, READ_CHARS, shape_of, words_of
from edge_client.router.policy import HELD, Features, decide, features_of, need

ROOT = Path(__file__).resolve().parent.parent.parent
MODEL = ROOT / "edge_client" / "router" / "difficulty.json"


@given(st.text(max_size=400))
def test_any_text_has_a_difficulty(prompt: str) -> None:
    found = shipped().of(prompt)
    assert 0 < found.score < 1
    assert found == shipped().of(prompt)
    assert [name for name, _ in found.parts] == [*NAMES, "words"]
    assert len(shape_of(prompt)) == len(NAMES)
    bag = words_of(prompt)
    assert all(0 <= bucket < BUCKETS for bucket in bag)
    assert not bag or math.isclose(math.fsum(weight**2 for weight in bag.values()), 1) or set(bag.values()) == {0.0}


def test_a_lone_surrogate_is_a_word_like_any_other() -> None:
    assert 0 < shipped().of("\ud800 and so on").score < 1


def test_the_score_is_the_same_in_every_process() -> None:
    prompt = "Given a lattice of 12 nodes, which of them are not reached, and why? " * 3
    code = f"from edge_client.router.difficulty import shipped; print(repr(shipped().of({prompt!r}).score))"
    for seed in ("1", "2"):
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT,
                              env={"PYTHONHASHSEED": seed, "PYTHONPATH": str(ROOT)})  # fmt: skip
        assert done.stdout.strip() == repr(shipped().of(prompt).score)


def test_the_exam_form_tells_nothing_but_its_length() -> None:
    exam, plain = "What floats?\nA. ice\nB. iron\nAnswer:", "What floats?\nice\niron"
    assert shape_of(exam)[1:] == shape_of(plain)[1:]
    assert words_of(exam) == words_of(plain)


def test_beyond_a_page_only_the_length_counts() -> None:
    page = "word " * (READ_CHARS // 5)
    assert words_of(page + "prove 12 + 3") == words_of(page)
    assert shape_of(page + "prove 12 + 3")[1:] == shape_of(page)[1:]
    assert shape_of(page + "prove 12 + 3")[0] > shape_of(page)[0]


def test_a_long_exam_question_is_harder_than_a_greeting() -> None:
    case = (
        "A buyer agreed with a seller on 10,000 bushels of wheat, to be delivered in 90 days. Then the seller "
        "said it would not deliver, because its supplier had refused more credit. If the buyer sues at once, "
        "which of the following arguments is most likely not to succeed, given that each party had 3 remedies? "
    )
    assert shipped().of(case * 3).score > shipped().of(case).score > shipped().of("Who are you?").score


def test_grounds_are_what_raised_it_most() -> None:
    found = Difficulty(0.5, (("length", 0.2), ("numbers", 0.4), ("symbols", 0.05), ("words", 0.3)))
    assert found.grounds() == ("numbers", "words")
    assert found.grounds(5) == ("numbers", "words", "length")


def test_the_shipped_model_is_small_and_of_this_version() -> None:
    assert MODEL.stat().st_size < 200_000
    raw = json.loads(MODEL.read_bytes())
    for change in ({"features": ["length"]}, {"words": [0]}):
        with pytest.raises(ValueError, match="another version"):
            DifficultyModel.parse(json.dumps(raw | change).encode())


def test_thresholds_fall_as_the_share_or_the_quality_grows() -> None:
    model = shipped()
    for threshold in (model.threshold_for_share, model.threshold_for_quality):
        values = [threshold(step / 50) for step in range(51)]
        assert values == sorted(values, reverse=True)
        assert (values[0], values[-1]) == (1.0, 0.0)


def test_a_quality_is_the_share_that_keeps_it() -> None:
    model = DifficultyModel((), (), (), (), 0.0, thresholds=(0.9, 0.5, 0.1), kept=(0.0, 0.8, 1.0))
    assert model.threshold_for_share(0.5) == 0.5
    assert model.threshold_for_share(0.25) == pytest.approx(0.7)
    assert model.threshold_for_quality(0.8) == 0.5
    assert model.threshold_for_quality(0.4) == pytest.approx(0.7)


def test_a_close_passage_lowers_the_need_and_reasoning_raises_it() -> None:
    plain = Features(difficulty=Difficulty(0.2, ()))
    close = Features(difficulty=Difficulty(0.2, ()), evidence=HELD)
    hard = Features(difficulty=Difficulty(0.2, ()), evidence=HELD, hard=True)
    assert need(close) < need(plain) < need(hard)
    assert need(plain) == 0.2


def test_a_threshold_decides_after_flag_and_privacy() -> None:
    def rule(prompt: str, threshold: float, **more: object) -> tuple[str, str]:
        settings = {"flag": None, "sensitive": (), "evidence": None, "joined": True} | more
        decision = decide(features_of(prompt, threshold=threshold, **settings))  # type: ignore[arg-type]
        return decision.route, decision.rule

    assert rule("Who are you?", 0.0) == ("relay", "above-threshold")
    assert rule("Who are you?", 0.0, evidence=1.2) == ("relay", "above-threshold")
    assert rule("Explain the three laws", 1.0) == ("local", "below-threshold")
    assert rule("Who are you?", 0.0, flag="local") == ("local", "flag-local")
    assert rule("Who are you?", 0.0, sensitive=("IBAN",)) == ("local", "private")
    assert rule("Who are you?", 0.0, joined=False) == ("local", "not-joined")


def test_the_router_is_configured_by_one_figure(tmp_path: Path) -> None:
    file = tmp_path / "config.toml"

    def limit(text: str) -> float | None:
        file.write_text(text)
        return Config.load({"CAUSEWAY_HOME": str(tmp_path)}).router.limit()

    assert limit("") is None
    assert limit("[router]\nthreshold = 0.25\n") == 0.25
    assert limit("[router]\nshare_relayed = 0.3\n") == shipped().threshold_for_share(0.3)
    assert limit("[router]\nquality = 0.8\n") == shipped().threshold_for_quality(0.8)
    assert limit("[router]\nshare_relayed = 0\n") == 1.0
    for text in ("[router]\nthreshold = 2\n", "[router]\nthreshold = 0.1\nquality = 0.8\n"):
        with pytest.raises(BadUse, match=r"config\.toml"):
            limit(text)

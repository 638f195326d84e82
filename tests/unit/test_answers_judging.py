"""The benchmark of answers judges as it says, and its questions are what it says they are."""

import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.answers import Asked, contains, judge, part_of, plain, read_questions, rows_of
from edge_client.answering import SILENT, Answer, Routed
from edge_client.retrieval import Passage
from edge_client.router.difficulty import Difficulty
from edge_client.router.policy import Decision, Features

ROOT = Path(__file__).resolve().parent.parent.parent
MANUALS = {
    "pumps": "examples/source/pumps.md", "radios": "examples/manual/radios.md",
    "first-aid": "examples/manual/first-aid.md",
}  # fmt: skip


def answered(text: str, *passages: Passage) -> Answer:
    routed = Routed(Decision("local", "documents", ("so",)), "local", passages, (), "")
    return Answer(routed, text, "", "stop", 1, 1, {})


def passage(source: str, text: str) -> Passage:
    return Passage("Pumps", source, 1, None, text, "internal", 0.6)


@pytest.mark.parametrize(("text", "gold", "held"), [
    ("It is 6 bar.", "6 bar", True), ("It is 16 bar.", "6 bar", False), ("It is 2.6 bar", "6 bar", False),
    ("6 barns", "6 bar", False), ("the sum is 5,050", "5050", True), ("ISO  vg 46 only", "ISO VG 46", True),
    ("It is O(n log n)", "O(log n)", False), ("It is O(log n).", "O(log n)", True), ("channel 16.5", "16", False),
])  # fmt: skip
def test_a_gold_answer_stands_by_itself(text: str, gold: str, held: bool) -> None:
    assert contains(text, gold) is held


def test_an_answer_a_citation_and_an_abstention_are_judged_apart() -> None:
    asked = Asked("What is the pressure?", ("6 bar",), "documents", "pumps")
    right = judge(asked, answered("6 bar.", passage("/m/pumps.pdf", "at most 6 bar")), Features(), 0.0)
    assert (right.right, right.exact, right.cited, right.stated, right.abstained) == (True, True, True, True, False)
    wrong = judge(asked, answered("9 bar", passage("/m/pumps.pdf", "It is at most 6 bar.")), Features(), 0.0)
    assert (wrong.right, wrong.exact, wrong.cited, wrong.stated) == (False, False, True, False)
    quoted = 'From your documents (Pumps, page 1): "at most 6 bar"'
    for text, stated in ((quoted, False), (f"{quoted}\n\n6 bar.", True)):
        both = judge(asked, answered(text, passage("/m/pumps.pdf", "at most 6 bar")), Features(), 0.0)
        assert (both.right, both.quoted, both.stated, both.exact) == (True, True, stated, stated)
    unsure = judge(asked, answered(f"{SILENT} The closest passage (Pumps): \"6 bar\""), Features(), 0.0)
    assert (unsure.abstained, unsure.right, unsure.quoted) == (True, False, True), "what it shows is no answer"
    elsewhere = judge(asked, answered("9 bar", passage("/m/radios.md", "6 bar")), Features(), 0.0)
    assert not elsewhere.cited
    silent = Asked("What does it cost?", (), "silent")
    for text, abstains in (("The documents do not say.", True), ("I don't know", True), ("It costs 6 euros", False)):
        found = judge(silent, answered(text), Features(), 0.0)
        assert (found.abstained, found.right) == (abstains, abstains)


def test_the_questions_are_enough_and_a_third_is_beyond() -> None:
    questions = read_questions()
    assert len({asked.question for asked in questions}) == len(questions)
    chosen, reported = part_of(questions, chosen=True), part_of(questions, chosen=False)
    assert sorted(questions, key=repr) == sorted([*chosen, *reported], key=repr) and len(reported) >= 60
    assert sum(asked.kind == "silent" for asked in reported) >= 20
    beyond = [asked for asked in questions if asked.kind in ("beyond", "silent")]
    assert len(beyond) * 3 >= len(questions)
    for asked in questions:
        assert bool(asked.gold) == (asked.kind != "silent")
        if asked.kind == "documents":
            text = plain(re.sub(r"[*|]", " ", (ROOT / MANUALS[asked.source]).read_text()))
            assert any(contains(text, gold) for gold in asked.gold), f"the manual does not answer: {asked.question}"
        elif asked.kind != "silent":
            held = any(contains(asked.question, gold) for gold in asked.gold)
            assert not held, f"it holds its answer: {asked.question}"


def test_rows_compare_with_the_stand_in_and_with_length() -> None:
    easy = judge(Asked("Short?", ("yes",), "general"), answered("yes"), Features(joined=True), 0.0)
    hard = judge(Asked("Long and hard?", ("yes",), "beyond"), answered("no"), Features(joined=True, hard=True), 0.0)
    hard = replace(hard, features=replace(hard.features, difficulty=Difficulty(0.6, ())))
    rows = {row.what: row for row in rows_of([easy, hard] * 5)}
    always = rows["right, always local"]
    assert (always.ours, always.peer) == (50, 100) and "stand-in" in always.peer_name
    assert rows["right, the rules, which relay 50%"].ours == 100
    assert rows["beyond (5): relayed by the rules"].ours == 100
    assert rows["APGR of the need"].ours == pytest.approx(0.75)


@pytest.mark.model
def test_the_smallest_size_runs() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.answers", "--smoke", "--json"], capture_output=True, text=True, timeout=300,
        cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    rows = {row["what"]: row for row in json.loads(done.stdout)["rows"]}
    assert 0 <= rows["right, always local"]["ours"] <= 100

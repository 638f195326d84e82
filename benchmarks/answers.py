"""Correct answers against the share of questions relayed: what the router is for.

    scripts/bench answers [--smoke] [--chosen] [--json] [--each FILE]

136 questions with gold answers (questions.jsonl): 60 that the shipped manual answers, 12 of general knowledge that a
very small model may have, 24 beyond it, and 40 about the manual's things that it does not tell, where saying so is
right. Every second of each kind is reported; on the others the thresholds were chosen (--chosen). The local answers are
real: manual ingested, passages found, answers made by the installed models. **The strong provider is a stand-in**,
since a benchmark cannot count on one: it gives the gold answer, or says that nobody can know, but for every twentieth
question, which is an accuracy of 95 %. Compared are always-local, always-relay, the router, and prompt length, which
relays the longest.
"""

import argparse
import asyncio
import json
import re
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from benchmarks.measure import Row, note, show
from benchmarks.routing import LENGTH, measures
from edge_client.answering import QUOTED, SILENT, Answer, Assistant, Question, Routed
from edge_client.app import App
from edge_client.config import Config
from edge_client.engine.base import Message, Sampling, Text
from edge_client.ingest import Ingest
from edge_client.router.policy import Features, decide, need
from scripts.train_router import Floats
from store.keys import Passphrase

Mask = NDArray[np.bool_]

ROOT = Path(__file__).resolve().parent.parent
MANUAL = ("pumps.pdf", "radios.md", "first-aid.md")
STAND_IN_FAILS_EVERY = 20
ANSWER_TOKENS = 96
SMOKE_EVERY = 9  # takes some of each kind
STAND_IN = "always relay (stand-in, 95 % right)"

_ABSTAINS = re.compile(
    r"\b(?:do|does|did|is|are|was|were)(?: not|n't) (?:say|state|mention|hold|contain|specif|provid|give|include|tell|"
    r"known)|\bno (?:information|mention|answer)"
    r"|\b(?:do not|don't|cannot|can't|unable to) (?:know|find|answer|say|tell)",
    re.IGNORECASE,
)


class Asked(msgspec.Struct, frozen=True):
    """A line of questions.jsonl. Without gold answers, abstaining is the right one."""

    question: str
    gold: tuple[str, ...]
    kind: str
    source: str = ""


@dataclass(frozen=True)
class Outcome:
    asked: Asked
    text: str
    right: bool
    exact: bool
    abstained: bool  # by the answer's text
    told: bool  # that the documents do not answer it: by the answer's `documents`, whatever the text
    cited: bool  # the first citation is of the right volume and holds the answer
    quoted: bool  # the gold answer is in the passage's own words, with which the answer begins
    stated: bool  # the gold answer is in the model's
    features: Features
    seconds: float


def plain(text: str) -> str:
    """Lower case, one space, no thousands' commas: what a comparison should not fail by."""
    return " ".join(re.sub(r"(?<=\d),(?=\d{3})", "", text.lower()).split())


def contains(text: str, gold: str) -> bool:
    """Whether the gold answer stands in the text as words of its own: "6 bar" is not in "16 bar" nor in "2.6 bar"."""
    return re.search(rf"(?<![\w.]){re.escape(plain(gold))}(?!\w|[.]\d)", plain(text)) is not None


def judge(asked: Asked, answer: Answer, features: Features, seconds: float) -> Outcome:
    abstained = answer.text.startswith(SILENT) or _ABSTAINS.search(answer.text) is not None

    def holds(text: str) -> bool:
        return any(contains(text, gold) for gold in asked.gold)

    quoted, _, stated = answer.text.rpartition("\n\n")
    if not quoted and answer.text.startswith((QUOTED, SILENT)):
        quoted, stated = stated, ""  # nothing of the model's own
    first = next(iter(answer.routed.citations), None)
    cited = first is not None and Path(first.source).stem == asked.source and holds(first.text)
    exact = any(plain(stated).rstrip(".") == plain(gold) for gold in asked.gold)
    # What an abstention shows as the closest passage is no answer, also where it would be right.
    right = abstained != bool(asked.gold) and (abstained or holds(answer.text))
    told = answer.routed.documents == "silent"
    return Outcome(
        asked, answer.text, right, exact, abstained, told, cited, holds(quoted), holds(stated), features, seconds
    )


async def local_answers(questions: list[Asked]) -> list[Outcome]:
    """Each question asked of the local model with the manual ingested, whatever the router would say."""
    outcomes = []
    with tempfile.TemporaryDirectory() as home:
        config = Config(Path(home))
        async with App.open(config, store="create", ask=lambda **how: Passphrase("only for this benchmark")) as app:
            ingest = Ingest(app.documents, app.embedder())
            for name in MANUAL:
                await ingest.file(ROOT / "examples" / "manual" / name, collection="default")
            assistant: Assistant = await app.assistant(relay=False)

            async def ignore(event: Routed | Text) -> None:
                pass

            for number, asked in enumerate(questions, 1):
                if number % 10 == 0:
                    note(f"question {number} of {len(questions)}")
                started = time.monotonic()
                put = Question((Message("user", asked.question),), "local", sampling=Sampling(ANSWER_TOKENS))
                answer = await assistant.answer(put, ignore)
                features = answer.routed.decision.features
                assert features is not None
                features = replace(features, flag=None, joined=True)
                outcomes.append(judge(asked, answer, features, time.monotonic() - started))
    return outcomes


def rows_of(outcomes: list[Outcome]) -> list[Row]:
    """The routes compared, then the local answers by kind of question."""
    count = len(outcomes)
    local = np.array([outcome.right for outcome in outcomes], float)
    strong = np.array([number % STAND_IN_FAILS_EVERY != STAND_IN_FAILS_EVERY // 2 for number in range(count)], float)
    needs = np.array([need(outcome.features) for outcome in outcomes])
    lengths = np.array([len(outcome.asked.question) for outcome in outcomes], float)
    ruled = np.array([decide(outcome.features).route == "relay" for outcome in outcomes])

    def percent(relayed: Mask) -> float:
        return float(100 * np.where(relayed, strong, local).mean())

    def most(scores: Floats, share: float) -> Mask:
        sent = np.zeros(count, bool)
        sent[np.argsort(-scores, kind="stable")[: round(share * count)]] = True
        return sent

    never, always = percent(np.zeros(count, bool)), percent(np.ones(count, bool))
    rows = [Row("right, always local", never, "%", always, STAND_IN, None)]
    share = float(ruled.mean())
    mine, theirs = percent(ruled), percent(most(lengths, share))
    rows.append(Row(f"right, the rules, which relay {share:.0%}", mine, "%", theirs, LENGTH, mine / theirs, 1.0))
    for share in (0.2, 0.4, 0.6, 0.8):
        mine, theirs = percent(most(needs, share)), percent(most(lengths, share))
        rows.append(
            Row(f"right, a threshold that relays {share:.0%}", mine, "%", theirs, LENGTH, mine / theirs, 1.0)
        )
    ours, peer = measures(needs, strong, local), measures(lengths, strong, local)
    rows.append(Row("APGR of the need", ours.apgr, "", peer.apgr, LENGTH, ours.apgr / peer.apgr, 1.0))
    return [*rows, *(row for kind in _ASPECTS for row in _of_kind(outcomes, kind))]


_ASPECTS: Final = {
    "documents": {
        "right": "answer holds the gold", "quoted": "the passage shown holds it", "stated": "the model's own do",
        "exact": "the model's own are the gold", "cited": "first citation holds the gold",
        "abstained": "abstained, wrongly",
    },
    "general": {"right": "answer holds the gold", "abstained": "abstained", "told": "told that documents are silent"},
    "beyond": {"right": "answer holds the gold", "abstained": "abstained", "told": "told that documents are silent"},
    "silent": {"right": "abstained, as is right", "told": "told that documents are silent"},
}  # fmt: skip


def _of_kind(outcomes: list[Outcome], kind: str) -> list[Row]:
    found = [outcome for outcome in outcomes if outcome.asked.kind == kind]
    if not found:
        return []
    rows = [
        Row(f"{kind} ({len(found)}), local: {what}",
            100 * sum(bool(getattr(outcome, name)) for outcome in found) / len(found), "%", None, "", None)
        for name, what in _ASPECTS[kind].items()
    ]  # fmt: skip
    relayed = 100 * sum(decide(outcome.features).route == "relay" for outcome in found) / len(found)
    return [*rows, Row(f"{kind} ({len(found)}): relayed by the rules", relayed, "%", None, "", None)]


def part_of(questions: list[Asked], *, chosen: bool) -> list[Asked]:
    """Every second of each kind: the first, third, ... are those on which the thresholds were chosen."""
    seen: Counter[str] = Counter()
    part = []
    for asked in questions:
        if (seen[asked.kind] % 2 == 0) == chosen:
            part.append(asked)
        seen[asked.kind] += 1
    return part


def read_questions() -> list[Asked]:
    lines = (Path(__file__).parent / "questions.jsonl").read_bytes().splitlines()
    return [msgspec.json.decode(line, type=Asked) for line in lines]


def main() -> int:
    parser = argparse.ArgumentParser(prog="scripts/bench", description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--smoke", action="store_true", help="a short run, whose numbers are rough")
    parser.add_argument("--chosen", action="store_true", help="the half on which the thresholds were chosen")
    parser.add_argument("--json", action="store_true", help="one JSON object on standard output")
    parser.add_argument("--each", type=Path, help="write a line of JSON for each question here")
    given = parser.parse_args()
    questions = part_of(read_questions(), chosen=given.chosen)[:: SMOKE_EVERY if given.smoke else 1]
    outcomes = asyncio.run(local_answers(questions))
    if given.each is not None:
        lines = (json.dumps({
            "question": one.asked.question, "kind": one.asked.kind, "answer": one.text, "right": one.right,
            "abstained": one.abstained, "told": one.told, "cited": one.cited, "quoted": one.quoted,
            "stated": one.stated, "need": round(need(one.features), 3), "evidence": one.features.evidence,
            "rule": decide(one.features).rule, "seconds": round(one.seconds, 2),
        }) for one in outcomes)  # fmt: skip
        given.each.write_text("\n".join(lines) + "\n", encoding="utf-8")
    show("answers", rows_of(outcomes), as_json=given.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())

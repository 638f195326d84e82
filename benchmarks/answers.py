"""Correct answers against the share of questions relayed: what the router is for.

    scripts/bench answers [--smoke] [--json] [--each FILE]

72 questions with gold answers (questions.jsonl): 30 that the shipped manual answers, 12 of general knowledge that a
very small model may have, 24 beyond it, and 6 about the manual's things that it does not tell, where saying so is
right. The local answers are real: manual ingested, passages found, answers made by the installed models. **The strong
provider is a stand-in**, since a benchmark cannot count on one: it gives the gold answer but for every twentieth
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
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from benchmarks.measure import Row, note, show
from benchmarks.routing import LENGTH, measures
from edge_client.answering import Answer, Assistant, Question, Routed
from edge_client.app import App
from edge_client.commands.ask import quote
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
    abstained: bool
    cited: bool  # the first citation is of the right volume and holds the answer
    shown: bool  # right, or the extract of the first citation that `edge ask` prints below holds the gold answer
    features: Features
    seconds: float


def plain(text: str) -> str:
    """Lower case, one space, no thousands' commas: what a comparison should not fail by."""
    return " ".join(re.sub(r"(?<=\d),(?=\d{3})", "", text.lower()).split())


def contains(text: str, gold: str) -> bool:
    """Whether the gold answer stands in the text as words of its own: "6 bar" is not in "16 bar" nor in "2.6 bar"."""
    return re.search(rf"(?<![\w.]){re.escape(plain(gold))}(?!\w|[.]\d)", plain(text)) is not None


def judge(asked: Asked, answer: Answer, features: Features, seconds: float) -> Outcome:
    abstained = _ABSTAINS.search(answer.text) is not None
    found = any(contains(answer.text, gold) for gold in asked.gold)
    first = next(iter(answer.routed.citations), None)
    cited = (
        first is not None and Path(first.source).stem == asked.source
        and any(contains(first.text, gold) for gold in asked.gold)
    )
    exact = any(plain(answer.text).rstrip(".") == plain(gold) for gold in asked.gold)
    right = found or (abstained and not asked.gold)
    extract = quote(first.text, f"{asked.question} {answer.text}") if first is not None else ""
    shown = right or any(contains(extract, gold) for gold in asked.gold)
    return Outcome(asked, answer.text, right, exact, abstained, cited, shown, features, seconds)


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
    """Routes judged by what the local model wrote, then with the extract it is shown with; then by kind of question."""
    written = np.array([outcome.right for outcome in outcomes], float)
    shown = np.array([outcome.shown for outcome in outcomes], float)
    return [
        *_routes(outcomes, written, ""), *_routes(outcomes, shown, ", extracts counted"),
        *(row for kind in ("documents", "general", "beyond", "silent") for row in _of_kind(outcomes, kind)),
    ]


def _routes(outcomes: list[Outcome], local: Floats, how: str) -> list[Row]:
    count = len(outcomes)
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
    rows = [Row(f"right, always local{how}", never, "%", always, STAND_IN, None)]
    share = float(ruled.mean())
    mine, theirs = percent(ruled), percent(most(lengths, share))
    rows.append(Row(f"right, the rules, which relay {share:.0%}{how}", mine, "%", theirs, LENGTH, mine / theirs, 1.0))
    for share in (0.2, 0.4, 0.6, 0.8):
        mine, theirs = percent(most(needs, share)), percent(most(lengths, share))
        what = f"right, a threshold that relays {share:.0%}{how}"
        rows.append(Row(what, mine, "%", theirs, LENGTH, mine / theirs, 1.0))
    ours, peer = measures(needs, strong, local), measures(lengths, strong, local)
    return [*rows, Row(f"APGR of the need{how}", ours.apgr, "", peer.apgr, LENGTH, ours.apgr / peer.apgr, 1.0)]


def _of_kind(outcomes: list[Outcome], kind: str) -> list[Row]:
    found = [outcome for outcome in outcomes if outcome.asked.kind == kind]
    if not found:
        return []

    def share(name: str, what: str) -> Row:
        value = 100 * sum(bool(getattr(outcome, name)) for outcome in found) / len(found)
        return Row(f"{kind} ({len(found)}), local: {what}", value, "%", None, "", None)

    rows = [share("right", "abstained, as is right" if kind == "silent" else "answer holds the gold")]
    if kind != "silent":
        rows += [share("exact", "answer is the gold"), share("abstained", "abstained")]
    if kind == "documents":
        rows += [share("cited", "first citation holds the gold"), share("shown", "answer or extract holds the gold")]
    relayed = 100 * sum(decide(outcome.features).route == "relay" for outcome in found) / len(found)
    return [*rows, Row(f"{kind} ({len(found)}): relayed by the rules", relayed, "%", None, "", None)]


def read_questions() -> list[Asked]:
    lines = (Path(__file__).parent / "questions.jsonl").read_bytes().splitlines()
    return [msgspec.json.decode(line, type=Asked) for line in lines]


def main() -> int:
    parser = argparse.ArgumentParser(prog="scripts/bench", description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--smoke", action="store_true", help="a short run, whose numbers are rough")
    parser.add_argument("--json", action="store_true", help="one JSON object on standard output")
    parser.add_argument("--each", type=Path, help="write a line of JSON for each question here")
    given = parser.parse_args()
    questions = read_questions()[:: SMOKE_EVERY if given.smoke else 1]
    outcomes = asyncio.run(local_answers(questions))
    if given.each is not None:
        lines = (json.dumps({
            "question": one.asked.question, "kind": one.asked.kind, "answer": one.text, "right": one.right,
            "cited": one.cited, "need": round(need(one.features), 3), "similarity": one.features.similarity,
            "rule": decide(one.features).rule, "seconds": round(one.seconds, 2),
        }) for one in outcomes)  # fmt: skip
        given.each.write_text("\n".join(lines) + "\n", encoding="utf-8")
    show("answers", rows_of(outcomes), as_json=given.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())

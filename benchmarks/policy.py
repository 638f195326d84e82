"""Policy decisions: `scripts/bench policy`, with 1,000 devices in 100 groups and 100 rules, half [[allow]], half Cedar.

Peers are cedarpy itself, given the same policies and all devices: as text with each question, as its documentation
begins, and parsed once. Percentiles are over questions, of each the median of some rounds, in CPU time of this thread:
what a question costs, and not what other programs on the machine did to one decision.
"""

import json
import random
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

from cedarpy import Entities, is_authorized

from benchmarks.measure import Row, arguments, cost_row, note, show
from relay.gateway.policy.cedar import Json, policy_set
from relay.gateway.policy.decisions import Policy
from relay.gateway.policy.questions import Decision, Question, posture_of, principal
from relay.gateway.policy.settings import Allow, Group, Policies, Rules, checked
from transport.identity.svid import SpiffeId
from transport.messages import Posture

DEVICES, SITES, ROUNDS, BOUND_US = 1_000, 100, 5, 100.0
MODELS = [f"model-{number}" for number in range(10)]
POSTURES = [posture_of(disk, "present", "0.1.0") for disk in ("encrypted", "not encrypted", "unknown")]
CEDARPY = f"cedarpy {version('cedarpy')}"


def rules(folder: Path) -> Rules:
    """50 rules of the simple form and 50 in Cedar, two of which forbid."""
    lines = [
        f'permit (principal in Group::"site-{site}", action == Action::"model:invoke", resource == Model::"model-'
        f'{site % 10}") when {{ principal.posture.disk == "encrypted" || principal.posture.source == "unknown" }};'
        for site in range(50, 98)
    ]
    lines.append('forbid (principal, action == Action::"model:invoke", resource) '
                 'when { principal.posture.disk == "not encrypted" };')
    lines.append('forbid (principal in Group::"site-99", action, resource);')
    (folder / "rules.cedar").write_text("\n".join(lines))
    groups = [Group(name=f"site-{site}", ids=[f"/edge/site-{site}/*"]) for site in range(SITES)]
    allows = [Allow(id=f"/edge/site-{site}/*", models=[f"model-{site % 10}", "model-0"]) for site in range(50)]
    return checked(folder, groups, allows, Policies(cedar=["rules.cedar"]), MODELS)


def questions(count: int) -> list[Question]:
    dice = random.Random(1)
    asked = []
    for _ in range(count):
        device = dice.randrange(DEVICES)
        identity = SpiffeId("bench.example", f"/edge/site-{device % SITES}/device-{device}")
        asked.append(Question(identity, "model:invoke", dice.choice(MODELS), "", dice.choice(POSTURES)))
    return asked


def decided(policy: Policy, question: Question) -> Decision:
    """Cedar waits for nothing, so that no event loop is needed."""
    try:
        policy.decide(question).send(None)
    except StopIteration as done:
        decision: Decision = done.value
        return decision
    raise AssertionError("a decision by Cedar waited")


def percentiles(
    function: Callable[[Question], object], asked: Sequence[Question], rounds: int = ROUNDS
) -> tuple[float, float]:
    """p50 and p99 over questions, in microseconds."""
    taken: list[list[int]] = [[] for _ in asked]
    for _ in range(rounds):
        for question, times in zip(asked, taken, strict=True):
            begun = time.thread_time_ns()
            function(question)
            times.append(time.thread_time_ns() - begun)
    each = sorted(median(times) for times in taken)
    return each[len(each) // 2] / 1_000, each[len(each) * 99 // 100] / 1_000


def run(*, smoke: bool) -> list[Row]:
    with tempfile.TemporaryDirectory(prefix="causeway-policy-") as folder:
        settings = rules(Path(folder))
    asked, fewer = questions(2_000 if smoke else 20_000), 20 if smoke else 100
    policy = Policy(settings)
    note("first questions")
    cold = percentiles(lambda question: decided(policy, question), asked, 1)

    def forgetting(question: Question) -> Decision:
        policy._kept.clear()
        return decided(policy, question)

    note("again, each one evaluated")
    evaluated = percentiles(forgetting, asked)
    for question in asked:
        decided(policy, question)
    note("again, as kept")
    kept = percentiles(lambda question: decided(policy, question), asked)

    whole = policy_set(settings.cedar)
    every = {question.id: question for question in questions(50_000)}
    devices = {posture: [node(policy, one, posture) for one in every] for posture in POSTURES}
    text, entities = str(whole), {at: Entities.from_json_str(json.dumps(devices[at])) for at in POSTURES}

    def as_text(question: Question) -> bool:
        return is_authorized(request(question), text, devices[question.posture]).allowed

    def parsed(question: Question) -> bool:
        return is_authorized(request(question), whole, entities[question.posture]).allowed

    note("cedarpy by itself")
    for question in asked[:50]:
        assert as_text(question) == parsed(question) == decided(policy, question).allowed
    by_text, once = percentiles(as_text, asked[:fewer]), percentiles(parsed, asked[: fewer * 10])
    rows = []
    for what, ours, peer, name in (
        ("kept decision", kept, once, f"{CEDARPY}, parsed once"),
        ("evaluated decision", evaluated, once, f"{CEDARPY}, parsed once"),
        ("evaluated decision", evaluated, by_text, f"{CEDARPY}, as text"),
    ):
        rows += [cost_row(f"{what}, {at}", ours[place], "us", peer[place], name, wanted=1.0)
                 for place, at in enumerate(("p50", "p99"))]
    for what, (_, slowest) in (("kept", kept), ("evaluated", evaluated)):
        rows.append(cost_row(f"{what} decision, p99", slowest, "us", BOUND_US, "the bound", wanted=1.0))
    what = "first round, no device or group known yet"
    rows += [cost_row(f"{what}, {at}", cold[place], "us", BOUND_US, "the bound", wanted=None)
             for place, at in enumerate(("p50", "p99"))]
    return rows


def node(policy: Policy, identity: SpiffeId, posture: Posture) -> Json:
    return {
        "uid": {"type": "Node", "id": str(identity)}, "attrs": principal(identity, posture, "none"),
        "parents": [{"type": "Group", "id": group} for group in policy.groups(identity)],
    }


def request(question: Question) -> dict[str, Any]:
    return {
        "principal": {"type": "Node", "id": str(question.id)}, "action": {"type": "Action", "id": question.verb},
        "resource": question.entity(), "context": {"via": question.via},
    }


def main() -> int:
    given = arguments(__doc__.splitlines()[0] if __doc__ else "")
    show("policy", run(smoke=given.smoke), as_json=given.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())

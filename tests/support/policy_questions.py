"""Questions for the shipped example of a policy, and what it should answer to each, by a second reading of it."""

import random
from collections.abc import Iterator
from pathlib import Path

from relay.gateway.config import load
from relay.gateway.policy.questions import ATTESTED, VERBS, Question, version_number
from relay.gateway.policy.settings import Rules
from transport.identity.svid import SpiffeId
from transport.messages import Posture

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "policy"
PATHS = (
    "/edge/factory-floor/cam-1", "/edge/factory-floor", "/edge/factory-floorx/cam-1", "/edge/factory-floor/a/b",
    "/edge/office/lap-1", "/edge/officer/lap-1", "/edge/head-office", "/edge/head-office2", "/hop/factory-floor/cam-1",
    "/workload/admin/ann", "/workload/administrator/ann", "/workload/admin", "/hop/pi-1", "/edge/lap-1",
)
GRANTED = ("/edge/factory-floor/cam-1", "/edge/office/lap-1", "/workload/admin/ann")
MODELS = ("defect-detection", "gpt-4o-mini", "defect-detection2", "other")
POSTURES = [
    Posture(disk, tpm, version)
    for disk in ("encrypted", "not encrypted", "unknown") for tpm in ("present", "unknown")
    for version in ("", "0.0.9", "0.1.0", "1.20.3rc1")
]


def example() -> Rules:
    return load(EXAMPLE / "gateway.toml").rules


def expected(question: Question) -> bool:
    """The example's rules in Python, from the path alone: groups are not asked."""
    parts, verb = question.id.path.split("/")[1:], question.verb
    floor = len(parts) == 3 and parts[:2] == ["edge", "factory-floor"]
    office = (len(parts) == 3 and parts[:2] == ["edge", "office"]) or parts == ["edge", "head-office"]
    admin = len(parts) == 3 and parts[:2] == ["workload", "admin"]
    if verb == "model:invoke":
        if question.posture.disk == "not encrypted" or 0 < version_number(question.posture.version) < 1_000:
            return False
        return (floor and question.resource == "defect-detection") or (office and question.resource == "gpt-4o-mini")
    if verb == "data:read":
        return office and question.posture.disk == "encrypted"
    if verb in ("relay:use", "package:fetch"):
        return parts[0] == "edge"
    return verb.startswith("admin:") and admin


def questions(count: int, seed: int) -> Iterator[Question]:
    """So many, the same for the same seed; drawn so that some three in ten are to be allowed."""
    dice = random.Random(seed)
    for _ in range(count):
        verb = dice.choice(["model:invoke", "model:invoke", "model:invoke", *VERBS])
        resource = dice.choice(MODELS if verb == "model:invoke" else ("spiffe://factory.example/hop/pi-1", "manuals"))
        via = dice.choice(["", "spiffe://factory.example/hop/pi-1"])
        path = dice.choice([*PATHS, *GRANTED * 5])
        yield Question(
            SpiffeId("factory.example", path), verb, resource, via, dice.choice(POSTURES), dice.choice(ATTESTED)
        )

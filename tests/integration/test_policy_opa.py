"""OPA in Cedar's place: the same answers to the same document, and nothing but `true` is a yes."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from relay.gateway.errors import ConfigError, PolicyUnavailable
from relay.gateway.policy.decisions import Policy
from relay.gateway.policy.questions import Question
from relay.gateway.policy.settings import OpaSettings, Rules
from tests.support.fake_opa import FakeOpa
from tests.support.policy_questions import EXAMPLE, example, expected, questions
from transport.identity.svid import SpiffeId
from transport.messages import Posture

PATIENT_S = 10.0
CAM = Question(SpiffeId("factory.example", "/edge/factory-floor/cam-1"), "model:invoke", "defect-detection")


def by_opa(url: str, *, timeout_s: float = PATIENT_S, token_file: Path | None = None) -> Policy:
    return Policy(Rules(example().patterns, (), OpaSettings(url, timeout_s, token_file), ("gpt-4o-mini",)))


def from_document(document: dict[str, Any]) -> bool:
    """The example's rules once more, from the document alone, as Rego would read it."""
    groups, verb = document["principal"]["groups"], document["action"]
    model, posture = document["resource"]["id"], document["principal"]["posture"]
    if verb == "model:invoke":
        if posture["disk"] == "not encrypted" or 0 < posture["version_number"] < 1_000:
            return False
        return ("factory-floor" in groups and model == "defect-detection") or (
            "office" in groups and model == "gpt-4o-mini"
        )
    if verb == "data:read":
        return "office" in groups and posture["disk"] == "encrypted"
    if verb in ("relay:use", "package:fetch"):
        return bool(document["principal"]["role"] == "edge")
    return verb.startswith("admin:") and "administrators" in groups


async def test_both_engines_answer_500_questions_alike() -> None:
    async with FakeOpa(from_document) as opa:
        cedar, rego = Policy(example()), by_opa(opa.url)
        asked = list(questions(500, seed=1))
        answers = [((await cedar.decide(one)).allowed, (await rego.decide(one)).allowed) for one in asked]
        await rego.close()
    assert [pair for pair in answers if pair[0] != pair[1]] == []
    assert [pair[0] for pair in answers] == [expected(one) for one in asked]
    assert 100 < sum(allowed for allowed, _ in answers) < 400, "both answers have to occur"
    assert opa.asked == 500, "what OPA has said is not kept: only OPA knows when its policy changes"


def test_the_input_document_is_what_the_pages_say() -> None:
    question = Question(
        SpiffeId("factory.example", "/edge/office/ann"), "model:invoke", "gpt-4o-mini",
        "spiffe://factory.example/hop/pi-1", Posture("encrypted", "present", "0.1.0"),
    )
    document = question.document(("office",))
    assert document == {
        "principal": {
            "id": "spiffe://factory.example/edge/office/ann", "trust_domain": "factory.example", "role": "edge",
            "attested_tpm": "none", "posture": {
                "source": "self-reported", "disk": "encrypted", "tpm": "present", "version": "0.1.0",
                "version_number": 1_000,
            },
            "groups": ["office"],
        },
        "action": "model:invoke",
        "resource": {"type": "Model", "id": "gpt-4o-mini"},
        "context": {"via": "spiffe://factory.example/hop/pi-1"},
    }
    page = (EXAMPLE.parents[1] / "docs" / "POLICY.md").read_text()
    for words in ('"version_number": 1000', '"source": "self-reported"', '"groups": ["office"]'):
        assert words in page


@pytest.mark.parametrize(("mode", "unavailable"), [
    ("undefined", False), ("word", False), ("object", False), ("one", False),
    ("redirect", True), ("500", True), ("garbage", True), ("huge", True), ("drop", True),
])
async def test_nothing_but_true_is_a_yes(mode: str, unavailable: bool) -> None:
    async with FakeOpa(lambda document: True) as opa:
        policy = by_opa(opa.url)
        assert (await policy.decide(CAM)).allowed
        opa.mode = mode
        decision = await policy.decide(CAM)
        assert not decision.allowed and decision.unavailable == unavailable
        opa.mode = "ok"
        assert (await policy.decide(CAM)).allowed, "it goes on as soon as OPA does"
        await policy.close()


async def test_an_opa_that_does_not_answer_denies_in_time() -> None:
    async with FakeOpa(lambda document: True) as opa:
        opa.mode = "stall"
        policy = by_opa(opa.url, timeout_s=0.01)
        decision = await policy.decide(CAM)
        await policy.close()
    assert not decision.allowed and decision.unavailable and "in time" in decision.reason


async def test_an_opa_that_is_not_there_denies() -> None:
    policy = by_opa("http://127.0.0.1:1/v1/data/causeway/allow")
    decisions = await asyncio.gather(*(policy.decide(CAM) for _ in range(3)))
    assert not any(decision.allowed for decision in decisions) and all(one.unavailable for one in decisions)
    with pytest.raises(PolicyUnavailable):
        await policy.models(CAM)
    await policy.close()


async def test_the_token_comes_from_a_file(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("CANARY-token\n")
    (tmp_path / "token").chmod(0o600)
    async with FakeOpa(lambda document: True) as opa:
        policy = by_opa(opa.url, token_file=tmp_path / "token")
        decision = await policy.decide(CAM)
        assert opa.headers["Authorization"] == "Bearer CANARY-token"
        await policy.close()
    assert "CANARY" not in repr(decision)
    with pytest.raises(ConfigError, match="OPA's token"):
        by_opa(opa.url, token_file=tmp_path / "nowhere")

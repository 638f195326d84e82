"""Cedar and the input document against the example's rules read a second time; slices against the whole."""

from pathlib import Path

from cedarpy import is_authorized
from hypothesis import given
from hypothesis import strategies as st

from relay.gateway.policy.cedar import SCHEMA, Cedar, policy_set
from relay.gateway.policy.decisions import Policy
from relay.gateway.policy.questions import VERBS, Question, principal
from relay.gateway.policy.settings import Group, Policies, checked
from tests.support.policy_questions import MODELS, PATHS, POSTURES, example, expected
from transport.identity.svid import SpiffeId

segment = st.one_of(st.sampled_from(["factory-floor", "office", "head-office", "admin"]), st.text("af-.", min_size=1)
                    .filter(lambda text: text not in (".", "..")))
paths = st.one_of(st.sampled_from(PATHS), st.builds(
    lambda role, rest: "/" + "/".join([role, *rest]), st.sampled_from(["edge", "hop", "workload"]),
    st.lists(segment, max_size=3),
))
asked = st.builds(
    Question, st.builds(SpiffeId, st.just("factory.example"), paths), st.sampled_from(sorted(VERBS)),
    st.sampled_from(MODELS), st.sampled_from(["", "spiffe://factory.example/hop/pi-1"]), st.sampled_from(POSTURES),
)
RULES = example()
POLICY = Policy(RULES)


@given(question=asked)
async def test_cedar_answers_as_the_rules_say(question: Question) -> None:
    decision = await POLICY.decide(question)
    assert decision.allowed == expected(question)
    assert bool(decision.reason) and decision.allowed == decision.reason.startswith("allowed by factory.cedar:")


@given(question=asked)
async def test_a_slice_decides_as_all_rules_do(question: Question) -> None:
    """Cedar itself, given every rule and the group memberships as text."""
    groups = POLICY.groups(question.id)
    document = question.document(groups)
    node = {"type": "Node", "id": str(question.id)}
    whole = is_authorized(
        {"principal": node, "action": {"type": "Action", "id": question.verb}, "resource": document["resource"],
         "context": document["context"]},
        policy_set(RULES.cedar),
        [{"uid": node, "attrs": principal(question.id, question.posture, question.attested_tpm),
          "parents": [{"type": "Group", "id": group} for group in groups]}],
        SCHEMA,
    )
    decision = await Cedar(RULES.cedar).decide(question, groups)
    assert decision.allowed == whole.allowed
    assert set(decision.rules) == set(whole.diagnostics.reasons)


@given(name=st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,20}", fullmatch=True),
       other=st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,20}", fullmatch=True), model=st.text(max_size=12))
async def test_no_name_of_a_model_reaches_another_rule(name: str, other: str, model: str) -> None:
    """Whatever stands in a request is an ID in Cedar, never a piece of a policy."""
    groups = [Group(name="g", ids=[f"/edge/{name}"])] if name not in (".", "..") else []
    rules = Policy(checked(Path(), groups, [], Policies(), []))
    assert not (await rules.decide(Question(SpiffeId("x", "/edge/a"), "model:invoke", model))).allowed
    assert (await POLICY.decide(Question(
        SpiffeId("factory.example", "/edge/factory-floor/a"), "model:invoke", model
    ))).allowed == (model == "defect-detection")

"""Rules in Cedar: what is wrong with a file is found at start and named by line; what fails is a denial."""

from pathlib import Path

import pytest

from relay.gateway.errors import ConfigError
from relay.gateway.policy.cedar import Cedar, Rule
from relay.gateway.policy.decisions import Policy
from relay.gateway.policy.questions import Question, posture_of, version_number
from relay.gateway.policy.settings import Allow, Group, Policies, checked, statements
from tests.support.policy_questions import example
from transport.errors import BadInput
from transport.identity.svid import SpiffeId
from transport.messages import Posture

CAM = SpiffeId("factory.example", "/edge/factory-floor/cam-1")
LAP = SpiffeId("factory.example", "/edge/lap-1")
ANY = 'permit (principal, action == Action::"model:invoke", resource);\n'


def policy(text: str, directory: Path, allows: list[Allow] | None = None) -> Policy:
    (directory / "p.cedar").write_text(text)
    groups = [Group(name="floor", ids=["/edge/factory-floor/*"])]
    return Policy(checked(directory, groups, allows or [], Policies(cedar=["p.cedar"]), []))


def invoke(model: str = "small", who: SpiffeId = LAP, **fields: str) -> Question:
    posture = posture_of(**{"disk": "unknown", "tpm": "unknown", "version": ""} | fields)
    return Question(who, "model:invoke", model, "", posture)


@pytest.mark.parametrize(("text", "place", "words"), [
    ("\n// a comment\npermit (principal,\n", "p.cedar:3", "not a policy"),
    (ANY + "\n" + ANY.replace(";", ""), "p.cedar:3", "not a policy"),
    (ANY + 'permit (principal, action == Action::"model:invok", resource);', "p.cedar:2", "unrecognized action"),
    (ANY + "\n\npermit (principal, action, resource)\nwhen { principal.rolle == \"edge\" };", "p.cedar:4", "rolle"),
    (ANY + "permit (principal, action, resource) when { principal.posture.disk == 3 };", "p.cedar:2", "String"),
    (ANY + "permit (principal, action, resource) when { principal.path like \"/edge/*\" };", "p.cedar:2", "path"),
    (ANY + "permit (principal == ?principal, action, resource);", "p.cedar:2", "template"),
    ('forbid (principal in Group::"flor", action, resource);', "p.cedar:1", "no group 'flor'"),
    ('forbid (principal, action, resource) when { principal in Group::"flor" };', "p.cedar:1", "no group 'flor'"),
    ('permit (principal in Group::"allow[0]", action, resource);', "p.cedar:1", "no group"),
    ('permit (principal in Model::"m", action, resource);', "p.cedar:1", "applicable action"),
])
def test_L14_a_mistake_is_named_by_file_and_line(text: str, place: str, words: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        policy(text, tmp_path, [Allow(id="/edge/*", models=["m"])])
    assert place in str(caught.value) and words in str(caught.value)
    assert caught.value.fault == "user"


@pytest.mark.parametrize(("data", "words"), [(b"\xff", "UTF-8"), (b"// " + b"x" * (1 << 20), "1 MiB"), (None, "read")])
def test_files_that_cannot_be_read(data: bytes | None, words: str, tmp_path: Path) -> None:
    if data is not None:
        (tmp_path / "p.cedar").write_bytes(data)
    with pytest.raises(ConfigError, match=words):
        checked(tmp_path, [], [], Policies(cedar=["p.cedar"]), [])


def test_statements_are_cut_where_policies_end() -> None:
    text = '// ; no\npermit (a, b, c) when { x == "; \\" // not" }; // ;\n\n@id("a;b")\nforbid\n(d);\n  tail'
    assert list(statements(text)) == [
        (2, 'permit (a, b, c) when { x == "; \\" // not" };'), (4, '@id("a;b")\nforbid\n(d);'), (7, "tail"),
    ]


async def test_nothing_is_allowed_by_nobody(tmp_path: Path) -> None:
    decision = await policy("", tmp_path).decide(invoke())
    assert not decision.allowed and "no rule allows" in decision.reason and not decision.unavailable


async def test_L14_a_forbidding_rule_that_fails_denies(tmp_path: Path) -> None:
    """Cedar skips it and allows; the version makes the sum overflow."""
    text = ANY + (
        "forbid (principal, action, resource) when "
        "{ principal.posture.version_number + 9223372036854775807 == principal.posture.version_number };"
    )
    fails = policy(text, tmp_path)
    decision = await fails.decide(invoke(version="0.1.0"))
    assert not decision.allowed and "a rule failed" in decision.reason and "p.cedar:2" in decision.reason
    assert (await fails.decide(invoke())).allowed, "0 does not overflow: the rule itself forbids nothing here"


async def test_a_rule_of_another_group_or_verb_cannot_fail(tmp_path: Path) -> None:
    """What is left out of a slice is what Cedar would not have evaluated."""
    overflow = "when { principal.posture.version_number + 9223372036854775807 == 0 };"
    of_another_verb = 'principal, action == Action::"data:read", resource'
    for scope in ('principal in Group::"floor", action, resource', of_another_verb):
        rules = policy(f"{ANY}forbid ({scope}) {overflow}", tmp_path)
        assert (await rules.decide(invoke(version="0.1.0"))).allowed
    rules = policy(f'{ANY}forbid (principal in Group::"floor", action, resource) {overflow}', tmp_path)
    assert not (await rules.decide(invoke(who=CAM, version="0.1.0"))).allowed


async def test_a_question_that_the_schema_does_not_know_is_denied() -> None:
    engine = Cedar([Rule("any", {"effect": "permit", "principal": {"op": "All"}, "action": {"op": "All"},
                                 "resource": {"op": "All"}, "conditions": []})])
    assert (await engine.decide(invoke(), ())).allowed
    posture = Posture(3, "unknown", "")  # type: ignore[arg-type]
    decision = await engine.decide(Question(LAP, "model:invoke", "small", "", posture), ())
    assert not decision.allowed


async def test_forbid_wins_and_both_forms_are_one_engine(tmp_path: Path) -> None:
    both = policy(
        '@id("not-at-night")\nforbid (principal, action, resource == Model::"night");',
        tmp_path, [Allow(id="/edge/*", models=["small", "night"])],
    )
    allowed, denied = await both.decide(invoke()), await both.decide(invoke("night"))
    assert allowed.allowed and allowed.rules == ("allow[0]",) and allowed.reason == "allowed by allow[0]"
    assert not denied.allowed and denied.reason == "denied: p.cedar:1 (not-at-night) forbids it"


async def test_only_the_factory_floor_may_invoke_defect_detection() -> None:
    """The rule that the example is named for."""
    rules = Policy(example())
    for path in ("/edge/factory-floor/cam-1", "/edge/factory-floor/x"):
        decision = await rules.decide(invoke("defect-detection", SpiffeId("factory.example", path)))
        assert decision.allowed and decision.rules == ("factory.cedar:2",)
    for path in (
        "/edge/factory-floor", "/edge/factory-floorx/cam-1", "/edge/factory-floor/a/b", "/edge/xfactory-floor/a",
        "/hop/factory-floor/cam-1", "/workload/factory-floor/a", "/gateway/main", "/edge/office/lap-1", "",
    ):
        assert not (await rules.decide(invoke("defect-detection", SpiffeId("factory.example", path)))).allowed, path


async def test_posture_that_nobody_told_is_unknown_and_never_good() -> None:
    rules, ann = Policy(example()), SpiffeId("factory.example", "/edge/office/ann")

    async def reads(posture: Posture) -> bool:
        return (await rules.decide(Question(ann, "data:read", "manuals", "", posture))).allowed

    rules.take_posture(7, Posture("encrypted", "present", "0.1.0"))
    assert await reads(rules.posture(7))
    assert not await reads(rules.posture(8)), "another device's word is not this one's"
    rules.take_posture(7, Posture("unknown", "present", "0.1.0"))
    assert not await reads(rules.posture(7)), "the latest counts"
    assert Question(ann, "data:read", "x").document(())["principal"]["posture"]["source"] == "unknown"
    assert invoke(disk="encrypted").document(())["principal"]["posture"]["source"] == "self-reported"


async def test_decisions_are_kept_for_as_long_as_the_policy_stands(tmp_path: Path) -> None:
    rules = policy(ANY, tmp_path)
    first = await rules.decide(invoke())
    assert await rules.decide(invoke()) is first
    before = rules.version
    (tmp_path / "p.cedar").write_text("")
    await rules.replace(checked(tmp_path, [], [], Policies(cedar=["p.cedar"]), []))
    assert rules.version != before
    assert not (await rules.decide(invoke())).allowed


def test_versions_are_compared_as_numbers() -> None:
    assert version_number("0.1.0") < version_number("0.2.0") < version_number("0.10.0") < version_number("1.0.0rc1")
    assert version_number("") == 0
    for disk, tpm, version in (("no", "present", ""), ("unknown", "x", ""), ("unknown", "unknown", "1.x")):
        with pytest.raises(BadInput):
            posture_of(disk, tpm, version)


@pytest.mark.parametrize("url", [
    "http://opa.example:8181/v1/data/a", "ftp://127.0.0.1/v1/data/a", "http://127.0.0.1:8181/health",
    "http://u:p@127.0.0.1/v1/data/a", "http://127.0.0.1/v1/data/a?pretty", "http://127.0.0.1:99999/v1/data/a",
])
def test_opa_is_asked_where_nobody_can_answer_in_its_place(url: str) -> None:
    with pytest.raises(ConfigError, match=r"policy\.opa"):
        checked(Path(), [], [], Policies(opa=url), [])


def test_one_engine_at_a_time() -> None:
    good = Policies(opa="http://127.0.0.1:8181/v1/data/causeway/allow")
    assert checked(Path(), [], [], good, ["m"]).models == ("m",)
    with pytest.raises(ConfigError, match=r"policy\.opa"):
        checked(Path(), [], [Allow(id="/edge/*", models=["m"])], good, [])


async def test_a_rule_may_ask_for_a_tpm_that_was_shown(tmp_path: Path) -> None:
    """Of the same device with the same posture, the decision changes with what was shown, and with nothing it says."""
    text = 'permit (principal, action, resource) when { principal.attested_tpm == "certified" };'
    rules = policy(text, tmp_path)
    says = posture_of("encrypted", "present", "1.0.0")
    answers = [
        (await rules.decide(Question(LAP, "model:invoke", "small", "", says, shown))).allowed
        for shown in ("none", "certified", "any", "certified", "none")
    ]
    assert answers == [False, True, False, True, False]
    assert not (await rules.decide(invoke(tpm="present"))).allowed

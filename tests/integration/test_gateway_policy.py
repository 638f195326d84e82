"""Policy at work in a gateway: a call of a model on the factory floor, posture, hops, and a policy that changes."""

import asyncio
import json
import shutil
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import pytest

from relay.gateway.audit.log import AuditLog
from relay.gateway.config import load
from relay.gateway.errors import ConfigError
from relay.gateway.policy.decisions import Policy
from relay.gateway.policy.questions import Question
from relay.gateway.policy.reload import PolicyReload
from relay.gateway.policy.settings import Group, Policies, Rules, checked
from tests.support.fake_opa import FakeOpa
from tests.support.fake_triton import FakeTriton, tensors
from tests.support.gateway_lab import DOMAIN, audit_lines, chat
from tests.support.mock_provider import MockProvider
from tests.support.policy_questions import EXAMPLE
from tests.support.session_lab import Lab, gateway
from transport.edge_session import EdgeSession, RemoteAnswer
from transport.errors import RequestRefused
from transport.identity.svid import SpiffeId
from transport.messages import Posture, RequestHeader, encode_header
from transport.primitives import random_bytes

INFER = "/v2/models/defect-detection/infer"
HOP = f"spiffe://{DOMAIN}/hop/pi-1"
GOOD = Posture("encrypted", "present", "0.1.0")
Start = Callable[..., AbstractAsyncContextManager[Lab]]


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "gateway"))


@pytest.fixture
async def triton() -> AsyncIterator[FakeTriton]:
    async with FakeTriton() as triton, asyncio.timeout(60):
        yield triton


def cedar(folder: Path, text: str) -> Rules:
    (folder / "p.cedar").write_text(text)
    groups = [Group(name="floor", ids=["/edge/floor/*"])]
    return checked(folder, groups, [], Policies(cedar=["p.cedar"]), ["small"])


def shipped(folder: Path) -> Rules:
    """The example's rules, as they are in its file."""
    groups = [Group(name="factory-floor", ids=["/edge/factory-floor/*"]), Group(name="office", ids=["/edge/office/*"]),
              Group(name="administrators", ids=["/workload/admin/*"])]
    return checked(EXAMPLE, groups, [], Policies(cedar=["factory.cedar"]), [])


def ask(session: EdgeSession, body: bytes, route: str = "/v1/chat/completions", method: str = "POST") -> RemoteAnswer:
    kind = "application/json" if body else ""
    header = encode_header(RequestHeader(method, route, kind, "", len(body), int(time.time()) + 600))
    return session.request(random_bytes(16), header, body)


async def whole(answer: RemoteAnswer) -> bytes:
    return b"".join([chunk async for chunk in await answer.started()])


async def refusal(answer: RemoteAnswer) -> str:
    with pytest.raises(RequestRefused) as caught:
        await whole(answer)
    return caught.value.reason


async def test_only_the_factory_floor_has_its_defects_detected(folder: Path, triton: FakeTriton) -> None:
    async with gateway(folder, policy=Policy(shipped(folder)), inference=triton.base_url) as lab:
        camera = await lab.session(await lab.device("factory-floor/cam-1"))
        answer = json.loads(await whole(ask(camera, body := tensors(0.1, 0.9), INFER)))
        assert answer["outputs"][0]["data"] == [True] and answer["model_name"] == "defect-detection"
        assert triton.bodies == [body] and triton.paths == [INFER]
        assert set(triton.headers) <= {"Host", "Content-Type", "Accept", "Accept-Encoding", "User-Agent",
                                       "Content-Length"}
        for other in ("office/lap-1", "factory-floorx/cam-1", "lap-1"):
            session = await lab.session(await lab.device(other))
            assert await refusal(ask(session, body, INFER)) == "not_allowed"
            await session.close()
        assert await refusal(ask(camera, body, "/v2/models/other/infer")) == "not_allowed"
        assert len(triton.bodies) == 1
        (intent,), (outcome,) = lab.audit("request.intent"), lab.audit("request.outcome")
        assert intent["model"] == "defect-detection" and intent["policy"] == lab.policy.version
        assert intent["decision"] == "allowed by factory.cedar:2 (factory-floor)"
        assert intent["bytes_in"] == len(body) and outcome["result"] == "answered"
        assert outcome["bytes_out"] == len(json.dumps(answer)) and outcome["output_tokens"] is None
        refused = lab.audit("request.refused")
        assert [one["code"] for one in refused] == ["not_allowed"] * 4
        assert all("no rule allows" in one["decision"] for one in refused)
        await camera.close()


@pytest.mark.parametrize(("body", "expected"), [
    (b"", "malformed_json"), (b"{}", "invalid_request"), (b'{"inputs": []}', "invalid_request"),
    (tensors(1.0, surprise=1), "unknown_field"),
    (b'{"inputs": [{"name": "a", "shape": [1048576, 2], "datatype": "FP32", "data": [1]}]}', "invalid_request"),
    (b'{"inputs": [{"name": "a", "shape": [-1], "datatype": "FP32", "data": [1]}]}', "invalid_request"),
    (b'{"inputs": [{"name": "a", "shape": [1], "datatype": "FP33", "data": [1]}]}', "invalid_request"),
    (b'{"inputs": [{"name": "a", "name": "b", "shape": [1], "datatype": "FP32", "data": [1]}]}', "ambiguous_json"),
    (b'{"inputs": [{"name": "a", "shape": [1], "datatype": "FP32", "data": [1e999]}]}', "malformed_json"),
    (json.dumps({"inputs": [json.loads(tensors(1.0))["inputs"][0]] * 65}).encode(), "invalid_request"),
])
async def test_what_are_no_tensors_calls_nobody(body: bytes, expected: str, folder: Path, triton: FakeTriton) -> None:
    async with gateway(folder, policy=Policy(shipped(folder)), inference=triton.base_url) as lab:
        camera = await lab.session(await lab.device("factory-floor/cam-1"))
        assert await refusal(ask(camera, body, INFER)) in (expected, "unsupported_content_type" if not body else "")
        assert triton.bodies == []
        await camera.close()


async def test_a_server_of_models_that_fails(folder: Path, triton: FakeTriton) -> None:
    async with gateway(folder, policy=Policy(shipped(folder)), inference=triton.base_url) as lab:
        camera = await lab.session(await lab.device("factory-floor/cam-1"))
        triton.status = 400
        with pytest.raises(RequestRefused) as caught:
            await whole(ask(camera, tensors(0.5), INFER))
        assert caught.value.reason == "provider_rejected" and "CANARY" not in str(caught.value)
        triton.status, triton.padding = 200, 9 << 20
        assert await refusal(ask(camera, tensors(0.5), INFER)) == "provider_garbled"
        await camera.close()


@pytest.mark.parametrize("route", [
    "/v2/models/../infer", "/v2/models//infer", "/v2/models/defect-detection/infer/", "/v2/models/NAME/infer",
    "/v2/models/defect-detection/versions/1/infer", "/v2/models/defect-detection",
])
async def test_there_is_no_way_around_the_route(route: str, folder: Path, triton: FakeTriton) -> None:
    async with gateway(folder, policy=Policy(shipped(folder)), inference=triton.base_url) as lab:
        camera = await lab.session(await lab.device("factory-floor/cam-1"))
        assert await refusal(ask(camera, tensors(0.5), route)) in ("unknown_route", "not_allowed")
        assert triton.paths == []
        await camera.close()


async def test_a_model_that_is_served_elsewhere_has_no_route(folder: Path) -> None:
    async with gateway(folder, policy=Policy(shipped(folder))) as lab:
        camera = await lab.session(await lab.device("factory-floor/cam-1"))
        assert await refusal(ask(camera, tensors(0.5), INFER)) == "unknown_route"
        await camera.close()


async def test_posture_is_told_before_the_first_request_and_remembered_for_early_data(folder: Path) -> None:
    rules = cedar(folder, 'permit (principal, action, resource) when { principal.posture.disk == "encrypted" };')
    async with MockProvider() as provider, gateway(folder, provider.base_url, policy=Policy(rules)) as lab:
        svid = await lab.device("lap-1")
        silent = await lab.session(svid)
        assert await refusal(ask(silent, chat())) == "not_allowed"
        await silent.close()
        dialling = lab.unopened(lab.link(), svid, posture=GOOD)
        first = ask(dialling, chat())  # in the flight of record 0
        told = await dialling.open()
        assert b"6 bar" in await whole(first)
        ticket = told.tickets[0]
        await told.close()
        resumed = lab.unopened(lab.link(), svid, ticket)
        early = ask(resumed, chat())
        await resumed.open()
        assert b"6 bar" in await whole(early), "what the device told lasts for as long as its ticket"
        await resumed.close()
        worse = await lab.session(svid, posture=Posture("not encrypted", "present", "0.1.0"))
        assert await refusal(ask(worse, chat())) == "not_allowed"
        await worse.close()
        other = await lab.session(await lab.device("lap-2"))
        assert await refusal(ask(other, chat())) == "not_allowed"
        await other.close()


async def test_a_hop_that_may_not_be_used_brings_neither_request_nor_answer(folder: Path) -> None:
    rules = cedar(folder, f"""
        permit (principal, action == Action::"model:invoke", resource);
        permit (principal, action == Action::"relay:use", resource == Relay::"{HOP}");
    """)
    async with MockProvider() as provider, gateway(folder, provider.base_url, policy=Policy(rules)) as lab:
        svid = await lab.device("lap-1")
        direct, by_hop = await lab.session(svid), await lab.session(svid, via=HOP)
        other = await lab.session(svid, via=HOP + "2")
        assert b"6 bar" in await whole(ask(direct, chat())) and b"6 bar" in await whole(ask(by_hop, chat()))
        assert await refusal(ask(other, chat())) == "relay_not_allowed"
        assert provider.calls == 2
        (refused,) = lab.audit("request.refused")
        assert refused["via"] == HOP + "2" and refused["reason"] == "policy" and "relay:use" in refused["decision"]
        await lab.policy.replace(cedar(folder, 'permit (principal, action == Action::"model:invoke", resource);'))
        assert await refusal(ask(by_hop, chat())) == "relay_not_allowed", "on a session that stands"
        assert b"6 bar" in await whole(ask(direct, chat()))
        for session in (direct, by_hop, other):
            await session.close()


async def test_a_new_policy_holds_for_the_next_request_and_cuts_what_runs(folder: Path) -> None:
    everything = cedar(folder, "permit (principal, action, resource);")
    async with MockProvider() as provider, gateway(folder, provider.base_url, policy=Policy(everything)) as lab:
        session = await lab.session(await lab.device("lap-1"))
        provider.mode = "stream_stall"
        answer = await ask(session, chat(stream=True)).started()
        pieces = aiter(answer)
        assert await anext(pieces)
        await lab.policy.replace(cedar(folder, ""))
        provider.release.set()  # the next piece comes
        with pytest.raises(RequestRefused) as caught:
            async for _ in pieces:
                pass
        assert caught.value.reason == "policy_changed" and not caught.value.may_retry
        await provider.ended.wait()
        assert await refusal(ask(session, chat())) == "not_allowed"
        assert [one["code"] for one in lab.audit("request.outcome")] == ["policy_changed"]
        await lab.policy.replace(everything)
        provider.mode = "ok"
        assert b"6 bar" in await whole(ask(session, chat())), "the same session"
        await session.close()


async def test_a_hop_that_may_be_used_no_longer_brings_no_more_of_an_answer(folder: Path) -> None:
    rules = cedar(folder, "permit (principal, action, resource);")
    async with MockProvider() as provider, gateway(folder, provider.base_url, policy=Policy(rules)) as lab:
        session = await lab.session(await lab.device("lap-1"), via=HOP)
        provider.mode = "stream_stall"
        answer = await ask(session, chat(stream=True)).started()
        await lab.policy.replace(cedar(folder, 'permit (principal, action == Action::"model:invoke", resource);'))
        provider.release.set()
        with pytest.raises(RequestRefused) as caught:
            async for _ in answer:
                pass
        assert caught.value.reason == "policy_changed"
        await session.close()


async def test_an_answer_goes_on_where_a_new_policy_allows_it(folder: Path) -> None:
    rules = cedar(folder, "permit (principal, action, resource);")
    async with MockProvider() as provider, gateway(folder, provider.base_url, policy=Policy(rules)) as lab:
        session = await lab.session(await lab.device("lap-1"))
        provider.mode = "stream_stall"
        answer = await ask(session, chat(stream=True)).started()
        await lab.policy.replace(cedar(folder, '@id("new")\npermit (principal, action, resource);'))
        provider.release.set()
        assert b"bar" in b"".join([chunk async for chunk in answer])
        await session.close()


async def test_an_opa_that_is_away_refuses_for_now(folder: Path) -> None:
    async with FakeOpa(lambda document: document["action"] == "model:invoke") as opa, MockProvider() as provider:
        policy = Policy(checked(folder, [], [], Policies(opa=opa.url, opa_timeout_s=10), ["small"]))
        async with gateway(folder, provider.base_url, policy=policy) as lab:
            session = await lab.session(await lab.device("lap-1"))
            assert b"6 bar" in await whole(ask(session, chat()))
            listed = json.loads(await whole(ask(session, b"", "/v1/models", "GET")))
            assert [model["id"] for model in listed["data"]] == ["small"]
            opa.mode = "500"
            with pytest.raises(RequestRefused) as caught:
                await whole(ask(session, chat()))
            assert caught.value.reason == "policy_unavailable" and caught.value.may_retry
            assert provider.calls == 1
            assert await refusal(ask(session, b"", "/v1/models", "GET")) == "policy_unavailable"
            by_hop = await lab.session(await lab.device("lap-2"), via=HOP)
            assert await refusal(ask(by_hop, chat())) == "policy_unavailable"
            await session.close()
            await by_hop.close()


async def test_a_reload_with_a_mistake_changes_nothing(tmp_path: Path) -> None:
    for name in ("gateway.toml", "factory.cedar"):
        shutil.copy(EXAMPLE / name, tmp_path)
    config = load(tmp_path / "gateway.toml")
    policy, audit = Policy(config.rules), AuditLog(tmp_path / "audit.jsonl")
    reload = PolicyReload(config, policy, audit)
    before = policy.version
    camera = Question(SpiffeId("factory.example", "/edge/factory-floor/a"), "model:invoke", "defect-detection")

    async def reloaded() -> dict[str, Any]:
        return await reload()

    assert await reloaded() == {"version": before, "changed": False}
    rules = tmp_path / "factory.cedar"
    rules.write_text(rules.read_text() + "permit (nobody);")
    with pytest.raises(ConfigError, match=r"factory\.cedar:\d+: not a policy"):
        await reloaded()
    assert policy.version == before and (await policy.decide(camera)).allowed
    rules.write_text("")
    assert (await reloaded())["changed"] and not (await policy.decide(camera)).allowed
    await audit.close()
    lines = audit_lines(tmp_path / "audit.jsonl")
    assert [one["event"] for one in lines] == ["policy.reload", "policy.loaded"] * 2
    assert [one.get("version") for one in lines[1::2]] == [before, policy.version]

"""A changed configuration comes into force while answers stream; a broken one changes nothing, and is told."""

import asyncio
import json
import logging
import shutil
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from relay.gateway.config import EXAMPLE, parse
from relay.gateway.reload import needs_restart
from relay.gateway.sessions import SessionLimits
from tests.support.gateway_lab import chat
from tests.support.https_client import CONFIG, Gateway, Workload, https_gateway
from tests.support.mock_provider import STREAM, MockProvider
from tests.support.session_lab import gateway as session_gateway
from transport.errors import TransportError

OTHERS = '[[allow]]\nid = "/edge/*"\nmodels = ["small"]\n'


@pytest.fixture(autouse=True)
def levels() -> Iterator[None]:
    yield
    for name in ("relay", "store", "transport"):
        logging.getLogger(name).setLevel(logging.NOTSET)


@pytest.fixture
async def provider() -> AsyncIterator[MockProvider]:
    async with MockProvider() as provider:
        yield provider


@pytest.fixture
def hangup() -> asyncio.Event:
    return asyncio.Event()


@pytest.fixture
async def gateway(made: Path, tmp_path: Path, provider: MockProvider, hangup: asyncio.Event) -> AsyncIterator[Gateway]:
    async with https_gateway(made, tmp_path / "gateway", provider, reload=hangup) as gateway:
        yield gateway


def write(gateway: Gateway, text: str) -> None:
    (gateway.folder / "gateway.toml").write_text(text.format(base_url=gateway.provider.base_url))


async def test_a_stream_runs_through_a_reload_byte_for_byte(
    gateway: Gateway, provider: MockProvider, hangup: asyncio.Event, caplog: pytest.LogCaptureFixture
) -> None:
    client = await Workload.joined(gateway)
    async with client.client() as http:
        provider.mode = "stream_stall"
        answer = await http.post("/v1/chat/completions", json=json.loads(chat(stream=True)))
        first = b""
        while STREAM[1] not in first:
            first += await answer.content.readany()
        more = 'log_level = "info"\nname = "other"\n' + CONFIG.replace("drain_s = 5.0", "drain_s = 4.0\nsessions = 7")
        write(gateway, more + '[[allow]]\nid = "/hop/*"\nmodels = ["small"]\n')
        hangup.set()
        (done,) = await gateway.audited("config.reloaded")
        assert done["restart"] == "name" and "not before a restart: name" in caplog.text
        assert logging.getLogger("relay").level == logging.INFO
        provider.release.set()
        assert first + await answer.read() == b"".join(STREAM)
    assert gateway.audit("config.reload")[0]["before"] != done["version"]


async def test_a_permission_that_is_gone_cuts_it(
    gateway: Gateway, provider: MockProvider, hangup: asyncio.Event
) -> None:
    client = await Workload.joined(gateway)
    async with client.stalled() as answer:
        gateway.allow(OTHERS)
        hangup.set()
        assert b"policy_changed" in await answer.read()
        await provider.ended.wait()


@pytest.mark.parametrize("text", [
    "nonsense", CONFIG.replace("drain_s", "drain"), CONFIG + '[policy]\ncedar = ["absent.cedar"]\n',
    CONFIG.replace("base_url =", 'key_env = "TWICE"\nbase_url ='),
])
async def test_a_broken_file_changes_nothing_and_is_told(
    gateway: Gateway, provider: MockProvider, hangup: asyncio.Event, text: str, caplog: pytest.LogCaptureFixture
) -> None:
    client = await Workload.joined(gateway)
    write(gateway, text)
    hangup.set()
    (refused,) = await gateway.audited("config.refused")
    assert refused["code"] == "config_error" and refused["reason"]
    assert (await client.ask(chat()))[0] == 200
    write(gateway, CONFIG)
    hangup.set()
    await gateway.audited("config.reloaded")
    assert "stays in force" in caplog.text


async def test_another_name_for_a_model_holds_at_once(
    gateway: Gateway, provider: MockProvider, hangup: asyncio.Event
) -> None:
    client = await Workload.joined(gateway)
    assert (await client.ask(chat("helper")))[0] == 403
    write(gateway, CONFIG.replace('["small"]', '["small", "helper"]') + '[[model]]\nname = "helper"\nas = "small"\n')
    hangup.set()
    (done,) = await gateway.audited("config.reloaded")
    assert done["restart"] == ""
    assert (await client.ask(chat("helper")))[0] == 200 and provider.bodies == [chat("small")]


async def test_models_of_a_provider_that_is_not_there_yet_wait_for_a_restart(
    gateway: Gateway, hangup: asyncio.Event
) -> None:
    client = await Workload.joined(gateway)
    other = '[[provider]]\nname = "b"\nbase_url = "{base_url}"\nkey_file = "provider.key"\nmodels = ["large"]\n[limits]'
    text = CONFIG.replace("[provider]", "[[provider]]").replace("[limits]", other, 1)
    write(gateway, text.replace('["small"]', '["small", "large"]'))
    hangup.set()
    (done,) = await gateway.audited("config.reloaded")
    assert done["restart"] == "provider"
    assert (await client.ask(chat("large")))[0] == 200, "by the one that there is, which serves every model"


def test_what_needs_a_restart_is_named_by_key() -> None:
    old = parse(EXAMPLE.format(trust_domain="field.example").encode(), Path("/srv"))
    assert needs_restart(old, old) == []
    for before, after, told in (
        ('session = "tcp:127.0.0.1:7443"', 'session = "tcp:127.0.0.1:7444"', "listen.session"),
        ('https = "127.0.0.1:8443"', 'https = "127.0.0.1:9443"', "listen.https"),
        ('key_file = "provider.key"', 'key_file = "other.key"', "provider.key_file"),
        ("# [identity]", "[identity]\nsvid_max_s = 600", "identity.svid_max_s"),
        ("# [inference]", '[inference]\nbase_url = "http://127.0.0.1:8000"\nmodels = ["m"]', "inference"),
    ):
        text = EXAMPLE.format(trust_domain="field.example").replace(before, after, 1)
        assert needs_restart(old, parse(text.encode(), Path("/srv"))) == [told]
    models = 'key_file = "provider.key"\nmodels = ["gpt-4o-mini"]\n'
    text = EXAMPLE.format(trust_domain="field.example").replace('key_file = "provider.key"', models, 1)
    assert needs_restart(old, replace(parse(text.encode(), Path("/srv")), log_level="info")) == []


async def test_limits_are_those_of_now(made: Path, tmp_path: Path) -> None:
    shutil.copytree(made, tmp_path / "gateway")
    async with session_gateway(tmp_path / "gateway") as lab:
        svid = await lab.device("lap-1")
        lab.sessions.limit(SessionLimits(sessions=1))
        one = await lab.session(svid)
        with pytest.raises(TransportError):
            await lab.session(svid)
        lab.sessions.limit(SessionLimits())
        await (await lab.session(svid)).close()
        await one.close()

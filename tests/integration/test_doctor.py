"""`relay doctor` against whole gateways: a chain that holds, and one that is broken at each of its links."""

import asyncio
import contextlib
import errno
import shutil
import socket
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from relay.gateway import app
from relay.gateway.audit.log import AuditLog
from relay.gateway.config import load
from relay.gateway.control import RemoteError, call
from relay.gateway.doctor import STAGES, Doctor, Stage
from relay.gateway.errors import ConfigError
from relay.gateway.examination import source_of
from relay.gateway.identity.ca import (
    DAY_S,
    INTERMEDIATE_LIFETIME_S,
    ROOT_LIFETIME_S,
    Authority,
    renew_intermediate,
)
from relay.gateway.identity.enrolment import Enrolment
from relay.gateway.identity.invitations import Invitations
from relay.gateway.identity.probes import PROBE_S, Probes
from relay.gateway.identity.rotation import PUBLISHED_S, rotate_root
from relay.gateway.state.sqlcipher import open_state
from store.errors import DiskFull
from store.keys import Passphrase
from tests.support.fake_opa import FakeOpa
from tests.support.fake_triton import FakeTriton
from tests.support.gateway_lab import DOMAIN, PASSPHRASE, ROOT_PASSPHRASE, Clock, audit_lines, make_folder
from tests.support.mock_provider import KEY, MockProvider
from transport.edge_session import EdgeSession
from transport.errors import BadInput, PeerRefused, TransportError
from transport.identity.svid import SpiffeId, make_csr
from transport.identity.tls import client_context
from transport.identity.verify import VerifiedPeer, verify_svid
from transport.initiator import SvidLogin
from transport.links.base import Endpoint, connect
from transport.messages import RequestHeader, encode_header
from transport.primitives import SigningKey, random_bytes

CONFIG = """
trust_domain = "field.example"
[listen]
session = "{session}"
https = "{https}"
[provider]
base_url = "{base_url}"
key_file = "provider.key"
[[allow]]
id = "/edge/*"
models = ["small"]
"""
ANYWHERE = {"session": "tcp:127.0.0.1:0", "https": "127.0.0.1:0"}


@pytest.fixture(scope="module")
def another(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_folder(tmp_path_factory.mktemp("doctor") / "impostor")


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "gateway"))


@pytest.fixture
async def provider() -> AsyncIterator[MockProvider]:
    async with MockProvider() as provider:
        yield provider


def write(folder: Path, base_url: str, text: str = CONFIG, **values: str) -> Path:
    (folder / "provider.key").write_text(KEY)
    (folder / "provider.key").chmod(0o600)
    config = folder / "gateway.toml"
    config.write_text(text.format(base_url=base_url, **(ANYWHERE | values)))
    return config


@contextlib.asynccontextmanager
async def serving(config: Path, clock: Callable[[], float] = time.time) -> AsyncIterator[app.Ready]:
    stop, told = asyncio.Event(), asyncio.get_running_loop().create_future()
    settings = load(config)
    task = asyncio.create_task(app.serve(settings, PASSPHRASE, ready=told.set_result, stop=stop, clock=clock))
    await asyncio.wait({task, told}, return_when=asyncio.FIRST_COMPLETED)
    if task.done():
        await task
    try:
        async with asyncio.timeout(60):
            yield await told
    finally:
        stop.set()
        await task


async def examined(config: Path, *, passphrase: Passphrase | None = None, waits_before: str = "") -> list[Stage]:
    """`waits_before`: a stage of which nothing will come, so that it need not be waited for long."""
    doctor, stages = Doctor(config, passphrase=passphrase, timeout_s=25.0), list[Stage]()
    async for stage in doctor.stages():
        stages.append(stage)
        if waits_before and stage.stage == STAGES[STAGES.index(waits_before) - 1]:
            doctor._timeout_s = 1.0
    assert tuple(one.stage for one in stages) == STAGES
    for one in stages:
        assert KEY not in one.finding + str(one.hint), "no key is ever shown"
        assert (one.status == "not run") == (one.ms is None)
    return stages


def broken(stages: list[Stage]) -> Stage:
    """The one that failed: those before it were tried and held, those behind it were not run."""
    (failed,) = [one for one in stages if one.status == "failed"]
    place = stages.index(failed)
    assert {one.status for one in stages[:place]} <= {"ok", "warning"}
    assert {one.status for one in stages[place + 1:]} <= {"not run"}
    assert failed.finding and failed.hint
    return failed


async def test_a_chain_that_holds(folder: Path, provider: MockProvider) -> None:
    config = write(folder, provider.base_url)
    async with serving(config):
        stages = await examined(config)
        assert [one.status for one in stages] == ["ok"] * 5, stages
        assert "any edge may use small" in stages[3].finding
        assert (await call(folder, "devices", {}))["devices"] == [], "nobody has joined by it"
        assert provider.calls == 0 and not provider.bodies, "nothing that is paid for"
    events = [line["event"] for line in audit_lines(folder / app.AUDIT_FILE)]
    assert events == ["gateway.started", "probe.issued", "gateway.stopped"]


async def test_servers_of_models_are_asked_as_well(folder: Path, provider: MockProvider) -> None:
    async with FakeTriton() as triton:
        served = f'[inference]\nbase_url = "{triton.base_url}"\nmodels = ["defect-detection"]\n'
        config = write(folder, provider.base_url, CONFIG.replace("[[allow]]", served + "[[allow]]"))
        async with serving(config):
            assert [one.status for one in await examined(config)] == ["ok"] * 5
            triton.status = 503
            assert "status 503" in broken(await examined(config)).finding


# --- source ----------------------------------------------------------------------------------------------------------


async def test_a_gateway_that_does_not_run(folder: Path, provider: MockProvider) -> None:
    config = write(folder, provider.base_url)
    found = broken(await examined(config))
    assert found.stage == "source" and "no gateway runs" in found.finding and "relay gateway serve" in str(found.hint)
    found = broken(await examined(config, passphrase=PASSPHRASE))
    assert "no gateway runs" in found.finding and "its intermediate ends" in found.finding
    with pytest.raises(ConfigError):
        Doctor(folder / "absent.toml", passphrase=None, timeout_s=1)


async def test_an_intermediate_that_has_run_out(folder: Path, provider: MockProvider) -> None:
    config, clock = write(folder, provider.base_url), Clock()
    async with serving(config, clock):
        clock.now += INTERMEDIATE_LIFETIME_S
        found = broken(await examined(config))
        assert found.stage == "source" and "intermediate certificate has expired" in found.finding
        assert "rotate-key" in str(found.hint)


def test_what_ends_soon_is_told_ten_days_ahead(folder: Path) -> None:
    start = Authority.open(folder, PASSPHRASE).not_after - INTERMEDIATE_LIFETIME_S

    def told(day: float) -> tuple[str, str]:
        found = source_of(Authority.open(folder, PASSPHRASE), start + day * DAY_S)
        return found.status, found.finding

    assert told(19.9)[0] == "ok"
    assert told(20.1) == ("warning", told(20.1)[1]) and "in 10 days" in told(20.1)[1]
    assert told(29.9)[0] == "warning" and told(30)[0] == "failed"


@pytest.mark.parametrize(("left", "status", "words"), [
    (PUBLISHED_S + 10 * DAY_S + 600, "ok", ""), (PUBLISHED_S + 10 * DAY_S - 600, "warning", "published 90 days before"),
    (10 * DAY_S - 600, "warning", "the root in use ends"),
])
def test_a_root_is_told_of_in_time_for_the_next(left: float, status: str, words: str, tmp_path: Path) -> None:
    now = time.time() + 400 * DAY_S
    folder = make_folder(tmp_path / "gateway", now=now - ROOT_LIFETIME_S + left)
    renew_intermediate(folder, passphrase=PASSPHRASE, root_passphrase=ROOT_PASSPHRASE, now=now)
    held = Authority.open(folder, PASSPHRASE)
    found = source_of(held, now)
    assert (found.status, words in found.finding) == (status, True), found
    if "published" in words:  # and once it is, that is seen
        rotate_root(folder, passphrase=PASSPHRASE, root_passphrase=ROOT_PASSPHRASE, now=now)
        assert source_of(Authority.open(folder, PASSPHRASE), now).status == "ok"


# --- issuance --------------------------------------------------------------------------------------------------------


async def test_a_full_audit(folder: Path, provider: MockProvider, monkeypatch: pytest.MonkeyPatch) -> None:
    config = write(folder, provider.base_url)

    def full(self: AuditLog, records: Any) -> None:
        raise OSError(errno.ENOSPC, "no space left on device")

    async with serving(config):
        with monkeypatch.context() as patched:
            patched.setattr(AuditLog, "_write", full)
            found = broken(await examined(config))
        assert found.stage == "issuance" and "audit log cannot be written" in found.finding
        assert [one.status for one in await examined(config)] == ["ok"] * 5, "and again when there is room"


async def test_a_state_that_takes_nothing(
    folder: Path, provider: MockProvider, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def full(self: Invitations) -> None:
        raise DiskFull("the disk is full", hint="make room")

    config = write(folder, provider.base_url)
    async with serving(config):
        monkeypatch.setattr(Invitations, "check_writable", full)
        found = broken(await examined(config))
        assert (found.stage, found.finding, found.hint) == ("issuance", "the disk is full", "make room")


# --- handshake -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("which", ["session", "https"])
async def test_nobody_listens_where_devices_are_sent(folder: Path, provider: MockProvider, which: str) -> None:
    config = write(folder, provider.base_url)
    async with serving(config):
        dead = await asyncio.start_server(lambda *_: None, "127.0.0.1", 0)
        port = dead.sockets[0].getsockname()[1]
        dead.close()
        place = {"session": f"tcp:127.0.0.1:{port}", "https": f"127.0.0.1:{port}"}[which]
        found = broken(await examined(write(folder, provider.base_url, **{which: place})))
        assert found.stage == "handshake" and f":{port}" in found.finding


@pytest.mark.parametrize("which", ["session", "https"])
async def test_somebody_else_listens_there(folder: Path, another: Path, provider: MockProvider, which: str) -> None:
    impostor = write(another, provider.base_url)
    async with serving(impostor) as theirs, serving(write(folder, provider.base_url)):
        place = {"session": theirs.session, "https": theirs.https}[which]
        found = broken(await examined(write(folder, provider.base_url, **{which: place})))
        assert found.stage == "handshake" and "does not lead to this gateway" in found.finding


@pytest.mark.parametrize("which", ["session", "https"])
async def test_another_gateway_of_the_same_authority_listens_there(
    folder: Path, made: Path, tmp_path: Path, provider: MockProvider, which: str
) -> None:
    twin = Path(shutil.copytree(made, tmp_path / "twin"))
    named = write(twin, provider.base_url, 'name = "other"\n' + CONFIG)
    async with serving(named) as theirs, serving(write(folder, provider.base_url)):
        place = {"session": theirs.session, "https": theirs.https}[which]
        found = broken(await examined(write(folder, provider.base_url, **{which: place})))
        assert found.stage == "handshake" and "identity of another gateway" in found.finding


@pytest.mark.parametrize("which", ["session", "https"])
async def test_somebody_listens_and_says_nothing(folder: Path, provider: MockProvider, which: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as mute:  # which takes no connection from its queue
        at = "{}:{}".format(*mute.getsockname())
        config = write(folder, provider.base_url)
        async with serving(config):
            write(folder, provider.base_url, **{which: "tcp:" * (which == "session") + at})
            found = broken(await examined(config, waits_before="handshake"))
            assert found.stage == "handshake" and "in 1 s" in found.finding


# --- authorisation ---------------------------------------------------------------------------------------------------


async def test_rules_with_a_mistake(folder: Path, provider: MockProvider) -> None:
    text = CONFIG + '[policy]\ncedar = ["rules.cedar"]\n'
    (folder / "rules.cedar").write_text("")
    config = write(folder, provider.base_url, text)
    async with serving(config):
        (folder / "rules.cedar").write_text("permit (everybody);")
        found = broken(await examined(config))
        assert found.stage == "authorisation" and "rules.cedar:1" in found.finding
        (folder / "rules.cedar").write_text("permit (principal, action, resource);")
        stage = (await examined(config))[3]
        assert stage.status == "warning" and "not those in force" in stage.finding
        await call(folder, "policy_reload", {})
        stage = (await examined(config))[3]
        assert stage.status == "warning" and "nobody has named" in stage.finding


async def test_an_opa_that_cannot_be_asked(folder: Path, provider: MockProvider) -> None:
    async with FakeOpa(lambda _: False) as opa, contextlib.AsyncExitStack() as stack:
        text = CONFIG.partition("[[allow]]")[0] + '[policy]\nopa = "{opa}"\nopa_timeout_s = 10.0\n'
        config = write(folder, provider.base_url, text, opa=opa.url)
        await stack.enter_async_context(serving(config))
        assert [one.status for one in await examined(config)] == ["ok"] * 5
        opa.mode = "500"
        found = broken(await examined(config))
        assert found.stage == "authorisation" and "OPA answered with status 500" in found.finding


# --- provider --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("mode", "words"), [
    ("401", "refuses the key"), ("redirect", "sends elsewhere"), ("html", "not as an API"), ("500", "status 500"),
    ("timeout", "did not answer in"),
])
async def test_a_provider_that_does_not_do(folder: Path, provider: MockProvider, mode: str, words: str) -> None:
    config = write(folder, provider.base_url)
    async with serving(config):
        provider.mode = mode
        found = broken(await examined(config, waits_before="provider" if mode == "timeout" else ""))
        assert found.stage == "provider" and words in found.finding


async def test_L13_a_key_that_is_another_s(folder: Path, provider: MockProvider) -> None:
    config = write(folder, provider.base_url)
    (folder / "provider.key").write_text("sk-of-somebody-else")
    async with serving(config):
        found = broken(await examined(config))
        assert found.stage == "provider" and "refuses the key" in found.finding and "sk-of" not in str(found)


async def test_a_provider_that_cannot_be_reached(folder: Path) -> None:
    config = write(folder, "http://127.0.0.1:1/v1")
    async with serving(config):
        found = broken(await examined(config))
        assert found.stage == "provider" and "cannot be reached" in found.finding


@pytest.mark.parametrize("mode", ["429", "404"])
async def test_a_provider_whose_key_was_not_tried(folder: Path, provider: MockProvider, mode: str) -> None:
    config = write(folder, provider.base_url)
    async with serving(config):
        provider.mode = mode
        stage = (await examined(config))[4]
        assert stage.status == "warning" and "its key was not tried" in stage.finding


async def test_a_stage_that_is_none(folder: Path, provider: MockProvider) -> None:
    async with serving(write(folder, provider.base_url)):
        with pytest.raises(RemoteError):
            await call(folder, "examine", {"stage": "weather"})


# --- the probe --------------------------------------------------------------------------------------------------------


async def test_a_probe_opens_one_session_and_nothing_else(folder: Path, provider: MockProvider) -> None:
    config = write(folder, provider.base_url)
    async with serving(config) as ready:
        doctor = Doctor(config, passphrase=None, timeout_s=25.0)
        stages = doctor.stages()
        assert [(await anext(stages)).status for _ in range(2)] == ["ok", "ok"]
        edge, hop = doctor._svid("edge"), doctor._svid("hop")
        assert max(edge.not_after, hop.not_after) < time.time() + 121
        assert (str(edge.id), str(hop.id)) == (f"spiffe://{DOMAIN}/edge/relay-doctor", f"spiffe://{DOMAIN}/hop/relay-doctor")

        def check(chain: Any, now: float) -> VerifiedPeer:
            return verify_svid(chain, doctor._bundle(), role="gateway", now=now)

        async def session() -> EdgeSession:
            link = await connect(Endpoint.parse(ready.session))
            return EdgeSession(link, SvidLogin(edge.chain, edge.not_after), edge.key, check)

        first = await session()
        header = encode_header(RequestHeader("GET", "/v1/models", "application/json", "", 0, int(time.time()) + 60))
        answer = first.request(random_bytes(16), header, b"")
        await first.open()
        with pytest.raises(TransportError):
            await answer.started()
        await first.ended()
        with pytest.raises(PeerRefused):
            await (await session()).open()
        context = client_context(doctor._bundle(), hop)
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=context)) as client:
            async with client.get(f"https://{ready.https}/v1/tunnel") as response:
                assert response.status == 403
            async with client.post(f"https://{ready.https}/v1/revocations", json={"list": ""}) as response:
                assert response.status == 403
        with pytest.raises(RemoteError, match="relay doctor"):
            await call(folder, "invite", {"path": "edge/relay-doctor"})
        await stages.aclose()
    lines = audit_lines(folder / app.AUDIT_FILE)
    assert [line["reason"] for line in lines if line["event"] == "session.refused"] == ["serial"]
    assert not [line for line in lines if line["event"].startswith(("session.opened", "request."))]


async def test_a_probe_that_was_not_used_runs_out(folder: Path) -> None:
    async with contextlib.AsyncExitStack() as stack:
        database, clock = stack.enter_context(open_state(folder, PASSPHRASE)), Clock()
        audit = AuditLog(folder / app.AUDIT_FILE)
        stack.push_async_callback(audit.close)
        authority = Authority.open(folder, PASSPHRASE)
        enrolment = Enrolment(database, authority, audit, clock=clock)
        await enrolment.load()
        probes = Probes(authority, enrolment, audit, clock=clock)

        async def peer() -> VerifiedPeer:
            issued = await probes.issue({"edge": make_csr(SigningKey.generate())})
            return verify_svid(issued["edge"].chain, authority.bundle, role="edge", now=clock.now)

        for role in ("gateway", "workload", "admin"):  # edges believe whatever is a gateway
            with pytest.raises(BadInput):
                await probes.issue({role: make_csr(SigningKey.generate())})
        late, twice = await peer(), await peer()
        assert probes.take(twice) and not probes.take(twice)
        assert await database.run(lambda connection: connection.execute(
            "SELECT (SELECT count(*) FROM invitations), (SELECT count(*) FROM registrations),"
            " (SELECT count(*) FROM serials)"
        ).fetchone()) == (0, 0, 0)
        clock.now += PROBE_S + 1
        assert not probes.take(late)
        other = replace(await peer(), id=SpiffeId(DOMAIN, "/edge/lap-1"))
        assert not probes.take(other)

"""A whole gateway as `serve` builds it: edges that join, ask and come back, straight and through a real hop."""

import asyncio
import contextlib
import json
import shutil
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from relay.gateway import app
from relay.gateway.admin_alone import open_admin
from relay.gateway.audit.log import verify
from relay.gateway.config import Config, parse
from relay.gateway.control import RemoteError, call
from relay.gateway.errors import Busy, ConfigError, NotReady
from relay.hop.app import Hop, HopLimits
from relay.hop.errors import JoinRefused
from relay.hop.identity import HopHome, renew
from relay.hop.identity import join as join_hop
from store.keys import Passphrase, Unlock
from tests.support.fake_triton import FakeTriton, tensors
from tests.support.gateway_lab import DOMAIN, PASSPHRASE, audit_lines, chat
from tests.support.mock_provider import KEY, STREAM, WHOLE, MockProvider
from transport import telemetry
from transport.edge_session import EdgeSession, obtain
from transport.errors import IdentityRefused, LinkLost, PeerRefused, RequestRefused, TransportError
from transport.events import CONTENT_TYPE, EventDecoder
from transport.identity.join import Invitation, bundle_from_joined_root
from transport.identity.svid import Svid, TrustBundle, make_csr
from transport.identity.tls import client_context, unverified_context
from transport.identity.verify import VerifiedPeer, verify_svid
from transport.initiator import Joining, Renewing, SvidLogin
from transport.links.base import Endpoint, connect
from transport.links.websocket import connect_websocket
from transport.messages import RequestHeader, SpanRecord, encode_header
from transport.primitives import SigningKey, random_bytes

LIMIT = 60.0
CONFIG = """
trust_domain = "field.example"
[listen]
session = "tcp:127.0.0.1:0"
https = "127.0.0.1:0"
health = "127.0.0.1:0"
[provider]
base_url = "{base_url}"
key_file = "provider.key"
[limits]
requests_per_session = 4
drain_s = 5.0
[[allow]]
id = "/edge/*"
models = ["small"]
"""


@dataclass
class Running:
    config: Config
    provider: MockProvider
    ready: app.Ready
    stop: asyncio.Event
    task: asyncio.Task[None]
    hurry: asyncio.Event

    @property
    def https(self) -> str:
        return f"https://{self.ready.https}"

    async def ask_admin(self, operation: str, **arguments: Any) -> dict[str, Any]:
        return await call(self.config.directory, operation, arguments)

    async def invite(self, path: str) -> Invitation:
        return Invitation.parse((await self.ask_admin("invite", path=path))["invitation"])

    def audit(self) -> list[dict[str, Any]]:
        return audit_lines(self.config.directory / app.AUDIT_FILE)


@contextlib.asynccontextmanager
async def serving(
    directory: Path, provider: MockProvider, text: str = CONFIG, *, by: Unlock = PASSPHRASE
) -> AsyncIterator[Running]:
    (directory / "provider.key").write_text(KEY)
    (directory / "provider.key").chmod(0o600)
    config = parse(text.format(base_url=provider.base_url).encode(), directory)
    stop, hurry, told = asyncio.Event(), asyncio.Event(), asyncio.get_running_loop().create_future()
    task = asyncio.create_task(app.serve(config, by, ready=told.set_result, stop=stop, hurry=hurry))
    await asyncio.wait({task, told}, return_when=asyncio.FIRST_COMPLETED)
    if task.done():
        await task
    try:
        async with asyncio.timeout(60):
            yield Running(config, provider, await told, stop, task, hurry)
    finally:
        stop.set()
        await asyncio.wait_for(task, LIMIT)


@pytest.fixture
async def gateway(made: Path, tmp_path: Path) -> AsyncIterator[Running]:
    directory = tmp_path / "gateway"
    shutil.copytree(made, directory)
    async with MockProvider() as provider, serving(directory, provider) as running:
        yield running


@dataclass
class Device:
    """An edge as far as these tests need one."""

    endpoint: Endpoint
    invitation: Invitation
    key: SigningKey = field(default_factory=SigningKey.generate)
    svid: Svid | None = None
    bundle: TrustBundle | None = None

    def check_gateway(self, chain: Any, now: float) -> VerifiedPeer:
        bundle = self.bundle or bundle_from_joined_root(self.invitation, chain)
        return verify_svid(chain, bundle, role="gateway", now=now)

    async def join(self) -> None:
        key = SigningKey.generate()
        joining = Joining(self.invitation, self.key.public.spki, make_csr(key))
        await self._obtain(joining, key)

    async def renew(self) -> None:
        key = SigningKey.generate()
        await self._obtain(Renewing(self.key.public.spki, make_csr(key)), key)

    async def _obtain(self, purpose: Joining | Renewing, key: SigningKey) -> None:
        issued = await obtain(await connect(self.endpoint), purpose, self.key, self.check_gateway)
        self.bundle = TrustBundle(DOMAIN, tuple(issued.roots), issued.bundle_sequence)
        self.svid = Svid.from_chain(issued.chain, key)

    async def session(self) -> EdgeSession:
        assert self.svid is not None
        login = SvidLogin(self.svid.chain, self.svid.not_after)
        return await EdgeSession(await connect(self.endpoint), login, self.svid.key, self.check_gateway).open()


async def joined(gateway: Running, path: str = "edge/lap-1", endpoint: str = "") -> Device:
    device = Device(Endpoint.parse(endpoint or gateway.ready.session), await gateway.invite(path))
    await device.join()
    return device


async def until(condition: Callable[[], bool]) -> None:
    """Lets the event loop turn until something is true; the fixture's time-out is the limit."""
    while not condition():  # noqa: ASYNC110 - what is waited for is in a file
        await asyncio.sleep(0)


async def ask(
    session: EdgeSession, body: bytes, *, traceparent: str = "", method: str = "POST",
    route: str = "/v1/chat/completions",
) -> bytes:
    header = encode_header(RequestHeader(
        method, route, "application/json", traceparent, len(body), int(time.time()) + 600
    ))
    answer = await session.request(random_bytes(16), header, body).started()
    data = b"".join([part async for part in answer])
    return b"".join(EventDecoder().feed(data)) if answer.content_type == CONTENT_TYPE else data


async def test_an_edge_joins_asks_and_reads_its_trace(gateway: Running) -> None:
    device = await joined(gateway)
    session = await device.session()
    tracing = telemetry.start("edge")
    with tracing.span("ask") as span:
        answer = await ask(session, chat(stream=True), traceparent=telemetry.traceparent_of(span))
    assert answer == b"".join(STREAM)
    assert json.loads(await ask(session, chat())) == WHOLE
    assert session.welcome.via == ""
    trace_id = telemetry.trace_id_of(span)
    session.send_spans(tracing.finished(trace_id))
    await session.close()
    tracing.close()
    await until(lambda: gateway.audit()[-1]["event"] == "session.closed")
    spans = (await gateway.ask_admin("trace", trace_id=trace_id))["spans"]
    assert [span["role"] for span in spans] == ["edge", "gateway", "provider"]
    assert all(span["trace_id"] == trace_id for span in spans)
    assert spans[1]["parent_id"] == spans[0]["span_id"]
    devices = (await gateway.ask_admin("devices"))["devices"]
    assert [(one["id"], one["enrolment"], one["status"]) for one in devices] == [
        (f"spiffe://{DOMAIN}/edge/lap-1", 1, "active")
    ]


BY_GROUP = CONFIG.partition("[[allow]]")[0] + """
[inference]
base_url = "{inference}"
key_file = "provider.key"
models = ["defect-detection"]
[[group]]
name = "factory-floor"
ids = ["/edge/factory-floor/*"]
[policy]
cedar = ["floor.cedar"]
"""
FLOOR = 'permit (principal in Group::"factory-floor", action, resource == Model::"defect-detection");'


async def test_a_policy_in_files_and_its_reload(made: Path, tmp_path: Path) -> None:
    """What `serve` builds of a configuration with groups, rules and a server of models."""
    directory = tmp_path / "gateway"
    shutil.copytree(made, directory)
    rules, config = directory / "floor.cedar", directory / "gateway.toml"
    rules.write_text(FLOOR)
    async with MockProvider() as provider, FakeTriton() as triton:
        text = BY_GROUP.replace("{inference}", triton.base_url)
        config.write_text(text.format(base_url=provider.base_url))
        async with serving(directory, provider, text) as running:
            session = await (await joined(running, "edge/factory-floor/cam-1")).session()
            route = "/v2/models/defect-detection/infer"
            assert b'"defect"' in await ask(session, tensors(0.9), route=route)
            assert triton.headers["Authorization"] == f"Bearer {KEY}"
            with pytest.raises(RequestRefused):
                await ask(session, chat())
            rules.write_text(FLOOR + "permit (everybody);")
            with pytest.raises(RemoteError) as caught:
                await running.ask_admin("policy_reload")
            assert "floor.cedar:1: not a policy" in str(caught.value) and caught.value.fault == "user"
            assert b'"defect"' in await ask(session, tensors(0.9), route=route)
            rules.write_text("")
            assert (await running.ask_admin("policy_reload"))["changed"]
            with pytest.raises(RequestRefused) as refused:
                await ask(session, tensors(0.9), route=route)
            assert refused.value.reason == "not_allowed" and len(triton.bodies) == 2
            await session.close()
            started = [line for line in running.audit() if line["event"] == "gateway.started"]
            latest = [line for line in running.audit() if "policy" in line][-1]  # the session's end may follow
            assert started[0]["policy"] != latest["policy"]


async def test_models_and_policy_over_a_session(gateway: Running) -> None:
    session = await (await joined(gateway)).session()
    models = json.loads(await ask(session, b"", method="GET", route="/v1/models"))
    assert [one["id"] for one in models["data"]] == ["small"]
    for body, status, reason in (
        (chat("forbidden"), 403, "model_not_allowed"), (b"{", 400, "malformed_json"),
        (chat(text=""), 400, "empty_prompt"),
    ):
        with pytest.raises(RequestRefused) as refused:
            await ask(session, body)
        assert (refused.value.status, refused.value.reason) == (status, reason)
    gateway.provider.mode = "401"
    with pytest.raises(RequestRefused) as refused:
        await ask(session, chat())
    assert refused.value.reason == "provider_auth"
    await session.close()


async def test_many_requests_at_once_and_a_cap(gateway: Running) -> None:
    session = await (await joined(gateway)).session()
    gateway.provider.mode = "stream_stall"
    running = [asyncio.create_task(ask(session, chat(stream=True))) for _ in range(4)]
    await until(lambda: gateway.provider.calls == 4)
    with pytest.raises(RequestRefused) as refused:
        await ask(session, chat())
    assert refused.value.reason == "too_many_requests"
    gateway.provider.release.set()
    assert await asyncio.gather(*running) == [b"".join(STREAM)] * 4
    await session.close()


async def test_a_device_that_hangs_up_ends_the_provider_call(gateway: Running) -> None:
    session = await (await joined(gateway)).session()
    gateway.provider.mode = "stream_stall"
    task = asyncio.create_task(ask(session, chat(stream=True)))
    await gateway.provider.began.wait()
    task.cancel()
    await asyncio.wait({task})
    async with asyncio.timeout(LIMIT):
        await gateway.provider.ended.wait()
    gateway.provider.mode = "ok"
    assert json.loads(await ask(session, chat())) == WHOLE  # the session goes on
    await session.close()


async def test_C3_another_device_with_a_used_invitation(gateway: Running) -> None:
    device = await joined(gateway)
    await device.join()  # the same key again: a lost answer strands nobody
    other = Device(device.endpoint, device.invitation)
    with pytest.raises(PeerRefused) as refused:
        await other.join()
    assert "another" not in str(refused.value)
    assert any(line.get("reason") == "invitation used with another device key" for line in gateway.audit())
    assert json.loads(await ask(await device.session(), chat())) == WHOLE


async def test_C2_a_device_renews_by_its_device_key(gateway: Running) -> None:
    device = await joined(gateway)
    first = device.svid
    await device.renew()
    assert device.svid is not None and first is not None
    assert device.svid.chain[0] != first.chain[0]
    session = await device.session()
    assert json.loads(await ask(session, chat())) == WHOLE
    await session.close()
    stranger = Device(device.endpoint, device.invitation, bundle=device.bundle)
    with pytest.raises(PeerRefused):
        await stranger.renew()


async def test_a_replaced_device_is_turned_away(gateway: Running) -> None:
    old = await joined(gateway)
    live = await old.session()
    new = await joined(gateway)
    with pytest.raises(PeerRefused):
        await old.session()
    with pytest.raises(RequestRefused) as refused:  # and a session that was open before is looked at each time
        await ask(live, chat())
    assert refused.value.reason == "identity_refused"
    assert json.loads(await ask(await new.session(), chat())) == WHOLE


async def test_M11_joining_under_a_name_ends_its_old_holder_s_calls(gateway: Running) -> None:
    old = await joined(gateway)
    live = await old.session()
    gateway.provider.mode = "stream_stall"
    asking = asyncio.create_task(ask(live, chat(stream=True)))
    await gateway.provider.began.wait()
    await joined(gateway)
    await gateway.provider.ended.wait()
    with pytest.raises(RequestRefused) as refused:
        await asking
    assert refused.value.reason == "unknown_request"


async def test_H1_a_hop_s_svid_opens_no_session(gateway: Running, tmp_path: Path) -> None:
    home = HopHome(tmp_path / "hop", Passphrase("hop pass"))
    hop = await join_hop(home, await gateway.invite("hop/pi"), gateway.https)
    device = Device(Endpoint.parse(gateway.ready.session), await gateway.invite("edge/x"), bundle=hop.bundle)
    device.svid = hop.svid
    with pytest.raises(TransportError):
        await device.session()
    await until(lambda: gateway.audit()[-1]["event"] == "session.refused")
    assert gateway.audit()[-1]["reason"] == "role"


async def test_an_edge_s_trace_takes_only_spans_of_its_own_requests(gateway: Running) -> None:
    mine, other = await joined(gateway), await joined(gateway, "edge/lap-2")
    trace_id = "0af7651916cd43dd8448eb211c80319c"
    session = await mine.session()
    await ask(session, chat(), traceparent=f"00-{trace_id}-b7ad6b7169203331-01")
    await session.close()
    foreign = await other.session()
    lie = SpanRecord(trace_id, "1" * 16, "", "lie", "gateway", 1.0, 2.0, {"note": "x", "causeway.node": "y"})
    foreign.send_spans([lie])
    await ask(foreign, chat())
    await foreign.close()
    spans = (await gateway.ask_admin("trace", trace_id=trace_id))["spans"]
    assert "lie" not in [span["name"] for span in spans]
    again = await mine.session()
    again.send_spans([lie])
    await ask(again, chat())
    await again.close()
    spans = (await gateway.ask_admin("trace", trace_id=trace_id))["spans"]
    (claimed,) = [span for span in spans if span["name"] == "lie"]
    assert claimed["role"] == "edge"  # whatever it says of itself
    assert claimed["attributes"] == {"causeway.node": f"spiffe://{DOMAIN}/edge/lap-1"}


async def test_everything_through_a_real_hop(gateway: Running, tmp_path: Path) -> None:
    home = HopHome(tmp_path / "hop", Passphrase("hop pass"))
    identity = await join_hop(home, await gateway.invite("hop/pi"), gateway.https)
    assert str(identity.svid.id) == f"spiffe://{DOMAIN}/hop/pi"
    assert (await renew(home, identity, gateway.https)).enrolment == identity.enrolment
    listening, stop = asyncio.Event(), asyncio.Event()
    hop = Hop(home, identity, [gateway.https], limits=HopLimits(), report=lambda line: listening.set())
    endpoint = Endpoint("unix", str(tmp_path / "hop.sock"))
    task = asyncio.create_task(hop.run([endpoint], stop))
    await asyncio.wait_for(listening.wait(), LIMIT)

    device = await joined(gateway, endpoint=str(endpoint))
    session = await device.session()
    assert session.welcome.via == f"spiffe://{DOMAIN}/hop/pi"
    parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    assert await ask(session, chat(stream=True), traceparent=parent) == b"".join(STREAM)
    await session.close()
    stop.set()
    await asyncio.wait_for(task, LIMIT)

    spans: list[Any] = []
    while len(spans) < 3:  # the hop's last note follows the end of the session
        spans = (await gateway.ask_admin("trace", trace_id=parent[3:35]))["spans"]
    assert sorted(span["role"] for span in spans) == ["gateway", "hop", "provider"]
    (tunnel,) = [span for span in spans if span["role"] == "hop"]
    assert tunnel["attributes"]["causeway.node"] == f"spiffe://{DOMAIN}/hop/pi"
    assert tunnel["attributes"]["causeway.bytes.in"] > 0
    assert tunnel["parent_id"] == "b7ad6b7169203331"
    (request,) = [span for span in spans if span["role"] == "gateway"]
    assert request["attributes"]["causeway.link.id"] == tunnel["attributes"]["causeway.link.id"]
    assert request["attributes"]["causeway.via"] == f"spiffe://{DOMAIN}/hop/pi"
    assert {line["via"] for line in gateway.audit() if line["event"] == "request.intent"} == {
        f"spiffe://{DOMAIN}/hop/pi"
    }


async def test_H16_via_is_who_opened_the_tunnel_whatever_anybody_says(gateway: Running, tmp_path: Path) -> None:
    """An edge is told the hop of the tunnel's own certificate; no header, note or span changes it."""
    hop = await join_hop(HopHome(tmp_path / "hop", Passphrase("p")), await gateway.invite("hop/pi"), gateway.https)
    device = await joined(gateway)
    assert device.svid is not None
    lie = f"spiffe://{DOMAIN}/hop/trusted"
    link = await connect_websocket(
        Endpoint.parse(f"wss://{gateway.ready.https}/v1/tunnel"), tls=client_context(hop.bundle, hop.svid),
        headers={"Via": lie, "Forwarded": f"by={lie}", "X-Forwarded-For": "192.0.2.7", "X-Causeway-Via": lie},
    )
    await link.send_note(json.dumps({
        "link": "0" * 16, "start_ms": 1, "end_ms": 2, "up": 3, "down": 4, "via": lie, "hop": lie, "causeway.via": lie,
    }))
    login = SvidLogin(device.svid.chain, device.svid.not_after)
    session = await EdgeSession(link, login, device.svid.key, device.check_gateway).open()
    assert session.welcome.via == f"spiffe://{DOMAIN}/hop/pi"
    trace = "0af7651916cd43dd8448eb211c80319c"
    session.send_spans([SpanRecord(trace, "1" * 16, "", "s", "hop", 1.0, 2.0, {"causeway.via": lie})])
    await ask(session, chat(), traceparent=f"00-{trace}-b7ad6b7169203331-01")
    await session.close()
    await until(lambda: gateway.audit()[-1]["event"] == "session.closed")
    assert lie not in json.dumps(gateway.audit())
    assert {line["via"] for line in gateway.audit() if line["event"] in ("session.opened", "request.intent")} == {
        f"spiffe://{DOMAIN}/hop/pi"
    }
    straight = await device.session()
    assert straight.welcome.via == "", "a link that no hop carried names none"
    await straight.close()


@pytest.mark.parametrize("credential", ["none", "edge"])
async def test_a_tunnel_needs_the_svid_of_a_hop(gateway: Running, credential: str) -> None:
    device = await joined(gateway)
    assert device.bundle is not None
    context = client_context(device.bundle, device.svid if credential == "edge" else None)
    with pytest.raises((PeerRefused, IdentityRefused, LinkLost)):
        await connect_websocket(Endpoint.parse(f"wss://{gateway.ready.https}/v1/tunnel"), tls=context)


async def test_a_hop_s_used_invitation_with_another_key(gateway: Running, tmp_path: Path) -> None:
    invitation = await gateway.invite("hop/pi")
    await join_hop(HopHome(tmp_path / "one", Passphrase("p")), invitation, gateway.https)
    with pytest.raises(JoinRefused) as refused:
        await join_hop(HopHome(tmp_path / "two", Passphrase("p")), invitation, gateway.https)
    assert refused.value.reason == "invitation"
    assert any(line.get("reason") == "invitation used with another device key" for line in gateway.audit())


@pytest.mark.parametrize(("path", "body"), [
    ("/v1/join", b"{"), ("/v1/join", b"{}"), ("/v1/join", b"x" * 20_000), ("/v1/renew", b'{"device_id":"!!!!"}'),
    ("/v1/join", json.dumps({"token_id": "AA", "secret": "AA", "csr": "AA", "device_key": "AA", "nonce": "AA",
                             "signature": "AA"}).encode()),
    ("/v1/renew", json.dumps({"device_id": "AA", "csr": "AA", "nonce": "AA", "signature": "AA"}).encode()),
])
async def test_malformed_joining_requests_get_a_neutral_answer(gateway: Running, path: str, body: bytes) -> None:
    async with aiohttp.ClientSession() as client, client.post(
        gateway.https + path, data=body, ssl=unverified_context()
    ) as response:
        answer = await response.json()
        assert 400 <= response.status < 500
    assert set(answer["error"]) == {"code", "message"}
    assert not (await gateway.ask_admin("devices"))["devices"]


async def test_health_is_plain_and_on_its_own_listener(gateway: Running) -> None:
    async with aiohttp.ClientSession() as client:
        async with client.get(f"http://{gateway.ready.health}/healthz") as response:
            assert (response.status, await response.json()) == (200, {"status": "ok"})
        async with client.get(f"http://{gateway.ready.health}/v1/bundle") as response:
            assert response.status == 404


async def test_a_running_request_is_finished_before_the_gateway_ends(gateway: Running) -> None:
    session = await (await joined(gateway)).session()
    gateway.provider.mode = "stream_stall"
    task = asyncio.create_task(ask(session, chat(stream=True)))
    await gateway.provider.began.wait()
    gateway.stop.set()
    await asyncio.sleep(0)
    gateway.provider.release.set()
    assert await task == b"".join(STREAM)
    await asyncio.wait_for(asyncio.wait({gateway.task}), LIMIT)
    assert gateway.audit()[-1]["event"] == "gateway.stopped"
    assert verify(gateway.config.directory / app.AUDIT_FILE)[0] == len(gateway.audit())
    assert not (gateway.config.directory / "run" / "control.sock").exists()


async def test_who_does_not_want_to_wait_for_running_requests_need_not(
    made: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    directory = tmp_path / "gateway"
    shutil.copytree(made, directory)
    patient = CONFIG.replace("drain_s = 5.0", "drain_s = 3600.0")
    async with MockProvider() as provider, serving(directory, provider, patient) as gateway:
        session = await (await joined(gateway)).session()
        provider.mode = "stream_stall"
        task = asyncio.create_task(ask(session, chat(stream=True)))
        await provider.began.wait()
        gateway.stop.set()
        while "under way" not in caplog.text:  # noqa: ASYNC110  # a log has no event
            await asyncio.sleep(0)
        assert not gateway.task.done()
        gateway.hurry.set()
        await asyncio.wait_for(gateway.task, LIMIT)
        assert isinstance((await asyncio.gather(task, return_exceptions=True))[0], TransportError)
        assert gateway.audit()[-1]["event"] == "gateway.stopped"


async def test_a_restarted_gateway_knows_its_devices(made: Path, tmp_path: Path) -> None:
    directory = tmp_path / "gateway"
    shutil.copytree(made, directory)
    async with MockProvider() as provider:
        async with serving(directory, provider) as first:
            device = await joined(first)
            epoch = (await device.session()).welcome.epoch
        async with serving(directory, provider) as second:
            device.endpoint = Endpoint.parse(second.ready.session)
            session = await device.session()
            assert session.welcome.epoch == epoch  # it remembers
            assert json.loads(await ask(session, chat())) == WHOLE
            await session.close()


async def test_H15_handshakes_are_capped_and_strangers_told_to_come_later(made: Path, tmp_path: Path) -> None:
    directory = tmp_path / "gateway"
    shutil.copytree(made, directory)
    text = CONFIG.replace("[limits]", "[limits]\nhandshakes = 2")
    async with MockProvider() as provider, serving(directory, provider, text) as gateway:
        endpoint = Endpoint.parse(gateway.ready.session)
        silent = await connect(endpoint)  # holds the one place for links that come straight
        await silent.send(b"\1")
        late = await connect(endpoint)
        assert await late.receive() == b"\0\2"
        assert await late.receive() == b""
        await silent.close()
        await late.close()


async def test_one_process_at_a_time_holds_the_state(gateway: Running) -> None:
    with pytest.raises(Busy):
        async with open_admin(gateway.config, PASSPHRASE):
            pass


async def test_nothing_is_half_started(made: Path, tmp_path: Path, gateway: Running) -> None:
    directory = tmp_path / "other"
    shutil.copytree(made, directory)
    taken = CONFIG.replace('session = "tcp:127.0.0.1:0"', f'session = "{gateway.ready.session}"')
    with pytest.raises(TransportError, match="cannot listen"):
        async with serving(directory, gateway.provider, taken):
            pass
    with pytest.raises(ConfigError, match="trust_domain"):
        async with serving(directory, gateway.provider, CONFIG.replace("field.example", "other.example")):
            pass
    with pytest.raises(NotReady):
        await call(directory, "devices", {})
    async with serving(directory, gateway.provider):
        pass


async def test_the_provider_s_key_is_in_no_file_but_its_own(gateway: Running) -> None:
    session = await (await joined(gateway)).session()
    for gateway.provider.mode in ("ok", "401", "500", "400"):
        with contextlib.suppress(RequestRefused):
            await ask(session, chat())
    await session.close()
    files = [file for file in gateway.config.directory.rglob("*") if file.is_file()]
    assert [file.name for file in files if KEY.encode() in file.read_bytes()] == ["provider.key"]

"""A gateway, a hop and an edge whose identities come from an agent, beside an edge that has joined."""

import asyncio
import contextlib
import json
import shutil
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from edge_client.gateway_client import GatewayClient
from edge_client.identity import NAMESPACE, Identities
from edge_client.outbox import Outbox
from relay.gateway.config import parse
from relay.gateway.errors import ConfigError, SetupRefused
from relay.gateway.folder import make_upstream
from relay.gateway.identity.agent import NUMBER_FILE
from relay.gateway.identity.ca import LIFETIMES, ROOT_FILE, ROOT_PURPOSE, Authority, sign_intermediate, unseal
from relay.gateway.identity.upstream import CERTIFICATE_FILE, write_upstream
from relay.hop.app import Hop, HopLimits
from relay.hop.identity import HopHome, of_agent
from store.database import STORE_SCHEMA, Database
from store.keys import DatabaseKey
from store.queue import Queue
from store.settings import Settings
from tests.integration import test_doctor
from tests.integration.test_gateway_serve import CONFIG, Device, Running, ask, joined, serving, until
from tests.support.ca import Ca
from tests.support.edge_lab import read
from tests.support.fake_agent import FakeAgent, offer
from tests.support.gateway_lab import DOMAIN, PASSPHRASE, ROOT_PASSPHRASE, chat, make_folder
from tests.support.mock_provider import WHOLE, MockProvider
from tests.support.spire_ca import SpireCa
from transport import telemetry
from transport.edge_session import EdgeSession
from transport.errors import AgentLost, IdentityRefused, LinkLost, PeerRefused
from transport.identity.revocation import RevocationList, read_list, sign_list
from transport.identity.source import AgentSource
from transport.identity.svid import SpiffeId, Svid, TrustBundle, load_certificate
from transport.identity.tls import client_context
from transport.identity.verify import verify_svid
from transport.links.base import Endpoint, connect
from transport.primitives import SigningKey

ME = f"spiffe://{DOMAIN}/edge/lap-9"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("spire")
    make_folder(folder / "gateway")
    write_upstream(folder / "gateway", folder / "upstream", root_passphrase=ROOT_PASSPHRASE, now=time.time())
    return folder


@pytest.fixture(scope="module")
def spire(made: Path) -> SpireCa:
    return SpireCa(made / "upstream")


@dataclass
class World:
    running: Running
    agent: FakeAgent
    ca: SpireCa
    folder: Path

    async def session(self, svid: Svid, bundle: TrustBundle | None = None) -> EdgeSession:
        device = Device(Endpoint.parse(self.running.ready.session), None)  # type: ignore[arg-type]
        device.svid, device.bundle = svid, bundle or self.ca.bundle()
        return await device.session()

    async def asks(self, svid: Svid) -> None:
        """Raises what refuses it."""
        session = await self.session(svid)
        try:
            assert json.loads(await ask(session, chat())) == WHOLE
        finally:
            await session.close()

    def refused(self) -> list[str]:
        return [str(line.get("reason")) for line in self.running.audit() if line["event"] == "session.refused"]


def text(agent: FakeAgent) -> str:
    return CONFIG + f'[identity]\nsource = "spire"\nsocket = "{agent.socket}"\n'


@pytest.fixture
async def world(made: Path, spire: SpireCa, tmp_path: Path) -> AsyncIterator[World]:
    shutil.copytree(made / "gateway", tmp_path / "gateway")
    async with FakeAgent(tmp_path / "gateway.sock") as agent:
        agent.give(spire.issue("gateway/main"), bundle=spire.bundle())
        async with MockProvider() as provider, serving(tmp_path / "gateway", provider, text(agent)) as running:
            yield World(running, agent, spire, tmp_path)


async def test_who_comes_by_spire_is_admitted_and_listed(world: World) -> None:
    await world.asks(world.ca.issue("edge/lap-9"))
    await world.asks(world.ca.issue("edge/lap-9"))
    devices = (await world.running.ask_admin("devices"))["devices"]
    assert [(one["id"], one["status"], one["source"]) for one in devices] == [(ME, "active", "spire")]


async def test_the_gateway_shows_what_the_agent_gave(world: World) -> None:
    shown: list[tuple[bytes, ...]] = []
    given = world.ca.issue("gateway/main")
    world.agent.give(given, bundle=world.ca.bundle())
    device = Device(Endpoint.parse(world.running.ready.session), None)  # type: ignore[arg-type]
    device.svid, device.bundle = world.ca.issue("edge/lap-9"), world.ca.bundle()
    check = device.check_gateway

    def remember(chain: list[bytes], now: float) -> object:
        shown.append(tuple(chain))
        return check(chain, now)

    device.check_gateway = remember  # type: ignore[method-assign,assignment]
    while given.chain not in shown:  # it is pushed, and taken at some later handshake
        session = await device.session()
        await session.close()
    assert len(given.chain) == 3


async def test_H12_an_edge_without_an_agent_joins_at_the_same_gateway(world: World) -> None:
    device = await joined(world.running)
    session = await device.session()
    assert json.loads(await ask(session, chat())) == WHOLE
    await session.close()
    assert device.bundle is not None
    assert device.bundle.roots == (world.ca.root_der,)
    await device.renew()
    await world.asks(world.ca.issue("edge/lap-9"))


async def test_revoked_holds_whatever_spire_issues_until_reinstated(world: World) -> None:
    await world.asks(world.ca.issue("edge/lap-9"))
    await world.running.ask_admin("revoke", who="edge/lap-9", reason="lost")
    for svid in (world.ca.issue("edge/lap-9"), world.ca.issue("edge/lap-9")):
        with pytest.raises(PeerRefused):
            await world.asks(svid)
    assert world.refused() == ["registration"] * 2
    await world.running.ask_admin("reinstate", who="edge/lap-9")
    await world.asks(world.ca.issue("edge/lap-9"))


async def test_a_joined_devices_name_is_not_spires_to_give(world: World) -> None:
    device = await joined(world.running)
    with pytest.raises(PeerRefused):
        await world.asks(world.ca.issue("edge/lap-1"))
    session = await device.session()
    await session.close()


async def test_nor_by_the_serial_number_of_the_devices_own_certificate(world: World) -> None:
    """Who holds SPIRE's authority chooses serial numbers, and has perhaps seen one of ours."""
    device = await joined(world.running)
    assert device.svid is not None
    serial = load_certificate(device.svid.chain[0]).serial_number
    with pytest.raises(PeerRefused):
        await world.asks(world.ca.issue("edge/lap-1", serial=serial))
    await (await device.session()).close()


async def test_a_stolen_upstream_is_over_at_every_door_however_many_were_made(
    made: Path, spire: SpireCa, tmp_path: Path
) -> None:
    """All that this folder has made, not the last alone: an older one is good yet, and may be the stolen one."""
    folder = Path(shutil.copytree(made / "gateway", tmp_path / "gateway"))
    write_upstream(folder, tmp_path / "second", root_passphrase=ROOT_PASSPHRASE, now=time.time())
    await make_upstream(
        parse(CONFIG.format(base_url="http://127.0.0.1:9").encode(), folder), tmp_path / "third",
        passphrase=PASSPHRASE, root_passphrase=ROOT_PASSPHRASE, now=time.time(), compromised=True,
    )
    stolen, third = (spire, SpireCa(tmp_path / "second")), SpireCa(tmp_path / "third")
    async with FakeAgent(tmp_path / "gateway.sock") as agent, MockProvider() as provider:
        agent.give(third.issue("gateway/main"), bundle=third.bundle())
        async with serving(folder, provider, text(agent)) as running:
            world = World(running, agent, third, tmp_path)
            place = Endpoint.parse(f"wss://{running.ready.https}/v1/tunnel")
            for ca in stolen:
                with pytest.raises(PeerRefused):
                    await world.asks(ca.issue("edge/lap-9"))
                with pytest.raises((PeerRefused, IdentityRefused, LinkLost)):
                    link = await connect(place, tls=client_context(ca.bundle(), ca.issue("hop/pi-9")))
                    await link.receive()
                await until(lambda: running.audit()[-1]["event"] == "https.refused")
            assert {one["reason"] for one in running.audit() if one["event"] == "https.refused"} == {"revoked"}
            assert world.refused() == ["revoked"] * 2
            assert (await running.ask_admin("devices"))["devices"] == []
            await world.asks(third.issue("edge/lap-9"))
            await (await connect(place, tls=client_context(ca.bundle(), third.issue("hop/pi-9")))).close()
            assert [one["id"] for one in (await running.ask_admin("devices"))["devices"]] == [
                ME, f"spiffe://{DOMAIN}/hop/pi-9"
            ]


async def test_an_upstream_that_the_folder_does_not_know_is_not_said_to_be_listed(made: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(made / "gateway", tmp_path / "gateway"))
    (folder / CERTIFICATE_FILE).unlink()
    with pytest.raises(SetupRefused, match="knows of no upstream"):
        await make_upstream(
            parse(CONFIG.format(base_url="http://127.0.0.1:9").encode(), folder), tmp_path / "new",
            passphrase=PASSPHRASE, root_passphrase=ROOT_PASSPHRASE, now=time.time(), compromised=True,
        )
    assert not (tmp_path / "new").exists()


async def test_an_hour_is_the_longest(world: World) -> None:
    with pytest.raises(PeerRefused):
        await world.asks(world.ca.issue("edge/lap-9", lifetime=4_000.0))
    assert world.refused() == ["lifetime"]


async def test_an_intermediate_of_ours_makes_nobody(world: World, made: Path) -> None:
    """Neither this gateway's, nor one that was stolen earlier: what those sign is on record, or it is nothing."""
    now, key = time.time(), SigningKey.generate()
    root = unseal(made / "gateway" / ROOT_FILE, ROOT_PASSPHRASE, ROOT_PURPOSE)
    old = sign_intermediate(root, root.roots, 1, now=now, lifetimes=LIFETIMES)
    issued = Authority(old).issue(SpiffeId(DOMAIN, "/edge/lap-9"), key.public, now=now)
    with pytest.raises(PeerRefused):
        await world.asks(Svid(issued.id, issued.chain, key, issued.not_before, issued.not_after))
    assert world.refused() == ["serial"]


async def test_without_an_agent_spires_certificates_are_nobodys(made: Path, spire: SpireCa, tmp_path: Path) -> None:
    shutil.copytree(made / "gateway", tmp_path / "gateway")
    async with MockProvider() as provider, serving(tmp_path / "gateway", provider) as running:
        world = World(running, FakeAgent(tmp_path / "none.sock"), spire, tmp_path)
        with pytest.raises(PeerRefused):
            await world.asks(spire.issue("edge/lap-9"))
        assert world.refused() == ["serial"]


# --- the bundle -----------------------------------------------------------------------------------------------------


async def test_a_bundles_number_grows_with_each_change_and_outlives_the_process(
    made: Path, spire: SpireCa, tmp_path: Path
) -> None:
    shutil.copytree(made / "gateway", tmp_path / "gateway")
    other = Ca(name="another root")
    numbers = []
    async with FakeAgent(tmp_path / "agent.sock") as agent, MockProvider() as provider:
        for roots in ([], [], [other.root_der], [other.root_der], []):
            agent.give(spire.issue("gateway/main"), bundle=spire.bundle(also=roots))
            async with serving(tmp_path / "gateway", provider, text(agent)) as running:
                device = await joined(running)
                assert device.bundle is not None
                numbers.append(device.bundle.sequence)
                assert set(device.bundle.roots) == {spire.root_der, *roots}
        async with serving(tmp_path / "gateway", provider) as running:  # back to its own authority
            device = await joined(running)
            assert device.bundle is not None
            numbers.append(device.bundle.sequence)
    assert numbers[0] == numbers[1] < numbers[2] == numbers[3] < numbers[4] <= numbers[5]
    assert numbers[0] >= int(time.time()) - 600, "above all that was told before, whatever folder was restored"
    number = json.loads((tmp_path / "gateway" / NUMBER_FILE).read_text())
    assert number["sequence"] == numbers[5]


async def test_a_root_that_is_taken_out_refuses_at_once_and_one_that_comes_admits(world: World) -> None:
    other = Ca(name="another root")
    stranger = other.issue("edge/lap-8")
    both = TrustBundle(DOMAIN, (world.ca.root_der, other.root_der), 1)
    with pytest.raises((PeerRefused, LinkLost)):
        await world.session(stranger, both)
    world.agent.give(world.ca.issue("gateway/main"), bundle=both)
    while True:  # pushed: taken between two of these
        with contextlib.suppress(PeerRefused, LinkLost):
            await (await world.session(stranger, both)).close()
            break
    world.agent.give(world.ca.issue("gateway/main"), bundle=world.ca.bundle())
    with pytest.raises((PeerRefused, LinkLost)):
        while True:
            await (await world.session(other.issue("edge/lap-8"), both)).close()


async def test_a_bundle_without_the_root_of_our_intermediate_is_not_taken(
    made: Path, tmp_path: Path
) -> None:
    shutil.copytree(made / "gateway", tmp_path / "gateway")
    other = Ca(name="another root")
    async with FakeAgent(tmp_path / "agent.sock") as agent, MockProvider() as provider:
        agent.give(other.issue("gateway/main"), bundle=other.bundle())
        with pytest.raises(ConfigError, match="has signed this gateway's intermediate"):
            async with serving(tmp_path / "gateway", provider, text(agent)):
                pass


async def test_the_doctor_finds_the_chain_whole_and_an_agent_that_is_away(
    made: Path, spire: SpireCa, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(made / "gateway", tmp_path / "gateway"))
    async with FakeAgent(tmp_path / "agent.sock") as agent, MockProvider() as provider:
        agent.give(spire.issue("gateway/main"), bundle=spire.bundle())
        config = test_doctor.write(folder, provider.base_url)
        config.write_text(config.read_text() + f'[identity]\nsource = "spire"\nsocket = "{agent.socket}"\n')
        async with test_doctor.serving(config):
            whole = await test_doctor.examined(config)
            assert [one.status for one in whole[:4]] == ["ok"] * 4, whole
            other = Ca(name="another root")  # without ours: what the agent took out goes on being believed
            agent.give(other.issue("gateway/main"), bundle=other.bundle())
            while (source := (await test_doctor.examined(config))[0]).status == "ok":
                pass
            assert source.status == "failed" and "trust bundle is not taken" in source.finding
            agent.give(spire.issue("gateway/main"), bundle=spire.bundle())
            while (source := (await test_doctor.examined(config))[0]).status != "ok":
                pass
            await agent.stop()
            while (source := (await test_doctor.examined(config))[0]).status == "ok":
                pass  # it is noticed within moments
            assert source.status == "warning"
            assert "does not answer; this gateway's identity is good for" in source.finding


# --- hop and edge ---------------------------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def given(
    folder: Path, role: str, svid: Svid, bundle: TrustBundle
) -> AsyncIterator[tuple[FakeAgent, AgentSource]]:
    async with FakeAgent(folder / f"{role}.sock") as agent:
        agent.give(svid, bundle=bundle)
        source = AgentSource(agent.socket, role)
        await source.start(60)
        try:
            yield agent, source
        finally:
            await source.close()


async def test_a_hop_and_an_edge_by_their_agents_and_new_identities_under_way(world: World) -> None:
    ca, bundle = world.ca, world.ca.bundle()
    database = Database.open(world.folder / "store.db", DatabaseKey.generate(), schema=STORE_SCHEMA)
    settings, tracing, stop = Settings(database, NAMESPACE), telemetry.start("edge"), asyncio.Event()
    lines: list[str] = []
    async with (
        given(world.folder, "hop", ca.issue("hop/pi-9"), bundle) as (hops_agent, hops),
        given(world.folder, "edge", ca.issue("edge/lap-9"), bundle) as (edges_agent, edges),
    ):
        hop = Hop(
            HopHome(world.folder / "hop", None), of_agent(hops, world.running.https), [world.running.https],
            limits=HopLimits(), report=lines.append, source=hops,
        )
        serving_hop = asyncio.create_task(hop.run([Endpoint.parse("tcp:127.0.0.1:0")], stop))
        await until(lambda: any(line.startswith("hop ready") for line in lines))
        endpoint = Endpoint.parse(lines[0].rpartition(" ")[2])
        client = GatewayClient(
            settings, Outbox(Queue(database, "outbox")), [endpoint], tracing, connect,
            identities=Identities(settings, edges),
        )
        opened = 0

        def count() -> int:
            return sum(line["event"] == "session.opened" and line["id"] == ME for line in world.running.audit())

        for _ in range(3):
            answer = await client.request("POST", "/v1/chat/completions", chat())
            assert (json.loads(await read(answer)), answer.via) == (WHOLE, f"spiffe://{DOMAIN}/hop/pi-9")
            opened = count()
            new, of_hop = ca.issue("edge/lap-9"), ca.issue("hop/pi-9")
            hops_agent.give(of_hop, bundle=bundle)
            await until(lambda: hop.identity.svid.chain == of_hop.chain)  # noqa: B023 - awaited here
            edges_agent.give(new, bundle=bundle)
            await until(lambda: edges.svid.chain == new.chain and count() > opened)  # noqa: B023
        assert world.running.provider.calls == 3
        await client.close()
        stop.set()
        await serving_hop
    assert not [line for line in lines if "renew" in line]
    devices = (await world.running.ask_admin("devices"))["devices"]
    assert {one["source"] for one in devices} == {"spire"}
    tracing.close()
    database.close()


async def test_an_edge_whose_identity_has_run_out_waits_for_its_agent(spire: SpireCa, tmp_path: Path) -> None:
    database = Database.open(tmp_path / "store.db", DatabaseKey.generate(), schema=STORE_SCHEMA)
    settings, tracing = Settings(database, NAMESPACE), telemetry.start("edge")
    source = AgentSource(
        "/nowhere.sock", "edge", connect=lambda socket, take, lost: lambda: None, clock=lambda: spire.now
    )
    source.take(offer(spire.issue("edge/lap-9", start=-3_590.0, lifetime=3_600.0), bundle=spire.bundle()))
    await source.close()
    identities = Identities(settings, source)
    source._there.set()
    assert (await identities.load()) is not None
    client = GatewayClient(settings, Outbox(Queue(database, "outbox")), [], tracing, connect, identities=identities)
    source._svid = Svid(source.svid.id, source.svid.chain, source.svid.key, source.svid.not_before, time.time() - 1)
    with pytest.raises(AgentLost, match="has run out"):
        await client.reach()
    await client.close()
    await identities.close()
    tracing.close()
    database.close()


def test_what_spire_signs_is_no_revocation_list(spire: SpireCa) -> None:
    """An entry of SPIRE's could have the signer's ID, and end every device, or bring back a gateway that was ended."""
    forged = sign_list(spire.issue("authority/revocation"), 1, [1, 2, 3], [], now=time.time())
    with pytest.raises(IdentityRefused) as refused:
        read_list(forged.data, spire.bundle(), now=time.time(), held=RevocationList())
    assert refused.value.rule == "revocation list signer"


def test_what_spire_gets_leads_to_our_root_with_room_for_its_own(made: Path, spire: SpireCa) -> None:
    svid = spire.issue("edge/lap-9")
    assert len(svid.chain) == 3
    assert verify_svid(svid.chain, spire.bundle(), role="edge", now=time.time()).id.path == "/edge/lap-9"
    assert {file.stat().st_mode & 0o777 for file in (made / "upstream").iterdir()} == {0o600}


def test_no_authority_below_spires_own(made: Path) -> None:
    """The upstream's path length is 1, and SPIRE's own, which says none, is below that."""
    lower = SpireCa(made / "upstream", lower=True)
    with pytest.raises(IdentityRefused) as refused:
        verify_svid(lower.issue("edge/lap-9").chain, lower.bundle(), role="edge", now=time.time())
    assert refused.value.rule == "path length"

"""In virtual time: an edge that was away for weeks comes back by itself, whatever was rotated meanwhile."""

import asyncio
import contextlib
import shutil
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from edge_client.gateway_client import GatewayClient
from edge_client.identity import NAMESPACE, DeviceIdentity, join
from edge_client.outbox import Outbox
from edge_client.sessions import Clock
from relay.gateway.errors import SetupRefused
from relay.gateway.identity.ca import renew_intermediate
from relay.gateway.identity.rotation import PUBLISHED_S, Rotated, rotate_root
from store.database import STORE_SCHEMA, Database
from store.keys import DatabaseKey
from store.queue import Queue
from store.settings import Settings
from tests.support.ca import DAY
from tests.support.edge_lab import ENDPOINT
from tests.support.gateway_lab import PASSPHRASE, ROOT_PASSPHRASE, make_folder
from tests.support.session_lab import Lab, gateway
from tests.support.virtually import in_virtual_time
from transport import telemetry
from transport.errors import PeerRefused
from transport.links.base import Endpoint, Link
from transport.links.virtual_time import UNIX_START_S, wall
from transport.session import Clock as SessionClock

HOUR = 3600.0


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_folder(tmp_path_factory.mktemp("away") / "gateway", now=UNIX_START_S)


class WallClock(Clock):
    def now(self) -> float:
        return wall()

    def dice(self) -> float:
        return 0.5

    def of_session(self) -> SessionClock:
        return wall


@dataclass
class World:
    """A gateway's folder and an edge's store; each runs when a test has it run."""

    directory: Path
    database: Database
    lab: Lab | None = None
    settings: Settings = field(init=False)

    def __post_init__(self) -> None:
        self.settings = Settings(self.database, NAMESPACE)

    @contextlib.asynccontextmanager
    async def serving(self) -> AsyncIterator[Lab]:
        async with gateway(self.directory, clock=wall, ticking=wall) as self.lab:
            yield self.lab

    async def dial(self, endpoint: Endpoint) -> Link:
        assert self.lab is not None
        return self.lab.link()

    async def join(self) -> None:
        assert self.lab is not None
        invitation = await self.lab.enrolment.invite("edge/lap-1")
        await join(self.settings, invitation, await self.dial(ENDPOINT), (str(ENDPOINT),), clock=wall)

    async def come_back(self) -> list[str]:
        """A new process of the edge, which asks for the models it may use."""
        tracing = telemetry.start("edge")
        client = GatewayClient(
            self.settings, Outbox(Queue(self.database, "outbox")), (), tracing, self.dial, clock=WallClock()
        )
        try:
            return await client.models()
        finally:
            await client.close()
            tracing.close()

    async def identity(self) -> DeviceIdentity:
        identity = await DeviceIdentity.load(self.settings)
        assert identity is not None
        return identity

    def rotate_root(self) -> Rotated:
        return rotate_root(self.directory, now=wall(), passphrase=PASSPHRASE, root_passphrase=ROOT_PASSPHRASE)

    def new_intermediate(self) -> None:
        renew_intermediate(self.directory, now=wall(), passphrase=PASSPHRASE, root_passphrase=ROOT_PASSPHRASE)


@contextlib.contextmanager
def world(made: Path, path: Path) -> Iterator[World]:
    shutil.copytree(made, path / "gateway")
    database = Database.open(path / "store.db", DatabaseKey.generate(), schema=STORE_SCHEMA)
    try:
        yield World(path / "gateway", database)
    finally:
        database.close()


@in_virtual_time
async def test_H13_away_for_three_weeks_and_the_intermediate_is_another(made: Path, tmp_path: Path) -> None:
    with world(made, tmp_path) as one:
        async with one.serving():
            await one.join()
        before = await one.identity()
        await asyncio.sleep(21 * DAY)
        one.new_intermediate()
        assert not before.svid_valid(wall())
        async with one.serving() as lab:
            assert await one.come_back() == ["small"]
            assert lab.audit("renew.issued") and not lab.audit("session.refused")
        after = await one.identity()
        assert after.device_key.public.spki == before.device_key.public.spki
        assert after.svid.chain[1] != before.svid.chain[1] and after.enrolment == before.enrolment


@in_virtual_time
async def test_H13_away_for_three_weeks_while_the_root_becomes_another(made: Path, tmp_path: Path) -> None:
    """Seen last ten days before the new root is used, back eleven days after the old one is gone."""
    with world(made, tmp_path) as one:
        async with one.serving():
            await one.join()
        old = (await one.identity()).bundle
        assert one.rotate_root().step == "published"
        for _ in range(3):  # an intermediate lives for thirty days
            await asyncio.sleep(26 * DAY)
            one.new_intermediate()
        await asyncio.sleep(PUBLISHED_S - 3 * 26 * DAY - 10 * DAY)
        async with one.serving():
            await one.come_back()
        both = (await one.identity()).bundle
        assert both.sequence > old.sequence and set(both.roots) > set(old.roots)
        await asyncio.sleep(10 * DAY)
        assert one.rotate_root().step == "used"
        await asyncio.sleep(2 * HOUR)
        assert one.rotate_root().step == "retired"
        await asyncio.sleep(11 * DAY)
        async with one.serving():
            assert await one.come_back() == ["small"]
        new = (await one.identity()).bundle
        assert new.sequence > both.sequence and set(new.roots) == set(both.roots) - set(old.roots)


@in_virtual_time
async def test_H13_who_saw_the_old_root_alone_is_registered_no_more(made: Path, tmp_path: Path) -> None:
    """Ninety idle days end a registration, and no root is used before it was published for as long."""
    with world(made, tmp_path) as one:
        async with one.serving():
            await one.join()
        one.rotate_root()
        await asyncio.sleep(90 * DAY + 60)
        one.new_intermediate()
        async with one.serving() as lab:
            with pytest.raises(PeerRefused):
                await one.come_back()
            assert lab.audit("renew.refused")[0]["reason"] == "registration idle"


@in_virtual_time
async def test_H13_who_was_seen_last_with_an_svid_of_before_the_new_root(made: Path, tmp_path: Path) -> None:
    """A session needs no renewal for half an hour, so the ninety days alone would not do."""
    with world(made, tmp_path) as one:
        async with one.serving():
            await one.join()
        one.rotate_root()
        await asyncio.sleep(1_200)
        async with one.serving():
            await one.come_back()
        assert len((await one.identity()).bundle.roots) == 1, "it has not renewed"
        await asyncio.sleep(90 * DAY - 60)
        with pytest.raises(SetupRefused):
            one.rotate_root()
        one.new_intermediate()
        async with one.serving():
            assert await one.come_back() == ["small"]


@in_virtual_time
async def test_H13_a_bundle_of_before_does_not_come_back(made: Path, tmp_path: Path) -> None:
    """The gateway's folder is put back to before the new root: the edge keeps what it has seen since."""
    with world(made, tmp_path) as one:
        shutil.copytree(one.directory, tmp_path / "earlier")
        one.rotate_root()
        async with one.serving():
            await one.join()
        seen = (await one.identity()).bundle
        assert len(seen.roots) == 2
        for name in ("intermediate.sealed", "root.sealed"):
            shutil.copy(tmp_path / "earlier" / name, one.directory / name)
        await asyncio.sleep(2 * HOUR)
        async with one.serving():
            assert await one.come_back() == ["small"]
        assert (await one.identity()).bundle == seen

"""A hop against an HTTPS server of the test's: joining, renewal, tunnels, and everything that may go wrong there."""

import asyncio
import json
import os
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from relay.hop.errors import GatewayAnswer, HopMisuse, JoinRefused
from relay.hop.identity import FILE, HopHome, HopIdentity, _Sealed, base_url, join, renew
from relay.hop.pipe import PipeLimits, link_id
from store.errors import WrongKey
from store.keys import Passphrase
from tests.support.ca import Ca
from tests.support.joining_gateway import JoiningGateway
from tests.support.running_hop import LIMIT, Running, dial, read
from transport.errors import IdentityExpired, IdentityRefused, LinkLost
from transport.identity.revocation import RevocationList
from transport.links.base import connect
from transport.links.websocket import WebSocketLink
from transport.primitives import SigningKey


@pytest.fixture
async def gateway() -> AsyncIterator[JoiningGateway]:
    async with asyncio.timeout(60), JoiningGateway(Ca()).running() as running:
        yield running


@pytest.fixture
def home(tmp_path: Path) -> HopHome:
    return HopHome(tmp_path / "hop", Passphrase("correct horse"))


# --- joining ----------------------------------------------------------------------------------------------------------


async def test_joining_gives_an_identity_that_survives_a_restart(
    gateway: JoiningGateway, home: HopHome, tmp_path: Path
) -> None:
    joined = await join(home, gateway.invitation(), gateway.url)
    assert str(joined.svid.id) == "spiffe://field.example/hop/pi"
    assert (joined.bundle.sequence, joined.bundle.roots) == (1, (gateway.ca.root_der,))
    again = HopHome(tmp_path / "hop", Passphrase("correct horse")).load()
    assert again.svid.chain == joined.svid.chain and again.gateway == gateway.url
    file = tmp_path / "hop" / FILE
    assert file.stat().st_mode & 0o777 == 0o600 and (tmp_path / "hop").stat().st_mode & 0o777 == 0o700
    raw = file.read_bytes()
    assert joined.device_key.to_pkcs8().expose() not in raw and b"field.example" not in raw
    with pytest.raises(WrongKey):
        HopHome(tmp_path / "hop", Passphrase("wrong")).load()
    with pytest.raises(HopMisuse, match="joined already"):
        await join(home, gateway.invitation(), gateway.url)


async def test_an_answer_that_got_lost_is_repeated_with_the_same_device_key(
    gateway: JoiningGateway, home: HopHome
) -> None:
    gateway.raw_answer = b"lost"
    with pytest.raises(GatewayAnswer):
        await join(home, gateway.invitation(), gateway.url)
    with pytest.raises(HopMisuse, match="not joined"):
        home.load()
    gateway.raw_answer = None
    await join(home, gateway.invitation(), gateway.url)
    first, second = (body["device_key"] for _, body in gateway.requests)
    assert first == second


@pytest.mark.parametrize("case", ["impostor's root", "edge poses as gateway", "hop poses as gateway"])
async def test_no_secret_is_sent_to_the_wrong_server(home: HopHome, case: str) -> None:
    real = Ca()
    fake = {
        "impostor's root": JoiningGateway(Ca()),
        "edge poses as gateway": JoiningGateway(real, served_as="edge/lap-1"),
        "hop poses as gateway": JoiningGateway(real, served_as="hop/pi"),
    }[case]
    async with fake.running():
        invitation = JoiningGateway.invitation(fake)
        if case == "impostor's root":
            genuine = JoiningGateway(real)
            genuine.url = fake.url
            invitation = genuine.invitation()
        with pytest.raises(IdentityRefused) as caught:
            await join(home, invitation, fake.url)
        assert caught.value.rule == ("root hash" if case == "impostor's root" else "role")
        assert fake.requests == []


async def test_a_server_with_the_right_bundle_but_another_root_gets_nothing(home: HopHome) -> None:
    """The bundle is public: showing it proves nothing."""
    fake = JoiningGateway(Ca(), presents=Ca())
    async with fake.running():
        with pytest.raises(IdentityRefused):
            await join(home, fake.invitation(), fake.url)
        assert fake.requests == []


async def test_refusals_and_nonsense_are_typed(gateway: JoiningGateway, home: HopHome) -> None:
    gateway.refuse = "invitation"
    with pytest.raises(JoinRefused) as caught:
        await join(home, gateway.invitation(), gateway.url)
    assert caught.value.reason == "invitation" and "new one" in (caught.value.hint or "")
    gateway.refuse = "\x1b[31mEvil"
    with pytest.raises(JoinRefused) as caught:
        await join(home, gateway.invitation(), gateway.url)
    assert caught.value.reason == "other" and "Evil" not in str(caught.value)
    gateway.refuse = ""
    for answer in (b"", b"[]", b"{", b'{"id": 1}', b"[" * 50_000, b"x" * 70_000,
                   json.dumps({"id": "x", "chain": ["!"], "bundle": {"trust_domain": "field.example", "roots": [],
                                                                      "sequence": 1}, "enrolment": 1}).encode()):
        gateway.raw_answer = answer
        with pytest.raises(GatewayAnswer):
            await join(home, gateway.invitation(), gateway.url)
    gateway.raw_answer = None
    with pytest.raises(HopMisuse, match="for edge/lap-1"):
        await join(home, gateway.invitation("edge/lap-1"), gateway.url)
    gateway.lifetime = -100.0
    with pytest.raises(IdentityExpired):
        await join(home, gateway.invitation(), gateway.url)


async def test_a_gateway_that_is_down_is_a_lost_link(home: HopHome) -> None:
    async with JoiningGateway(Ca()).running() as gone:
        invitation = gone.invitation()
    with pytest.raises(LinkLost) as caught:
        await join(home, invitation, gone.url)
    assert caught.value.hint


async def test_the_invited_root_must_be_in_the_bundle_that_comes_with_a_joining(
    gateway: JoiningGateway, home: HopHome
) -> None:
    """Otherwise whoever answers could move the hop to a root of its own at once."""
    other = Ca()
    gateway.issuer, gateway.issued_roots = other, [other.root_der]
    with pytest.raises(IdentityRefused) as caught:
        await join(home, gateway.invitation(), gateway.url)
    assert caught.value.rule == "root hash"
    with pytest.raises(HopMisuse, match="not joined"):
        home.load()
    gateway.issued_roots = [other.root_der, gateway.ca.root_der]
    assert len((await join(home, gateway.invitation(), gateway.url)).bundle.roots) == 2  # more roots are fine


@pytest.mark.parametrize("text", ["", "gw", "http://gw", "https://", "https://gw/path", "https://a b", "https://gw:x"])
def test_addresses_that_are_none(text: str) -> None:
    with pytest.raises(HopMisuse):
        base_url(text)


def test_addresses() -> None:
    assert base_url(" wss://gw:8443/ ") == base_url("https://gw:8443") == "https://gw:8443"


async def test_H13_a_hop_learns_the_new_root_before_it_meets_it(gateway: JoiningGateway, home: HopHome) -> None:
    joined = await join(home, gateway.invitation(), gateway.url)
    coming = Ca(name="new root")
    rotated = JoiningGateway(coming)
    async with rotated.running():
        rotated._device, rotated.issuer, rotated.sequence = gateway._device, coming, 3
        with pytest.raises(IdentityRefused):
            await renew(home, joined, rotated.url)
        gateway.sequence, gateway.issued_roots = 2, [gateway.ca.root_der, coming.root_der]
        told = await renew(home, joined, gateway.url)
        assert told.bundle.roots == (gateway.ca.root_der, coming.root_der)
        moved = await renew(home, home.load(), rotated.url)
        assert (moved.bundle.sequence, moved.bundle.roots) == (3, (coming.root_der,))


async def test_a_revoked_gateway_renews_nothing_and_plants_no_root(gateway: JoiningGateway, home: HopHome) -> None:
    """By its own certificate, or by that of the intermediate that has signed it."""
    joined = await join(home, gateway.invitation(), gateway.url)
    gateway.sequence, gateway.issued_roots = 2, [gateway.ca.root_der, Ca(name="planted").root_der]
    asked = len(gateway.requests)
    revoked = RevocationList(1, serials=frozenset({gateway.ca.signer.serial_number}))
    with pytest.raises(IdentityRefused) as refused:
        await renew(home, joined, gateway.url, revoked=revoked)
    assert refused.value.rule == "revoked"
    assert len(gateway.requests) == asked and home.load().bundle == joined.bundle


async def test_renewal_needs_only_the_device_key_and_never_takes_an_older_bundle(
    gateway: JoiningGateway, home: HopHome
) -> None:
    gateway.sequence = 5
    joined = await join(home, gateway.invitation(), gateway.url)
    gateway.sequence = 4
    renewed = await renew(home, joined, gateway.url)
    assert renewed.svid.chain != joined.svid.chain and renewed.svid.key is not joined.svid.key
    assert renewed.bundle.sequence == 5
    assert gateway.requests[-1][0] == "/v1/renew" and "secret" not in gateway.requests[-1][1]
    assert home.load().svid.chain == renewed.svid.chain
    gateway.path = "hop/other"
    with pytest.raises(GatewayAnswer, match="another identity"):
        await renew(home, renewed, gateway.url)


def test_what_the_sealed_file_holds_does_not_show() -> None:
    key = SigningKey.generate().to_pkcs8().expose()
    held = _Sealed(1, "https://gw", key, 1, key)
    assert repr(key)[2:-1] not in f"{held!r} {held} {held.__rich_repr__()}"


# --- serving ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", ["tcp", "unix"])
async def test_bytes_cross_the_hop_and_its_notes_arrive(
    gateway: JoiningGateway, home: HopHome, tmp_path: Path, scheme: str
) -> None:
    joined = await join(home, gateway.invitation(), gateway.url)
    listen = "tcp:127.0.0.1:0" if scheme == "tcp" else f"unix:{tmp_path / 's'}"
    async with Running(home, joined, gateway.url, listen) as running:
        assert running.lines[0].startswith("hop ready pi listening on ")
        link = await running.connect()
        data = os.urandom(300_000)
        _, got = await asyncio.gather(link.send(data), read(link, len(data)))
        assert got == data
        await link.close()
        await asyncio.wait_for(gateway.final.wait(), LIMIT)
    assert gateway.peers == ["spiffe://field.example/hop/pi"]
    last = gateway.notes[-1]
    assert (last["link"], last["up"], last["down"]) == (link_id(data), len(data), len(data))
    assert abs(last["start_ms"] / 1000 - time.time()) < 60


async def test_the_last_note_arrives_when_the_gateway_ends_the_link(gateway: JoiningGateway, home: HopHome) -> None:
    joined = await join(home, gateway.invitation(), gateway.url)

    async def answer_and_close(link: WebSocketLink) -> None:
        await read(link, 100)
        await link.send(b"done")

    gateway.on_tunnel = answer_and_close
    async with Running(home, joined, gateway.url) as running:
        link = await running.connect()
        await link.send(bytes(100))
        assert await read(link, 4) == b"done"
        assert await link.receive() == b""
        await link.close()
        await asyncio.wait_for(gateway.final.wait(), LIMIT)
    assert (gateway.notes[-1]["up"], gateway.notes[-1]["down"]) == (100, 4)


async def test_each_link_has_a_tunnel_of_its_own(gateway: JoiningGateway, home: HopHome) -> None:
    joined = await join(home, gateway.invitation(), gateway.url)
    async with Running(home, joined, gateway.url) as running:
        links = [await running.connect() for _ in range(5)]
        for number, link in enumerate(links):
            await link.send(bytes([number]) * 100)
        for number, link in enumerate(links):
            assert await read(link, 100) == bytes([number]) * 100
        assert len(gateway.tunnels) == 5
        await asyncio.gather(*(link.close() for link in links))


async def test_L9_a_tunnel_that_breaks_ends_its_edge_link_for_good(gateway: JoiningGateway, home: HopHome) -> None:
    joined = await join(home, gateway.invitation(), gateway.url)
    async with Running(home, joined, gateway.url) as running:
        link = await running.connect()
        await link.send(b"hello")
        assert await read(link, 5) == b"hello"
        gateway.tunnels[0]._socket._req.transport.abort()
        assert await link.receive() == b""
        assert len(gateway.tunnels) == 1  # never another tunnel under the same link
        await link.close()
        fresh = await running.connect()
        await fresh.send(b"again")
        assert await read(fresh, 5) == b"again"
        await fresh.close()


async def test_a_gateway_that_is_down_ends_the_link_and_the_hop_goes_on(home: HopHome) -> None:
    ca = Ca()
    first = JoiningGateway(ca)
    async with first.running():
        joined = await join(home, first.invitation(), first.url)
    async with Running(home, joined, first.url) as running:
        for _ in range(3):
            link = await running.connect()
            await link.send(b"x")
            assert await link.receive() == b""
            await link.close()
        assert sum("cannot reach" in line for line in running.lines) == 1  # said once, not for each link
        assert not running.task.done()


async def test_the_next_gateway_takes_over_and_the_dead_one_is_left_alone(home: HopHome) -> None:
    ca = Ca()
    first, second = JoiningGateway(ca), JoiningGateway(ca)
    async with second.running():
        async with first.running():
            joined = await join(home, first.invitation(), first.url)
            running = Running(home, joined, [first.url, second.url])
            await running.__aenter__()
            link = await running.connect()
            await link.send(b"one")
            assert await read(link, 3) == b"one"
            assert running.hop.status()["gateway"] == first.url
        assert await link.receive() == b"", "its link ends with it: no tunnel of another gateway comes under it"
        await link.close()
        assert (len(first.tunnels), len(second.tunnels)) == (1, 0)
        for number in range(3):
            link = await running.connect()
            await link.send(b"two")
            assert await read(link, 3) == b"two"
            await link.close()
            assert len(second.tunnels) == number + 1
        assert running.hop.status()["gateway"] == second.url
        await running.__aexit__()


async def test_renewal_too_finds_the_gateway_that_is_up(home: HopHome) -> None:
    ca = Ca()
    first, second = JoiningGateway(ca), JoiningGateway(ca)
    second._device = None
    async with second.running():
        async with first.running():
            joined = await join(home, first.invitation(), first.url)
        second._device, second.path = first._device, first.path
        old = ca.issue("hop/pi", start=-7200, lifetime=3600)
        expired = HopIdentity(joined.device_key, old, joined.bundle, 1, first.url)
        async with Running(home, expired, [first.url, second.url]) as running:
            link = await running.connect()
            await link.send(b"x")
            assert await read(link, 1) == b"x"
            await link.close()
            assert running.hop.identity.svid.not_after > time.time()
    assert "/v1/renew" in [path for path, _ in second.requests]


async def test_while_every_gateway_rests_a_link_ends_at_once(home: HopHome) -> None:
    async with JoiningGateway(Ca()).running() as gateway:
        joined = await join(home, gateway.invitation(), gateway.url)
    async with Running(home, joined, gateway.url) as running:
        for _ in range(2):
            link = await running.connect()
            await link.send(b"x")
            assert await link.receive() == b""
            await link.close()
        assert any("cannot reach" in line for line in running.lines)
        assert "no gateway has answered of late" in running.hop.status()["last_error"]


async def test_a_refused_svid_is_said_plainly(gateway: JoiningGateway, home: HopHome) -> None:
    joined = await join(home, gateway.invitation(), gateway.url)
    stranger = Ca().issue("hop/pi")
    foreign = HopIdentity(joined.device_key, stranger, joined.bundle, 1, gateway.url)
    async with Running(home, foreign, gateway.url) as running:
        link = await running.connect()
        await link.send(b"x")
        assert await link.receive() == b""
        await link.close()
        assert any("refuses this side's certificate" in line for line in running.lines), running.lines
    assert gateway.tunnels == []


async def test_an_svid_that_has_run_out_is_renewed_by_the_device_key(gateway: JoiningGateway, home: HopHome) -> None:
    joined = await join(home, gateway.invitation(), gateway.url)
    old = gateway.ca.issue("hop/pi", start=-7200, lifetime=3600)
    expired = HopIdentity(joined.device_key, old, joined.bundle, 1, gateway.url)
    async with Running(home, expired, gateway.url) as running:
        link = await running.connect()
        await link.send(b"x")
        assert await read(link, 1) == b"x"
        await link.close()
        assert running.hop.identity.svid.not_after > time.time()
    assert [path for path, _ in gateway.requests] == ["/v1/join", "/v1/renew"]


async def test_a_stranger_who_says_nothing_gives_up_the_place(gateway: JoiningGateway, home: HopHome) -> None:
    joined = await join(home, gateway.invitation(), gateway.url)
    async with Running(home, joined, gateway.url, first_s=0.05) as running:
        silent = await running.connect()
        assert await silent.receive() == b""
        assert gateway.tunnels == []
        await silent.close()


async def test_limits_on_links_and_bytes(gateway: JoiningGateway, home: HopHome) -> None:
    joined = await join(home, gateway.invitation(), gateway.url)
    async with Running(home, joined, gateway.url, max_links=2, pipe=PipeLimits(max_bytes=1000)) as running:
        held = [await running.connect() for _ in range(2)]
        for link in held:
            await link.send(b"x")
            assert await read(link, 1) == b"x"
        third = await running.connect()
        assert await third.receive() == b""
        assert any("2 links are taken" in line for line in running.lines)
        await held[0].send(bytes(2000))
        async with asyncio.timeout(LIMIT):
            with pytest.raises(LinkLost):  # which is no end of the data
                while await held[0].receive():
                    pass
        await asyncio.gather(*(link.close() for link in (third, *held)))


async def test_one_address_does_not_take_every_link(gateway: JoiningGateway, home: HopHome) -> None:
    joined = await join(home, gateway.invitation(), gateway.url)
    async with Running(home, joined, gateway.url, max_links=8) as running:
        strangers = [await dial(running, "127.0.0.1") for _ in range(7)]
        gone = [asyncio.ensure_future(reader.read()) for reader, _ in strangers]
        while sum(one.done() for one in gone) < 3:  # noqa: ASYNC110 - the fixture's time-out is the limit
            await asyncio.sleep(0)
        assert any("taken by 127.0.0.1" in line for line in running.lines)
        told = running.hop.status()["last_error"]
        assert "turned away" in told and "127.0.0.1" not in told, "the status names nobody"
        reader, writer = await dial(running, "127.0.0.2")
        writer.write(b"hello")
        assert await reader.readexactly(5) == b"hello"
        assert sum(one.done() for one in gone) == 3
        for _, one in (*strangers, (reader, writer)):
            one.close()
        await asyncio.gather(*gone)


async def test_a_socket_stands_for_many_edges(gateway: JoiningGateway, home: HopHome, tmp_path: Path) -> None:
    joined = await join(home, gateway.invitation(), gateway.url)
    async with Running(home, joined, gateway.url, f"unix:{tmp_path / 's'}", max_links=8) as running:
        held = [await running.connect() for _ in range(6)]
        for link in held:
            await link.send(b"x")
            assert await read(link, 1) == b"x"
        seventh = await running.connect()
        assert await seventh.receive() == b""
        await asyncio.gather(*(link.close() for link in (seventh, *held)))


async def test_stopping_ends_what_runs_and_frees_the_address(gateway: JoiningGateway, home: HopHome) -> None:
    joined = await join(home, gateway.invitation(), gateway.url)
    async with Running(home, joined, gateway.url) as running:
        link = await running.connect()
        await link.send(bytes(64))
        await read(link, 64)
    assert await link.receive() == b""
    await link.close()
    with pytest.raises(LinkLost):
        await connect(running.endpoint, timeout_s=2)
    async with Running(home, joined, gateway.url, str(running.endpoint)):
        pass

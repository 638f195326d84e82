"""Multicast DNS on loopback: a hop is found, goes away, and whoever answers wins little."""

import asyncio
import errno
import ipaddress
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from zeroconf import DNSOutgoing, DNSPointer, ServiceInfo
from zeroconf.asyncio import AsyncZeroconf

from relay.hop.identity import HopHome, join
from store.keys import Passphrase
from tests.support.ca import Ca
from tests.support.joining_gateway import JoiningGateway
from tests.support.running_hop import Running, read
from transport.errors import BadInput, LinkLost
from transport.links.base import Endpoint
from transport.links.discovery import HOPS_MAX, NAMES_MAX, SERVICE, Announcement, find, own_addresses, take

LOOPBACK = ["127.0.0.1"]


@pytest.fixture(autouse=True)
async def bounded() -> AsyncIterator[None]:
    async with asyncio.timeout(30):
        yield


@asynccontextmanager
async def answering(answers: list[ServiceInfo]) -> AsyncIterator[None]:
    """A responder that says whatever it is told to, and does not ask first."""
    zeroconf = AsyncZeroconf(interfaces=LOOPBACK)
    said = [zeroconf.async_register_service(info, cooperating_responders=True) for info in answers]
    await asyncio.gather(*await asyncio.gather(*said))
    try:
        yield
    finally:
        await zeroconf.async_close()


def answer(address: str, port: int, name: str = "") -> ServiceInfo:
    name = name or secrets.token_hex(4)
    return ServiceInfo(SERVICE, f"{name}.{SERVICE}", port=port, server=f"{secrets.token_hex(4)}.local.",
                       parsed_addresses=[address])


async def until_found(endpoint: Endpoint | None = None) -> list[Endpoint]:
    """What `find` says, asked again until `endpoint` or anything is there: one second is short on a busy machine."""
    async with asyncio.timeout(60):
        while True:
            found = await find(interfaces=LOOPBACK)
            if endpoint in found or (endpoint is None and found):
                return found


async def test_a_hop_is_found_while_it_announces_itself_and_says_nothing_of_itself() -> None:
    announcement = Announcement(7443, LOOPBACK)
    await announcement.start()
    (info,) = announcement._zeroconf.zeroconf.registry.async_get_service_infos()
    await until_found(Endpoint.parse("tcp:127.0.0.1:7443"))
    name = info.name.removesuffix("." + SERVICE)
    assert len(name) == 8 and info.server == f"{name}.local." and not info.properties
    await announcement.close()
    assert Endpoint.parse("tcp:127.0.0.1:7443") not in await find(interfaces=LOOPBACK)


async def test_a_hop_that_announces_itself_is_found_and_carries_bytes(tmp_path: Path) -> None:
    async with JoiningGateway(Ca()).running() as gateway:
        home = HopHome(tmp_path / "hop", Passphrase("correct horse"))
        joined = await join(home, gateway.invitation(), gateway.url)
        async with Running(home, joined, gateway.url, announce=True) as running:
            await until_found(running.endpoint)
            link = await running.connect()
            await link.send(b"hello")
            assert await read(link, 5) == b"hello"
            await link.close()
        assert running.endpoint not in await find(interfaces=LOOPBACK)


async def test_a_crowd_of_answers_is_cut_short() -> None:
    async with answering([answer(f"10.0.{number}.1", 1 + number) for number in range(NAMES_MAX + 10)]):
        assert len(await until_found()) <= HOPS_MAX


async def test_answers_that_lead_out_into_the_world_are_not_taken() -> None:
    async with answering([answer("8.8.8.8", 53), answer("10.0.0.77", 0), answer("10.0.0.78", 7443, "red $(é)")]):
        found = await until_found(Endpoint.parse("tcp:10.0.0.78:7443"))  # a strange name hides no address
    assert {one.host_port()[0] for one in found}.isdisjoint({"8.8.8.8", "10.0.0.77"})


async def test_names_that_are_none_end_no_search() -> None:
    zeroconf = AsyncZeroconf(interfaces=LOOPBACK)

    async def shout() -> None:
        while True:
            for label in ("\x1b[31m", "a.b.c", "\x00"):
                out = DNSOutgoing(0x8400)  # a response, and authoritative
                out.add_answer_at_time(DNSPointer(SERVICE, 12, 1, 120, f"{label}.{SERVICE}"), 0)
                zeroconf.zeroconf.async_send(out)
            await asyncio.sleep(0.05)

    announcement = Announcement(7444, LOOPBACK)
    await announcement.start()
    shouting = asyncio.create_task(shout())
    await until_found(Endpoint.parse("tcp:127.0.0.1:7444"))
    shouting.cancel()
    await announcement.close()
    await zeroconf.async_close()


async def test_names_that_nobody_resolves_hold_up_no_other() -> None:
    zeroconf = AsyncZeroconf(interfaces=LOOPBACK)

    async def shout() -> None:
        while True:
            out = DNSOutgoing(0x8400)
            for number in range(8):
                out.add_answer_at_time(DNSPointer(SERVICE, 12, 1, 120, f"nobody{number}.{SERVICE}"), 0)
            zeroconf.zeroconf.async_send(out)
            await asyncio.sleep(0.005)

    announcement = Announcement(7445, LOOPBACK)
    await announcement.start()
    shouting = asyncio.create_task(shout())
    await until_found(Endpoint.parse("tcp:127.0.0.1:7445"))
    shouting.cancel()
    await announcement.close()
    await zeroconf.async_close()


async def test_without_an_interface_nobody_is_found_and_nothing_announced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ifaddr.get_adapters", lambda *_, **__: [])
    assert await find() == []

    def without(**_: object) -> None:
        raise RuntimeError("No adapter found")  # as the library says it of an address of IPv6

    monkeypatch.setattr("zeroconf.asyncio.AsyncZeroconf", without)
    with pytest.raises(LinkLost):
        await Announcement(7443, ["fd00::7"]).start()


async def test_an_announcement_that_fails_leaves_nothing_open(monkeypatch: pytest.MonkeyPatch) -> None:
    closed: list[AsyncZeroconf] = []
    close = AsyncZeroconf.async_close

    async def told(self: AsyncZeroconf) -> None:
        closed.append(self)
        await close(self)

    async def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.ENETUNREACH, "")

    monkeypatch.setattr(AsyncZeroconf, "async_close", told)
    monkeypatch.setattr(AsyncZeroconf, "async_register_service", refuse)
    announcement = Announcement(7443, LOOPBACK)
    with pytest.raises(LinkLost):
        await announcement.start()
    assert closed == [announcement._zeroconf]


async def test_without_a_network_nobody_is_found_and_nothing_announced(monkeypatch: pytest.MonkeyPatch) -> None:
    def nowhere(**_: object) -> None:
        raise OSError(errno.ENETUNREACH, "")

    monkeypatch.setattr("zeroconf.asyncio.AsyncZeroconf", nowhere)
    assert await find() == []
    with pytest.raises(LinkLost):
        await Announcement(7443, LOOPBACK).start()


@pytest.mark.parametrize(("addresses", "port", "expected"), [
    (["10.0.0.1", "10.0.0.2"], 7443, ["tcp:10.0.0.1:7443"]), (["8.8.8.8", "192.168.1.9"], 1, ["tcp:192.168.1.9:1"]),
    (["fe80::1%3", "fd00::1"], 2, ["tcp:[fd00::1]:2"]), (["0.0.0.0"], 2, []), (["2001:4860:4860::8888"], 2, []),
    (["10.0.0.1"], None, []), ([], 7443, []), (["127.0.0.1"], 11434, []), (["::1"], 22, []),
    (["255.255.255.255"], 9, []),
    (["2001::1"], 9, []), (["240.0.0.1", "172.31.0.1"], 9, ["tcp:172.31.0.1:9"]), (["::ffff:10.0.0.1"], 9, []),
    (["0.0.0.1"], 9, []), (["192.0.2.1"], 9, []), (["169.254.1.1"], 5, ["tcp:169.254.1.1:5"]),
])
def test_what_is_taken_of_one_answer(addresses: list[str], port: int | None, expected: list[str]) -> None:
    found: list[Endpoint] = []
    take(found, addresses, port)
    take(found, addresses, port)
    assert [str(one) for one in found] == expected
    assert all(Endpoint.parse(str(one)) == one for one in found)


def test_the_addresses_that_a_listener_is_found_under() -> None:
    assert own_addresses("10.1.2.3") == ["10.1.2.3"]
    assert not any(ipaddress.ip_address(one).is_loopback for one in own_addresses("0.0.0.0"))
    with pytest.raises(BadInput):
        own_addresses("localhost")

"""What an edge makes of revocation: its own, told by the gateway, and a gateway's, told by the signed list."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from edge_client.identity import DeviceIdentity
from tests.support.edge_lab import Edge, edge_lab, read, until
from transport.errors import IdentityRefused, PeerRefused
from transport.identity.revocation import sign_list
from transport.identity.svid import load_certificate


@pytest.fixture
async def edge(tmp_path: Path) -> AsyncIterator[Edge]:
    async with edge_lab(tmp_path) as edge:
        await edge.join()
        yield edge


def signed(edge: Edge, sequence: int, serials: tuple[int, ...]) -> bytes:
    ca = edge.gateway.ca
    return sign_list(ca.issue("authority/revocation"), sequence, (7,), serials, now=ca.now).data


async def held(edge: Edge) -> DeviceIdentity:
    identity = await DeviceIdentity.load(edge.settings)
    assert identity is not None
    return identity


def intermediate(edge: Edge) -> int:
    return load_certificate(edge.gateway.ca.intermediates[0]).serial_number


async def test_a_reader_is_told_that_its_device_was_revoked_and_nothing_is_tried_again(edge: Edge) -> None:
    began = asyncio.Event()

    async def endless(call: object) -> None:
        await call.begin()  # type: ignore[attr-defined]
        await call.write(b"so far")  # type: ignore[attr-defined]
        began.set()
        await asyncio.Event().wait()

    edge.gateway.handle = endless
    answer = await edge.request()
    reading = asyncio.create_task(read(answer))
    await began.wait()
    dials = edge.gateway.dials
    await edge.gateway.sessions[-1].close("revoked")
    with pytest.raises(PeerRefused) as told:
        await reading
    assert (told.value.reason, told.value.fault) == ("revoked", "policy")
    assert edge.gateway.dials == dials, "it does not come back by itself"
    assert [state for state, *_ in await edge.states()] == ["interrupted"]


async def test_a_device_that_the_gateway_does_not_know_renews_once_and_goes_on(edge: Edge) -> None:
    """As after a restore of the gateway, or when it was reinstated."""
    before = (await held(edge)).svid.chain
    edge.gateway.unknown_svids = True
    assert await edge.ask() == b"hello"
    assert (await held(edge)).svid.chain != before
    assert edge.gateway.dials == 1 + 3, "to join; then a session, the renewal, a session"
    assert len(edge.gateway.called) == 1


async def test_a_revoked_gateway_is_refused_from_the_next_handshake_on(edge: Edge) -> None:
    edge.gateway.revocations = signed(edge, 5, (intermediate(edge),))
    await edge.ask()
    assert edge.gateway.held == [0]
    await until(lambda: not edge.client._sessions._closing)
    assert (await held(edge)).revoked.sequence == 5
    await edge.gateway.cut()
    called = len(edge.gateway.called)
    with pytest.raises(IdentityRefused) as refused:
        await edge.ask()
    assert refused.value.rule == "revoked", "no ticket leads around it"
    assert len(edge.gateway.called) == called


async def test_the_list_is_kept_by_this_edge_over_restarts(edge: Edge) -> None:
    edge.gateway.revocations = signed(edge, 5, ())
    await edge.ask()
    await until(lambda: not edge.client._sessions._closing)
    await edge.client.close()
    edge.start()
    await edge.ask()
    assert edge.gateway.held == [0, 5]


@pytest.mark.parametrize("what", ["older", "forged", "cut short"])
async def test_M16_an_edge_keeps_its_list_whatever_else_comes(edge: Edge, what: str) -> None:
    edge.gateway.revocations = signed(edge, 5, (99,))
    await edge.ask()
    await until(lambda: not edge.client._sessions._closing)
    good = edge.gateway.revocations
    edge.gateway.revocations = {
        "older": signed(edge, 4, ()), "forged": good[:-1] + bytes([good[-1] ^ 1]), "cut short": good[:-1],
    }[what]
    await edge.client.close()
    edge.start()
    assert await edge.ask() == b"hello", "nor does it stop working"
    await until(lambda: not edge.client._sessions._closing)
    assert (await held(edge)).revoked.serials == {99}



"""Sessions' places: no hop, no address and no device may take those of others."""

import asyncio
import contextlib
import shutil
import time
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from relay.gateway.audit.refusals import PER_MINUTE
from relay.gateway.sessions import SessionLimits
from tests.support.connection_pair import make_pair
from tests.support.gateway_lab import DOMAIN, Clock
from tests.support.memory_link import MemoryLink
from tests.support.session_lab import Lab, gateway
from transport.edge_session import EdgeSession
from transport.errors import LinkLost, Overloaded, TransportError
from transport.handshake import ResponderHandshake
from transport.identity.svid import Svid
from transport.initiator import Resumption, SvidLogin
from transport.links import virtual_time
from transport.messages import RequestHeader, encode_header
from transport.primitives import random_bytes

LIMITS = SessionLimits(sessions=20, handshakes=8, per_device=2)
OVERLOADED = b"\0\2"
FIRST_FRAME = make_pair().edge.data_to_send(0.0)  # of somebody who means to go no further
HOP, OTHER = f"spiffe://{DOMAIN}/hop/a", f"spiffe://{DOMAIN}/hop/b"


@pytest.fixture
async def lab(made: Path, tmp_path: Path) -> AsyncIterator[Lab]:
    directory = tmp_path / "gateway"
    shutil.copytree(made, directory)
    async with asyncio.timeout(60), gateway(directory, limits=LIMITS) as lab:
        yield lab


@pytest.mark.parametrize(("first", "second"), [
    ({"via": HOP}, {"via": OTHER}),
    ({"peer": "tcp:192.0.2.1:1"}, {"peer": "tcp:192.0.2.2:1"}),
    ({"peer": "tcp:2001:db8::1:1"}, {"peer": "tcp:2001:db8:0:1::1:1"}),
    ({"via": HOP}, {"peer": "tcp:192.0.2.1:1"}),
])
async def test_H15_one_source_s_strangers_do_not_keep_out_others(
    lab: Lab, first: dict[str, str], second: dict[str, str]
) -> None:
    svid = await lab.device("lap-1")
    silent = [lab.link(**first) for _ in range(LIMITS.handshakes_per_source)]
    assert await lab.link(**first).receive() == OVERLOADED
    session = await lab.session(svid, **second)
    await session.close()
    await silent[0].close()
    while lab.sessions._handshaking.taken >= len(silent):  # noqa: ASYNC110 - the fixture's time-out is the limit
        await asyncio.sleep(0)
    await (await lab.session(svid, **first)).close()  # a place that is left is free again


@pytest.mark.parametrize(("flooding", "other"), [
    ({"peer": "tcp:192.0.2.1:1"}, {"peer": "tcp:192.0.2.2:1"}),
    ({"via": HOP}, {"via": OTHER}),
    ({"via": HOP}, {"peer": "tcp:192.0.2.1:1"}),
])
async def test_H15_a_flood_of_one_source_leaves_others_and_those_who_resume_served(
    made: Path, tmp_path: Path, flooding: dict[str, str], other: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Handshakes one after the other, so that none waits for a place; time stands still, and then moves."""
    directory, clock = tmp_path / "gateway", Clock(0.0)
    shutil.copytree(made, directory)
    limits = SessionLimits(sessions=20, handshakes=8, per_device=9, full_per_second=20)
    async with asyncio.timeout(60), gateway(directory, limits=limits, ticking=clock) as lab:
        svid = await lab.device("lap-1")
        known = await lab.session(svid, **flooding)
        worked: list[bytes] = []
        real = ResponderHandshake.read_first

        def counting(handshake: ResponderHandshake, body: bytes, leaf: bytes) -> bytes:
            worked.append(body)
            return real(handshake, body, leaf)

        monkeypatch.setattr(ResponderHandshake, "read_first", counting)
        answer = b""
        while answer != OVERLOADED:
            link = lab.link(**flooding)
            await link.send(FIRST_FRAME)
            answer = await link.receive()
            await link.close()
            while lab.sessions._handshaking.taken:  # noqa: ASYNC110
                await asyncio.sleep(0)
        burst = 15 if "via" in flooding else 3
        assert len(worked) == burst - 1, "the known one was of it, too"
        with pytest.raises(Overloaded):  # what an edge makes of it
            await lab.session(svid, **flooding)
        assert len(worked) == burst - 1, "for who is turned away nothing was computed"
        for where in (flooding, other):
            assert (await lab.session(svid, known.tickets.pop(), **where)).alive
        assert (await lab.session(svid, **other)).alive
        clock.now = 1.0
        assert (await lab.session(svid, **flooding)).alive


async def test_H15_tickets_are_taken_so_often_a_second_too(made: Path, tmp_path: Path) -> None:
    directory, clock = tmp_path / "gateway", Clock(0.0)
    shutil.copytree(made, directory)
    limits = SessionLimits(sessions=20, handshakes=8, per_device=9, full_per_second=2)
    async with asyncio.timeout(60), gateway(directory, limits=limits, ticking=clock) as lab:
        svid = await lab.device("lap-1")
        session = await lab.session(svid)
        for _ in range(2):
            session = await lab.session(svid, session.tickets.pop())
        ticket = session.tickets.pop()
        with pytest.raises(Overloaded):
            await lab.session(svid, ticket)
        clock.now = 2.0
        assert (await lab.session(svid, ticket)).alive, "turned away, it was not consumed"


def test_H15_ten_thousand_half_open_handshakes_and_those_who_work(made: Path, tmp_path: Path) -> None:
    """A thousand strangers a second, each from an address of its own, begin a handshake and leave it at that; edges
    that come through a hop work on, by full handshakes and by tickets, none turned away once. In virtual time.
    """
    directory = tmp_path / "gateway"
    shutil.copytree(made, directory)

    async def stranger(lab: Lab, number: int, answers: Counter[bytes]) -> None:
        link = lab.link(peer=f"tcp:10.{number >> 16}.{number >> 8 & 255}.{number & 255}:9")
        with contextlib.suppress(LinkLost):
            await link.send(FIRST_FRAME if number % 2 else FIRST_FRAME[:1])  # some begin no handshake at all
            answers[(await link.receive())[:2]] += 1

    async def main() -> Counter[bytes]:
        answers: Counter[bytes] = Counter()
        ticking = asyncio.get_running_loop().time
        limits = SessionLimits()
        async with gateway(
            directory, limits=limits, ticking=ticking, clock=virtual_time.wall
        ) as lab:
            svid = await lab.device("lap-1")
            strangers = set()
            for second in range(10):
                for number in range(1_000):
                    strangers.add(asyncio.create_task(stranger(lab, second * 1_000 + number, answers)))
                await asyncio.sleep(0.5)
                assert lab.sessions._handshaking.taken >= limits.direct_handshakes, "the flood is on"
                link = lab.link(via=HOP)
                session = await _virtually(lab, link, SvidLogin(svid.chain, svid.not_after), svid).open()
                resumed = await _virtually(lab, lab.link(via=HOP), Resumption(session.tickets[0]), svid).open()
                for one in (session, resumed):
                    header = encode_header(RequestHeader("GET", "/v1/models", "", "", 0, int(virtual_time.wall()) + 60))
                    answer = await one.request(random_bytes(16), header, b"").started()
                    assert b"small" in b"".join([part async for part in answer])
                    await one.close()
                await asyncio.sleep(0.5)
            await asyncio.sleep(60)
            assert lab.sessions._handshaking.taken == 0, "and nothing is left of it"
            await asyncio.wait(strangers)
        return answers

    answers = virtual_time.run(main(), start=time.time())
    assert answers.total() == 10_000 and answers[OVERLOADED] > 9_000


def _virtually(lab: Lab, link: MemoryLink, purpose: SvidLogin | Resumption, svid: Svid) -> EdgeSession:
    return EdgeSession(link, purpose, svid.key, lab.check_gateway, clock=virtual_time.wall)


async def test_M22_a_device_s_newest_sessions_win(lab: Lab) -> None:
    svid, other = await lab.device("lap-1"), await lab.device("lap-2")
    theirs = await lab.session(other)
    sessions = [await lab.session(svid) for _ in range(LIMITS.per_device + 2)]
    while any(session.alive for session in sessions[:2]):  # noqa: ASYNC110
        await asyncio.sleep(0)
    assert all(session.alive for session in (theirs, *sessions[2:]))
    displaced = lab.audit("session.displaced")
    assert [line["link"] for line in displaced] == [session.link_id for session in sessions[:2]]
    assert {line["id"] for line in displaced} == {f"spiffe://{DOMAIN}/edge/lap-1"}
    for session in (theirs, *sessions):
        await session.close()
    while lab.sessions._of_device:  # noqa: ASYNC110
        await asyncio.sleep(0)


async def test_one_device_does_not_take_every_session(lab: Lab) -> None:
    greedy, other = await lab.device("greedy"), await lab.device("other")
    opened = [await lab.session(greedy) for _ in range(LIMITS.sessions + 5)]
    session = await lab.session(other)
    assert session.alive
    for one in (session, *opened):
        await one.close()


async def test_a_device_that_has_ended_leaves_few_records(lab: Lab) -> None:
    old = await lab.device("lap-1")
    await lab.device("lap-1")
    for _ in range(PER_MINUTE + 5):
        with pytest.raises(TransportError) as refused:
            await lab.session(old)
        assert not isinstance(refused.value, Overloaded)
    assert len(lab.audit("session.refused")) == PER_MINUTE

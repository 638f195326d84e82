"""The wish for a phone: while it lasts a session is kept, over whatever way there is; then no phone is waited for."""

import math
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from edge_client.commands.pair import _Screen
from edge_client.gateway_client import GatewayClient
from edge_client.pairing import LOOK_S, Pairing, keep_up
from edge_client.ways import LinkPicture
from edge_client.while_open import store_is_locked
from tests.support.edge_lab import Edge, edge_lab, until
from transport.errors import (
    BadInput,
    IdentityRefused,
    LinkLost,
    LostReason,
    PeerRefused,
    StreamEnded,
    TransportError,
)
from transport.links.base import Endpoint, Link

TCP, PHONE = Endpoint.parse("tcp:127.0.0.1:1"), Endpoint.parse("phone:")


@dataclass
class Lab:
    """`dialled` is what was tried, `there` what answers. The store is open unless it is `locked`."""

    edge: Edge
    dialled: list[Endpoint] = field(default_factory=list)
    there: set[Endpoint] = field(default_factory=lambda: {PHONE})
    told: list[str] = field(default_factory=list)
    locked: bool = False
    client: GatewayClient = field(init=False)
    pairing: Pairing = field(init=False)

    def __post_init__(self) -> None:
        edge = self.edge
        self.pairing = Pairing(self.way, self.told.append, edge.clock)
        self.client = GatewayClient(
            edge.settings, edge.outbox, [TCP], edge.tracing, self.dial, clock=edge.clock, find=self.find
        )
        edge.clients.append(self.client)

    async def dial(self, endpoint: Endpoint) -> Link:
        self.dialled.append(endpoint)
        if endpoint not in self.there:
            raise LinkLost(f"nobody is at {endpoint}")
        return await self.edge.gateway.dial(endpoint)

    async def find(self) -> Sequence[Endpoint]:
        return self.pairing.endpoints

    async def way(self) -> GatewayClient | None:
        if self.locked:
            raise store_is_locked()
        return self.client

    @property
    def state(self) -> tuple[str, str]:
        picture = self.client.picture()
        return picture.state, picture.endpoint


@pytest.fixture
async def lab(tmp_path: Path) -> AsyncIterator[Lab]:
    async with edge_lab(tmp_path) as edge:
        await edge.join()
        made = Lab(edge)
        yield made
        made.pairing.end()
        await made.pairing.ended()


async def test_while_it_lasts_a_session_is_kept_and_a_phone_is_the_last_resort(lab: Lab) -> None:
    assert lab.pairing.until == 0.0
    lab.pairing.begin(None)
    assert lab.pairing.until == math.inf
    await until(lambda: lab.state == ("up", "phone:"))
    assert lab.dialled == [TCP, PHONE]
    await lab.edge.gateway.cut()
    await until(lambda: len(lab.dialled) > 2 and lab.state == ("up", "phone:"))
    up = "a session stands via spiffe://field.example/hop/h"
    assert lab.told == [up, "the session has ended", up]
    lab.there = {TCP}
    await lab.edge.gateway.cut()
    await until(lambda: lab.state == ("up", "tcp:127.0.0.1:1"))


async def test_when_it_is_over_no_phone_is_waited_for(lab: Lab) -> None:
    lab.pairing.begin(None)
    await until(lambda: lab.state == ("up", "phone:"))
    lab.pairing.end()
    await lab.pairing.ended()
    assert (lab.pairing.until, lab.state) == (0.0, ("up", "phone:")), "what stands goes on"
    await lab.edge.gateway.cut()
    lab.dialled.clear()
    with pytest.raises(LinkLost):
        await lab.client.reach()
    assert lab.dialled == [TCP]
    assert [way.endpoint for way in lab.client.picture().ways] == [str(TCP)]


async def test_it_lasts_for_a_time(lab: Lab) -> None:
    lab.pairing.begin(0.0, "van 3")
    assert lab.pairing.endpoints == (Endpoint.parse("phone:van 3"),) and lab.pairing.until > 0
    await lab.pairing.ended()
    assert (lab.pairing.until, lab.pairing.endpoints) == (0.0, ())


async def test_it_rests_while_the_store_is_locked(lab: Lab) -> None:
    lab.locked = True
    lab.pairing.begin(None)
    await until(lambda: lab.edge.clock.pauses.count(LOOK_S) > 2)
    assert lab.dialled == []
    lab.locked = False
    await until(lambda: lab.state == ("up", "phone:"))
    lab.locked = True
    await lab.client.close()
    before = lab.edge.clock.pauses.count(LOOK_S)
    await until(lambda: lab.edge.clock.pauses.count(LOOK_S) > before)


async def test_a_new_wish_takes_the_place_of_the_old_one(lab: Lab) -> None:
    lab.there.clear()
    lab.pairing.begin(None, "one")
    await until(lambda: Endpoint.parse("phone:one") in lab.dialled)
    with pytest.raises(BadInput):
        lab.pairing.begin(None, "no/name")
    assert lab.pairing.until == math.inf, "a name that cannot be changes nothing"
    lab.pairing.begin(60.0, "two")
    await until(lambda: Endpoint.parse("phone:two") in lab.dialled)
    lab.dialled.clear()
    await until(lambda: len(lab.dialled) > 5)
    assert set(lab.dialled) == {TCP, Endpoint.parse("phone:two")}
    assert 0 < lab.pairing.until < math.inf


async def test_failures_are_told_once_and_come_ever_more_slowly(lab: Lab) -> None:
    lab.there.clear()
    lab.pairing.begin(None)
    await until(lambda: len(lab.edge.clock.pauses) > 40)
    assert lab.told == ["nobody is at tcp:127.0.0.1:1; tried again until a phone is there"]
    assert max(lab.edge.clock.pauses[30:]) > 5


async def test_who_waited_for_somebody_does_not_pause_behind_it(lab: Lab) -> None:
    class Patient:
        """Each attempt takes as long as waiting for a phone does."""

        async def reach(self) -> str:
            lab.edge.clock.ahead += 30
            raise LinkLost("no phone has come", reason="out_of_range")

    class Heard:
        def __init__(self) -> None:
            self.times = 0

        def up(self, picture: LinkPicture) -> None:
            raise AssertionError

        down = up  # type: ignore[assignment]

        def failed(self, error: TransportError) -> None:
            self.times += 1
            if self.times > 20:
                raise StreamEnded("enough")

    with pytest.raises(StreamEnded):
        await keep_up(Patient(), Heard(), lab.edge.clock)  # type: ignore[arg-type]
    assert max(lab.edge.clock.pauses) <= 0.2


def lost(reason: LostReason) -> LinkLost:
    return LinkLost("something", reason=reason)


@pytest.mark.parametrize(("error", "before", "after"), [
    (lost("unavailable"), True, False), (lost("refused"), True, False), (lost("out_of_range"), False, False),
    (lost("lost"), False, False), (BadInput("no"), True, True), (PeerRefused("no", reason="refused"), True, True),
    (IdentityRefused("no", rule="chain"), True, True),
])
def test_in_front_it_ends_where_waiting_does_not_help(error: TransportError, before: bool, after: bool) -> None:
    screen = _Screen(as_json=True)
    for ends in (before, after):
        if ends:
            with pytest.raises(type(error)):
                screen.failed(error)
        else:
            screen.failed(error)
        screen.up(LinkPicture("up", "", "phone:", 0.1, 0, 0, []))

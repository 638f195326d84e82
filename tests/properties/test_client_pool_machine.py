"""The pool of connections to a provider, against everything that callers, the provider and time can do to it."""

import asyncio
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from relay.gateway.errors import ProviderFailure
from relay.gateway.upstream.base import Timeouts
from relay.gateway.upstream.client import Client
from relay.gateway.upstream.connection import Limits, Response
from tests.support.scripted_http import Peer, Scripted
from transport.links.virtual_time import VirtualTimeLoop

PLACES = 3
KINDS = {"provider_garbled", "provider_timeout", "provider_unreachable"}


class Machine(RuleBasedStateMachine):
    """Each request names itself by a number, and each answer repeats it: whoever gets another's finds out."""

    def __init__(self) -> None:
        super().__init__()
        self.loop = VirtualTimeLoop()
        self.begun: dict[int, asyncio.Task[Response]] = {}  # waits for its answer's head
        self.reading: dict[int, Response] = {}
        self.heard: list[tuple[Peer, int]] = []  # requests at the provider, unanswered
        self.headed: list[tuple[Peer, int]] = []  # half answered
        self.arrived: list[int] = []
        self.count = 0
        self.server, self.client = self.does(self.made())

    async def made(self) -> tuple[Scripted, Client]:
        server = await Scripted(answer=self.asked).__aenter__()
        return server, Client(server.url, Timeouts(20.0, 30.0, 25.0), limits=Limits(connections=PLACES, keep_s=10.0))

    def does(self, work: Any) -> Any:
        """Then lets everything come to rest, at the same time of the clock."""
        result = self.loop.run_until_complete(work)
        self.loop.run_until_complete(self.settled())
        return result

    async def settled(self) -> None:
        for _ in range(12):
            await asyncio.sleep(0)
        for number, task in list(self.begun.items()):
            if task.done():
                del self.begun[number]
                if task.cancelled():
                    continue
                if (failure := task.exception()) is None:
                    self.reading[number] = task.result()
                else:
                    assert isinstance(failure, ProviderFailure) and failure.kind in KINDS
                    assert not (failure.again and number in self.arrived)  # "not accepted" was true

    def asked(self, peer: Peer) -> None:
        number = int(peer.asked[-1].split(b" ")[1].rpartition(b"/")[2])
        assert number not in self.arrived  # nothing is ever sent twice
        self.arrived.append(number)
        self.heard.append((peer, number))

    # --- callers ---

    @rule()
    def ask(self) -> None:
        async def begin() -> None:
            self.count += 1
            self.begun[self.count] = asyncio.create_task(self.client.request("POST", f"/{self.count}", {}, b"x"))

        self.does(begin())

    @precondition(lambda self: self.begun)
    @rule(data=st.data())
    def give_up(self, data: st.DataObject) -> None:
        self.begun[data.draw(st.sampled_from(sorted(self.begun)))].cancel()
        self.does(asyncio.sleep(0))

    @precondition(lambda self: self.reading)
    @rule(data=st.data(), to_the_end=st.booleans())
    def read(self, data: st.DataObject, to_the_end: bool) -> None:
        number = data.draw(st.sampled_from(sorted(self.reading)))
        response = self.reading.pop(number)

        async def reads() -> None:
            parts = b""
            try:
                while to_the_end and (piece := await response.chunk()):
                    parts += piece
                assert parts == (b"answer %06d" % number if to_the_end else b"")
            except ProviderFailure as failure:
                assert failure.kind in KINDS and not failure.again
            finally:
                response.close()

        self.does(reads())

    # --- the provider ---

    @precondition(lambda self: self.heard)
    @rule(data=st.data(), how=st.sampled_from(["whole", "chunked", "half", "closing", "more", "end", "reset"]))
    def answer(self, data: st.DataObject, how: str) -> None:
        peer, number = self.heard.pop(data.draw(st.integers(0, len(self.heard) - 1)))
        body = b"answer %06d" % number
        head = b"HTTP/1.1 200 OK\r\nContent-Length: 13\r\n"
        peer.busy = how == "half"
        if how == "chunked":
            peer.say(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nd\r\n" + body + b"\r\n0\r\n\r\n")
        elif how == "half":
            peer.say(head + b"\r\n" + body[:5])
            self.headed.append((peer, number))
        elif how in ("end", "reset"):
            peer.transport.close() if how == "end" else peer.reset()
        else:
            peer.say(head + {"closing": b"Connection: close\r\n"}.get(how, b"") + b"\r\n" + body)
            if how == "more":
                peer.say(b"HTTP/1.1 200 OK\r\nContent-Length: 13\r\n\r\nanswer 999999")
        self.does(asyncio.sleep(0))

    @precondition(lambda self: self.headed)
    @rule(data=st.data())
    def say_the_rest(self, data: st.DataObject) -> None:
        peer, number = self.headed.pop(data.draw(st.integers(0, len(self.headed) - 1)))
        peer.busy = False
        peer.say((b"answer %06d" % number)[5:])
        self.does(asyncio.sleep(0))

    @precondition(lambda self: self.server.open)
    @rule(data=st.data(), how=st.sampled_from(["end", "reset", "unasked"]))
    def spoil(self, data: st.DataObject, how: str) -> None:
        peer = self.server.open[data.draw(st.integers(0, len(self.server.open) - 1))]
        if how == "unasked" and not any(one is peer for one, _ in self.heard + self.headed):
            peer.say(b"HTTP/1.1 200 OK\r\nContent-Length: 13\r\n\r\nanswer 999999")
        elif how == "end":
            peer.transport.close()
        else:
            peer.reset()
        self.does(asyncio.sleep(0))

    # --- time ---

    @rule(seconds=st.sampled_from([0.5, 5.0, 11.0, 26.0]))
    def wait(self, seconds: float) -> None:
        self.does(asyncio.sleep(seconds))

    # --- what is always so ---

    @invariant()
    def places_are_counted(self) -> None:
        client = self.client
        assert len(self.server.open) <= PLACES
        assert client._places == len(client._all) == len(self.server.open)
        assert not client._waiting or (client._places == PLACES and not client._idle)

    @invariant()
    def a_connection_is_used_by_one(self) -> None:
        assert not self.server.mixed
        idle = [one for one in self.client._all if one._response is None]
        assert set(self.client._idle) == set(idle)
        assert all(one.deadline <= self.loop.time() + 10.0 for one in idle)

    @invariant()
    def whoever_came_first_was_first(self) -> None:
        waiting = [number for number in self.begun if number not in self.arrived]
        assert not waiting or min(waiting) > max(self.arrived, default=0)

    def teardown(self) -> None:
        async def ends() -> None:
            for task in self.begun.values():
                task.cancel()
            await asyncio.gather(*self.begun.values(), return_exceptions=True)
            for response in self.reading.values():
                response.close()
            await self.client.close()
            await self.server.__aexit__()

        self.loop.run_until_complete(ends())
        assert (self.client._places, len(self.client._all), len(self.client._idle)) == (0, 0, 0)
        self.loop.close()


def test_the_pool_keeps_its_rules() -> None:
    run_state_machine_as_test(Machine, settings=settings(stateful_step_count=30))

"""An edge that waits for a phone: it advertises until a phone's central begins a pipe, and uses that link.

A phone's browser can only be a central, so here the edge is the peripheral; who speaks first inside the link stays the
same. One phone at a time: a pipe that begins while another is in use, or before the edge asks for one, is held as long
as its phone lets it stand. Anyone in reach can begin one, and say nothing in it. So those who wait take turns, and the
edge can be found until a handshake was completed over a link, not until somebody has begun one.
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Final, Protocol

from transport.errors import BadInput, CloseReason, LinkLost
from transport.links.base import Link, Listener
from transport.links.gatt import Role

OnLink = Callable[[Link], Awaitable[None]]
HELD_MAX: Final = 8  # pipes that wait for their turn, one of each device
WHAT_TO_DO: Final = "open the gateway's page on the phone, near this device, and tap Connect"


class Announcer(Listener, Protocol):
    """A listener that can be found or not."""

    async def advertise(self, on: bool) -> None:
        """Raises LinkLost."""


class Peripheral(Protocol):
    """What a door needs of `gatt_bumble.BumblePeripheral` and `gatt_bluez.BluezPeripheral`."""

    async def listen(self, on_link: OnLink, *, name: str, role: Role) -> Announcer: ...


class PhoneLink:
    """A link that a phone has begun, held until somebody takes it. `beside`: it came that other way."""

    def __init__(self, link: Link, *, beside: bool) -> None:
        self.peer = f"phone:{link.peer.partition(':')[2]}"
        self.beside = beside
        self.over = asyncio.Event()  # nobody has a use for it any more
        self.settled = asyncio.Event()  # it is over, or a handshake was completed over it
        self._link = link
        self.hold()

    async def send(self, data: bytes) -> None:
        await self._link.send(data)

    async def receive(self) -> bytes:
        return await self._link.receive()

    async def close(self, reason: CloseReason = "done") -> None:
        await self._link.close(reason)
        self.end()

    def end(self) -> None:
        self.over.set()
        self.settled.set()

    def hold(self) -> None:
        """It is over when the phone leaves, or has something to say before the edge."""
        self._watch = asyncio.create_task(self._hold())

    async def take(self) -> bool:
        """Whether it still stands; from now on it is the caller's."""
        self._watch.cancel()
        try:
            await asyncio.wait({self._watch})
        except asyncio.CancelledError:
            self.hold()
            raise
        return not self.over.is_set()

    async def _hold(self) -> None:
        with contextlib.suppress(LinkLost):
            await self._link.receive()
        self.end()


class PhoneDoor:
    """Of one radio. `beside` listens for phones in another way while one is waited for, and may be impossible."""

    def __init__(
        self, peripheral: Peripheral, beside: Callable[[OnLink], Awaitable[Listener]] | None = None
    ) -> None:
        self._peripheral, self._beside = peripheral, beside
        self._name = ""
        self._listener: Announcer | None = None
        self._ending: set[asyncio.Task[None]] = set()  # listeners that are being closed
        self._one = asyncio.Lock()  # who waits
        self._arrival = asyncio.Event()
        self._lost = False  # the radio is
        self._open = False  # others can find the edge, or could
        self._other: Listener | None = None  # beside
        self._held: dict[PhoneLink, None] = {}  # who came first is first
        self._phone: PhoneLink | None = None  # the latest that was given out
        self._known = ""  # whose link it was, if a handshake was completed over it

    async def wait(self, name: str, *, timeout_s: float) -> Link:
        """Advertises under `name`, or a generic one, until a phone begins a pipe, and on until `worked` is told of it
        or it ends. At once if a pipe is held; of several, that of the phone that worked last, or the oldest.

        Raises LinkLost: "out_of_range" if none came in time, "limit" if its one link is in use, "unavailable" and
        "refused" as the radio is.
        """
        try:
            async with asyncio.timeout(timeout_s), self._one:
                if self._phone is not None and not self._phone.over.is_set():
                    raise LinkLost("the phone carries another link", reason="limit", hint="it is free when that ends")
                try:
                    self._phone = await self._next(name)
                finally:
                    self._later(self._close_up())
                self._known = ""
                return self._phone
        except TimeoutError:
            raise LinkLost("no phone has come", reason="out_of_range", hint=WHAT_TO_DO) from None

    def worked(self, peer: str) -> None:
        """A handshake was completed over the link to `peer`: nobody else needs to find the edge."""
        if self._phone is not None and self._phone.peer == peer:
            self._known = peer
            self._phone.settled.set()

    def radio_lost(self) -> None:
        """Nobody will come any more."""
        self._lost = True
        self._arrival.set()

    async def close(self) -> None:
        """Who waits learns that nobody will come."""
        self.radio_lost()
        await self._shut()

    async def _shut(self) -> None:
        for phone in filter(None, (self._phone, *self._held)):
            phone.end()
        if self._listener is not None:
            listener, self._listener = self._listener, None
            self._later(listener.close())
        await asyncio.shield(asyncio.gather(*self._ending))

    async def _next(self, name: str) -> PhoneLink:
        """Who is next, from now on the caller's. Only one that has worked is taken without letting others come."""
        await asyncio.shield(asyncio.gather(*self._ending))  # what the last link has left
        while not self._lost:
            self._arrival.clear()
            phone = min(self._held, key=lambda one: one.peer != self._known, default=None)
            if not self._open and (phone is None or phone.peer != self._known):
                await self._let_in(name)
            if phone is not None:
                stands = await phone.take()
                self._held.pop(phone, None)
                if stands:
                    return phone
            else:
                await self._arrival.wait()
        raise LinkLost("the Bluetooth radio is gone", reason="unavailable", hint="plug it in anew")

    async def _let_in(self, name: str) -> None:
        """From now on others can find the edge."""
        listener = await self._listening(name)
        self._open = True
        await listener.advertise(True)
        if self._beside is not None and self._other is None:
            with contextlib.suppress(LinkLost, BadInput):
                self._other = await self._beside(lambda link: self._arrived(link, beside=True))

    async def _close_up(self) -> None:
        """Nobody can find it once the latest link is settled."""
        if self._phone is not None:
            await self._phone.settled.wait()
        if self._open and self._listener is not None:
            with contextlib.suppress(LinkLost):
                await self._listener.advertise(False)
        self._open = False
        await self._end_beside()

    async def _end_beside(self) -> None:
        """What listens there outlives its links."""
        in_use = any(one and one.beside and not one.over.is_set() for one in (self._phone, *self._held))
        if self._other is not None and not self._open and not in_use:
            other, self._other = self._other, None
            await other.close()

    def _later(self, end: Coroutine[Any, Any, None]) -> None:
        """Goes on though nobody waits for it."""
        self._ending.add(task := asyncio.create_task(end))
        task.add_done_callback(self._ending.discard)

    async def _listening(self, name: str) -> Announcer:
        if self._listener is not None and name != self._name:
            await self._shut()
        if self._listener is None:
            self._listener = await self._peripheral.listen(self._arrived, name=name, role="edge")
            self._name = name
        return self._listener

    async def _arrived(self, link: Link, *, beside: bool = False) -> None:
        """A listener's handler: the link is closed when this returns."""
        phone = PhoneLink(link, beside=beside)
        for other in [one for one in self._held if one.peer == phone.peer]:
            other.end()  # it has begun anew
        if sum(not other.over.is_set() for other in self._held) >= HELD_MAX:
            await link.close("limit")
            return
        self._held[phone] = None
        self._arrival.set()
        try:
            await phone.over.wait()
        finally:
            phone.end()
            self._held.pop(phone, None)
            self._later(self._end_beside())

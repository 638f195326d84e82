"""An edge that waits for a phone: it advertises until a phone's central begins a pipe, and uses that link.

A phone's browser can only be a central, so here the edge is the peripheral; who speaks first inside the link stays the
same. One phone at a time. It may begin another pipe as soon as its last one has ended, also before the edge asks for
one: that link is held, as long as the phone lets it stand.
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Final, Protocol

from transport.errors import BadInput, CloseReason, LinkLost
from transport.links.base import Link, Listener
from transport.links.gatt import Role

OnLink = Callable[[Link], Awaitable[None]]
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
        self.beside = beside
        self.over = asyncio.Event()  # nobody has a use for it any more
        self._link = link
        self._watch: asyncio.Task[None] | None = None
        self._taken = False

    @property
    def peer(self) -> str:
        return f"phone:{self._link.peer.partition(':')[2]}"

    @property
    def in_use(self) -> bool:
        return self._taken and not self.over.is_set()

    async def send(self, data: bytes) -> None:
        await self._link.send(data)

    async def receive(self) -> bytes:
        return await self._link.receive()

    async def close(self, reason: CloseReason = "done") -> None:
        await self._link.close(reason)
        self.over.set()

    def hold(self) -> None:
        """It is over when the phone leaves, or has something to say before the edge."""
        self._taken = False
        self._watch = asyncio.create_task(self._hold())

    async def take(self) -> bool:
        """Whether it still stands; from now on it is the caller's."""
        self._taken = True
        if self._watch is not None:
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
        self.over.set()


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
        self._phone: PhoneLink | None = None  # the latest

    async def wait(self, name: str, *, timeout_s: float) -> Link:
        """Advertises under `name`, or a generic one, until a phone begins a pipe; at once if one has already.

        Raises LinkLost: "out_of_range" if none came in time, "limit" if its one link is in use, "unavailable" and
        "refused" as the radio is.
        """
        try:
            async with asyncio.timeout(timeout_s), self._one:
                if self._phone is not None and self._phone.in_use:
                    raise LinkLost("the phone carries another link", reason="limit", hint="it is free when that ends")
                while (phone := self._phone) is None or not await phone.take():
                    if self._phone is not phone:  # another has come in the meantime
                        continue
                    if self._lost:
                        raise LinkLost("the Bluetooth radio is gone", reason="unavailable", hint="plug it in anew")
                    await self._let_in(name)
                return phone
        except TimeoutError:
            raise LinkLost("no phone has come", reason="out_of_range", hint=WHAT_TO_DO) from None

    def radio_lost(self) -> None:
        """Nobody will come any more."""
        self._lost = True
        self._arrival.set()

    async def close(self) -> None:
        """Who waits learns that nobody will come."""
        self.radio_lost()
        await self._shut()

    async def _shut(self) -> None:
        if self._phone is not None:
            self._phone.over.set()
        if self._listener is not None:
            listener, self._listener = self._listener, None
            self._later(listener.close())
        await asyncio.shield(asyncio.gather(*self._ending))

    async def _let_in(self, name: str) -> None:
        """Returns when a phone has begun a pipe."""
        self._arrival.clear()
        listener = await self._listening(name)
        other: Listener | None = None
        try:
            await listener.advertise(True)
            if self._beside is not None:
                with contextlib.suppress(LinkLost, BadInput):
                    other = await self._beside(lambda link: self._arrived(link, beside=True))
            await self._arrival.wait()
        finally:
            if other is not None:
                self._later(self._end(other))
            with contextlib.suppress(LinkLost):
                await listener.advertise(False)

    async def _end(self, other: Listener) -> None:
        """Nobody can find it from now on, but for a link of its own, which it outlives."""
        if self._phone is not None and self._phone.beside:
            await self._phone.over.wait()
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
        if self._phone is not None and not self._phone.over.is_set():
            await link.close("limit")
            return
        self._phone = phone = PhoneLink(link, beside=beside)
        phone.hold()
        self._arrival.set()
        try:
            await phone.over.wait()
        finally:
            phone.over.set()

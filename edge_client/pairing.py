"""A person's wish that a phone be the way where there is no hop. While it lasts, a session is kept.

`keep_up` is the loop, for `edge pair` in front and for `edge serve`, whose wish `Pairing` holds.
"""

import asyncio
import math
from collections.abc import Awaitable, Callable
from typing import Final, NoReturn, Protocol

from edge_client.errors import EdgeError
from edge_client.gateway_client import GatewayClient
from edge_client.sessions import Clock
from edge_client.ways import LinkPicture
from store.errors import StoreError
from transport.errors import StreamEnded, TransportError
from transport.links.base import Endpoint
from transport.reconnect import pause

__all__ = ["Pairing", "Watch", "keep_up"]

LOOK_S: Final = 5.0  # until it is looked again whether the store is open
_PAUSE_MIN_S: Final = 0.2
_PATIENT_S: Final = 5.0  # an attempt that took so long was one to reach somebody, and needs no pause behind it


class Watch(Protocol):
    """Who is told how it goes."""

    def up(self, picture: LinkPicture) -> None: ...
    def down(self) -> None: ...

    def failed(self, error: TransportError) -> None:
        """An attempt came to nothing. It raises what is to end the loop."""


async def keep_up(client: GatewayClient, watch: Watch, clock: Clock) -> NoReturn:
    """Opens a session whenever there is none. Raises StreamEnded if the client is closed, NotJoined, StoreError."""
    attempt = 0
    while True:
        begun = clock.now()
        try:
            await client.reach()
        except StreamEnded:
            raise
        except TransportError as error:
            watch.failed(error)
            attempt = attempt + 1 if clock.now() - begun < _PATIENT_S else 0
            await clock.sleep(max(_PAUSE_MIN_S, pause(attempt, clock.dice())))
        else:
            attempt = 0
            watch.up(client.picture())
            await client.while_up()
            watch.down()


class Pairing:
    """The wish as `edge serve` has it. `way` gives the client, or None before joining; `tell` shows a person a note."""

    def __init__(
        self, way: Callable[[], Awaitable[GatewayClient | None]], tell: Callable[[str], None],
        clock: Clock | None = None,
    ) -> None:
        self._way, self._tell, self._clock = way, tell, clock or Clock()
        self._said = ""
        self._task: asyncio.Task[None] | None = None
        self.until = 0.0  # unix seconds; 0: not wanted, infinity: until it is ended
        self.endpoints: tuple[Endpoint, ...] = ()  # to be tried when no other way leads to the gateway

    def begin(self, seconds: float | None, name: str = "") -> None:
        """For so long, or until `end`; `name` is what phones see. Raises BadInput for a name that cannot be."""
        endpoint = Endpoint.parse(f"phone:{name}")
        self.end()
        self.until = math.inf if seconds is None else self._clock.now() + seconds
        self.endpoints = (endpoint,)
        self._task = asyncio.create_task(self._run(seconds))

    def end(self) -> None:
        """A session that stands goes on."""
        self.until, self.endpoints = 0.0, ()
        if self._task is not None:
            self._task.cancel()

    async def ended(self) -> None:
        """To be awaited after `end`."""
        if self._task is not None:
            await asyncio.wait({self._task})

    def up(self, picture: LinkPicture) -> None:
        self._said = ""
        self._tell(f"a session stands{' via ' + picture.via if picture.via else ''}")

    def down(self) -> None:
        self._tell("the session has ended")

    def failed(self, error: TransportError) -> None:
        if str(error) != self._said:
            self._said = str(error)
            self._tell(f"{error}; tried again until a phone is there")

    async def _run(self, seconds: float | None) -> None:
        endpoints, client = self.endpoints, None
        try:
            async with asyncio.timeout(seconds):
                while True:
                    try:
                        if (client := await self._way()) is not None:
                            await keep_up(client, self, self._clock)
                    except (StoreError, EdgeError, StreamEnded):  # locked, or being so
                        pass
                    await self._clock.sleep(LOOK_S)
        except TimeoutError:
            self.until, self.endpoints = 0.0, ()
        finally:
            if client is not None:
                client.forget(endpoints)

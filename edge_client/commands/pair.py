"""`edge pair`: a phone as the way to the gateway."""

import math
import sys
import time
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from edge_client.commands.terminal import JSON, note, run, show

if TYPE_CHECKING:
    from edge_client.app import App
    from edge_client.config import Config
    from edge_client.gateway_client import GatewayClient
    from edge_client.key_agent import Serving
    from edge_client.ways import LinkPicture
    from transport.errors import TransportError

MINUTE_S: Final = 60.0
_LOOK_S: Final = 1.0  # between looks at what was carried


def pair(
    minutes: Annotated[int | None, typer.Option(min=1, max=10_080, help="For so long; else until it is ended.")] = None,
    name: Annotated[str, typer.Option(help="What the phone shows, to tell devices apart; else all are alike.")] = "",
    stop: Annotated[bool, typer.Option("--stop", help="Have the running `edge serve` wait for no phone.")] = False,
    as_json: Annotated[bool, JSON] = False,
) -> None:
    """Take a phone as the way to the gateway.

    Waits, by Bluetooth, for the gateway's page on a phone, and relays through it. A running `edge serve` does that from
    now on whenever it has no hop; else this command does, and sends what is queued, until Ctrl-C.
    """

    async def work() -> None:
        from dataclasses import replace

        from msgspec.structs import replace as changed

        from edge_client.app import App
        from edge_client.config import Config
        from edge_client.errors import NotJoined
        from edge_client.key_agent import unpair_serve
        from transport.links.base import Endpoint

        config, phone = Config.load(), str(Endpoint.parse(f"phone:{name}"))
        if stop:
            _tell(unpair_serve(config.home), as_json)
            return
        alone = replace(config, relay=changed(config.relay, endpoints=(phone,), discover=False))
        screen = _Screen(as_json)
        async with App.open(alone, store="if present", tell=screen.note) as app:
            if await app.relay() is None:
                raise NotJoined
            seconds = None if minutes is None else MINUTE_S * minutes
            if (serving := _serving(config, seconds, name)) is not None:
                _tell(serving, as_json)
            else:
                await _in_front(app, screen, seconds)

    run(work, as_json=as_json)


def _serving(config: "Config", seconds: float | None, name: str) -> "Serving | None":
    """What the running `edge serve` says, once it waits for a phone; None if none runs that has the store."""
    from edge_client.errors import NotServing
    from edge_client.key_agent import pair_serve, state_of_serve

    try:
        return None if state_of_serve(config.home).store == "none" else pair_serve(config.home, seconds, name)
    except NotServing:
        return None


def _tell(serving: "Serving", as_json: bool) -> None:
    if as_json:
        until = None if math.isinf(serving.pairing) else serving.pairing
        show({"event": "serve", "pairing": serving.pairing > 0, "until": until, "store": serving.store})
        return
    if not serving.pairing:
        print("`edge serve` waits for no phone")
        return
    from transport.links.phone import WHAT_TO_DO

    print(f"`edge serve` waits for a phone whenever it has no hop, {until_when(serving.pairing)}")
    print(WHAT_TO_DO)
    if serving.store == "locked":
        note("its store is locked, and it waits until `edge store unlock`")


def until_when(until: float) -> str:
    """Of `Serving.pairing`, for a person."""
    return "until `edge pair --stop`" if math.isinf(until) else f"until {time.strftime('%H:%M', time.localtime(until))}"


async def _in_front(app: "App", screen: "_Screen", seconds: float | None) -> None:
    import asyncio

    from edge_client.pairing import keep_up
    from edge_client.sessions import Clock

    client = app.client
    looking = asyncio.create_task(screen.look(client))
    try:
        async with asyncio.timeout(seconds):
            app.drain()
            screen.waiting()
            await keep_up(client, screen, Clock())
    except TimeoutError:
        screen.note("the time is over")
    finally:
        looking.cancel()
        screen.end(client.picture())


class _Screen:
    """What a person, or with `--json` a program, is told while it runs."""

    def __init__(self, as_json: bool) -> None:
        self._as_json = as_json
        self._live = not as_json and sys.stderr.isatty()
        self._line = False  # whether the cursor stands behind the line that changes
        self._was_up = False
        self._carried = (0, 0)

    def note(self, text: str) -> None:
        self._say({"event": "note", "text": text}, text)

    def waiting(self) -> None:
        if self._as_json:
            show({"event": "waiting"})

    def up(self, picture: "LinkPicture") -> None:
        self._was_up = True
        round_trip = None if picture.round_trip_s is None else round(picture.round_trip_s * 1000)
        took = "" if round_trip is None else f", round trip {round_trip} ms"
        self._say(
            {"event": "up", "via": picture.via, "round_trip_ms": round_trip},
            f"the phone is here: via {picture.via or 'the gateway itself'}{took}; Ctrl-C ends it",
        )

    def down(self) -> None:
        self._say({"event": "down"}, "the phone has gone")
        self.waiting()

    def failed(self, error: "TransportError") -> None:
        """Raises what waiting does not help against."""
        from transport.errors import LinkLost
        from transport.reconnect import worth_retrying

        reason = error.reason if isinstance(error, LinkLost) else ""
        if not worth_retrying(error) or (reason in ("unavailable", "refused") and not self._was_up):
            raise error
        if reason != "out_of_range":
            self._say({"event": "failed", "code": error.code, "message": str(error), "hint": error.hint}, str(error))

    async def look(self, client: "GatewayClient") -> None:
        import asyncio

        while True:
            await asyncio.sleep(_LOOK_S)
            self._show(client.picture())

    def end(self, picture: "LinkPicture") -> None:
        self._show(picture)
        if not self._as_json and self._was_up:
            self._say({}, _carried(*self._carried))

    def _show(self, picture: "LinkPicture") -> None:
        if (picture.sent, picture.received) == self._carried:
            return
        self._carried = picture.sent, picture.received
        if self._as_json:
            show({"event": "carried", "sent": picture.sent, "received": picture.received})
        elif self._live:
            self._line = True
            print(f"\r\x1b[K{_carried(*self._carried)}", end="", file=sys.stderr, flush=True)

    def _say(self, event: dict[str, Any], text: str) -> None:
        if self._as_json:
            show(event)
            return
        if self._line:
            self._line = False
            print("\r\x1b[K", end="", file=sys.stderr)
        note(text)


def _carried(sent: int, received: int) -> str:
    return f"{sent / 1000:.1f} kB sent, {received / 1000:.1f} kB received"

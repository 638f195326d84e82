"""`relay hop ...`: a hop's commands. What is heavy is imported inside the commands."""

import asyncio
import json
import os
import signal
import sys
from contextlib import AsyncExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from relay.hop.errors import HopMisuse

if TYPE_CHECKING:
    from relay.hop.app import Hop
    from store.keys import Passphrase
    from transport.identity.join import Invitation
    from transport.links.base import Endpoint

app = typer.Typer(
    no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False,
    help="Carry links of edges to the gateway, blindly.",
)

_HOME = typer.Option("--home", help="Folder of this hop's sealed identity.", envvar="CAUSEWAY_HOP_HOME")
_PASSPHRASE = typer.Option(
    "--passphrase-file", help="File with the passphrase; else $CREDENTIALS_DIRECTORY/hop-passphrase, else a prompt."
)
_DEFAULT_HOME = Path("~/.causeway/hop")


@app.command()
def join(
    invitation_file: Annotated[
        Path | None, typer.Option("--invitation-file", help="File with the invitation's line; else a prompt.")
    ] = None,
    gateway: Annotated[
        str | None, typer.Option("--gateway", help="https://HOST:PORT of the gateway; else the invitation's hint.")
    ] = None,
    home: Annotated[Path, _HOME] = _DEFAULT_HOME,
    passphrase_file: Annotated[Path | None, _PASSPHRASE] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Join a trust domain with an invitation."""
    from relay.hop import identity

    invitation = _invitation(invitation_file)
    url = identity.base_url(gateway or _hinted(invitation.hints))
    hop_home = identity.HopHome(home.expanduser(), _passphrase(passphrase_file, confirm=True))
    joined = asyncio.run(identity.join(hop_home, invitation, url))
    if as_json:
        fields = {"id": str(joined.svid.id), "gateway": url, "enrolment": joined.enrolment,
                  "expires": joined.svid.not_after}
        typer.echo(json.dumps(fields))
    else:
        typer.echo(f"joined as {joined.svid.id}")


@app.command()
def serve(
    listen: Annotated[
        list[str],
        typer.Option("--listen", help="ble, ble:NAME, rfcomm, tcp:HOST:PORT or unix:PATH for edges; may be repeated."),
    ],
    gateway: Annotated[
        str | None,
        typer.Option("--gateway", help="wss://HOST:PORT of the gateway, or several with commas, best first; else the "
                                       "one joined at."),
    ] = None,
    home: Annotated[Path, _HOME] = _DEFAULT_HOME,
    passphrase_file: Annotated[Path | None, _PASSPHRASE] = None,
    spire: Annotated[
        str | None,
        typer.Option("--spire", metavar="unix:///PATH", help="Identity from this SPIRE agent, without joining."),
    ] = None,
    radio: Annotated[
        str, typer.Option("--radio", help="For ble: system, system:hci1, hci:TRANSPORT (a dongle) or virtual:PATH.")
    ] = "system",
    announce: Annotated[
        bool, typer.Option("--announce", help="Tell this network, by multicast DNS, that a hop listens here on tcp.")
    ] = False,
    max_links: Annotated[int, typer.Option("--max-links", min=1, max=10_000, help="Links at once.")] = 64,
    max_bytes: Annotated[int, typer.Option("--max-bytes", min=1024, help="Bytes of one link, both ways.")] = 1 << 30,
    max_rate: Annotated[
        int, typer.Option("--max-rate", min=16_384, help="Bytes a second of one link, both ways.")
    ] = 8 << 20,
    max_seconds: Annotated[float, typer.Option("--max-seconds", min=1.0, help="Seconds of one link.")] = 6 * 3600.0,
    idle: Annotated[float, typer.Option("--idle", min=1.0, help="Seconds without a byte that end a link.")] = 300.0,
) -> None:
    """Accept links and copy their bytes to the gateway and back, until SIGTERM or SIGINT."""
    from relay.hop import identity
    from relay.hop.app import Hop, HopLimits
    from relay.hop.control import StatusServer
    from relay.hop.pipe import PipeLimits
    from transport.identity.source import AgentSource
    from transport.links.base import Endpoint

    endpoints = [Endpoint.parse(f"{text}:" if text in ("ble", "rfcomm") else text) for text in map(str.strip, listen)]
    folder = home.expanduser()
    source = None if spire is None else AgentSource(spire, identity.ROLE, report=_report)
    if source is None:
        hop_home = identity.HopHome(folder, _passphrase(passphrase_file, confirm=False))
        me = hop_home.load()
        gateway = gateway or me.gateway
    elif gateway is None:
        raise HopMisuse("a hop that has not joined must be told where the gateway is", hint="add --gateway wss://HOST:PORT")
    urls = [identity.base_url(url) for url in gateway.split(",")]
    limits = HopLimits(
        max_links=max_links, pipe=PipeLimits(max_bytes=max_bytes, max_rate=max_rate, max_s=max_seconds, idle_s=idle)
    )

    async def run() -> None:
        async with AsyncExitStack() as stack:
            if source is None:
                hop = Hop(hop_home, me, urls, limits=limits, report=_report)
            else:
                folder.mkdir(mode=0o700, parents=True, exist_ok=True)
                stack.push_async_callback(source.close)
                await source.start()
                given = identity.of_agent(source, urls[0])
                hop = Hop(identity.HopHome(folder, None), given, urls, limits=limits, report=_report, source=source)
            control = StatusServer(folder, hop.status)
            await control.start()
            stack.push_async_callback(control.close)
            await _until_signal(hop, endpoints, radio, announce=announce)

    asyncio.run(run())


@app.command()
def status(
    home: Annotated[Path, _HOME] = _DEFAULT_HOME,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """How a running hop does, in counts too blurred to tell of an edge."""
    from relay.hop.control import status as ask

    told = asyncio.run(ask(home.expanduser()))
    if as_json:
        typer.echo(json.dumps(told))
        return
    typer.echo(f"links       up to {told['links']} now, up to {told['links_since_start']} since the start")
    typer.echo(f"bytes       up to {told['bytes_since_start']:,}")
    typer.echo(f"up          {told['uptime_h']} h")
    typer.echo(f"gateway     {told['gateway'] or 'none has answered yet'}")
    typer.echo(f"last error  {told['last_error'] or 'none'}")


async def _until_signal(hop: "Hop", endpoints: "list[Endpoint]", radio_spec: str, *, announce: bool) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    by_radio = ("ble",) if radio_spec.startswith("system") else ("ble", "rfcomm")
    if all(endpoint.scheme not in by_radio for endpoint in endpoints):
        await hop.run(endpoints, stop, announce=announce)
        return
    from transport.errors import LinkLost
    from transport.links.radio import open_radio

    radio = await open_radio(radio_spec)
    lost = False

    async def watch() -> None:
        nonlocal lost
        await radio.gone.wait()
        if any(endpoint.scheme not in by_radio for endpoint in endpoints):
            _report("the Bluetooth radio is gone; the other addresses go on")
        else:
            lost = True
            stop.set()

    watching = asyncio.create_task(watch())
    try:
        await hop.run(endpoints, stop, radio=radio, announce=announce)
    finally:
        watching.cancel()
        await radio.close()
    if lost:  # deaf, it would look as if it served
        raise LinkLost(
            "the Bluetooth radio is gone", reason="unavailable",
            hint="plug the dongle in, or start the virtual radio, and start this hop again",
        )


def _report(line: str) -> None:
    typer.echo(f"relay: {line}", err=True)


def _invitation(path: Path | None) -> "Invitation":
    from relay.asking import hidden
    from transport.identity.join import LINE_MAX, Invitation

    if path is None:
        _need_terminal("an invitation", "--invitation-file FILE")
        return Invitation.parse(hidden("Invitation"))
    try:
        with path.open("rb") as file:
            line = file.read(2 * LINE_MAX)
    except OSError as error:
        reason = os.strerror(error.errno or 0).lower()
        raise HopMisuse(f"cannot read the invitation: {reason}", hint=f"look at {path}") from None
    return Invitation.parse(line.decode("ascii", errors="replace"))


def _hinted(hints: tuple[str, ...]) -> str:
    for hint in hints:
        if hint.startswith(("https://", "wss://")):
            return hint
    raise HopMisuse("the invitation does not say where the gateway is", hint="add --gateway https://HOST:PORT")


def _passphrase(path: Path | None, *, confirm: bool) -> "Passphrase":
    from relay.asking import credential, passphrase_from_file, passphrase_from_terminal
    from store.keys import Passphrase

    if path is not None:
        return passphrase_from_file(path, "--passphrase-file")
    if (given := credential("hop-passphrase")) is not None:
        return Passphrase.from_file(given)
    _need_terminal("the passphrase", "--passphrase-file FILE")
    return passphrase_from_terminal("Passphrase", confirm=confirm)


def _need_terminal(what: str, option: str) -> None:
    if not sys.stdin.isatty():
        raise HopMisuse(f"there is no terminal to ask for {what}", hint=f"use {option}")

"""`edge join`: how this device gets an identity."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from edge_client.commands.terminal import JSON, note, run, show

if TYPE_CHECKING:
    from edge_client.app import App
    from edge_client.config import Config
    from edge_client.identity import DeviceIdentity
    from transport.identity.join import Invitation
    from transport.links.base import Endpoint


HOP: Final = typer.Option(
    "--hop",
    help="tcp:HOST:PORT, unix:PATH, wss://HOST:PORT/v1/edge, ble:, rfcomm:ADDRESS, or phone: to wait for one; "
    "else the invitation's.",
)


TPM: Final = typer.Option("--tpm", help="Make the device key in this machine's TPM, and show the gateway that.")


def join(
    invitation_file: Annotated[
        Path | None, typer.Option("--invitation-file", help="Where the invitation is, - for stdin; else it is asked.")
    ] = None,
    hop: Annotated[str | None, HOP] = None,
    in_tpm: Annotated[bool, TPM] = False,
    as_json: Annotated[bool, JSON] = False,
) -> None:
    """Join a gateway with an invitation, through any hop."""

    async def work() -> None:
        from edge_client.app import App
        from edge_client.config import Config
        from transport.identity.join import Invitation

        invitation = Invitation.parse(read_invitation(invitation_file))
        config = Config.load()
        ways = await find_ways(config, invitation, hop)
        async with App.open(config, store="create", tell=note) as app:
            identity, through = await redeem(app, invitation, *ways, in_tpm=in_tpm)
        if as_json:
            show({
                "id": str(identity.id), "endpoints": list(identity.endpoints), "enrolment": identity.enrolment,
                "tpm": in_tpm,
            })
        else:
            print(f"joined as {identity.id} through {through}{', the device key is in the TPM' if in_tpm else ''}")

    run(work, as_json=as_json)


async def find_ways(
    config: "Config", invitation: "Invitation", hop: str | None
) -> "tuple[list[Endpoint], list[Endpoint]]":
    """The endpoints that are worth keeping, and those to try, best first. Raises BadUse if there is none."""
    from edge_client.dialing import nearby
    from edge_client.errors import BadUse
    from transport.links.base import Endpoint

    endpoints = list(dict.fromkeys([*([Endpoint.parse(hop)] if hop else []), *_hints(invitation)]))
    ways = [*endpoints, *(await nearby() if config.relay.discover else ())]
    if not ways:
        raise BadUse(
            "the invitation names no way to the gateway",
            hint="give one with --hop tcp:HOST:PORT, or wait for a phone with --hop phone:",
        )
    return endpoints, ways


def _hints(invitation: "Invitation") -> "list[Endpoint]":
    """The hints that are endpoints. A gateway's https address serves hops and connected clients, not this session, and
    a form that is not known here may be a later version's."""
    from transport.errors import BadInput
    from transport.links.base import Endpoint

    ways = []
    for hint in invitation.hints:
        try:
            ways.append(Endpoint.parse(hint))
        except BadInput:
            continue
    return ways


async def redeem(
    app: "App", invitation: "Invitation", endpoints: "list[Endpoint]", ways: "list[Endpoint]", *, in_tpm: bool = False
) -> "tuple[DeviceIdentity, Endpoint]":
    """The identity, which keeps `endpoints`, and the one of `ways` by which it came. Raises the last way's failure."""
    import asyncio

    from edge_client.identity import join
    from store.tpm import Tpm
    from transport.errors import LinkLost

    tpm = Tpm(app.config.tpm.tcti) if in_tpm else None
    if tpm is not None:
        await asyncio.to_thread(tpm.check)  # before any way is dialed

    *others, last = ways
    kept = tuple(str(endpoint) for endpoint in endpoints)
    for endpoint in others:
        try:
            return await join(app.settings, invitation, await app.dial(endpoint), kept, tpm=tpm), endpoint
        except LinkLost as lost:
            note(f"{lost}; the next way is tried")
    return await join(app.settings, invitation, await app.dial(last), kept, tpm=tpm), last


def read_invitation(file: Path | None) -> str:
    """From a file, standard input for "-", or without one from the terminal, where it is not shown. Raises BadUse."""
    from edge_client.errors import BadUse
    from edge_client.passphrase import hidden

    if file is None:
        if not sys.stdin.isatty():
            raise BadUse("there is no terminal to ask for the invitation on", hint="use --invitation-file")
        return hidden("Invitation: ").strip()
    if str(file) == "-":
        return sys.stdin.buffer.read(64 << 10).decode("ascii", "replace").strip()
    try:
        with file.open("rb") as stream:
            return stream.read(64 << 10).decode("ascii", "replace").strip()
    except OSError as error:
        raise BadUse(f"cannot read {file}: {error.strerror}", hint="--invitation-file names it") from None

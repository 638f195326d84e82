"""`edge join`: how this device gets an identity."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edge_client.commands.terminal import JSON, note, run, show

if TYPE_CHECKING:
    from edge_client.app import App
    from edge_client.identity import DeviceIdentity
    from transport.identity.join import Invitation
    from transport.links.base import Endpoint


def join(
    invitation_file: Annotated[
        Path | None, typer.Option("--invitation-file", help="Where the invitation is; else it is asked for.")
    ] = None,
    hop: Annotated[
        str | None,
        typer.Option("--hop", help="tcp:HOST:PORT, unix:PATH, wss://HOST:PORT/v1/edge or ble:; else the invitation's."),
    ] = None,
    as_json: Annotated[bool, JSON] = False,
) -> None:
    """Join a gateway with an invitation, through any hop."""

    async def work() -> None:
        from edge_client.app import App
        from edge_client.config import Config
        from edge_client.dialing import nearby
        from edge_client.errors import BadUse
        from transport.identity.join import Invitation
        from transport.links.base import Endpoint

        invitation = Invitation.parse(_invitation(invitation_file))
        endpoints = list(dict.fromkeys([*([Endpoint.parse(hop)] if hop else []), *_ways(invitation)]))
        config = Config.load()
        ways = [*endpoints, *(await nearby() if config.relay.discover else ())]
        if not ways:
            raise BadUse("the invitation names no way to the gateway", hint="give one with --hop tcp:HOST:PORT")
        async with App.open(config, store="create") as app:
            identity, through = await _first_to_answer(app, invitation, ways, tuple(str(one) for one in endpoints))
        if as_json:
            show({"id": str(identity.id), "endpoints": list(identity.endpoints), "enrolment": identity.enrolment})
        else:
            print(f"joined as {identity.id} through {through}")

    run(work, as_json=as_json)


def _ways(invitation: "Invitation") -> "list[Endpoint]":
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


async def _first_to_answer(
    app: "App", invitation: "Invitation", ways: "list[Endpoint]", endpoints: tuple[str, ...]
) -> "tuple[DeviceIdentity, Endpoint]":
    """The identity, which keeps `endpoints`, and the way by which it came. Raises the last way's failure."""
    from edge_client.identity import join
    from transport.errors import LinkLost

    *others, last = ways
    for endpoint in others:
        try:
            return await join(app.settings, invitation, await app.dial(endpoint), endpoints), endpoint
        except LinkLost as lost:
            note(f"{lost}; the next way is tried")
    return await join(app.settings, invitation, await app.dial(last), endpoints), last


def _invitation(file: Path | None) -> str:
    from edge_client.errors import BadUse
    from edge_client.passphrase import hidden

    if file is None:
        if not sys.stdin.isatty():
            raise BadUse("there is no terminal to ask for the invitation on", hint="use --invitation-file")
        return hidden("Invitation: ").strip()
    try:
        with file.open("rb") as stream:
            return stream.read(64 << 10).decode("ascii", "replace").strip()
    except OSError as error:
        raise BadUse(f"cannot read {file}: {error.strerror}", hint="--invitation-file names it") from None

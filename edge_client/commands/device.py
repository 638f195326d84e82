"""`edge join` and `edge status`: what this device is and has."""

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

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
        # A gateway's https address serves hops and connected clients, not this session.
        hints = [hint for hint in invitation.hints if not hint.startswith("https:")]
        endpoints = list(dict.fromkeys(Endpoint.parse(spec) for spec in ([hop] if hop else []) + hints))
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


def status(as_json: Annotated[bool, JSON] = False) -> None:
    """What this device has: store, documents, models, identity, and what to do next."""

    async def work() -> None:
        from edge_client.app import App
        from edge_client.config import Config
        from edge_client.engine.models import installed
        from edge_client.errors import NoPassphrase

        config = Config.load()
        have = installed()
        models = {
            "model": config.model.path or ("SmolLM2-135M-Instruct" if have["model"] else None),
            "embedder": config.embedder.path or ("all-MiniLM-L6-v2" if have["embedder"] else None),
        }
        result: dict[str, Any] = {
            "home": str(config.home), "store": "none", "documents": 0, "chunks": 0, "models": models,
            "identity": None, "endpoints": [], "outbox": {}, "next": [],
        }
        try:
            async with App.open(config, store="if present") as app:
                if app.has_store:
                    result["store"] = "open"
                    await _fill(app, result)
        except NoPassphrase:
            result["store"] = "locked"
        result["next"] = _next(result)
        if as_json:
            show(result)
        else:
            _print_status(result)

    run(work, as_json=as_json)


async def _fill(app: Any, result: dict[str, Any]) -> None:
    result["documents"], result["chunks"] = await app.documents.count()
    from edge_client.identity import DeviceIdentity

    identity = await DeviceIdentity.load(app.settings)
    if identity is not None:
        result["endpoints"] = list(app.config.relay.endpoints or identity.endpoints)
        result["identity"] = {
            "id": str(identity.id), "enrolment": identity.enrolment,
            "svid_expires": identity.svid.not_after, "svid_valid": identity.svid_valid(time.time()),
        }
    result["outbox"] = await app.outbox.counts()


def _next(result: dict[str, Any]) -> list[str]:
    steps = []
    if None in result["models"].values():
        steps.append("`edge models install` brings the local models")
    if result["store"] == "locked":
        steps.append("the store is locked: set CAUSEWAY_PASSPHRASE_FILE, or run this on a terminal")
        return steps
    if not result["documents"]:
        steps.append("`edge ingest FOLDER` adds documents")
    if result["identity"] is None:
        steps.append("`edge join` with an invitation makes relaying possible")
    if result["outbox"].get("waiting") or result["outbox"].get("sent"):
        steps.append("`edge outbox` lists questions whose answers are to come")
    return steps or ["`edge ask \"...\"`"]


def _print_status(result: dict[str, Any]) -> None:
    print(f"home       {result['home']}")
    held = f", {result['documents']} documents, {result['chunks']} passages" if result["store"] == "open" else ""
    print(f"store      {result['store']}{held}")
    for kind, name in result["models"].items():
        print(f"{kind:<10} {name or 'not installed'}")
    identity = result["identity"]
    if identity is None:
        print("identity   " + ("unknown (locked)" if result["store"] == "locked" else "not joined"))
    else:
        print(f"identity   {identity['id']}, {_expiry(identity)}")
        print(f"endpoints  {', '.join(result['endpoints'])}")
    if waiting := {state: count for state, count in result["outbox"].items() if count}:
        print("outbox     " + ", ".join(f"{count} {state}" for state, count in waiting.items()))
    for step in result["next"]:
        print(f"next       {step}")


def _expiry(identity: dict[str, Any]) -> str:
    if not identity["svid_valid"]:
        return "its SVID has run out and is renewed with the next relayed question"
    return f"SVID valid for {max(0, int(identity['svid_expires'] - time.time())) // 60} more minutes"

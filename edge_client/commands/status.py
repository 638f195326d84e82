"""`edge status`: what this device is and has, whether a question would be answered, and what to do next."""

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from edge_client.commands.pair import until_when
from edge_client.commands.terminal import JSON, Exit, exit_code, note, run, show

if TYPE_CHECKING:
    from edge_client.app import App
    from edge_client.config import Config
    from edge_client.identity import DeviceIdentity
    from edge_client.key_agent import Serving

_PATIENCE_S: Final = 20.0  # for all endpoints together


def status(
    check: Annotated[
        bool, typer.Option("--check", help="Dial the gateway, to see whether and over which endpoint it answers.")
    ] = False,
    as_json: Annotated[bool, JSON] = False,
) -> None:
    """Show what this device has, and what to do next.

    Link, identity, queue, store, models, disk. Ends with 0 if a question would be answered, else with the code of whose
    fault it is, as every command.
    """

    async def work() -> None:
        from edge_client.app import App
        from edge_client.config import Config
        from edge_client.errors import NoKeyring, NoPassphrase
        from edge_client.posture import posture, tpm
        from store.errors import TpmError

        config = Config.load()
        disk, serving = posture(config.home), _serving(config)
        result: dict[str, Any] = {
            "home": str(config.home), "serve": serving and serving.store,
            "pairing": serving is not None and serving.pairing > 0, "store": "none", "documents": 0, "chunks": 0,
            "models": models_there(config), "identity": None, "endpoints": [], "outbox": {}, "answers": 0,
            "link": {"state": "none", "endpoint": "", "via": "", "error": None},
            "disk": {"state": disk.state, "how": disk.how}, "tpm": tpm(),
            "tpm_used": config.tpm.tcti, "locked": None, "fault": None, "next": [],
        }
        fault = None
        try:
            async with App.open(config, store="if present", tell=note) as app:
                if app.has_store:
                    result["store"] = "open"
                    await _fill(app, result)
                    if check and result["identity"] is not None:
                        fault = await _check(app, result["link"])
                        await _fill(app, result)  # the identity may have been renewed
        except (NoPassphrase, NoKeyring, TpmError) as error:
            result["store"], fault = "locked", error.fault
            result["locked"] = {"code": error.code, "message": str(error), "hint": error.hint}
        result["fault"] = fault or _fault(result)
        result["next"] = _next(result)
        if as_json:
            show(result)
        else:
            _print_status(result, serving)
        if result["fault"] is not None:
            raise Exit(exit_code(result["fault"]))

    run(work, as_json=as_json)


def _serving(config: "Config") -> "Serving | None":
    """What a running `edge serve` says; None if none runs."""
    from edge_client.errors import NotServing
    from edge_client.key_agent import state_of_serve

    try:
        return state_of_serve(config.home)
    except NotServing:
        return None


def models_there(config: "Config") -> dict[str, str | None]:
    """By kind, the name or file that is used; None if it is not there."""
    from edge_client.engine.models import installed

    have, found = installed(), {}
    for kind, path, name in (
        ("model", config.model.path, "SmolLM2-135M-Instruct"), ("embedder", config.embedder.path, "all-MiniLM-L6-v2"),
    ):
        if path is not None:
            found[kind] = path if Path(path).expanduser().is_file() else None
        else:
            found[kind] = name if have[kind] else None
    return found


async def _fill(app: "App", result: dict[str, Any]) -> None:
    result["documents"], result["chunks"] = await app.documents.count()
    identity = await _identity(app, result)
    if identity is not None:
        result["endpoints"] = list(app.config.relay.endpoints or identity.endpoints)
        result["identity"] = {
            "id": str(identity.id), "enrolment": identity.enrolment,
            "svid_expires": identity.svid.not_after, "svid_valid": identity.svid_valid(time.time()),
            "key": "agent" if identity.device_key is None else "tpm" if identity.device_key.slow else "store",
        }
        if (revoked := identity.revoked).sequence:
            result["revocations"] = {"as_of": revoked.this_update, "stale": revoked.stale(time.time())}
        if result["link"]["state"] == "none":
            result["link"]["state"] = "not checked"
    await app.outbox.expire(now=int(time.time()))
    result["outbox"] = await app.outbox.counts()
    result["answers"] = len(await app.promises.answers())


async def _identity(app: "App", result: dict[str, Any]) -> "DeviceIdentity | None":
    """None before joining, and where the SPIFFE agent gives none: then `result` says why."""
    from transport.errors import AgentLost, IdentityRefused

    try:
        return await app.identities.load()
    except (AgentLost, IdentityRefused) as error:
        result["identity_error"] = {"code": error.code, "message": str(error), "hint": error.hint}
        return None


async def _check(app: "App", link: dict[str, Any]) -> str | None:
    """Dials; whose fault it is if the gateway does not answer."""
    import asyncio

    from transport.errors import TransportError

    try:
        async with asyncio.timeout(_PATIENCE_S):
            endpoint = await app.client.reach()
    except TransportError as error:
        link |= {"state": "down", "error": {"code": error.code, "message": str(error), "hint": error.hint}}
        return error.fault
    except TimeoutError:
        silence = f"no endpoint answered within {_PATIENCE_S:.0f} s"
        link |= {"state": "down", "error": {"code": "link_lost", "message": silence, "hint": None}}
        return "link"
    link |= {"state": "up", "endpoint": endpoint, "via": app.client.link[1]}
    return None


def _fault(result: dict[str, Any]) -> str | None:
    """Why no question would be answered: neither here nor by a gateway. Documents need the embedder."""
    if result["documents"] and result["models"]["embedder"] is None:
        return "user"
    return "user" if result["models"]["model"] is None and result["identity"] is None else None


def _next(result: dict[str, Any]) -> list[str]:
    steps = []
    if None in result["models"].values():
        steps.append("`edge models install` brings the local models; one that config.toml names has to be there")
    if result["serve"] == "locked":
        steps.append("`edge store unlock` unlocks the store for `edge serve` and the commands beside it")
    if result["store"] == "locked":
        why = result["locked"]
        if why["code"] == "no_passphrase":
            steps.append("the store is locked: set CAUSEWAY_PASSPHRASE_FILE, or run this on a terminal")
        else:
            steps.append(": ".join(filter(None, ("the store is locked", why["message"], why["hint"]))))
        return steps
    if result["link"]["state"] == "down":
        steps.append(result["link"]["error"]["hint"] or "is the hop on, and in reach?")
        if not result["pairing"]:
            steps.append("`edge pair` takes a phone as the way")
        steps.append("`edge ask --local` needs no gateway, `edge ask --queue` leaves a question for later")
    if result["store"] == "none":
        steps.append("`edge setup` asks three questions and does the rest")
    if not result["documents"]:
        steps.append("`edge ingest FOLDER` adds documents")
    if result["identity"] is None:
        steps.append("`edge join` with an invitation makes relaying possible")
    if result["outbox"].get("waiting") or result["outbox"].get("sent"):
        steps.append("`edge serve` fetches the answers of waiting questions; `edge outbox` lists them")
    if result["answers"]:
        steps.append("`edge outbox show ID` reads an answer that has come")
    return steps or ["`edge ask \"...\"`"]


def _print_status(result: dict[str, Any], serving: "Serving | None") -> None:
    from store.tpm import SYSTEM_TPM

    print(f"home       {result['home']}")
    held = f", {result['documents']} documents, {result['chunks']} passages" if result["store"] == "open" else ""
    print(f"store      {result['store']}{held}")
    if serving is not None:
        print(f"serve      running, {'without a store' if serving.store == 'none' else 'store ' + serving.store}")
        if serving.pairing:
            print(f"phone      waited for where there is no hop, {until_when(serving.pairing)}")
    print(f"disk       {result['disk']['state']} ({result['disk']['how']})")
    other = "" if result["tpm_used"] == SYSTEM_TPM else f"; {result['tpm_used']} is named in its place"
    print(f"tpm        {result['tpm']}{other}")
    for kind, name in result["models"].items():
        print(f"{kind:<10} {name or 'not there'}")
    identity = result["identity"]
    if (error := result.get("identity_error")) is not None:
        print(f"identity   none: {error['message']}")
    elif identity is None:
        print("identity   " + ("unknown (locked)" if result["store"] == "locked" else "not joined"))
    else:
        where = ", device key in the TPM" if identity["key"] == "tpm" else ""
        print(f"identity   {identity['id']}, {_expiry(identity)}{where}")
        print(f"endpoints  {', '.join(result['endpoints']) or 'none'}")
        print(f"link       {_link(result['link'])}")
        if (listed := result.get("revocations")) is not None:
            day = time.strftime("%Y-%m-%d %H:%M", time.localtime(listed["as_of"]))
            print(f"revoked    list as of {day}{'; a newer one is due' if listed['stale'] else ''}")
    waiting = [f"{count} {state}" for state, count in result["outbox"].items() if count]
    if result["answers"]:
        waiting.append(f"{result['answers']} answered")
    if waiting:
        print("outbox     " + ", ".join(waiting))
    for step in result["next"]:
        print(f"next       {step}")


def _link(link: dict[str, Any]) -> str:
    if link["state"] == "up":
        return f"up over {link['endpoint']}, {'via ' + link['via'] if link['via'] else 'direct'}"
    return f"down: {link['error']['message']}" if link["state"] == "down" else "not checked (--check dials)"


def _expiry(identity: dict[str, Any]) -> str:
    if not identity["svid_valid"]:
        return "its SVID has run out and is renewed with the next relayed question"
    return f"SVID valid for {max(0, int(identity['svid_expires'] - time.time())) // 60} more minutes"

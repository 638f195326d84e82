"""What commands of `relay gateway` have in common: options, and how they get at a gateway and what its keys seal.

Commands beside a running gateway ask it over its control socket; without one they open its state themselves, for which
they need its passphrase.
"""

import asyncio
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from relay.gateway.config import Config
    from store.keys import Passphrase, Unlock

ConfigOption = Annotated[
    Path, typer.Option("--config", metavar="FILE", help="The gateway's configuration.", envvar="CAUSEWAY_GATEWAY")
]
PassphraseOption = Annotated[
    Path | None,
    typer.Option(
        "--passphrase-file", metavar="FILE",
        help="Holds the gateway's passphrase. Else $CREDENTIALS_DIRECTORY/gateway-passphrase, else a prompt.",
    ),
]
RootPassphraseOption = Annotated[
    Path | None,
    typer.Option(
        "--root-passphrase-file", metavar="FILE",
        help="Holds the root key's passphrase, another one, to be kept away from this machine.",
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]
CONFIG_DEFAULT = Path("gateway.toml")


def ask(
    config: Path, passphrase_file: Path | None, operation: str, arguments: dict[str, Any],
    passphrase: "Passphrase | None" = None,
) -> dict[str, Any]:
    """Of the running gateway, or of its state if none runs."""
    from relay.gateway.config import load
    from relay.gateway.control import call
    from relay.gateway.errors import NotReady

    settings = load(config)
    try:
        return asyncio.run(call(settings.directory, operation, arguments))
    except NotReady as error:
        if error.hint is not None:
            raise
    unlocks = unlock(
        settings, passphrase_file, "No gateway runs here; the passphrase that opens its state", alone=True,
        given=passphrase,
    )
    return asyncio.run(_alone(settings, unlocks, operation, arguments))


async def _alone(
    settings: "Config", passphrase: "Unlock", operation: str, arguments: dict[str, Any]
) -> dict[str, Any]:
    from relay.gateway.admin_alone import open_admin

    async with open_admin(settings, passphrase) as admin:
        return await admin.call(operation, arguments)


def unlock(
    settings: "Config", file: Path | None, prompt: str, *, alone: bool = False, given: "Passphrase | None" = None
) -> "Unlock":
    """By whoever holds the gateway's keys, if anybody does; else by a passphrase, `given` or asked for."""
    from relay.gateway.keys import custody_of
    from relay.gateway.state.sqlcipher import KEY_FILE

    key_file = settings.directory / KEY_FILE
    held = custody_of(settings.keys).unlock(settings.directory, key_file) if key_file.is_file() else None
    return held or given or ask_passphrase(file, prompt, alone=alone)


def root_unlock(settings: "Config", gateway: "Unlock", file: Path | None) -> "Unlock":
    """What opens the root's file: a passphrase of its own where there is one that has been sealed under one."""
    from relay.gateway.identity.ca import ROOT_FILE, sealed_path

    if sealed_path(settings.directory / ROOT_FILE, gateway).is_file() and not (settings.directory / ROOT_FILE).exists():
        return gateway
    return ask_passphrase(file, "Root passphrase", credential="root-passphrase")


def ask_passphrase(
    file: Path | None, prompt: str, *, confirm: bool = False, credential: str = "gateway-passphrase",
    alone: bool = False,
) -> "Passphrase":
    """From the file, systemd's credentials, or a prompt. Raises ConfigError where nobody can be asked; `alone` if it
    is needed because no gateway runs.
    """
    from relay import asking
    from relay.gateway.errors import ConfigError
    from store.keys import Passphrase

    option = f"--{credential.removeprefix('gateway-')}-file"
    if file is not None:
        return asking.passphrase_from_file(file, option)
    if (given := asking.credential(credential)) is not None:
        return Passphrase.from_file(given)
    if not sys.stdin.isatty():
        if alone:
            raise ConfigError(
                "no gateway runs here, and there is no terminal to ask for the passphrase that opens its state",
                hint=f"start it with `relay gateway serve`, or give {option}",
            )
        raise ConfigError("a passphrase is needed and there is no terminal to ask on",
                          hint=f"give it by {option}, or {credential} as a systemd credential")
    return asking.passphrase_from_terminal(prompt, confirm=confirm)

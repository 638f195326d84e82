"""`relay gateway rotate-key`, `backup` and `restore`."""

import asyncio
import enum
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from relay.gateway.command import (
    CONFIG_DEFAULT,
    ConfigOption,
    JsonOption,
    PassphraseOption,
    RootPassphraseOption,
    ask,
    ask_passphrase,
    root_unlock,
    unlock,
)


class AuthorityKey(enum.StrEnum):
    INTERMEDIATE = "intermediate"
    ROOT = "root"
    TOKEN = "token"
    UPSTREAM = "upstream"


def rotate_key(
    key: Annotated[AuthorityKey, typer.Argument(help="Which one.")] = AuthorityKey.INTERMEDIATE,
    config: ConfigOption = CONFIG_DEFAULT, passphrase_file: PassphraseOption = None,
    root_passphrase_file: RootPassphraseOption = None,
    compromised: Annotated[
        bool, typer.Option("--compromised", help="The old one was stolen: nobody shall believe what it has signed.")
    ] = False,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="DIR", help="For `upstream`: a new folder for what SPIRE needs.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Make a new intermediate, every 30 days, or take the next step to a new root: with the gateway stopped.

    A new root is published 90 days before it is used, so that every device has it, and the old one is retired an hour
    after that: give `root` three times, and each time the command says when the next one is due. Keys that sign tokens
    change every day by themselves; `token` changes them now, also while the gateway runs. `upstream` makes an authority
    for a SPIRE server, which the root signs as it does the intermediate.
    """
    from relay.gateway.config import load
    from relay.gateway.folder import make_upstream, renew_ca, rotate_root

    if key is AuthorityKey.TOKEN:
        keys = ask(config, passphrase_file, "rotate_tokens", {"compromised": compromised})["keys"]
        lines = [f"{purpose} tokens are signed by the key {kid} from now on" for purpose, kid in keys.items()]
        typer.echo(json.dumps({"keys": keys}) if as_json else "\n".join(lines))
        return
    _check_out(key, out)
    settings = load(config)
    passphrase = unlock(settings, passphrase_file, "Gateway passphrase")
    root = root_unlock(settings, passphrase, root_passphrase_file)
    if out is not None:
        end = _stamp(asyncio.run(make_upstream(
            settings, out, passphrase=passphrase, root_passphrase=root, now=time.time(), compromised=compromised
        )))
        made = {"directory": str(out), "not_after": end}
        typer.echo(json.dumps(made) if as_json else f"made {out} for SPIRE's UpstreamAuthority \"disk\"; it ends {end}")
        return
    if key is AuthorityKey.INTERMEDIATE:
        renewed = asyncio.run(renew_ca(
            settings, passphrase=passphrase, root_passphrase=root, now=time.time(), compromised=compromised
        ))
        end = _stamp(renewed.not_after)
        unused = [] if renewed.unused is None else [renewed.unused]
        if as_json:
            typer.echo(json.dumps({"not_after": end, "unused": unused}))
            return
        typer.echo(f"the new intermediate certificate ends {end}")
        _say_unused(unused)
        return
    rotated = asyncio.run(rotate_root(settings, passphrase=passphrase, root_passphrase=root, now=time.time()))
    due = None if rotated.next_at is None else _stamp(rotated.next_at)
    if as_json:
        told = {"step": rotated.step, "sequence": rotated.sequence, "next": due, "unused": rotated.unused}
        typer.echo(json.dumps(told))
        return
    which = "old" if rotated.step == "retired" else "new"
    typer.echo(f"the {which} root is {rotated.step}; the trust bundle is number {rotated.sequence}")
    if due is not None:
        typer.echo(f"next: the same again, from {due} on")
    _say_unused(rotated.unused)


def _say_unused(names: Sequence[str]) -> None:
    """Keys that others hold are not destroyed from here: a backup may still need them."""
    for name in names:
        typer.echo(f"not used any more: the key {name}; delete it once no backup of before is to be restored")


def _check_out(key: AuthorityKey, out: Path | None) -> None:
    from relay.gateway.errors import SetupRefused

    if (key is AuthorityKey.UPSTREAM) != (out is not None):
        raise SetupRefused("`upstream` and --out go together", hint="as in rotate-key upstream --out spire-upstream")


def _stamp(seconds: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))


def backup(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A new file.")],
    config: ConfigOption = CONFIG_DEFAULT, passphrase_file: PassphraseOption = None, as_json: JsonOption = False,
) -> None:
    """Seal authority, state and configuration into one file, also while the gateway runs. Needs its passphrase.

    Left out: the provider's key, the audit log, resumption tickets.
    """
    from relay.gateway.backup import write_backup
    from relay.gateway.config import load

    settings = load(config)
    passphrase = ask_passphrase(passphrase_file, "Gateway passphrase")
    answer = ask(config, passphrase_file, "snapshot", {}, passphrase)
    copy = settings.directory / answer.pop("copy")
    try:
        write_backup(
            settings.directory, copy, file, passphrase, **answer, now=time.time(), config=settings.file
        )
    finally:
        copy.unlink(missing_ok=True)
    typer.echo(json.dumps({"backup": str(file)}) if as_json else f"sealed {file} under the gateway's passphrase")


def restore(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="What `backup` has written.")],
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="A new or empty folder.")],
    revocations: Annotated[
        Path | None,
        typer.Option("--revocations", metavar="FILE", help="The newest revocations.list, from a hop perhaps."),
    ] = None,
    nothing_revoked: Annotated[
        bool, typer.Option("--nothing-revoked", help="Nobody was revoked or replaced since the backup was made.")
    ] = False,
    passphrase_file: PassphraseOption = None, as_json: JsonOption = False,
) -> None:
    """Make a gateway's folder from a backup. Say who was revoked since: they must not come back."""
    from relay.gateway import backup as backups
    from relay.gateway.errors import SetupRefused
    from store.files import file_errors

    if (revocations is None) != nothing_revoked:
        raise SetupRefused(
            "a backup does not know who was revoked after it was made",
            hint="give --revocations with the newest list, or --nothing-revoked if that is so",
        )
    passphrase = ask_passphrase(passphrase_file, "The gateway's passphrase when the backup was made")
    data = None
    if revocations is not None:
        with file_errors(revocations):
            data = revocations.read_bytes()
    ended = asyncio.run(backups.restore(file, directory, passphrase, revocations=data, now=time.time()))
    if as_json:
        typer.echo(json.dumps({"directory": str(directory), "revoked": ended}))
        return
    typer.echo(f"restored {directory}; revoked since the backup: {', '.join(ended) or 'nobody'}")
    typer.echo("next: put the provider's key back, then serve; who joined after the backup needs a new invitation")

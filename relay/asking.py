"""Secrets from a person or a file: passphrases for both groups of commands. Never from argv."""

import getpass
import os
import sys
from pathlib import Path

import typer

from store.errors import PassphraseRefused, StoreCorrupt, StoreMissing
from store.keys import Passphrase


def hidden(prompt: str) -> str:
    """A line from the terminal, not shown. Ctrl-C is a KeyboardInterrupt; raises PassphraseRefused at its end."""
    try:
        return getpass.getpass(f"{prompt}: ")
    except EOFError:
        raise PassphraseRefused("nothing was given", hint="nothing was changed; try again") from None
    except KeyboardInterrupt:
        typer.echo(err=True)
        raise


def passphrase_from_terminal(prompt: str, *, confirm: bool) -> Passphrase:
    """Asked for twice with `confirm`. Raises PassphraseRefused if they differ."""
    first = hidden(prompt)
    if confirm and hidden("Once more") != first:
        raise PassphraseRefused("the two passphrases differ", hint="nothing was created; try again")
    return Passphrase(first)


def credential(name: str) -> Path | None:
    """The file of a secret that systemd gives this service (LoadCredential=), if it does."""
    file = Path(os.environ.get("CREDENTIALS_DIRECTORY", "/nowhere")) / name
    return file if file.is_file() else None


def passphrase_from_file(file: Path, option: str) -> Passphrase:
    """Of a file that `option` names; warns if others may read it. Raises StoreMissing, StoreUnwritable and the like."""
    try:
        if file.stat().st_mode & 0o077:
            print(f"relay: warning: others may read or write {file}; chmod 600 it", file=sys.stderr, flush=True)
    except OSError:
        pass  # reading it says what is wrong
    try:
        return Passphrase.from_file(file)
    except StoreMissing:
        raise StoreMissing(f"there is no passphrase file {file}", hint=f"{option} names it") from None
    except StoreCorrupt:
        raise PassphraseRefused(f"{file} is too large to be a passphrase file", hint=f"{option} names it") from None
    except PassphraseRefused as error:
        raise PassphraseRefused(f"{error}: {file}", hint="it holds one line of at most 1,024 bytes") from None

"""Where the store's passphrase comes from: a file, the environment (for tests), or the terminal. Never argv."""

import getpass
import os
import sys
from collections.abc import Mapping
from pathlib import Path

from edge_client.errors import BadUse, NoPassphrase
from store.keys import Passphrase

__all__ = ["passphrase"]


def passphrase(*, new: bool, environ: Mapping[str, str] = os.environ) -> Passphrase:
    """For an existing store, or (asked twice) for a new one.

    Raises NoPassphrase where nobody can be asked, BadUse if the two do not match, PassphraseRefused, StoreMissing.
    """
    if path := environ.get("CAUSEWAY_PASSPHRASE_FILE"):
        return Passphrase.from_file(Path(path))
    if text := environ.get("CAUSEWAY_PASSPHRASE"):
        print("edge: warning: CAUSEWAY_PASSPHRASE is for tests; other programs can read it", file=sys.stderr)
        return Passphrase(text)
    if not (sys.stdin.isatty() or _has_terminal()):
        raise NoPassphrase(
            "the store needs a passphrase and there is no terminal to ask on", hint="set CAUSEWAY_PASSPHRASE_FILE"
        )
    try:
        first = getpass.getpass("Passphrase for a new store: " if new else "Passphrase: ")
        if new and getpass.getpass("Once more: ") != first:
            raise BadUse("the two passphrases differ", hint="nothing was created; try again")
    except EOFError:
        raise NoPassphrase("no passphrase was given") from None
    return Passphrase(first)


def _has_terminal() -> bool:
    """getpass asks on the controlling terminal, also when standard input is a pipe."""
    try:
        os.close(os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY))
    except OSError:
        return False
    return True

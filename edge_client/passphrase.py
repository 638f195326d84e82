"""Where the store's passphrase comes from: a file, the environment (for tests), or the terminal. Never argv."""

import contextlib
import getpass
import os
import signal
import sys
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path

from edge_client.errors import BadUse, NoPassphrase
from store.errors import StoreMissing
from store.keys import Passphrase

__all__ = ["given", "hidden", "line", "passphrase"]


def given(environ: Mapping[str, str] = os.environ) -> bool:
    """Whether the environment has a passphrase, so that nobody is asked."""
    return bool(environ.get("CAUSEWAY_PASSPHRASE_FILE") or environ.get("CAUSEWAY_PASSPHRASE"))


def passphrase(*, new: bool, what: str | None = None, environ: Mapping[str, str] = os.environ) -> Passphrase:
    """For an existing store, or (`new`, asked twice) for a new one; the prompt says `what` where it is another thing.

    Raises NoPassphrase where nobody can be asked, BadUse if the two do not match, PassphraseRefused, StoreMissing.
    """
    if path := environ.get("CAUSEWAY_PASSPHRASE_FILE"):
        return _from_file(Path(path))
    if text := environ.get("CAUSEWAY_PASSPHRASE"):
        print("edge: warning: CAUSEWAY_PASSPHRASE is for tests; other programs can read it", file=sys.stderr)
        return Passphrase(text)
    if not (sys.stdin.isatty() or _has_terminal()):
        raise NoPassphrase(
            "the store needs a passphrase and there is no terminal to ask on", hint="set CAUSEWAY_PASSPHRASE_FILE"
        )
    try:
        asked = what or ("a new store" if new else None)
        first = hidden(f"Passphrase for {asked}: " if asked else "Passphrase: ")
        if new and hidden("Once more: ") != first:
            raise BadUse("the two passphrases differ", hint="nothing was changed; try again")
    except EOFError:
        raise NoPassphrase("no passphrase was given") from None
    return Passphrase(first)


def hidden(prompt: str) -> str:
    """A line from the terminal, not shown. Ctrl-C is a KeyboardInterrupt at once; EOFError as getpass."""
    with _interruptible():
        return getpass.getpass(prompt)


def line(prompt: str) -> str:
    """A line from standard input, asked for on standard error. Ctrl-C as in `hidden`; EOFError."""
    with _interruptible():
        print(prompt, end="", file=sys.stderr, flush=True)
        text = sys.stdin.readline()
    if not text:
        raise EOFError
    return text.rstrip("\n")


@contextlib.contextmanager
def _interruptible() -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    # A running event loop takes SIGINT as a wish to be granted when control returns to it, which a read keeps away.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    except KeyboardInterrupt:
        print(file=sys.stderr)
        raise
    finally:
        signal.signal(signal.SIGINT, before)


def _from_file(path: Path) -> Passphrase:
    try:
        if path.stat().st_mode & 0o077:
            print(f"edge: warning: others may read or write {path}; chmod 600 it", file=sys.stderr)
        return Passphrase.from_file(path)
    except (FileNotFoundError, NotADirectoryError, StoreMissing):
        hint = "CAUSEWAY_PASSPHRASE_FILE names it"
        raise StoreMissing(f"there is no passphrase file {path}", hint=hint) from None
    except OSError as error:
        raise BadUse(f"cannot read {path}: {error.strerror}", hint="CAUSEWAY_PASSPHRASE_FILE names it") from None


def _has_terminal() -> bool:
    """getpass asks on the controlling terminal, also when standard input is a pipe."""
    try:
        os.close(os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY))
    except OSError:
        return False
    return True

"""One `edge serve` for a home, and the folder where it can be found: `run`, which only its owner can enter.

Whoever holds the lock on `run/lock` serves. The kernel drops a lock with its process, so that one which crashed is in
nobody's way; the file stays, and says on which port.
"""

import contextlib
import os
import stat
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from edge_client.errors import AlreadyServing, BadUse

if sys.platform != "win32":
    import fcntl

__all__ = ["Claim", "claim", "run_folder"]

_LOCK: Final = "lock"


class Claim:
    """That this process serves."""

    def __init__(self, lock: int | None) -> None:
        self._lock = lock

    def listens(self, port: int) -> None:
        """For the message to a second one."""
        if self._lock is not None:
            os.pwrite(self._lock, f"{port}\n".encode(), 0)


@contextlib.contextmanager
def claim(home: Path) -> Iterator[Claim]:
    """Held until the context ends. Raises AlreadyServing, BadUse if the home cannot be used."""
    if sys.platform == "win32":  # two may run; the second finds its port taken
        yield Claim(None)
        return
    try:
        with run_folder(home, create=True) as folder:
            lock = os.open(_LOCK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600, dir_fd=folder)
    except OSError as error:
        raise _unusable(home, error) from None
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise AlreadyServing(_port(os.pread(lock, 8, 0))) from None
        except OSError as error:
            raise _unusable(home, error) from None
        os.ftruncate(lock, 0)
        yield Claim(lock)
    finally:
        os.close(lock)


@contextlib.contextmanager
def run_folder(home: Path, *, create: bool) -> Iterator[int]:
    """A descriptor of the folder. Raises BadUse unless it is ours and of mode 0700, OSError if it is not there."""
    path = home / "run"
    if create:
        home.mkdir(parents=True, exist_ok=True, mode=0o700)
        path.mkdir(exist_ok=True, mode=0o700)
    folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        found = os.fstat(folder)
        if found.st_uid != os.geteuid() or stat.S_IMODE(found.st_mode) & 0o077:
            raise BadUse(f"others may enter {path}", hint=f"remove {path}; `edge serve` makes it anew")
        yield folder
    finally:
        os.close(folder)


def _port(said: bytes) -> int | None:
    """None while the other one is starting."""
    return int(said) if said.strip().isdigit() else None


def _unusable(home: Path, error: OSError) -> BadUse:
    return BadUse(f"cannot use {home / 'run'}: {os.strerror(error.errno or 0).lower()}")

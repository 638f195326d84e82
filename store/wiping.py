"""The end of a store, in a hurry: first what wraps its key, so that whatever is left opens no more, then all the rest.

Needs no passphrase, and goes on where it was cut short. A marker, `store.wiping` for `store.db`, holds the store ids
under which something else, such as the login keyring, keeps a key; it goes when that is dropped, too.
"""

import contextlib
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Final, NamedTuple

from store.errors import StoreError
from store.files import file_errors, sync_folder, write_private
from store.keys import held_for

__all__ = ["Wiped", "wipe"]

_ID: Final = slice(8, 24)  # of a key file, also of a damaged one
_ID_LEN: Final = 16


class Wiped(NamedTuple):
    """How many key files were destroyed and other files removed, and why what is held elsewhere was not dropped."""

    keys: int
    files: int
    not_dropped: Exception | None


def wipe(path: Path, key_file: Path, drop: Callable[[bytes], None]) -> Wiped:
    """Destroys the store of this database and key file, with former ones and what interrupted work has left beside it.

    Each key file is written over, then removed. `drop` is told each store id under which something was held. Backups
    elsewhere stay. What a disk keeps of a file that is written over is the disk's: on flash, as a rule, the old cells.
    Again it does what is left to do. Raises StoreUnwritable, after it did what it could.
    """
    marker = path.with_name(f"{path.stem}.wiping")
    found = [one for one in _ours(path, key_file) if one != marker]
    keys = [one for one in found if ".key" in one.name]
    ids = _marked(marker) | {id for key in keys for id in _held(key)}
    if ids:
        with contextlib.suppress(StoreError):  # on a full disk the keys go all the same
            write_private(marker, [b"".join(sorted(ids))], replace=True)
    failure: StoreError | None = None
    for one in found:
        try:
            with file_errors(one), contextlib.suppress(FileNotFoundError):
                if one in keys:
                    _write_over(one)
                one.unlink()
        except StoreError as error:
            failure = failure or error
    for folder in _folders(path, key_file):
        shutil.rmtree(folder, ignore_errors=True)
    with contextlib.suppress(OSError):
        sync_folder(path.parent)
    not_dropped: Exception | None = None
    try:
        for id in sorted(ids):
            drop(id)
        marker.unlink(missing_ok=True)
    except Exception as error:  # of whatever holds it
        not_dropped = error
    if failure is not None:
        raise failure
    return Wiped(len(keys), len(found) - len(keys), not_dropped)


def _ours(path: Path, key_file: Path) -> list[Path]:
    """All files of a store: key files first, and of these the one in use."""
    found = {one for folder in _folders(path, key_file) for one in folder.rglob("*") if not one.is_dir()}
    found |= {one for one in _beside(path, key_file) if one.is_symlink() or not one.is_dir()}
    found |= {one for one in (path, key_file) if one.exists() or one.is_symlink()}
    return sorted(found, key=lambda one: (".key" not in one.name, one != key_file, str(one)))


def _folders(path: Path, key_file: Path) -> list[Path]:
    return [one for one in _beside(path, key_file) if one.is_dir() and not one.is_symlink()]


def _beside(path: Path, key_file: Path) -> list[Path]:
    """What bears the store's name and a dot, also as a hidden name; but no backup."""
    names = tuple(f"{dot}{stem}." for stem in (path.stem, key_file.stem) for dot in ("", "."))
    there = path.parent.iterdir() if path.parent.is_dir() else ()
    return [one for one in there if one.name.startswith(names) and (one.is_dir() or one.suffix != ".backup")]


def _held(key_file: Path) -> set[bytes]:
    """The store id, if something else may hold a key for it."""
    try:
        id = held_for(key_file)
    except StoreError:  # damaged, or in the middle of a change
        with contextlib.suppress(OSError):
            id = key_file.read_bytes()[_ID]
    return {id} if id is not None and len(id) == _ID_LEN else set()


def _marked(marker: Path) -> set[bytes]:
    try:
        data = marker.read_bytes()
    except OSError:
        return set()
    return {data[at : at + _ID_LEN] for at in range(0, len(data) - _ID_LEN + 1, _ID_LEN)}


def _write_over(key_file: Path) -> None:
    with contextlib.suppress(OSError):
        key_file.chmod(0o600)
    with contextlib.suppress(IsADirectoryError), key_file.open("r+b") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(0)
        file.write(os.urandom(size))
        file.flush()
        os.fsync(file.fileno())

"""A store on a disk that is full: a small tmpfs in a mount namespace of this process alone.

    unshare -m python -m tests.support.full_disk OPERATION FOLDER

Leaves ever more room until the operation succeeds. Prints what was tried as JSON; ends with an error at the first store
that is not whole afterwards, or an error that does not say what is wrong and what to do.
"""

import asyncio
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import store.database
from store.errors import DiskFull
from store.files import write_private
from store.keys import Passphrase, add_passphrase, unlock_held
from tests.support.old_stores import make_old
from tests.support.store_ends import HELD, OPERATIONS, Operation, Rekey, sources, whole
from tests.support.stores import KEY, open_store

_check_room = store.database._check_room
SIZE = 4 * 1024 * 1024
STEP = 12 * 1024


class Copy(Rekey):
    """A copy of the open database in a new file."""

    def work(self, home: Path, done: Callable[[], None]) -> None:
        key = unlock_held(home / "store.key", HELD)
        with open_store(home / "store.db", key) as database:
            try:
                asyncio.run(database.copy(home / "copy.db"))
            finally:
                assert len(asyncio.run(sources(database))) == 2
        done()

    def look(self, home: Path, acknowledged: int) -> None:
        assert (home / "copy.db").exists() == bool(acknowledged), "what is not whole was left there"
        whole(home / "store.db")
        (home / "copy.db").unlink(missing_ok=True)
        self.work(home, lambda: None)
        whole(home / "copy.db")


class AnotherWay(Rekey):
    """A passphrase beside the way of before."""

    def work(self, home: Path, done: Callable[[], None]) -> None:
        add_passphrase(home / "store.key", unlock_held(home / "store.key", HELD), Passphrase("words"))
        done()

    def look(self, home: Path, acknowledged: int) -> None:
        assert sorted(path.name for path in home.iterdir()) == ["store.db", "store.key"]
        assert unlock_held(home / "store.key", HELD).expose() == KEY.expose()
        self.work(home, lambda: None)


class Overtaken(Rekey):
    """Another key, where there was room when it began."""

    def work(self, home: Path, done: Callable[[], None]) -> None:
        asked = list[int]()

        def check(path: Path, needed: int) -> None:
            asked.append(needed)
            if len(asked) > 1:
                _check_room(path, needed)

        store.database._check_room = check
        try:
            super().work(home, done)
        finally:
            store.database._check_room = _check_room


class Migrate(Operation):
    """As that of store_ends, with more to copy where a step rewrites tables."""

    def prepare(self, home: Path) -> None:
        make_old(home / "store.db", 2, home.parent / "schemas")

    def work(self, home: Path, done: Callable[[], None]) -> None:
        OPERATIONS["migrate"].work(home, done)

    def look(self, home: Path, acknowledged: int) -> None:
        OPERATIONS["migrate"].look(home, acknowledged)


ALL: dict[str, Operation] = {
    **OPERATIONS, "migrate": Migrate(), "copy": Copy(), "another way": AnotherWay(), "overtaken": Overtaken(),
}


def run(operation: Operation, first: Path, disk: Path) -> dict[str, int]:
    counted = {"full": 0, "half way": 0, "room": -STEP}
    while True:
        counted["room"] += STEP
        home = disk / "home"
        shutil.copytree(first, home)
        ballast = disk / "ballast"
        with ballast.open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, shutil.disk_usage(disk).free - counted["room"])
        said: list[None] = []
        try:
            operation.work(home, lambda said=said: said.append(None))  # type: ignore[misc]
        except DiskFull as error:
            assert error.hint and error.retryable
            counted["full"] += 1
            counted["half way"] += bool(said)
        else:
            assert len(said) == operation.steps
            return counted
        ballast.unlink()
        operation.look(home, len(said))  # goes on, now that there is room
        shutil.rmtree(home)


def main(name: str, folder: Path) -> None:
    first, disk = folder / "first", folder / "disk"
    first.mkdir(parents=True)
    disk.mkdir()
    ALL[name].prepare(first)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={SIZE}", "tmpfs", str(disk)], check=True)
    try:
        write_private(disk / "full", [bytes(2 * SIZE)], replace=True)
    except DiskFull:
        pass
    else:
        raise AssertionError("the disk does not become full")
    print(json.dumps(run(ALL[name], first, disk)))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))

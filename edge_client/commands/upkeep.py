"""`edge store check|backup|restore|rekey|wipe`: looking after the store."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edge_client.commands.terminal import JSON, Exit, ended, exit_code, note, progress, show

if TYPE_CHECKING:
    from edge_client.config import Config
    from store.database import Connection
    from store.keys import DatabaseKey

__all__ = ["add_upkeep"]

_SERVE = {
    "locked": "has forgotten it; what its memory still holds goes when you end it",
    "silent": "does not answer: end it, it may still hold the key",
}
_WAYS = {"passphrase": "a passphrase", "held": "the login keyring", "tpm": "the TPM"}


def check(as_json: Annotated[bool, JSON] = False) -> None:
    """Look whether the store is whole. Also who may read its files, and whether what is to open it does.

    Reads all of it, also beside a running `edge serve`. Ends with 0 if nothing is wrong, else with 8.
    """

    def work() -> None:
        from edge_client.config import Config
        from edge_client.upkeep import examine

        config = Config.load()
        key = _key(config)
        with progress() as tell:
            found, ways = examine(config, key, lambda step: tell(step, 0, 0))
        result: dict[str, Any] = {
            "ok": not found.problems, "problems": [vars(one) for one in found.problems], "schema": found.schema,
            "documents": found.documents, "chunks": found.chunks, "bytes": found.size,
            "ways": {"keyring" if way == "held" else way: opens for way, opens in ways.items()},
        }
        if as_json:
            show(result)
        else:
            counts = f"{found.documents} documents, {found.chunks} passages, "  # unknown where pages are damaged
            print(f"store      {counts if found.documents or not found.problems else ''}{_size(found.size)}")
            print(f"opened by  {', '.join(_WAYS[way] for way, opens in ways.items() if opens is not False)}")
            for one in found.problems:
                print(f"wrong      {one.message}\n           {one.hint}")
            if not found.problems:
                print("nothing is wrong: every page is authentic, and every table agrees with the others")
        if found.problems:
            raise Exit(exit_code("store"))

    ended(work, as_json=as_json)


def backup(
    path: Annotated[Path, typer.Argument(metavar="PATH", help="A new file, or a folder for one.")],
    own: Annotated[
        bool, typer.Option("--passphrase", help="Ask for a passphrase that opens the backup, and not the store.")
    ] = False,
    identity: Annotated[
        bool, typer.Option("--identity", help="Take this device's identity along: for one that is to replace it.")
    ] = False,
    as_json: Annotated[bool, JSON] = False,
) -> None:
    """Write the store into one encrypted file. Also beside a running `edge serve`.

    What opens the store opens the backup; `edge store restore` brings it back, on any machine.
    """

    def work() -> None:
        import time
        from functools import partial

        from edge_client.app import key_without_asking
        from edge_client.config import Config
        from edge_client.errors import BadUse
        from edge_client.folders import is_folder
        from edge_client.identity import NAMESPACE
        from edge_client.key_agent import key_from_serve
        from edge_client.passphrase import passphrase
        from edge_client.upkeep import without_what_acts
        from store.backups import back_up
        from store.keys import ways_in

        config = Config.load()
        opens = set(ways_in(config.key_path)) if config.key_path.exists() else set()
        target = path / time.strftime("store-%Y-%m-%d.backup") if is_folder(path) else path
        if not is_folder(target.parent):
            raise BadUse(f"there is no folder {target.parent}", hint="make it, or name another place")
        key = key_from_serve(config.home) if own else None  # what the environment names is the backup's
        if own and key is None and "passphrase" not in opens:
            key = key_without_asking(config, opens)
        key = key or _key(config)
        secret = passphrase(new=True, what="the backup") if own else None
        taken = False

        def prepare(copy: "Connection") -> None:
            nonlocal taken
            without_what_acts(copy, identity=identity)
            taken = bool(copy.execute("SELECT 1 FROM settings WHERE namespace = ? LIMIT 1", (NAMESPACE,)).fetchall())

        with progress() as tell:
            tell("copying the store", 0, 0)
            size = back_up(
                config.store_path, config.key_path, key, target, passphrase=secret,
                prepare=prepare, tell=partial(tell, "writing the backup"),
            )
        if not own and "passphrase" not in opens:
            only = " or ".join(_WAYS[way] for way in sorted(opens))
            note(f"only {only} opens it, so it is lost with this machine; --passphrase gives it one of its own")
        if identity and not taken:
            note("this device has not joined: there is no identity to take along")
        if as_json:
            show({"backup": str(target), "bytes": size, "identity": taken})
        else:
            print(f"{target}: {_size(size)}, with{'' if taken else 'out'} this device's identity")

    ended(work, as_json=as_json)


def restore(
    path: Annotated[Path, typer.Argument(metavar="PATH", help="What `edge store backup` wrote.")],
    replace: Annotated[bool, typer.Option("--replace", help="Also where a store is: keep that aside.")] = False,
    as_json: Annotated[bool, JSON] = False,
) -> None:
    """Make a backup the store of this home. It is looked through first. Not beside a running `edge serve`.

    It takes the passphrase of when the backup was made, or that of --passphrase. Questions that had no answer then
    are interrupted.
    """

    def work() -> None:
        import contextlib
        import dataclasses
        from functools import partial

        from edge_client.app import unlocked_key
        from edge_client.config import Config
        from edge_client.one_serve import claim
        from edge_client.passphrase import passphrase
        from store.backups import put_in_place, unpacked
        from store.errors import StoreCorrupt, StoreExists, StoreMissing, WrongKey
        from store.files import file_errors
        from store.upkeep import check

        config = Config.load()
        with file_errors(path):
            there = path.is_file()
        if not there:
            raise StoreMissing(f"there is no backup {path}", hint="name a file that `edge store backup` wrote")
        if not replace and (config.key_path.exists() or config.store_path.exists()):
            raise StoreExists("there is a store already", hint="`--replace` keeps it aside; nothing was changed")
        with claim(config.home), contextlib.ExitStack() as stack:
            with progress() as tell:
                folder = stack.enter_context(unpacked(path, config.store_path, partial(tell, "reading the backup")))
            try:
                key = unlocked_key(dataclasses.replace(config, home=folder), partial(passphrase, what="the backup"))
            except WrongKey as error:
                hint = "it takes the one of when it was made, or of --passphrase; nothing was changed"
                raise WrongKey(f"the backup does not open: {error}", hint=hint) from None
            with progress() as tell:
                found = check(folder / config.store_path.name, key, lambda step: tell(step, 0, 0))
            if found.problems:
                raise StoreCorrupt(f"the backup is damaged: {found.problems[0].message}", hint="take another one")
            former = put_in_place(folder, config.store_path, config.key_path, replace=replace)
        if as_json:
            show({
                "documents": found.documents, "chunks": found.chunks, "bytes": found.size,
                "former": former and str(former),
            })
        else:
            print(f"restored {found.documents} documents, {found.chunks} passages; `edge status` says what is next")
            if former is not None:
                print(f"the former store is in {former}, as long as you keep that")

    ended(work, as_json=as_json)


def rekey(as_json: Annotated[bool, JSON] = False) -> None:
    """Encrypt the store anew, under another key. What opens it does so as before.

    No copy of the former key does. Takes about as long as copying it. A running `edge serve` is without documents
    meanwhile.
    """

    def work() -> None:
        from edge_client.config import Config
        from edge_client.errors import NoStore
        from edge_client.passphrase import passphrase
        from edge_client.upkeep import renew_key

        config = Config.load()
        if not config.key_path.exists():
            raise NoStore
        ways = renew_key(config, passphrase)
        if as_json:
            show({"ways": ["keyring" if way == "held" else way for way in ways]})
        else:
            print(f"the store has another key, opened by {' or '.join(_WAYS[way] for way in ways)}")
            note("backups from before open as they did, and need what opened the store then")

    ended(work, as_json=as_json)


def wipe(
    yes: Annotated[bool, typer.Option("--yes", help="Ask nothing.")] = False,
    as_json: Annotated[bool, JSON] = False,
) -> None:
    """Destroy the store, its keys first. Needs no passphrase, and there is no way back.

    A running `edge serve` forgets it. Backups elsewhere stay. One that was stopped is finished by the next.
    """

    def work() -> None:
        from edge_client.config import home_path
        from edge_client.errors import BadUse
        from edge_client.upkeep import wipe_home

        home = home_path()
        if not yes:
            note(f"this destroys all that is stored in {home}: documents, conversations, queued questions, identity")
            if _typed("Type wipe to do it: ") != "wipe":
                raise BadUse("nothing was destroyed", hint="type the word wipe, or give --yes")
        told = wipe_home(home)
        if as_json:
            show(told._asdict() | {"not_dropped": told.not_dropped and str(told.not_dropped)})
            return
        if told.keys or told.files:
            print(f"destroyed {told.keys} key files, removed {told.files} other files of the store in {home}")
        else:
            print(f"nothing of a store is in {home}")
        if told.serve != "none":
            print("the running `edge serve` " + _SERVE[told.serve])
        if told.not_dropped is not None:
            note(f"the login keyring may keep what unlocked it: {told.not_dropped}; do this again in a desktop session")
        note("backups and other copies open as before; an SSD may keep old cells of a file that was written over")

    ended(work, as_json=as_json)


def add_upkeep(group: typer.Typer) -> None:
    """Gives `edge store` these commands."""
    for command in (check, backup, restore, rekey, wipe):
        group.command()(command)


def _key(config: "Config") -> "DatabaseKey":
    """From a running `edge serve`, or by whatever opens the store. Raises NoStore, and as app.unlocked_key."""
    from edge_client.app import unlocked_key
    from edge_client.errors import NoStore
    from edge_client.key_agent import key_from_serve
    from edge_client.passphrase import given, passphrase
    from store.errors import StoreMissing

    if not config.key_path.exists():
        if not config.store_path.exists():
            raise NoStore
        hint = "`edge store restore` brings back a backup; `edge store wipe` removes what is left"
        raise StoreMissing("there is a database, and no key file that could open it", hint=hint)
    return (None if given() else key_from_serve(config.home)) or unlocked_key(config, passphrase)


def _size(size: int) -> str:
    return f"{size / 1e6:,.1f} MB"


def _typed(prompt: str) -> str:
    """Raises BadUse where nobody can be asked."""
    from edge_client.errors import BadUse
    from edge_client.passphrase import line

    try:
        return line(prompt).strip()
    except EOFError:
        print(file=sys.stderr)  # the prompt stands there
        raise BadUse("nobody is there to confirm it", hint="--yes asks nothing; nothing was destroyed") from None

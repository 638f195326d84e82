"""Looking after the store of this home: whether it is whole, and what opens it."""

import hmac
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Literal, NamedTuple

from edge_client import login_keyring
from edge_client.app import key_without_asking
from edge_client.config import Config
from edge_client.errors import BadUse, NoKeyring, NotServing
from edge_client.identity import NAMESPACE
from edge_client.key_agent import lock_serve, state_of_serve, unlock_serve
from edge_client.promises import PROMISES
from store.database import Connection
from store.errors import TpmError, WrongKey
from store.keys import (
    DatabaseKey,
    Passphrase,
    Way,
    by_held,
    by_passphrase,
    by_tpm,
    held_for,
    unlock_key,
    ways_in,
)
from store.rekey import rekey
from store.tpm import Tpm
from store.upkeep import Problem, Report, check, who_may_read
from store.wiping import wipe

__all__ = ["Condition", "WipedHome", "examine", "renew_key", "wipe_home", "without_what_acts"]

_NAMES = {"held": "the login keyring", "tpm": "the TPM"}


class Condition(NamedTuple):
    """`ways`: what the key file is to be opened by, and whether it is; None for a passphrase, which nobody asks for."""

    report: Report
    ways: dict[str, bool | None]


def examine(config: Config, key: DatabaseKey, tell: Callable[[str], None]) -> Condition:
    """Looks at database, key file and file modes. Blocks. Raises as store.upkeep.check."""
    report = check(config.store_path, key, tell)
    problems, ways = list(report.problems), dict[str, bool | None]()
    tell("what opens it")
    for way in ways_in(config.key_path):
        ways[way] = None
        if way == "passphrase":
            continue
        try:
            opened = key_without_asking(config, {way})
            ways[way] = opened is not None and hmac.compare_digest(opened.expose(), key.expose())
            why = "it has the key of another store"
        except (NoKeyring, TpmError, WrongKey) as error:
            ways[way], why = False, str(error)
        if not ways[way]:
            told = f"{_NAMES[way]} does not open the store: {why}"
            problems.append(Problem("way", told, f"{_off(way)}, or mend that"))
    problems += who_may_read([config.home, *sorted(config.home.glob("store.*")), config.token_path, config.traces_path])
    return Condition(replace(report, problems=tuple(problems)), ways)


def without_what_acts(connection: Connection, *, identity: bool) -> None:
    """Makes a copy of a store one that does nothing by itself where it is opened: for a backup.

    What had not been answered is *interrupted*, since it may have been sent after the copy was made: only a person asks
    it again. Unless `identity`, the device's is left out: two devices with one would be taken for a copied key.
    """
    connection.execute(
        "UPDATE queue SET state = 'interrupted', note = 'restored', settled_at = unixepoch()"
        " WHERE name = 'outbox' AND state IN ('waiting', 'sent')"
    )
    for namespace in (PROMISES, *(() if identity else (NAMESPACE,))):
        connection.execute("DELETE FROM settings WHERE namespace = ?", (namespace,))


def renew_key(config: Config, ask: Callable[..., Passphrase]) -> list[str]:
    """Gives the database another key, which all ways of before open, and tells a running `edge serve`; those ways.

    Blocks. Raises BadUse where one of them does not open the store just now, NoPassphrase, NotServing for a serve that
    does not answer, and as store.rekey.
    """
    path, coming, keys = config.key_path, list[Way](), list[DatabaseKey]()
    ways = ways_in(path)
    if "passphrase" in ways:
        secret = ask(new=False)
        keys.append(unlock_key(path, secret))
        coming.append(by_passphrase(secret))
    for way in ways:
        if way != "passphrase":
            try:
                keys += filter(None, [key_without_asking(config, {way})])
            except (NoKeyring, TpmError, WrongKey) as error:
                raise BadUse(
                    f"{_NAMES[way]} does not open the store just now: {error}", hint=f"{_off(way)}, or mend that first"
                ) from None
    if (store_id := held_for(path)) is not None:
        coming.append(by_held(login_keyring.get(store_id)))
    if "tpm" in ways:
        tpm = Tpm(config.tpm.tcti)
        coming.append(by_tpm(lambda held: tpm.seal(held).encode()))
    key, serves = keys[0], _serves(config.home)
    if serves:
        lock_serve(config.home)
    try:
        key = rekey(config.store_path, path, key, coming)
    finally:
        if serves:
            unlock_serve(config.home, key)
    return ways


def _serves(home: Path) -> bool:
    """Whether a running `edge serve` has the store open."""
    try:
        return state_of_serve(home).store == "open"
    except NotServing:
        return False


def _off(way: str) -> str:
    return f"`edge store {'keyring' if way == 'held' else way} off`"


class WipedHome(NamedTuple):
    """As store.wiping.Wiped, and what became of a running `edge serve`."""

    keys: int
    files: int
    serve: Literal["none", "locked", "silent"]
    not_dropped: Exception | None


def wipe_home(home: Path) -> WipedHome:
    """Destroys the store of a home, whatever is in its configuration. Blocks: what takes time is an `edge serve`, which
    ends its sessions after the files are gone. Raises as store.wiping.wipe.
    """
    config = Config(home)
    serve: Literal["none", "locked", "silent"] = "none"
    try:
        done = wipe(config.store_path, config.key_path, login_keyring.drop)
    finally:
        config.traces_path.unlink(missing_ok=True)  # when something was asked, and by which ways
        try:
            if state_of_serve(home).store != "none":
                lock_serve(home)
                serve = "locked"
        except NotServing as error:
            serve = "silent" if "does not answer" in str(error) else "none"
    return WipedHome(done.keys, done.files, serve, done.not_dropped)

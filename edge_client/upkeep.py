"""Looking after the store of this home: whether it is whole, and what opens it."""

import hmac
from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

from edge_client.app import key_without_asking
from edge_client.config import Config
from edge_client.errors import NoKeyring
from store.errors import TpmError, WrongKey
from store.keys import DatabaseKey, ways_in
from store.upkeep import Problem, Report, check, who_may_read

__all__ = ["Condition", "examine"]

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
            hint = f"`edge store {'keyring' if way == 'held' else way} off`, then `on` where it is to open the store"
            problems.append(Problem("way", f"{_NAMES[way]} does not open the store: {why}", hint))
    problems += who_may_read([config.home, *sorted(config.home.glob("store.*")), config.token_path, config.traces_path])
    return Condition(replace(report, problems=tuple(problems)), ways)

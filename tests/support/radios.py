"""This machine's own Bluetooth adapters, for the tests that ask for them: `pytest -m hardware`."""

import os
import re
from pathlib import Path

VARIABLE = "CAUSEWAY_RADIOS"
_ADAPTERS = Path("/sys/class/bluetooth")
_NAME = re.compile("hci[0-9]{1,3}")


def adapters() -> tuple[str, str] | str:
    """The hop's and the edge's, as in ("hci0", "hci1"): those that CAUSEWAY_RADIOS names, else the first two. A text
    says what is missing.
    """
    found = (path.name for path in _ADAPTERS.glob("hci*") if _NAME.fullmatch(path.name))
    here = sorted(found, key=lambda name: int(name[3:]))
    named = os.environ.get(VARIABLE, "").split()
    if named:
        if len(named) != 2 or len(set(named)) != 2 or not all(map(_NAME.fullmatch, named)):
            return f'{VARIABLE} names two adapters, the hop\'s and the edge\'s, as in "hci0 hci1"'
        if absent := [name for name in named if name not in here]:
            return f"this machine has no Bluetooth adapter {' and no '.join(absent)}"
        return named[0], named[1]
    if len(here) < 2:
        have = f"only {here[0]}" if here else "no Bluetooth adapter"
        return f"two Bluetooth adapters are needed, and this machine has {have}; docs/HARDWARE.md says more"
    return here[0], here[1]

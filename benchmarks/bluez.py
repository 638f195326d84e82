"""Bluetooth on Linux's own stack, in the virtual machine of scripts/test-bluez: `scripts/bench bluez`.

A hop's peripheral beside one that is written with `bluez-peripheral`, and RFCOMM beside a plain copy over the same kind
of socket: bytes a second into the hop and out of it. In software emulation, which says how the rows compare and nothing
about radios; the machine next door slows all of them.
"""

import json
import subprocess
import sys
from pathlib import Path

from benchmarks.measure import Row, arguments, note, show
from tests.bluez.figures import MARK

ROOT = Path(__file__).resolve().parent.parent
STEPS = ["beside-peer", "rfcomm-bulk"]
SMOKE = ["beside-peer-twice", "rfcomm-bulk"]
WANTED = {"peripheral": 1.3, "RFCOMM": 0.9}


def rows(said: list[str]) -> list[Row]:
    """Of the lines that the machine has said. A row's `ours` and `peer` are in kB/s."""
    found = []
    for line in said:
        if line.startswith(MARK):
            one = json.loads(line.removeprefix(MARK))
            wanted = next(wanted for part, wanted in WANTED.items() if part in one["what"])
            found.append(Row(
                one["what"], one["ours"] / 1000, "kB/s", one["peer"] / 1000, one["peer_name"], one["ratio"], wanted,
                one["spread"],
            ))
    return found


def main() -> int:
    asked = arguments(__doc__ or "")
    command = [sys.executable, "-m", "scripts.bluez_vm", *(SMOKE if asked.smoke else STEPS)]
    process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True)
    said = []
    assert process.stdout is not None
    for line in process.stdout:
        said.append(line)
        note(line.rstrip())
    code = process.wait()
    show("bluez", rows(said), as_json=asked.json)
    return code


if __name__ == "__main__":
    sys.exit(main())

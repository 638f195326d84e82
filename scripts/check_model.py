"""Checks the model of resume, journal and outbox with Spin: `scripts/model [--harms N] [--seconds N] [--bugs]`.

First every behaviour with at most `--harms` harms (docs/model/README.md names them), of an edge with early data and of
one without, then as many as fit into `--seconds` of those with one more, kept as hashes; with `--bugs` also that each
mistake the model knows is found, so that it can fail. Needs 2 GB of memory at most.

Exit code 0 if that holds, 1 if not, 2 if spin or gcc is not installed.
"""

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
MODEL = ROOT / "docs" / "model" / "exactly_once.pml"
BUGS = (
    "BUG_CLAIM_AFTER_CALL", "BUG_TRUST_HINT", "BUG_IGNORE_EPOCH", "BUG_TICKET_KEPT", "BUG_SILENT_TAKEOVER",
    "BUG_ASKS_EARLY",
)
WAITING = "WELCOME_FIRST"  # an edge that asks nothing before it is welcomed
EXHAUSTIVE_S = 300


@dataclass(frozen=True)
class Result:
    """`violation` is Spin's own line, or ""; `complete` says that nothing was left out."""

    violation: str
    complete: bool
    states: int
    seconds: float


def missing_tools() -> list[str]:
    """Debian packages to install before anything can be checked."""
    return [package for tool, package in {"spin": "spin", "gcc": "gcc"}.items() if shutil.which(tool) is None]


def check(harms: int, *defines: str, hashed: bool = False, seconds: float = EXHAUSTIVE_S) -> Result:
    """One run of the verifier. Raises RuntimeError if the model does not compile."""
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="causeway-model-") as folder:
        shutil.copy(MODEL, folder)
        flags = ["-DSAFETY", "-DMEMLIM=2000", "-DBITSTATE" if hashed else "-DCOLLAPSE"]
        for command in (
            ["spin", f"-DHARMS={harms}", *(f"-D{name}" for name in defines), "-a", MODEL.name],
            ["gcc", "-O2", "-w", *flags, "-o", "pan", "pan.c"],
        ):
            made = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
            if made.returncode != 0 or "Error" in made.stdout:
                raise RuntimeError(f"{command[0]}: {(made.stdout + made.stderr)[-2000:]}")
        run = ["timeout", "--signal=INT", str(round(seconds)), "./pan", "-m200000", "-w30" if hashed else "-w24"]
        output = subprocess.run(run, cwd=folder, capture_output=True, text=True, check=False).stdout
    wrong = re.search(r"pan:\d+: (.*)|error: max search depth too small", output)
    states = re.search(r"([\d.e+]+) states, stored", output)
    complete = "Search not completed" not in output and "errors: 0" in output
    return Result(wrong[0] if wrong else "", complete, int(float(states[1])) if states else 0,
                  time.monotonic() - started)  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(prog="scripts/model", description="Checks the model with Spin.")
    parser.add_argument("--harms", type=int, default=2, help="what may go wrong in one run, explored completely")
    parser.add_argument("--seconds", type=float, default=20, help="for the search with one harm more")
    parser.add_argument("--bugs", action="store_true", help="also check that known mistakes are found")
    arguments = parser.parse_args()
    if missing := missing_tools():
        names = " ".join(missing)
        print(f"please install first: {names}   (Debian: sudo apt-get install {names})", file=sys.stderr)
        return 2
    whole = check(arguments.harms)
    print(f"{arguments.harms} harms, all:  {whole.states:12,} states in {whole.seconds:5.1f} s  {whole.violation}")
    waits = check(arguments.harms, WAITING)
    print(f"  no early data {waits.states:12,} states in {waits.seconds:5.1f} s  {waits.violation}")
    more = check(arguments.harms + 1, hashed=True, seconds=arguments.seconds)
    print(f"{arguments.harms + 1} harms, part: {more.states:12,} states in {more.seconds:5.1f} s  {more.violation}")
    good = whole.complete and waits.complete and not (whole.violation or waits.violation or more.violation)
    for bug in BUGS if arguments.bugs else ():
        found = check(2, bug)
        print(f"{bug:22} {found.states:10,} states in {found.seconds:5.1f} s  {found.violation or 'NOT FOUND'}")
        good = good and bool(found.violation)
    print("the model holds" if good else "FAILED")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())

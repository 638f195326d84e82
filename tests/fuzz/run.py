"""Fuzzes every decoder in turn: `scripts/fuzz [--seconds N] [--target NAME]...`, ten minutes in all by default.

Each target starts from its seeds and tests/fuzz/corpus/TARGET. At the end the inputs that show the most lines of code
are kept there, at most 200 KB in all, and replayed by the quick tier. Crashing inputs are left in .fuzz/. Exit code 0
if every target held, 1 if one did not, 2 if atheris is not installed (it has wheels for Linux on x86-64 alone).
"""

import argparse
import hashlib
import importlib.util
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from types import FrameType
from typing import Any

from tests.fuzz.targets import TARGETS, Target

ROOT = Path(__file__).resolve().parent.parent.parent
CORPUS = Path(__file__).resolve().parent / "corpus"
CRASHES = ROOT / ".fuzz"
KEPT_BYTES = 200_000 // len(TARGETS)  # of each target
_FUZZED = tuple(str(ROOT / name) for name in ("transport", "store", "relay"))


def replay(target: Target, data: bytes) -> set[tuple[str, int, int]]:
    """Runs one input; returns the steps from line to line it took in the fuzzed packages."""
    steps: set[tuple[str, int, int]] = set()

    def enter(frame: FrameType, event: str, argument: Any) -> Callable[..., Any] | None:
        if not frame.f_code.co_filename.startswith(_FUZZED):
            return None
        last = 0

        def line(frame: FrameType, event: str, argument: Any) -> Callable[..., Any]:
            nonlocal last
            steps.add((frame.f_code.co_filename, last, frame.f_lineno))
            last = frame.f_lineno
            return line

        return line(frame, event, argument)

    sys.settrace(enter)
    try:
        target.run(data)
    finally:
        sys.settrace(None)
    return steps


def distil(target: Target, inputs: Iterable[bytes], room: int) -> list[bytes]:
    """The inputs, shortest first, that each take a step no earlier one took; at most `room` bytes in all."""
    seen: set[tuple[str, int, int]] = set()
    kept: list[bytes] = []
    for data in sorted(set(inputs), key=lambda data: (len(data), data)):
        if len(data) > room:
            continue
        steps = replay(target, data)
        if not steps <= seen:
            seen |= steps
            kept.append(data)
            room -= len(data)
    return kept


def fuzz(name: str, seconds: float) -> tuple[bool, int, list[bytes]]:
    """(held, executions, inputs found) after about so many seconds."""
    target = TARGETS[name]
    with tempfile.TemporaryDirectory(prefix="causeway-fuzz-") as folder:
        for data in (*target.seeds(), *(path.read_bytes() for path in committed(name))):
            (Path(folder) / hashlib.sha256(data).hexdigest()[:16]).write_bytes(data)
        CRASHES.mkdir(exist_ok=True)
        done = subprocess.run(
            [
                sys.executable, "-m", "tests.fuzz.one", name, folder, f"-max_total_time={max(1, round(seconds))}",
                f"-max_len={target.max_len}", "-timeout=20", "-rss_limit_mb=1500", "-print_final_stats=1",
                f"-artifact_prefix={CRASHES}/{name}-",
            ],
            cwd=ROOT, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", check=False,
        )  # fmt: skip
        if done.returncode != 0:
            print("\n".join((done.stdout + done.stderr).splitlines()[-40:]))
        count = re.search(r"number_of_executed_units:\s*(\d+)", done.stderr)
        found = [path.read_bytes() for path in Path(folder).iterdir()]
    return done.returncode == 0, int(count[1]) if count else 0, found


def committed(name: str) -> list[Path]:
    return sorted((CORPUS / name).glob("*"))


def keep(name: str, inputs: list[bytes]) -> int:
    """Replaces the target's corpus; returns its size in bytes."""
    kept = distil(TARGETS[name], inputs, KEPT_BYTES)
    folder = CORPUS / name
    folder.mkdir(parents=True, exist_ok=True)
    for path in committed(name):
        path.unlink()
    for data in kept:
        (folder / hashlib.sha256(data).hexdigest()[:16]).write_bytes(data)
    return sum(map(len, kept))


def main() -> int:
    parser = argparse.ArgumentParser(prog="scripts/fuzz", description="Fuzzes every decoder.")
    parser.add_argument("--seconds", type=float, default=600, help="for all targets together")
    parser.add_argument("--target", action="append", choices=list(TARGETS), help="only this one; may be repeated")
    arguments = parser.parse_args()
    if importlib.util.find_spec("atheris") is None:
        print("atheris is not installed: it has wheels for Linux on x86-64 alone", file=sys.stderr)
        return 2
    names = arguments.target or list(TARGETS)
    broken = []
    for name in names:
        started = time.monotonic()
        held, count, found = fuzz(name, arguments.seconds / len(names))
        took = time.monotonic() - started
        if held:
            size = keep(name, found)
            print(f"{name:16} {count:9,} inputs in {took:5.1f} s, {len(committed(name)):3} kept, {size:6} bytes")
        else:
            broken.append(name)
            print(f"{name:16} {count:9,} inputs in {took:5.1f} s, FAILED")
        sys.stdout.flush()
    if broken:
        print(f"FAILED: {', '.join(broken)}; the inputs are in {CRASHES.name}/")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())

"""The example of a simulated link runs, and shows what it promises."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
EXAMPLE = ROOT / "examples" / "simulated_link.py"


def test_the_example_runs_and_takes_the_same_course_each_time() -> None:
    def play() -> str:
        done = subprocess.run(
            [sys.executable, EXAMPLE], capture_output=True, text=True, timeout=60, check=True, cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
        return done.stdout

    output = play()
    lines = output.splitlines()
    assert lines[-2].endswith(": 3000 bytes") and lines[-1].endswith("s: lost")
    assert play() == output

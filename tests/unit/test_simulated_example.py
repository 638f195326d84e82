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
    assert sum(int(line.split()[-2]) for line in lines[:-1]) == 3000 and lines[-1].endswith("s: lost")
    assert play() == output


def test_the_readme_shows_it_as_it_is() -> None:
    readme = (ROOT / "README.md").read_text()
    assert f"```python\n{EXAMPLE.read_text()}```" in readme
    code = [line for line in EXAMPLE.read_text().splitlines() if line and not line.startswith('"""')]
    assert len(code) <= 16

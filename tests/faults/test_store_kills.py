"""kill -9 while a store is written: nothing acknowledged is lost, nothing is there by halves, the key file fits.

Real processes, ended before one system call or another that changes a file, and at moments from outside. What is
done, and what has to be true afterwards, is in tests/support/store_ends.py; the long tier ends them at every call.
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import settings

from tests.support.outside import ROOT

_LONG = 1000  # examples: more than any other profile asks for


@pytest.mark.skipif(sys.platform != "linux", reason="ptrace(2) as Linux has it")
@pytest.mark.parametrize(
    ("operation", "steps"),
    [("ingest", True), ("delete", True), ("rekey", False), ("migrate", False), ("reembed", True)],
)
def test_killed_at_any_point(operation: str, steps: bool, tmp_path: Path) -> None:
    points = 0 if settings.default.max_examples > _LONG else 8
    command = [sys.executable, "-m", "tests.support.store_ends", operation, str(tmp_path / "ends"), str(points)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    counted = json.loads(done.stdout)
    assert counted["calls"] > 30 and counted["killed"] >= min(counted["calls"] - 20, 11)
    assert (counted["half way"] > 0) == steps

"""A disk that is full, at any point of what is done to a store: an error that says so, and a store that is whole.

The disk is a tmpfs in a mount namespace; what is tried on it and has to be true is in tests/support/full_disk.py.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.outside import ROOT

NAMESPACE = ["unshare", "-m"] if hasattr(os, "geteuid") and os.geteuid() == 0 else ["unshare", "-Urm"]


@pytest.mark.skipif(sys.platform != "linux", reason="a tmpfs in a mount namespace")
@pytest.mark.parametrize(
    ("operation", "times"),
    [
        ("ingest", 10), ("delete", 10), ("rekey", 10), ("overtaken", 10), ("migrate", 4), ("copy", 10),
        ("another way", 1),
    ],
)
def test_full_at_any_point(operation: str, times: int, tmp_path: Path) -> None:
    command = [*NAMESPACE, sys.executable, "-m", "tests.support.full_disk", operation, str(tmp_path / "full")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    counted = json.loads(done.stdout)
    assert counted["full"] >= times
    assert counted["half way"] > 0 or operation not in ("ingest", "delete")

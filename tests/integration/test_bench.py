"""`scripts/bench session`, smallest size: it runs, and every row says something. Its numbers are not judged here."""

import json
import math
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
BENCH = str(ROOT / "scripts" / "bench")
pytestmark = pytest.mark.demo


def test_every_row_of_the_session_benchmark_has_its_numbers() -> None:
    done = subprocess.run(
        [BENCH, "session", "--smoke", "--json"], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=400
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["name"] == "session"
    rows = result["rows"]
    for row in rows:
        assert row["what"] and row["unit"] and row["peer_name"]
        assert math.isfinite(row["ours"]) and row["ours"] > 0
        if "not measured" in row["peer_name"]:  # a peer that could not be installed says so
            assert row["peer"] is None and row["ratio"] is None
        else:
            assert row["peer"] > 0 and row["ratio"] > 0
    names = " | ".join(row["what"] for row in rows)
    for part in ("leaf alone", "intermediate", "without KEM", "resumption", "256 B", "1 KiB", "16 KiB", "loopback",
                 "idle session"):
        assert part in names
    assert next(row for row in rows if "without early data" in row["what"])["ours"] == 184


def test_a_name_that_is_not_there_is_an_error_with_the_names_that_are() -> None:
    done = subprocess.run([BENCH, "nothing"], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=20)
    assert done.returncode == 2 and "session" in done.stderr and not done.stdout

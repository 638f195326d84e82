"""`pytest -m hardware`: tests on radios run when they are asked for, and do not pass where there are none."""

import os
import re
import subprocess
import sys

from tests.support.outside import ROOT
from tests.support.radios import VARIABLE


def suite(*arguments: str, radios: str = "hci98 hci99") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "tests/hardware", *arguments], cwd=ROOT,
        env={**os.environ, VARIABLE: radios}, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=120,
    )


def test_they_are_left_out_unless_they_are_asked_for() -> None:
    done = suite()
    assert done.returncode == 5
    assert re.search("[1-9][0-9]+ tests need two Bluetooth radios and were left out: pytest -m hardware", done.stdout)


def test_they_are_an_error_where_there_are_no_radios() -> None:
    done = suite("-m", "hardware")
    assert done.returncode == 4 and "passed" not in done.stdout
    assert "-m hardware: this machine has no Bluetooth adapter hci98 and no hci99" in done.stderr
    one = suite("-m", "hardware", radios="hci98")
    assert one.returncode == 4 and "names two adapters, the hop's and the edge's" in one.stderr


def test_they_can_be_listed_without_radios() -> None:
    done = suite("-m", "hardware", "--collect-only", "-q")
    assert done.returncode == 0 and "tests/hardware/test_radio_links.py: " in done.stdout

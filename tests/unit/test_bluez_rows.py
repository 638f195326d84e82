"""What steps in the virtual machine have measured becomes rows of a benchmark."""

import pytest

from benchmarks.bluez import rows
from tests.bluez import figures


def test_a_step_s_figures_are_found_in_what_the_machine_says(capsys: pytest.CaptureFixture[str]) -> None:
    said = figures.show("a peripheral on BlueZ, in", [40e3, 60e3, 50e3], [20e3, 20e3, 50e3], "peer 1.0")
    assert said == "a peripheral on BlueZ, in 50 kB/s, peer 1.0 20, 2.00 times"  # the middle one of 2, 3 and 1
    figures.show("RFCOMM, out", [1e3, 1e3], [2e3, 2e3], "plain socket copy")
    found = rows(["guest: kernel up", *capsys.readouterr().out.splitlines(keepends=True), "passed"])
    assert [(row.what, row.ours, row.unit, row.peer, row.peer_name, row.ratio, row.wanted) for row in found] == [
        ("a peripheral on BlueZ, in", 50.0, "kB/s", 20.0, "peer 1.0", 2.0, 1.3),
        ("RFCOMM, out", 1.0, "kB/s", 2.0, "plain socket copy", 0.5, 0.9),
    ]
    assert found[0].spread == 0.2


def test_without_figures_there_are_no_rows() -> None:
    assert rows(["test-bluez: failed"]) == []

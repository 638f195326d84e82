"""`relay sim` as a process."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
RUN = "import sys; from relay.cli import main; sys.argv[0] = 'relay'; main()"


def relay(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", RUN, *arguments], capture_output=True, text=True, timeout=120, check=False, cwd=ROOT,
        env={**os.environ, "NO_COLOR": "1"},
    )


def test_a_profile_is_played_and_drawn(tmp_path: Path) -> None:
    page = tmp_path / "report.html"
    done = relay("sim", "run", "rfcomm", "--duration", "5m", "--seed", "4", "--json", "--html", str(page))
    assert (done.returncode, done.stderr) == (0, "")
    numbers = json.loads(done.stdout)
    assert numbers["prompts"] > 0 and numbers["delivered"] == numbers["prompts"]
    assert (numbers["simulated_s"], numbers["seed"], numbers["lost"]) == (300.0, 4, 0)
    assert page.read_text("utf-8").startswith("<!doctype html>")


def test_words_for_people() -> None:
    done = relay("sim", "run", "examples/scenarios/two_roads.toml", "--duration", "90s")
    note = "relay: note: faults that come after the end of so short a run: 1 of 1\n"
    assert (done.returncode, done.stderr) == (0, note)
    assert "delivered" in done.stdout and "delay of a token p95, s" in done.stdout


@pytest.mark.parametrize("arguments", [
    ("run", "fog"), ("run", "none.toml"), ("run", "sat", "--duration", "soon"), ("run", "sat", "--duration", "0s"),
    ("run", "sat?loss=2"), ("radio", "x", "--phy", "fm"), ("run", "x" * 5_000), ("run", "sat", "--duration", ""),
    ("run", "sat", "--duration", "32d"),
])
def test_what_cannot_be_played_says_why(arguments: tuple[str, ...], tmp_path: Path) -> None:
    fixed = [str(tmp_path / one) if one == "x" else one for one in arguments]
    done = relay("sim", *fixed)
    assert done.returncode == 3 and done.stderr.startswith("relay: ") and "Traceback" not in done.stderr
    assert "hint: " in done.stderr


def test_a_page_that_cannot_be_written_is_told_before_the_run(tmp_path: Path) -> None:
    done = relay("sim", "run", "sat", "--html", str(tmp_path / "none" / "page.html"), "--duration", "31d")
    assert (done.returncode, done.stdout) == (3, "") and "no such file or directory" in done.stderr


def test_a_run_too_short_for_a_prompt_says_so(tmp_path: Path) -> None:
    done = relay("sim", "run", "sat", "--duration", "1s")
    assert done.returncode == 0 and "nothing was asked" in done.stderr and "hint: " in done.stderr


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_run_that_is_ended_leaves_nothing_behind(number: signal.Signals, code: int, tmp_path: Path) -> None:
    folders = tmp_path / "folders"
    folders.mkdir()
    at_work = f"""
import asyncio, os, tempfile
from relay.sim import runner
async def sample(stage):
    os.kill(os.getpid(), {int(number)})
    await asyncio.Event().wait()
runner._Stage._sample = sample
temporary = tempfile.TemporaryDirectory
tempfile.TemporaryDirectory = lambda prefix, dir: temporary(prefix=prefix, dir={str(folders)!r})
{RUN}
"""
    done = subprocess.run(
        [sys.executable, "-c", at_work, "sim", "run", "sat", "--html", str(tmp_path / "page.html")],
        capture_output=True, text=True, timeout=120, check=False, cwd=ROOT, preexec_fn=_interruptible,
    )
    assert (done.returncode, done.stdout, "Traceback" in done.stderr) == (code, "", False)
    assert list(tmp_path.iterdir()) == [folders] and not list(folders.iterdir())


def _interruptible() -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def test_a_radio_is_served_until_it_is_told_to_stop(tmp_path: Path) -> None:
    path = tmp_path / "radio"
    with subprocess.Popen(
        [sys.executable, "-c", RUN, "sim", "radio", str(path), "--phy", "2m"], stdout=subprocess.PIPE, text=True,
        cwd=ROOT,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == f"radio ready at virtual:{path} (2m)\n"
        assert path.is_socket()
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
    assert not path.exists()


def test_help_loads_no_role() -> None:
    code = (
        "import sys\nfrom relay.cli import main\nsys.argv = ['relay', 'sim', 'run', '--help']\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        "print('@@', [name for name in sys.modules if name.startswith(('relay.gateway', 'edge_client', 'relay.hop'))])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True, cwd=ROOT
    )
    assert done.stdout.rstrip().endswith("@@ []")

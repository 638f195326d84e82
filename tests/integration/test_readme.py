"""What the README tells people to type works when typed."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
TEXT = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"(?ms)^```sh\n(.*?)^```$", TEXT)
INDENTED = re.findall(r"(?m)^    (\S.*?)(?:\s+#.*)?$", re.sub(r"(?ms)^```.*?^```$", "", TEXT))


def test_it_opens_with_a_real_run() -> None:
    picture = re.search(r"!\[[^\]]*\]\(([^)]+)\)", TEXT)
    assert picture is not None and picture.start() < 100
    svg = (ROOT / picture[1]).read_text()
    assert svg.startswith("<svg") and "canaries" in svg and "trace" in svg


def test_the_quick_start_is_short() -> None:
    assert len(BLOCKS) == 1
    section = TEXT.partition("## Quick start")[2].partition("\n## ")[0]
    assert len([line for line in section.splitlines() if line.strip()]) <= 40


def test_the_two_commands_are_the_two_commands() -> None:
    assert INDENTED == ["scripts/demo", "scripts/test"]  # the second is what runs this


@pytest.mark.demo
def test_the_first_command_runs_as_written() -> None:
    done = subprocess.run(
        ["bash", "-c", INDENTED[0]], cwd=ROOT, capture_output=True, text=True, timeout=300, check=False,
        stdin=subprocess.DEVNULL,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
    assert re.search(r"\b(\d\d)/\1\b", done.stdout) and "done in" in done.stdout


def test_links_lead_somewhere() -> None:
    for target in re.findall(r"\]\(([^)#:]+)\)", TEXT):
        assert (ROOT / target).exists(), target


def end_group(group: int) -> None:
    """SIGTERM, up to ten seconds for the servers to end in their own way, then SIGKILL."""
    try:
        os.killpg(group, signal.SIGTERM)
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            os.killpg(group, 0)
            time.sleep(0.05)
        os.killpg(group, signal.SIGKILL)
    except ProcessLookupError:
        return


@pytest.mark.demo
def test_quick_start_runs_as_written(tmp_path: Path) -> None:
    """The whole block in one shell that stops at the first failure; servers it put in the background end with it."""
    venv = Path(sys.executable).parent
    environment = {
        "HOME": str(tmp_path),
        # The block itself puts the repository's .venv first; where the tests run from another one, that one serves.
        "PATH": f"{venv}:{os.environ['PATH']}",
        "XDG_CACHE_HOME": os.environ.get("XDG_CACHE_HOME", str(Path.home() / ".cache")),
        "LANG": "C.UTF-8",
    }
    log = tmp_path / "log"
    with log.open("wb") as out:
        shell = subprocess.Popen(
            ["bash", "-eu", "-c", BLOCKS[0]], cwd=ROOT, env=environment, stdin=subprocess.DEVNULL, stdout=out,
            stderr=out, start_new_session=True,
        )  # fmt: skip
        try:
            code = shell.wait(240)
        finally:
            end_group(shell.pid)
    text = log.read_text(errors="replace")
    assert code == 0, text[-4000:]
    assert "6 bar" in text
    assert "Water Point Pumps: Operation and Maintenance, page 4" in text
    assert "joined as spiffe://field.example/edge/laptop-1" in text
    assert "via spiffe://field.example/hop/pi-1" in text
    assert "edge/laptop-1" in text.rpartition("enrolment")[2]

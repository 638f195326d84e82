"""The demo, run as a user runs it, and each of its claims looked at again from outside."""

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
DEMO = [str(ROOT / "scripts" / "demo")]
pytestmark = pytest.mark.demo


def environment(temporary: Path) -> dict[str, str]:
    return {**os.environ, "TMPDIR": str(temporary)}


def ours(marker: str) -> list[int]:
    """Process ids whose command line names a folder of this run."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if marker.encode() in path.read_bytes():
                found.append(int(path.parent.name))
        except OSError:
            continue  # it has ended meanwhile
    return found


@pytest.fixture(scope="module")
def run() -> Iterator[tuple[dict[str, Any], Path, float]]:
    """One whole run: its JSON, the folder for temporary files, seconds."""
    with tempfile.TemporaryDirectory(prefix="cw-") as folder:  # pytest's own are too long for a Unix socket's name
        yield whole_run(Path(folder))


def whole_run(temporary: Path) -> tuple[dict[str, Any], Path, float]:
    began = time.monotonic()
    done = subprocess.run(
        [*DEMO, "--json"], capture_output=True, text=True, timeout=300, cwd=temporary, check=False,
        stdin=subprocess.DEVNULL, env=environment(temporary),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout), temporary, time.monotonic() - began


def test_demo_answers_locally_with_a_page(run: tuple[dict[str, Any], Path, float]) -> None:
    local = run[0]["local"]
    assert local["route"] == "local"
    assert "6" in local["answer"]
    cited = [citation for citation in local["citations"] if citation["source"].endswith("pumps.pdf")]
    assert 4 in [citation["page"] for citation in cited]


def test_demo_shows_one_trace_over_all_parts(run: tuple[dict[str, Any], Path, float]) -> None:
    relayed = run[0]["relayed"]
    assert relayed["route"] == "relay" and relayed["answer"].strip()
    spans = relayed["spans"]
    assert {span["role"] for span in spans} == {"edge", "hop", "gateway", "provider"}
    assert {span["trace_id"] for span in spans} == {relayed["trace_id"]}
    assert all(span["end_ms"] >= span["start_ms"] for span in spans)


def test_demo_proves_that_the_hop_saw_nothing(run: tuple[dict[str, Any], Path, float]) -> None:
    assert run[0]["canaries"]["hop"] == 0
    assert run[0]["control"]["plaintext_hits"] > 0  # the same search finds the same words in the clear
    assert run[0]["control"]["captured_bytes"] > 8192


def test_demo_goes_by_radio(run: tuple[dict[str, Any], Path, float]) -> None:
    """What was put together from the edge's radio is at least what the hop says it carried, by no other way."""
    tunnels = [span["attributes"] for span in run[0]["relayed"]["spans"] if span["role"] == "hop"]
    carried = sum(span[f"causeway.bytes.{way}"] for span in tunnels for way in ("in", "out"))
    assert len(tunnels) == 1 and 4096 < carried <= run[0]["control"]["radio_bytes"]


def test_demo_leaves_no_plaintext_on_disk(run: tuple[dict[str, Any], Path, float]) -> None:
    assert run[0]["canaries"]["disk"] == 0
    assert run[0]["control"]["document_hits"] > 0
    assert run[0]["control"]["searched_on_disk"] > 100_000


def test_demo_leaves_no_key_on_a_device(run: tuple[dict[str, Any], Path, float]) -> None:
    assert run[0]["canaries"]["key"] == 0
    assert run[0]["control"]["key_hits"] > 0


def test_demo_was_confined(run: tuple[dict[str, Any], Path, float]) -> None:
    assert run[0]["confined"]["by"].startswith("unshare ")
    assert run[0]["confined"]["gateway_port_from_inside"].startswith("unreachable")


def test_demo_cleans_up(run: tuple[dict[str, Any], Path, float]) -> None:
    assert ours(str(run[1])) == []
    assert list(run[1].glob("causeway-demo-*")) == []


@pytest.fixture
def short_path() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="cw-") as folder:
        yield Path(folder)


def test_demo_kept_running_stops_on_interrupt(short_path: Path) -> None:
    process = subprocess.Popen(
        [*DEMO, "--keep"], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        cwd=short_path, env=environment(short_path), start_new_session=True,
    )  # fmt: skip
    assert process.stdout is not None
    try:
        seen = ""
        for line in process.stdout:
            seen += line
            if "Ctrl-C stops everything" in line:
                break
        else:
            pytest.fail(seen[-4000:])
        line = re.search(r"Process ids: ([^\n]+(?:\n[^\n]+)*?)\nCtrl-C", seen)
        assert "edge ask" in seen and line is not None
        pids = [int(number) for number in re.findall(r"[a-z-]+ (\d+)", line[1])]
        assert len(pids) == 7 and all(Path(f"/proc/{pid}").exists() for pid in pids)
        for _ in range(3):  # an impatient user, or a shell that tells the whole group
            process.send_signal(signal.SIGINT)
        assert process.wait(30) == 0
    finally:
        if process.poll() is None:
            process.terminate()
            process.wait(30)
        process.stdout.close()
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)
    assert ours(str(short_path)) == []
    assert list(short_path.glob("causeway-demo-*")) == []


def test_demo_takes_another_provider(short_path: Path) -> None:
    """Any OpenAI-compatible URL and key: here a second stand-in that the demo knows nothing else about."""
    home = short_path / "provider"
    edge = Path(sys.executable).parent / "edge"
    with subprocess.Popen(
        [edge, "serve", "--no-store", "--port", "0", "--model-id", "other-model"],
        stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env={**os.environ, "CAUSEWAY_HOME": str(home)},
    ) as provider:  # fmt: skip
        try:
            assert provider.stderr is not None
            url = next(re.search(r"http://\S+/v1", line) for line in provider.stderr if "ready" in line)
            assert url is not None
            done = subprocess.run(
                [*DEMO, "--json", "--provider", url[0], "--key-file", home / "api-token", "--model", "other-model"],
                capture_output=True, text=True, timeout=300, cwd=short_path, check=False, stdin=subprocess.DEVNULL,
                env=environment(short_path),
            )  # fmt: skip
        finally:
            provider.terminate()
    assert done.returncode == 0, done.stderr[-4000:]
    result = json.loads(done.stdout)
    assert result["relayed"]["model"] == "other-model"
    assert result["canaries"] == {"hop": 0, "disk": 0, "key": 0}
    assert result["control"]["plaintext_hits"] > 0


@pytest.mark.parametrize(
    "arguments", [["--provider", "http://127.0.0.1:9"], ["--provider", "http://x", "--key-file", "/no/such/file"]]
)
def test_demo_refuses_half_a_provider(arguments: list[str], short_path: Path) -> None:
    done = subprocess.run(
        [*DEMO, *arguments], capture_output=True, text=True, timeout=60, check=False, stdin=subprocess.DEVNULL,
        env=environment(short_path),
    )  # fmt: skip
    assert done.returncode == 2 and "Traceback" not in done.stderr

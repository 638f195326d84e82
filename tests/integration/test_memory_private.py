"""Real processes of `edge`, looked at from outside and inside: no core, and nobody but root looks into their memory."""

import os
import re
import resource
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from store.keys import Passphrase, create_key
from tests.support.serve_process import ROOT, ServeProcess
from tests.support.stores import open_store

PASSPHRASE = "correct horse"

# As the installed program, and tells on standard error what its process is like whenever a store is opened.
SPY = """
import ctypes, resource, sys
from store.database import Database
opened = Database.open.__func__
def spy(cls, *arguments, **named):
    print("opened", ctypes.CDLL(None).prctl(3), resource.getrlimit(resource.RLIMIT_CORE), file=sys.stderr)
    return opened(cls, *arguments, **named)
Database.open = classmethod(spy)
sys.argv = ["edge", *sys.argv[1:]]
{entry}
"""
ENTRY = "from edge_client.cli import main; main()"
WITHOUT = "from edge_client.cli import app; app()"


@pytest.fixture
def home(tmp_path: Path) -> Path:
    home = tmp_path / "home"
    home.mkdir(mode=0o700)
    key = create_key(home / "store.key", Passphrase(PASSPHRASE))
    open_store(home / "store.db", key).close()
    (tmp_path / "passphrase").write_text(PASSPHRASE)
    (tmp_path / "passphrase").chmod(0o600)
    return home


def cores_allowed() -> None:
    hard = resource.getrlimit(resource.RLIMIT_CORE)[1]
    resource.setrlimit(resource.RLIMIT_CORE, (hard, hard))


def edge(home: Path, *arguments: str, entry: str = ENTRY) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-c", SPY.format(entry=entry), *arguments], cwd=ROOT, capture_output=True, text=True,
        env=os.environ | {
            "CAUSEWAY_HOME": str(home), "CAUSEWAY_PASSPHRASE_FILE": str(home.with_name("passphrase"))
        },
        preexec_fn=cores_allowed, timeout=120, check=False,
    )
    return [line for line in done.stderr.splitlines() if line.startswith("opened ")]


def test_the_installed_program_is_what_is_looked_at_here() -> None:
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    assert scripts["edge"] == "edge_client.cli:main"


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="prctl is Linux's")
@pytest.mark.parametrize("arguments", [("store", "check"), ("documents",), ("outbox",), ("status",)], ids=" ".join)
def test_whoever_opens_the_store_is_not_to_be_looked_into(home: Path, arguments: tuple[str, ...]) -> None:
    assert set(edge(home, *arguments)) == {"opened 0 (0, 0)"}


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="prctl is Linux's")
def test_the_control(home: Path) -> None:
    (line,) = set(edge(home, "documents", entry=WITHOUT))
    assert line.startswith("opened 1 ")


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="/proc is Linux's")
def test_a_running_serve_leaves_no_core(home: Path, tmp_path: Path) -> None:
    with ServeProcess(home, passphrase_file=tmp_path / "passphrase").ready() as serve:
        limits = Path(f"/proc/{serve.process.pid}/limits").read_text()
        assert re.search(r"(?m)^Max core file size +0 +0 ", limits), limits
        if os.geteuid():
            assert Path(f"/proc/{serve.process.pid}").stat().st_uid == 0, "as proc(5) has it of such a process"

"""`edge store check|backup|restore|rekey|wipe` on a real home, alone and beside a running `edge serve`."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from edge_client.app import App
from edge_client.cli import app
from tests.support.fake_engine import FakeChat, FakeEmbedder
from tests.support.serve_process import ServeProcess

PASSPHRASE = "correct horse"


@dataclass
class Done:
    code: int
    out: str
    err: str

    @property
    def object(self) -> Any:
        return json.loads(self.out)


Edge = Callable[..., Done]


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    path = tmp_path / "passphrase"
    path.write_text(PASSPHRASE + "\n")
    path.chmod(0o600)
    return path


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CAUSEWAY_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def edge(home: Path, monkeypatch: pytest.MonkeyPatch) -> Edge:
    """A command that nobody can be asked for a passphrase; `secret` is a file that has one."""
    monkeypatch.setattr("edge_client.passphrase._has_terminal", lambda: False)
    monkeypatch.delenv("CAUSEWAY_PASSPHRASE", raising=False)
    embedder = FakeEmbedder()
    monkeypatch.setattr(App, "chat", lambda self, path=None, name="local": FakeChat())
    monkeypatch.setattr(App, "embedder", lambda self, progress=None: embedder)

    def run(*arguments: str, secret: Path | None = None, at: Path | None = None, typed: str | None = None) -> Done:
        given = {"CAUSEWAY_PASSPHRASE_FILE": None if secret is None else str(secret)}
        if at is not None:
            given["CAUSEWAY_HOME"] = str(at)
        done = CliRunner().invoke(app, list(arguments), env=given, input=typed)
        assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
        assert "Traceback" not in done.stderr
        return Done(done.exit_code, done.stdout, done.stderr)

    return run


@pytest.fixture
def manual(tmp_path: Path, edge: Edge, secret: Path) -> Path:
    """In the store already."""
    path = tmp_path / "manual.md"
    path.write_text("# Pumps\n\n## Limits\n\nThe maximum pressure of the pump is 6 bar.\n")
    assert edge("ingest", str(path), secret=secret).code == 0
    return path


def test_check_of_a_whole_store(edge: Edge, manual: Path, home: Path, secret: Path) -> None:
    assert edge("store", "check").code == 8, "the control: it takes the key"
    told = edge("store", "check", "--json", secret=secret)
    assert told.code == 0 and told.object | {"schema": 0, "bytes": 0} == {
        "ok": True, "problems": [], "schema": 0, "documents": 1, "chunks": 1, "bytes": 0, "ways": {"passphrase": None}
    }
    assert "nothing is wrong" in edge("store", "check", secret=secret).out
    with ServeProcess(home, passphrase_file=secret).ready():
        assert edge("store", "check", "--json").object["ok"], "beside it nobody is asked"


def test_check_says_what_is_wrong_and_ends_with_8(edge: Edge, manual: Path, home: Path, secret: Path) -> None:
    database, key = home / "store.db", home / "store.key"
    whole = database.read_bytes(), key.read_bytes()
    (home / "store.key").chmod(0o644)
    told = edge("store", "check", secret=secret)
    assert told.code == 8 and f"others may use {key}\n           chmod 600 {key}\n" in told.out
    key.chmod(0o600)
    database.write_bytes(whole[0][:9000] + b"\0\0\0\0" + whole[0][9004:])
    told = edge("store", "check", "--json", secret=secret)
    assert told.code == 8 and not told.object["ok"] and told.object["problems"][0]["code"] == "pages"
    assert "`edge store restore`" in told.object["problems"][0]["hint"]
    database.write_bytes(whole[0])
    key.write_bytes(whole[1][:-1])
    told = edge("store", "check", "--json", secret=secret)
    assert told.code == 8 and told.object["error"]["code"] == "store_corrupt"
    key.unlink()
    told = edge("store", "check", "--json", secret=secret)
    assert told.code == 8 and told.object["error"]["code"] == "store_missing"
    database.unlink()
    assert edge("store", "check", "--json", secret=secret).object["error"]["code"] == "no_store"

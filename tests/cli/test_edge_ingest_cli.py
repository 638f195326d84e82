"""`edge ingest` of a folder again: what is gone from it is forgotten, and told; one that fell empty changes nothing."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from edge_client.app import App
from edge_client.cli import app
from tests.support.fake_engine import FakeEmbedder

Edge = Callable[..., Result]


@pytest.fixture
def edge(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Edge:
    secret, embedder = tmp_path / "passphrase", FakeEmbedder()
    secret.write_text("correct horse\n")
    secret.chmod(0o600)
    monkeypatch.setenv("CAUSEWAY_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("CAUSEWAY_PASSPHRASE_FILE", str(secret))
    monkeypatch.delenv("CAUSEWAY_PASSPHRASE", raising=False)
    monkeypatch.setattr(App, "embedder", lambda self, progress=None: embedder)

    def run(*arguments: str) -> Result:
        done = CliRunner().invoke(app, list(arguments))
        assert done.exit_code == 0, done.output
        return done

    return run


@pytest.fixture
def docs(tmp_path: Path) -> Path:
    docs = tmp_path / "docs"
    (docs / "medium").mkdir(parents=True)
    for name in ("a.md", "b.md", "medium/c.md"):
        (docs / name).write_text(f"What {name} says.")
    return docs


def names(edge: Edge) -> list[str]:
    return [Path(document["source"]).name for document in json.loads(edge("documents", "--json").stdout)["documents"]]


def test_a_folder_ingested_again_forgets_what_is_gone(edge: Edge, docs: Path) -> None:
    edge("ingest", str(docs))
    (docs / "a.md").unlink()
    kept = edge("ingest", str(docs), "--keep-deleted")
    assert kept.stdout == "0 added (0 passages), 2 unchanged, 0 failed\n" and names(edge) == ["a.md", "b.md", "c.md"]
    edge("ingest", str(docs / "b.md"))
    assert len(names(edge)) == 3, "a file alone says nothing of its folder"
    done = edge("ingest", str(docs))
    assert done.stdout == "0 added (0 passages), 2 unchanged, 0 failed, 1 forgotten\n"
    assert f"{docs / 'a.md'}: its file is gone, forgotten" in done.stderr and names(edge) == ["b.md", "c.md"]
    (docs / "b.md").unlink()
    told = edge("ingest", str(docs), "--json").stdout
    assert f'"forgotten_files": ["{docs / "b.md"}"]' in told and '"forgotten": 1' in told


def test_a_folder_that_fell_empty_changes_nothing(edge: Edge, docs: Path) -> None:
    edge("ingest", str(docs))
    (docs / "medium" / "c.md").unlink()
    done = edge("ingest", str(docs))
    assert "1 kept whose files are missing" in done.stderr and "forgotten" not in done.stdout
    for name in ("a.md", "b.md"):
        (docs / name).unlink()
    (docs / "picture.png").touch()
    assert "forgotten" not in edge("ingest", str(docs)).stdout and len(names(edge)) == 3

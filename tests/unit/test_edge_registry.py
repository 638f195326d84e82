"""`edge models add`, `list` and `remove`: which files are taken in, and under which names."""

import hashlib
import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from edge_client.cli import app
from edge_client.engine.registry import add_model, registered_models, remove_model
from edge_client.errors import BadUse, ModelMissing, ModelUnusable
from tests.support.gguf_bytes import gguf

WHOLE = gguf(tensors=[(8, 0, 0)])


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "Some Model-Q4_K.gguf"
    path.write_bytes(WHOLE)
    return path


def test_added_listed_replaced_removed(model: Path, tmp_path: Path) -> None:
    home = tmp_path / "home"
    assert registered_models(home) == []
    digest = hashlib.sha256(WHOLE).hexdigest()
    added = add_model(home, model, sha256=digest.upper())
    assert (added.name, added.path, added.sha256) == ("some-model-q4_k", str(model), digest)
    assert added.architecture == "llama" and registered_models(home) == [added]
    other = add_model(home, model, name="other")
    assert add_model(home, model) == added and registered_models(home) == [other, added], "a name is there once"
    remove_model(home, "other")
    assert registered_models(home) == [added] and model.exists()
    assert [path.name for path in home.iterdir()] == ["models.json"]
    with pytest.raises(BadUse):
        remove_model(home, "other")


@pytest.mark.parametrize("name", ["local", "auto", "", "-x", "a b", "A", "x" * 65, "../x", "\x1b[31m"])
def test_names_that_are_taken_or_are_none(name: str, model: Path, tmp_path: Path) -> None:
    if name == "":
        model = model.rename(tmp_path / "___.gguf")
    with pytest.raises(BadUse, match="name"):
        add_model(tmp_path, model, name=name)
    assert registered_models(tmp_path) == []


def test_files_that_are_not_taken_in(model: Path, tmp_path: Path) -> None:
    with pytest.raises(BadUse, match="another SHA-256"):
        add_model(tmp_path, model, sha256="0" * 64)
    with pytest.raises(ModelMissing):
        add_model(tmp_path, tmp_path / "none.gguf")
    model.write_bytes(WHOLE[:-1])
    with pytest.raises(ModelUnusable, match="cut short"):
        add_model(tmp_path, model)
    model.write_bytes(b"PK\x03\x04")
    with pytest.raises(ModelUnusable, match="no GGUF"):
        add_model(tmp_path, model)
    assert registered_models(tmp_path) == []
    (tmp_path / "models.json").write_text("[{]")
    with pytest.raises(BadUse, match=r"models\.json"):
        registered_models(tmp_path)


def test_by_the_command(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CAUSEWAY_HOME", str(tmp_path / "home"))

    def edge(*arguments: str) -> tuple[int, str]:
        done = CliRunner().invoke(app, ["models", *arguments])
        return done.exit_code, done.stdout

    digest = hashlib.sha256(WHOLE).hexdigest()
    told = f"added mine (llama), SHA-256 {digest}\n"
    assert edge("add", str(model), "--name", "mine", "--sha256", digest) == (0, told)
    code, out = edge("list", "--json")
    assert (code, json.loads(out)) == (0, {"models": [{"name": "mine", "path": str(model), "sha256": digest}]})
    assert edge("list") == (0, f"{'mine':<24} {model}\n")
    assert edge("add", str(model), "--sha256", "0" * 64)[0] == 3
    assert edge("remove", "mine") == (0, "") and edge("remove", "mine")[0] == 3

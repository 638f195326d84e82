"""What is wrong with a local model, as the terminal tells it: one line, a hint, an exit code; never a traceback."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from edge_client.app import App
from edge_client.cli import app
from edge_client.engine import loading
from edge_client.errors import EngineBusy, EngineFailed, PromptTooLong
from tests.support.fake_engine import FakeChat
from tests.support.gguf_bytes import gguf

MIB = 1 << 20
Ask = Callable[..., Result]


@pytest.fixture
def ask(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Ask:
    home = tmp_path / "home"
    monkeypatch.setenv("CAUSEWAY_HOME", str(home))

    def run(model: bytes | None = None) -> Result:
        home.mkdir(exist_ok=True)
        if model is not None:
            (home / "m.gguf").write_bytes(model)
            (home / "config.toml").write_text(f'[model]\npath = "{home / "m.gguf"}"\n')
        done = CliRunner().invoke(app, ["ask", "--local", "--json", "hello"])
        assert isinstance(done.exception, SystemExit), done.exception
        assert capfd.readouterr() == ("", ""), "the engine's own words"
        return done

    return run


@pytest.mark.parametrize(("model", "code", "says"), [
    (gguf(tensors=[(3 * MIB, 0, 0)], data=4 * MIB), "model_unusable", "m.gguf is cut short: it has 4 of 12 MiB"),
    (gguf(architecture="nosuchthing"), "model_unusable", "m.gguf (architecture nosuchthing) is not a model"),
    (b"PK\x03\x04" + bytes(99), "model_unusable", "m.gguf is not a model: no GGUF, or cut short"),
])  # fmt: skip
def test_a_model_that_cannot_be_loaded(ask: Ask, model: bytes, code: str, says: str) -> None:
    told(ask(model), code, says)


def test_memory_that_is_short(ask: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "free_memory", lambda: 8 * MIB)
    told(ask(gguf(tensors=[(8, 0, 0)])), "memory_short", "MiB of memory, 8 MiB are free")


@pytest.mark.parametrize("error", [
    PromptTooLong("the prompt has 9 tokens, the local model takes 8", hint="shorten it"), EngineBusy(),
    EngineFailed("the local model stopped (RuntimeError)", hint="again"),
])  # fmt: skip
def test_what_the_engine_does_not_take(
    ask: Ask, monkeypatch: pytest.MonkeyPatch, error: PromptTooLong | EngineBusy | EngineFailed
) -> None:
    monkeypatch.setattr(App, "chat", lambda self, path=None, name="local": FakeChat([], error=error))
    told(ask(), error.code, str(error))


def told(done: Result, code: str, says: str) -> None:
    error = json.loads(done.stdout)["error"]
    assert done.exit_code == (3 if code in ("model_unusable", "prompt_too_long") else 1)
    assert error["code"] == code and says in error["message"] and error["hint"]
    assert says in done.stderr and error["hint"] in done.stderr and "Traceback" not in done.output

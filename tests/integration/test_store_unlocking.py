"""A running `edge serve` holds the unlocked store: for commands beside it, until it is locked."""

import asyncio
import itertools
import json
import signal
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import store.keys
from edge_client.app import App
from edge_client.cli import app
from edge_client.config import Config
from edge_client.retrieval import LOCAL_ONLY
from store.keys import Passphrase, unlock_key
from tests.support.fake_engine import FakeChat, FakeEmbedder
from tests.support.serve_process import ServeProcess

PASSPHRASE = "correct horse"
QUESTION = "the maximum pressure of the pump is?"


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
    """A command that nobody can be asked for a passphrase; `with_passphrase` is a file that has one."""
    monkeypatch.setattr("edge_client.passphrase._has_terminal", lambda: False)
    monkeypatch.delenv("CAUSEWAY_PASSPHRASE", raising=False)
    embedder = FakeEmbedder()
    monkeypatch.setattr(App, "chat", lambda self, path=None, name="local": FakeChat())
    monkeypatch.setattr(App, "embedder", lambda self, progress=None: embedder)

    def run(*arguments: str, with_passphrase: Path | None = None) -> Done:
        given = {"CAUSEWAY_PASSPHRASE_FILE": None if with_passphrase is None else str(with_passphrase)}
        done = CliRunner().invoke(app, list(arguments), env=given)
        assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
        assert "Traceback" not in done.stderr
        return Done(done.exit_code, done.stdout, done.stderr)

    return run


@pytest.fixture
def manual(tmp_path: Path, edge: Edge, secret: Path) -> Path:
    """In the store already."""
    path = tmp_path / "manual.md"
    path.write_text("# Pumps\n\n## Limits\n\nThe maximum pressure of the pump is 6 bar.\n")
    assert edge("ingest", str(path), with_passphrase=secret).code == 0
    return path


@pytest.fixture
def no_stretch(monkeypatch: pytest.MonkeyPatch) -> None:
    """From here on no command of this process may derive a key from a passphrase."""

    def stretch(*arguments: object) -> bytes:
        raise AssertionError("a passphrase was stretched")

    monkeypatch.setattr(store.keys, "stretch", stretch)


def test_commands_beside_it_need_no_passphrase(
    edge: Edge, manual: Path, home: Path, secret: Path, no_stretch: None
) -> None:
    assert edge("search", "pressure").code == 8, "the control: alone they do"
    with ServeProcess(home, passphrase_file=secret).ready():
        assert edge("search", "pressure", "--json").object["hits"][0]["document"] == "Pumps"
        assert edge("ingest", str(manual), "--json").object["unchanged"] == 1
        assert edge("documents", "--json").code == edge("outbox", "--json").code == 0
        status = edge("status", "--json").object
        assert (status["store"], status["serve"]) == ("open", "open")
        asked = edge("ask", "--json", QUESTION)
        assert asked.code == 0 and asked.object["citations"][0]["source"] == str(manual)
    assert edge("search", "pressure").code == 8


def test_a_given_passphrase_goes_before_it(edge: Edge, manual: Path, home: Path, secret: Path, tmp_path: Path) -> None:
    wrong = tmp_path / "wrong"
    wrong.write_text("battery staple")
    wrong.chmod(0o600)
    with ServeProcess(home, passphrase_file=secret).ready():
        assert edge("search", "pressure").code == 0
        refused = edge("search", "pressure", with_passphrase=wrong)
        assert refused.code == 8 and "the passphrase is wrong" in refused.err


def test_lock_and_unlock(edge: Edge, manual: Path, home: Path, secret: Path, tmp_path: Path) -> None:
    wrong = tmp_path / "wrong"
    wrong.write_text("battery staple")
    wrong.chmod(0o600)
    with ServeProcess(home, passphrase_file=secret).ready() as serve:
        assert serve.ask("auto", QUESTION)[0] == serve.ask("local")[0] == 200
        assert serve.call("/causeway/status")[1]["store"] == "open"
        locked = edge("store", "lock")
        assert (locked.code, locked.out) == (0, "the store is locked\n")
        serve.until("the store is locked")

        status, body = serve.ask("auto", QUESTION)
        assert (status, body["error"]["code"]) == (423, "store_locked")
        assert body["error"]["message"] == "the store is locked (`edge store unlock`)"
        assert serve.ask("gpt-of-the-gateway")[1]["error"]["code"] == "store_locked", "who knows whether it is granted"
        for path in ("/causeway/documents", "/causeway/outbox", "/causeway/history"):
            assert serve.call(path)[0] == 423
        status, body = serve.call("/causeway/status")
        assert (status, body["store"], body["link"]["state"]) == (200, "locked", "none")
        assert serve.ask("local")[0] == 200, "it needs no store"
        assert [model["id"] for model in serve.call("/v1/models")[1]["data"]] == ["local", "auto"]
        assert edge("search", "pressure").code == 8
        status = edge("status")
        assert "serve      running, store locked\n" in status.out and "next       `edge store unlock`" in status.out
        assert edge("search", "pressure", with_passphrase=secret).code == 0, "for itself alone"
        assert serve.call("/causeway/status")[1]["store"] == "locked"
        assert edge("store", "lock", "--json").object == {"store": "locked"}, "again changes nothing"

        nobody = edge("store", "unlock")
        assert nobody.code == 8 and "needs a passphrase" in nobody.err
        refused = edge("store", "unlock", "--json", with_passphrase=wrong)
        assert refused.code == 8 and refused.object["error"]["code"] == "wrong_key"
        assert serve.call("/causeway/status")[1]["store"] == "locked"

        opened = edge("store", "unlock", with_passphrase=secret)
        assert (opened.code, opened.out) == (0, "the store is open\n")
        serve.until("the store is open")
        assert serve.ask("auto", QUESTION)[0] == 200 and edge("search", "pressure").code == 0
        assert edge("store", "unlock", "--json").object == {"store": "open"}, "nobody is asked"
    assert serve.process.returncode == 0 and "Traceback" not in "".join(serve.said)


def texts_of(events: Iterable[Any]) -> str:
    return "".join(event["choices"][0]["delta"].get("content") or "" for event in events)


def test_an_answer_under_way_ends_and_one_without_documents_goes_on(
    edge: Edge, manual: Path, home: Path, secret: Path
) -> None:
    assert edge("documents", "label", str(manual), LOCAL_ONLY, with_passphrase=secret).code == 0
    with ServeProcess(home, passphrase_file=secret).ready() as serve:
        with (
            serve.stream("auto", f"{QUESTION} Tell me endlessly, the maximum pressure of the pump") as answer,
            serve.stream("local", "hello, endlessly") as other,
        ):
            assert next(answer)["causeway"]["label"] == LOCAL_ONLY
            said = next(text for event in answer if (text := texts_of([event])))
            assert next(other)["causeway"]["route"] == "local"
            assert edge("store", "lock").code == 0
            rest = list(answer)
            assert rest[-1]["error"]["code"] == "store_locked", "an error, and no [DONE] behind it"
            assert texts_of(itertools.islice(other, 5)).count("Six") >= 2
        said += texts_of(rest[:-1])

    async def kept(text: str) -> bool:
        config = Config.load()
        async with App.open(config, store="if present", ask=lambda **how: Passphrase(PASSPHRASE)) as app:
            return await app.retrieval().keeps([text])

    # What had been said is known to somebody, and was made from what must stay here.
    assert asyncio.run(kept(said)) and not asyncio.run(kept("hello"))


def test_without_a_passphrase_it_starts_locked(edge: Edge, manual: Path, home: Path, secret: Path) -> None:
    with ServeProcess(home) as serve:
        line = serve.until("the store is locked")
        assert "no terminal to ask on" in line and "`edge store unlock` opens it" in line
        serve.ready()
        assert serve.ask("local")[0] == 200 and serve.ask("auto")[0] == 423
        assert edge("store", "unlock", with_passphrase=secret).code == 0
        assert serve.ask("auto", QUESTION)[1]["causeway"]["citations"]


def test_a_wrong_passphrase_is_no_reason_to_start_locked(home: Path, manual: Path, tmp_path: Path) -> None:
    wrong = tmp_path / "wrong"
    wrong.write_text("battery staple")
    wrong.chmod(0o600)
    with ServeProcess(home, passphrase_file=wrong) as serve:
        serve.until("the passphrase is wrong")
        assert serve.process.wait(60) == 8


def test_a_second_one_is_refused_before_it_loads_anything(home: Path, edge: Edge, manual: Path, secret: Path) -> None:
    with ServeProcess(home, passphrase_file=secret).ready() as first:
        with ServeProcess(home, "--model", "/there/is/no.gguf") as second:
            assert f"runs on port {first.port}" in second.until("for this home")
            assert second.process.wait(60) == 3
        assert not any("locked" in line for line in second.said), "nor looks for a passphrase"
        assert edge("search", "pressure").code == 0, "the first one's socket is still its own"
        first.process.send_signal(signal.SIGKILL)
        first.process.wait(60)
        assert (home / "run" / "key").is_socket(), "the control: it could not tidy up"
        assert edge("search", "pressure").code == 8
        with ServeProcess(home, passphrase_file=secret).ready():
            assert edge("search", "pressure").code == 0


def test_a_store_that_is_made_beside_it_is_open_there(home: Path, edge: Edge, secret: Path, tmp_path: Path) -> None:
    note = tmp_path / "note.md"
    note.write_text("# Tides\n\nThe tide comes twice a day.\n")
    with ServeProcess(home).ready() as serve:
        assert serve.call("/causeway/status")[1]["store"] == "none"
        nothing = edge("store", "unlock", "--json")
        assert nothing.code == 8 and nothing.object["error"]["code"] == "no_store"
        assert edge("ingest", str(note), with_passphrase=secret).code == 0
        status = serve.call("/causeway/status")[1]
        assert (status["store"], status["documents"]) == ("open", 1)
        assert edge("search", "tide").code == 0


def test_one_that_was_told_no_store_gives_none(home: Path, edge: Edge, manual: Path, secret: Path) -> None:
    with ServeProcess(home, "--no-store", passphrase_file=secret).ready() as serve:
        assert serve.ask("auto")[0] == 200 and edge("search", "pressure").code == 8
        refused = edge("store", "unlock", with_passphrase=secret)
        assert refused.code == 3 and "--no-store" in refused.err


@pytest.mark.parametrize("command", ["lock", "unlock"])
def test_without_a_serve_it_is_said_what_to_do(edge: Edge, home: Path, command: str) -> None:
    refused = edge("store", command, "--json")
    assert refused.code == 3 and refused.object["error"]["code"] == "not_serving"
    assert "`edge serve`" in refused.object["error"]["hint"]


def test_idle_it_locks_by_itself(edge: Edge, manual: Path, home: Path, secret: Path) -> None:
    """When is tested in a time of its own (test_idle.py); here, that the setting arrives, and is told."""
    (home / "config.toml").write_text("[store]\nlock_after_s = 0.5\n")
    with ServeProcess(home, passphrase_file=secret).ready() as serve:
        if not any("the store is locked" in line for line in serve.said):  # it may have been before it was ready
            serve.until("the store is locked")
        assert serve.ask("auto")[0] == 423


def test_no_secret_is_said_or_written(edge: Edge, manual: Path, home: Path, secret: Path) -> None:
    key = unlock_key(home / "store.key", Passphrase(PASSPHRASE)).expose()[:32]
    with ServeProcess(home, passphrase_file=secret).ready() as serve:
        assert edge("search", "pressure").code == edge("store", "lock").code == 0
        assert edge("store", "unlock", with_passphrase=secret).code == 0
    said = "".join(serve.said).encode()
    files = b"".join(path.read_bytes() for path in home.rglob("*") if path.is_file())
    assert b"the store is open" in said and b"cwkeys" in files, "the control"
    for needle in (key, key.hex().encode(), repr(key).encode(), PASSPHRASE.encode()):
        assert needle not in said and needle not in files

"""`edge pair`: how it ends where no phone can come, what a person sees, and what `edge status` says of it."""

import asyncio
import json
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import store.keys
from edge_client.app import App
from edge_client.cli import app
from edge_client.commands import pair
from edge_client.commands.pair import _Screen
from edge_client.config import Config
from edge_client.errors import NotServing
from edge_client.key_agent import Serving
from edge_client.ways import LinkPicture
from tests.support.ca import Ca
from tests.support.edge_lab import join_gateway
from tests.support.fake_gateway import FakeGateway, say_hello
from tests.support.stores import CachedStretch
from transport.errors import LinkLost


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Of an edge whose radio is a virtual one that nobody serves."""
    secret = tmp_path / "passphrase"
    secret.write_text("correct horse\n")
    secret.chmod(0o600)
    home = tmp_path / "home"
    home.mkdir(mode=0o700)
    (home / "config.toml").write_text(f'[bluetooth]\nradio = "virtual:{tmp_path}/none"\n')
    monkeypatch.setenv("CAUSEWAY_HOME", str(home))
    monkeypatch.setenv("CAUSEWAY_PASSPHRASE_FILE", str(secret))
    monkeypatch.setattr(store.keys, "stretch", CachedStretch())
    return home


def join() -> None:
    async def run() -> None:
        gateway = FakeGateway(Ca(), say_hello)
        async with App.open(Config.load(), store="create") as opened:
            await join_gateway(opened.settings, gateway)
        for task in gateway.tasks:
            task.cancel()
        await asyncio.gather(*gateway.tasks, return_exceptions=True)

    asyncio.run(run())


def edge(*arguments: str, code: int = 0) -> Any:
    done = CliRunner().invoke(app, [*arguments, "--json"])
    assert done.exit_code == code, (done.stdout, done.stderr)
    return [json.loads(line) for line in done.stdout.splitlines()]


def serves(monkeypatch: pytest.MonkeyPatch, answer: Callable[..., Serving]) -> None:
    for name in ("state_of_serve", "pair_serve", "unpair_serve"):
        monkeypatch.setattr(f"edge_client.key_agent.{name}", answer)


def test_what_cannot_be_is_told_by_its_code(home: Path) -> None:
    for arguments, code, error in (
        (["pair"], 4, "not_joined"), (["pair", "--stop"], 3, "not_serving"),
        (["pair", "--name", "a/b"], 3, "bad_input"),
    ):
        assert edge(*arguments, code=code)[-1]["error"]["code"] == error
    join()
    *events, ended = edge("pair", code=5)
    assert events == [{"event": "waiting"}]
    assert ended["error"]["code"] == "link_lost" and "relay sim radio" in ended["error"]["hint"]


def test_it_ends_when_its_time_is_over(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def waits(*_: object, **__: object) -> Any:
        await asyncio.Event().wait()

    join()
    monkeypatch.setattr("edge_client.dialing.Dialer.__call__", waits)
    monkeypatch.setattr(pair, "MINUTE_S", 0.001)
    assert edge("pair", "--minutes", "1") == [{"event": "waiting"}, {"event": "note", "text": "the time is over"}]


@pytest.mark.parametrize("state", ["open", "locked"])
def test_a_running_serve_is_told(home: Path, monkeypatch: pytest.MonkeyPatch, state: Any) -> None:
    join()
    told: list[tuple[Any, ...]] = []

    def answer(home: Path, *wish: Any) -> Serving:
        told.append(wish)
        return Serving(state, math.inf if wish and wish[0] is None else 2_000_000_000.0 if wish else 0.0)

    serves(monkeypatch, answer)
    assert edge("pair") == [{"event": "serve", "pairing": True, "until": None, "store": state}]
    assert edge("pair", "--minutes", "5", "--name", "van 3")[0]["until"] == 2_000_000_000.0
    assert edge("pair", "--stop")[0]["pairing"] is False
    assert told == [(), (None, ""), (), (300.0, "van 3"), ()]
    done = CliRunner().invoke(app, ["pair"])
    assert "tap Connect" in done.stdout and ("edge store unlock" in done.stderr) is (state == "locked")


def test_a_serve_without_the_store_is_none(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    join()
    serves(monkeypatch, lambda home, *wish: Serving("none", 0.0))
    assert edge("pair", code=5)[0] == {"event": "waiting"}


def test_status_says_that_a_phone_is_waited_for(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    join()
    monkeypatch.setattr("edge_client.engine.models.installed", lambda: {"model": True, "embedder": True})
    serves(monkeypatch, lambda home: Serving("open", math.inf))
    assert edge("status")[0]["pairing"] is True
    assert "waited for where there is no hop, until `edge pair --stop`" in CliRunner().invoke(app, ["status"]).stdout

    def nobody(home: Path) -> Serving:
        raise NotServing

    serves(monkeypatch, nobody)
    done = CliRunner().invoke(app, ["status", "--check"])
    assert done.exit_code == 5 and "`edge pair`" in done.stdout and "phone " not in done.stdout.partition("next")[0]


def picture(sent: int, received: int) -> LinkPicture:
    return LinkPicture("up", "spiffe://d/hop/phone", "phone:", 0.1234, sent, received, [])


def test_a_person_sees_one_line_that_changes(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    screen = _Screen(as_json=False)
    screen.waiting()
    screen.failed(LinkLost("no phone has come", reason="out_of_range"))
    screen.up(picture(0, 0))
    screen._show(picture(1500, 20_000))
    screen._show(picture(1500, 20_000))
    screen.down()
    screen.end(picture(2500, 20_000))
    out, err = capsys.readouterr()
    assert out == ""
    assert err.replace("\r\x1b[K", "|") == (
        "edge: the phone is here: via spiffe://d/hop/phone, round trip 123 ms; Ctrl-C ends it\n"
        "|1.5 kB sent, 20.0 kB received|edge: the phone has gone\n"
        "|2.5 kB sent, 20.0 kB received|edge: 2.5 kB sent, 20.0 kB received\n"
    )

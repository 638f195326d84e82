"""`edge status`: what it says is there, what `--check` finds, and by which code it ends."""

import asyncio
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from edge_client.app import App
from edge_client.cli import app
from edge_client.config import Config
from edge_client.gateway_client import GatewayClient
from edge_client.posture import Posture
from edge_client.promises import Kept
from tests.support.ca import Ca
from tests.support.edge_lab import ENDPOINT, join_gateway
from tests.support.fake_gateway import FakeClock, FakeGateway, say_hello
from transport.errors import LinkLost
from transport.identity.revocation import sign_list
from transport.links.base import Endpoint, Link

Models = dict[str, bool]


@pytest.fixture
def models(monkeypatch: pytest.MonkeyPatch) -> Models:
    have = {"model": True, "embedder": True}
    monkeypatch.setattr("edge_client.engine.models.installed", lambda: have)
    return have


@pytest.fixture
def gateway(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, models: Models) -> FakeGateway:
    """The only one that any command finds; each is a process of its own, so the links end with it."""
    secret = tmp_path / "passphrase"
    secret.write_text("correct horse\n")
    secret.chmod(0o600)
    monkeypatch.setenv("CAUSEWAY_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("CAUSEWAY_PASSPHRASE_FILE", str(secret))
    monkeypatch.setattr("edge_client.posture.posture", lambda home: Posture("unknown", "in a test"))
    gateway = FakeGateway(Ca(), say_hello)
    real = GatewayClient.close

    async def close(self: GatewayClient) -> None:
        await real(self)
        for task in gateway.tasks:
            task.cancel()
        await asyncio.gather(*gateway.tasks, return_exceptions=True)
        gateway.tasks.clear()

    async def dial(endpoint: Endpoint, **options: object) -> Link:
        if str(endpoint) not in ("tcp:127.0.0.1:1", "tcp:127.0.0.1:2"):
            raise LinkLost("nobody answers")
        return await gateway.dial(endpoint)

    monkeypatch.setattr(GatewayClient, "close", close)
    monkeypatch.setattr("edge_client.dialing.connect", dial)
    monkeypatch.setattr("edge_client.gateway_client.Clock", FakeClock)
    return gateway


def in_store(work: Callable[[App], Any]) -> None:
    async def run() -> None:
        async with App.open(Config.load(), store="create") as opened:
            await work(opened)

    asyncio.run(run())


def join(gateway: FakeGateway) -> None:
    in_store(lambda opened: join_gateway(opened.settings, gateway))
    gateway.tasks.clear()  # of an event loop that is gone


def status(*arguments: str, code: int = 0) -> Any:
    done = CliRunner().invoke(app, ["status", *arguments, "--json"])
    assert done.exit_code == code, (done.stdout, done.stderr)
    text = CliRunner().invoke(app, ["status", *arguments])
    assert text.exit_code == code and "Traceback" not in text.stderr
    return json.loads(done.stdout) | {"text": text.stdout}


def test_a_new_machine_answers_by_itself(gateway: FakeGateway) -> None:
    told = status()
    assert (told["store"], told["fault"], told["link"]["state"]) == ("none", None, "none")
    assert told["disk"] == {"state": "unknown", "how": "in a test"} and "disk       unknown (in a test)" in told["text"]
    assert "`edge join`" in told["text"] and "next       `edge setup`" in told["text"]


def test_nobody_to_answer_is_a_fault(gateway: FakeGateway, models: Models) -> None:
    models["model"] = False
    told = status(code=3)
    assert told["fault"] == "user" and "`edge models install`" in told["next"][0]
    join(gateway)
    assert status()["fault"] is None, "the gateway may"


def test_a_model_that_is_configured_and_not_there(gateway: FakeGateway, tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "home/config.toml").write_text('[model]\npath = "/nowhere/x.gguf"\n')
    assert status(code=3)["models"]["model"] is None


def test_documents_without_an_embedder_are_a_fault(
    gateway: FakeGateway, models: Models, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def count(self: object) -> tuple[int, int]:
        return 1, 5

    monkeypatch.setattr("store.documents.Documents.count", count)
    join(gateway)
    assert status()["documents"] == 1
    models["embedder"] = False
    assert status(code=3)["fault"] == "user"


def test_nothing_is_dialled_without_check(gateway: FakeGateway) -> None:
    join(gateway)
    dials = gateway.dials
    told = status()
    assert gateway.dials == dials and told["link"]["state"] == "not checked"
    assert "not checked (--check dials)" in told["text"] and told["identity"]["svid_valid"]


def test_check_says_which_endpoint_answered(gateway: FakeGateway, tmp_path: Path) -> None:
    join(gateway)
    (tmp_path / "home/config.toml").write_text('[relay]\nendpoints = ["tcp:127.0.0.1:9", "tcp:127.0.0.1:2"]\n')
    told = status("--check")
    assert told["link"] == {
        "state": "up", "endpoint": "tcp:127.0.0.1:2", "via": "spiffe://field.example/hop/h", "error": None
    }
    assert "link       up over tcp:127.0.0.1:2, via spiffe://field.example/hop/h" in told["text"]
    assert gateway.called == [], "nothing was asked"


def test_check_without_a_way_is_the_links_fault(gateway: FakeGateway) -> None:
    join(gateway)
    gateway.dead.add(str(ENDPOINT))
    told = status("--check", code=5)
    assert (told["link"]["state"], told["fault"]) == ("down", "link")
    assert "down: nobody answers" in told["text"] and "`edge ask --queue`" in told["text"]


def test_check_of_a_device_that_is_refused(gateway: FakeGateway) -> None:
    join(gateway)
    gateway.refuse_everybody = True
    told = status("--check", code=6)
    assert told["fault"] == "policy" and told["link"]["error"]["code"] == "peer_refused"


@pytest.mark.parametrize(("age_s", "stale"), [(60, False), (2 * 3600, True)])
def test_M16_the_age_of_the_revocation_list_is_told(gateway: FakeGateway, age_s: int, stale: bool) -> None:
    join(gateway)
    assert "revocations" not in status(), "there is none"
    made = sign_list(gateway.ca.issue("authority/revocation"), 5, (7,), (), now=gateway.ca.now - age_s)
    in_store(lambda opened: opened.settings.put("revocation-list", made.data))
    told = status()
    assert told["revocations"] == {"as_of": int(gateway.ca.now) - age_s, "stale": stale}
    assert "revoked    list as of" in told["text"] and ("a newer one is due" in told["text"]) == stale


def test_queue_and_answers_are_counted(gateway: FakeGateway) -> None:
    join(gateway)

    now = int(time.time())

    async def work(opened: App) -> None:
        await opened.outbox.accept(b"w" * 16, b"", b"", now=now - 9, expires_at=now - 1)
        await opened.outbox.accept(b"x" * 16, b"", b"", now=now, expires_at=now + 900)
        await opened.promises.keep(b"k" * 16, Kept(1, "q", "a"))

    in_store(work)
    told = status()
    assert (told["outbox"], told["answers"]) == ({"waiting": 1, "expired": 1}, 1)
    assert "1 answered" in told["text"] and "`edge outbox show ID`" in told["text"] and "`edge serve`" in told["text"]


def test_a_locked_store_is_the_stores_fault(gateway: FakeGateway, monkeypatch: pytest.MonkeyPatch) -> None:
    join(gateway)
    monkeypatch.delenv("CAUSEWAY_PASSPHRASE_FILE")
    monkeypatch.setattr("edge_client.passphrase._has_terminal", lambda: False)
    told = status(code=8)
    assert (told["store"], told["fault"]) == ("locked", "store") and "unknown (locked)" in told["text"]

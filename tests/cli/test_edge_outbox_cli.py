"""`edge outbox`: what it lists, how ids are given, what retry and cancel do and say."""

import asyncio
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from edge_client.app import App
from edge_client.cli import app
from edge_client.config import Config
from edge_client.draining import Drain
from edge_client.gateway_client import GatewayClient
from tests.support.ca import Ca
from tests.support.edge_lab import ENDPOINT, join_gateway
from tests.support.fake_engine import sse
from tests.support.fake_gateway import Call, FakeClock, FakeGateway, say_hello
from transport.messages import RequestHeader, encode_header

Edge = Callable[..., Any]


@pytest.fixture
def edge(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Edge]:
    secret = tmp_path / "passphrase"
    secret.write_text("correct horse\n")
    monkeypatch.setenv("CAUSEWAY_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("CAUSEWAY_PASSPHRASE_FILE", str(secret))
    monkeypatch.delenv("CAUSEWAY_PASSPHRASE", raising=False)

    def run(*arguments: str) -> Any:
        done = CliRunner().invoke(app, list(arguments))
        assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
        return done

    yield run


@pytest.fixture
def gateway(monkeypatch: pytest.MonkeyPatch) -> FakeGateway:
    """Every command finds this gateway; each is a process of its own, so the links end with it."""
    gateway = FakeGateway(Ca(), say_hello)
    real = GatewayClient.close

    async def close(self: GatewayClient) -> None:
        await real(self)
        for task in gateway.tasks:
            task.cancel()
        await asyncio.gather(*gateway.tasks, return_exceptions=True)
        gateway.tasks.clear()

    monkeypatch.setattr(GatewayClient, "close", close)
    monkeypatch.setattr("edge_client.dialing.connect", lambda endpoint, **_: gateway.dial(endpoint))
    monkeypatch.setattr("edge_client.gateway_client.Clock", FakeClock)
    return gateway


async def answer(call: Call) -> None:
    await call.begin(200, "text/event-stream")
    for part in sse("It ", "stands."):
        await call.write(part)
    await call.end()


def in_store(work: Callable[[App], Any]) -> Any:
    async def run() -> Any:
        async with App.open(Config.load(), store="create") as opened:
            return await work(opened)

    return asyncio.run(run())


def join(gateway: FakeGateway) -> None:
    in_store(lambda opened: join_gateway(opened.settings, gateway))
    gateway.tasks.clear()  # of an event loop that is gone


def row(request_id: bytes, state: str = "waiting", question: str = "why does it flood?") -> None:
    body = json.dumps({"model": "m", "messages": [{"role": "user", "content": question}]}).encode()
    now = int(time.time())
    header = encode_header(RequestHeader("POST", "/v1/chat/completions", "application/json", "", len(body), now + 900))

    async def work(opened: App) -> None:
        await opened.outbox.accept(request_id, header, body, now=now, expires_at=now + 900)
        if state == "sent":
            await opened.outbox.sent(request_id, b"e" * 16, now=now)
        elif state != "waiting":
            await getattr(opened.outbox, state)(request_id, "some_reason")

    in_store(work)


def test_empty_and_without_a_store(edge: Edge) -> None:
    assert edge("outbox", "--json").stdout == '{"outbox": []}\n'
    assert "the outbox is empty" in edge("outbox").stderr
    assert edge("outbox", "retry", "ab").exit_code == 8


def test_list(edge: Edge) -> None:
    row(b"\x1a\x2b\x3c\x4d" + b"a" * 12)
    row(b"\x1a\x2b\x99\x99" + b"b" * 12, "interrupted", "x" * 100)
    first, second = json.loads(edge("outbox", "--json").stdout)["outbox"]
    assert (first["id"], first["state"], first["question"]) == ("1a2b3c4d", "waiting", "why does it flood?")
    assert (second["state"], second["reason"], len(second["question"])) == ("interrupted", "some_reason", 48)
    text = edge("outbox").stdout
    assert "1a2b3c4d  waiting" in text and "not known (some_reason)" in text


@pytest.mark.parametrize("given", ["1a2b", "ffff", "", "1a2b3c4x"])
def test_ids_that_name_no_one_row(edge: Edge, given: str) -> None:
    row(b"\x1a\x2b\x3c\x4d" + b"a" * 12)
    row(b"\x1a\x2b\x99\x99" + b"b" * 12)
    for verb in ("retry", "cancel"):
        refused = edge("outbox", verb, given)
        assert refused.exit_code == 3 and "hint: " in refused.stderr and refused.stdout == ""


def test_cancel_is_kept_and_idempotent(edge: Edge) -> None:
    row(b"\x1a\x2b\x3c\x4d" + b"a" * 12)
    for _ in range(2):
        done = edge("outbox", "cancel", "1A2B")
        assert (done.exit_code, done.stdout) == (0, "cancelled 1a2b3c4d\n")
    (left,) = json.loads(edge("outbox", "--json").stdout)["outbox"]
    assert (left["state"], left["reason"], left["prompt_kept"]) == ("failed", "cancelled", False)
    assert edge("outbox", "retry", "1a2b").exit_code == 3


def test_retry_sends_what_waits_and_asks_anew_what_was_interrupted(edge: Edge, gateway: FakeGateway) -> None:
    gateway.handle = answer
    join(gateway)
    waiting = b"\x1a\x2b\x3c\x4d" + b"a" * 12
    row(waiting)
    done = edge("outbox", "retry", "1a2b")
    assert (done.exit_code, done.stdout) == (0, "It stands.\n"), done.stderr
    assert "via spiffe://field.example/hop/h" in done.stderr
    assert gateway.called == [waiting]
    row(b"\x99" * 16, "interrupted")
    again = json.loads(edge("outbox", "retry", "99", "--json").stdout)
    assert again["answer"] == "It stands." and again["id"] != "99999999"
    assert len(gateway.called) == 2 and gateway.called[1] != b"\x99" * 16


def test_ask_gives_up_and_tells_the_id(edge: Edge, gateway: FakeGateway) -> None:
    join(gateway)
    gateway.dead.add(str(ENDPOINT))
    gave_up = edge("ask", "--relay", "--model", "m", "why?")
    (left,) = json.loads(edge("outbox", "--json").stdout)["outbox"]
    assert gave_up.exit_code == 5 and gave_up.stdout == ""
    assert f"kept in the outbox as {left['id']}" in gave_up.stderr and "trying again ..." in gave_up.stderr
    assert f"hint: `edge outbox retry {left['id']}`" in gave_up.stderr
    assert left["state"] == "waiting" and left["question"].endswith("why?")


def test_ask_goes_on_over_another_link(edge: Edge, gateway: FakeGateway) -> None:
    gateway.handle = answer
    join(gateway)
    gateway.lose_requests = 1
    asked = edge("ask", "--relay", "--model", "m", "why?")
    assert (asked.exit_code, asked.stdout) == (0, "It stands.\n")
    assert "edge: link lost, resuming ..." in asked.stderr
    assert len(gateway.called) == 1


def test_cancel_reaches_the_gateway(edge: Edge, gateway: FakeGateway) -> None:
    join(gateway)
    row(b"\x77" * 16, "sent")
    done = json.loads(edge("outbox", "cancel", "77", "--json").stdout)
    assert done == {"id": "77777777", "cancelled": True, "gateway_told": True}
    row(b"\x88" * 16, "sent")
    gateway.dead.add(str(ENDPOINT))
    assert "the next session tells it" in edge("outbox", "cancel", "88").stderr


def drain() -> None:
    async def work(opened: App) -> None:
        await Drain(opened.client, opened.promises, clock=FakeClock()).step()

    in_store(work)


def test_queue_promises_and_show_fetches(edge: Edge, gateway: FakeGateway) -> None:
    gateway.handle = answer
    join(gateway)
    dials = gateway.dials
    done = edge("ask", "--queue", "--model", "m", "why does it flood?")
    assert done.exit_code == 0 and gateway.dials == dials, done.stderr
    assert "relay to m: you asked to relay" in done.stderr, "what would leave is said"
    name = done.stdout.removeprefix("queued as ").strip()
    assert len(name) == 8 and f"`edge outbox show {name}`" in done.stderr
    early = edge("outbox", "show", name)
    assert early.exit_code == 3 and "no answer" in early.stderr and "waiting" in early.stderr
    drain()
    listed = edge("outbox").stdout
    assert f"{name}  done" in listed and "why does it flood?" in listed
    shown = edge("outbox", "show", name)
    assert (shown.exit_code, shown.stdout) == (0, "It stands.\n") and "via spiffe://field.example/hop/h" in shown.stderr
    again = json.loads(edge("outbox", "show", name[:6], "--json").stdout)
    assert (again["answer"], again["id"], again["finish_reason"]) == ("It stands.", name, "stop")
    assert edge("outbox", "cancel", name).exit_code == 0
    assert edge("outbox", "--json").stdout == '{"outbox": []}\n'


def test_queue_as_json_and_what_it_refuses(edge: Edge, gateway: FakeGateway) -> None:
    assert edge("ask", "--queue", "--local", "x").exit_code == 2
    assert edge("ask", "--queue", "--model", "m", "x").exit_code == 4, "nobody to send it, ever"
    join(gateway)
    assert edge("ask", "--queue", "x").exit_code == 3, "no model is known"
    key = "sk-" + "a1B2c3D4" * 5
    assert edge("ask", "--queue", "--model", "m", f"my key is {key}").exit_code == 6
    assert edge("outbox", "--json").stdout == '{"outbox": []}\n'
    told = json.loads(edge("ask", "--queue", "--model", "m", "--json", "x").stdout)
    (left,) = json.loads(edge("outbox", "--json").stdout)["outbox"]
    assert told == {"queued": left["id"], "expires_at": left["expires_at"], "show": f"edge outbox show {left['id']}"}


def test_retry_fetches_what_was_queued_and_ends_the_promise(edge: Edge, gateway: FakeGateway) -> None:
    gateway.handle = answer
    join(gateway)
    name = json.loads(edge("ask", "--queue", "--model", "m", "--json", "x").stdout)["queued"]
    assert edge("outbox", "retry", name).stdout == "It stands.\n"
    drain()
    assert len(gateway.called) == 1

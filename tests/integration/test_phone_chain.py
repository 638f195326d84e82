"""An edge whose only way is a phone: processes of edge and gateway, and a central that does what the page does."""

import asyncio
import contextlib
import json
import signal
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from relay.hop.identity import HopHome
from relay.hop.identity import join as join_hop
from store.keys import Passphrase
from tests.integration.test_bluetooth_chain import EdgeHome
from tests.support.mock_provider import WORDS, MockProvider
from tests.support.phone_central import PhoneCentral
from tests.support.relay_process import ROOT, Gateway, gateway_process, secret_file
from transport.identity.tls import client_context
from transport.links.base import Endpoint
from transport.links.virtual_join import RadioServer, serve_radio
from transport.links.websocket import WebSocketLink, connect_websocket

ANSWER = ("".join(WORDS), "spiffe://field.example/hop/phone")


@dataclass
class Lab:
    """The edge has joined, through the phone, and knows no other way."""

    edge: EdgeHome
    phone: PhoneCentral
    radio: RadioServer
    gateway: Gateway
    provider: MockProvider
    tunnel: Endpoint
    hop: Any
    carrying: asyncio.Task[None] | None = None

    async def dial(self) -> WebSocketLink:
        return await connect_websocket(self.tunnel, tls=self.hop, timeout_s=10)

    def open_page(self) -> None:
        self.carrying = asyncio.create_task(self.phone.carry(self.dial))

    async def close_page(self) -> None:
        if self.carrying is not None:
            self.carrying.cancel()
            await asyncio.gather(self.carrying, return_exceptions=True)

    @contextlib.asynccontextmanager
    async def command(self, *arguments: str) -> AsyncIterator["Lines"]:
        """A command of the edge that goes on until it is ended."""
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "tests.support.serve_process", *arguments, cwd=ROOT, env=self.edge.environment,
            stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        )
        try:
            yield Lines(process)
        finally:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.communicate()


class Lines:
    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        assert process.stdout is not None and process.stderr is not None
        self.out, self.err = process.stdout, process.stderr

    async def event(self, kind: str) -> dict[str, Any]:
        """The next JSON line of that kind; AssertionError if there is none."""
        while line := await self.out.readline():
            event: dict[str, Any] = json.loads(line)
            if event["event"] == kind:
                return event
        raise AssertionError((await self.err.read()).decode())

    async def note(self, words: str) -> str:
        while line := (await self.err.readline()).decode():
            if words in line:
                return line
        raise AssertionError(f"it never said {words}")

    async def ended(self, number: int = signal.SIGINT) -> int:
        self.process.send_signal(number)
        await self.process.communicate()
        assert self.process.returncode is not None
        return self.process.returncode


@pytest.fixture
async def lab(tmp_path: Path) -> AsyncIterator[Lab]:
    radio = tmp_path / "radio.sock"
    edge = EdgeHome(tmp_path / "edge", f"virtual:{radio}")
    async with asyncio.timeout(300), MockProvider() as provider, contextlib.AsyncExitStack() as stack:
        gateway = await stack.enter_async_context(gateway_process(tmp_path / "gateway", provider.base_url))
        home = HopHome(tmp_path / "hop", Passphrase("hop pass"))
        identity = await join_hop(home, await gateway.invite("hop/phone"), gateway.https)
        line = secret_file(tmp_path / "invitation", (await gateway.invite("edge/lap-1")).encode())
        refused = await edge.run("join", "--invitation-file", line, "--hop", "phone:", code=5)
        assert "virtual radio" in refused["error"]["message"]
        server = await serve_radio(radio, "2m", seed=1)
        stack.push_async_callback(server.close)
        made = Lab(
            edge, PhoneCentral(await server.radio.device("phone")), server, gateway, provider,
            Endpoint.parse(gateway.https.replace("https://", "wss://") + "/v1/tunnel"),
            client_context(identity.bundle, identity.svid),
        )
        made.open_page()
        assert (await edge.run("join", "--invitation-file", line, "--hop", "phone:"))["endpoints"] == ["phone:"]
        yield made
        await made.close_page()


async def test_an_answer_goes_on_when_the_page_comes_back(lab: Lab) -> None:
    lab.provider.mode = "stream_stall"
    async with lab.command("ask", "--relay", "--no-documents", "How fast does the pump run?") as ask:
        begun = await ask.out.readexactly(len("".join(WORDS[:2])))
        assert begun.decode() == "".join(WORDS[:2])
        lab.radio.radio.drop("phone")
        await lab.close_page()
        await ask.note("resuming")
        lab.provider.release.set()
        lab.open_page()
        rest, err = await ask.process.communicate()
    assert begun.decode() + rest.decode() == "".join(WORDS) + "\n"
    assert ANSWER[1] in err.decode() and "waiting for a phone" in err.decode()
    assert lab.phone.info is not None and lab.phone.info.role == "edge"
    assert lab.provider.calls == 1


async def test_pairing_in_front_brings_the_queue_and_outlives_drops(lab: Lab) -> None:
    await lab.close_page()
    queued = await lab.edge.run("ask", "--queue", "--relay", "--model", "small", "How fast does the pump run?")
    async with lab.command("pair", "--json") as pair:
        await pair.event("waiting")
        lab.open_page()
        up = await pair.event("up")
        assert up["via"] == ANSWER[1] and up["round_trip_ms"] > 0
        assert queued["queued"] in (await pair.event("note"))["text"]
        carried = await pair.event("carried")
        assert carried["sent"] > 500 and carried["received"] > 500
        lab.radio.radio.drop("phone")
        await pair.event("down")
        assert (await pair.event("up"))["via"] == ANSWER[1]
        await lab.close_page()  # the page goes away, and comes back
        await pair.event("down")
        lab.open_page()
        assert (await pair.event("up"))["via"] == ANSWER[1]
        assert await pair.ended() == 130
    shown = await lab.edge.run("outbox", "show", queued["queued"])
    assert (shown["answer"], shown["via"]) == ANSWER
    assert lab.provider.calls == 1


async def test_a_running_serve_is_told_to_wait_for_a_phone(lab: Lab) -> None:
    lab.edge.configure("tcp:127.0.0.1:1")
    await lab.close_page()
    async with lab.command("serve", "--port", "0") as serve:
        await serve.note("ready")
        assert (await lab.edge.run("pair", "--minutes", "30"))["pairing"] is True
        assert (await lab.edge.run("status"))["pairing"] is True
        lab.open_page()
        assert ANSWER[1] in await serve.note("a session stands")
        told = await lab.edge.run("pair", "--stop")
        assert (told["pairing"], told["store"]) == (False, "open")
        assert (await lab.edge.run("status"))["pairing"] is False
        assert await serve.ended(signal.SIGTERM) == 0

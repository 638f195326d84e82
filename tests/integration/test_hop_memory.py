"""A hop under load, its memory read as whoever seizes it would: no word of a prompt or an answer is there."""

import asyncio
import contextlib
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from edge_client.dialing import Dialer
from edge_client.gateway_client import GatewayClient
from edge_client.identity import NAMESPACE, join
from edge_client.outbox import Outbox
from relay.gateway.control import call
from relay.hop.identity import HopHome
from relay.hop.identity import join as join_hop
from scripts import canaries
from store.database import STORE_SCHEMA, Database
from store.keys import DatabaseKey, Passphrase
from store.queue import Queue
from store.settings import Settings
from tests.support.gateway_lab import DOMAIN, chat, make_folder
from tests.support.mock_provider import KEY, MockProvider, chunk
from tests.support.process_memory import found_in
from transport import telemetry
from transport.identity.join import Invitation
from transport.links.base import Endpoint

ROOT = Path(__file__).resolve().parents[2]
PROMPT, ANSWER = canaries.word(), canaries.word()
REQUESTS = 4
CONFIG = """
trust_domain = "field.example"
[listen]
https = "127.0.0.1:0"
[provider]
base_url = "{base_url}"
key_file = "provider.key"
[[allow]]
id = "/edge/*"
models = ["small"]
"""


@contextlib.asynccontextmanager
async def relay(*arguments: str) -> AsyncIterator[tuple[int, str]]:
    """A process of `relay`: its id, and the line with which it says that it is ready."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", "from relay.cli import main; main()", *arguments, cwd=ROOT,
        stdin=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.PIPE, env={**os.environ, "NO_COLOR": "1"},
    )
    try:
        assert process.stderr is not None
        line = (await asyncio.wait_for(process.stderr.readline(), 60)).decode()
        assert "ready" in line, line
        yield process.pid, line
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
        await asyncio.wait_for(process.communicate(), 60)


def secret_file(path: Path, text: str) -> str:
    path.write_text(text)
    path.chmod(0o600)
    return str(path)


@pytest.fixture
async def client(tmp_path: Path) -> AsyncIterator[tuple[Settings, GatewayClient, Dialer]]:
    database = Database.open(tmp_path / "store.db", DatabaseKey.generate(), schema=STORE_SCHEMA)
    settings, tracing = Settings(database, NAMESPACE), telemetry.start("edge")
    dial = Dialer(settings, radio="none", wss_trust="bundle")
    client = GatewayClient(settings, Outbox(Queue(database, "outbox")), (), tracing, dial)
    yield settings, client, dial
    await client.close()
    tracing.close()
    database.close()


def test_the_search_finds_what_is_there_and_only_that() -> None:
    told, never_told = canaries.word().encode(), canaries.word().encode()
    command = [sys.executable, "-c", "word = input() * 9; print(len(word), flush=True); input()"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None and process.stdout is not None
        process.stdin.write(told + b"\n")
        process.stdin.flush()
        assert int(process.stdout.readline()) == 9 * len(told)
        assert found_in(process.pid, [told, never_told]) == {told}
        process.kill()


async def test_no_word_that_crosses_a_hop_is_in_its_memory(
    tmp_path: Path, client: tuple[Settings, GatewayClient, Dialer]
) -> None:
    settings, asker, dial = client
    folder, home = make_folder(tmp_path / "gateway"), tmp_path / "hop"
    secret_file(folder / "provider.key", KEY)
    passphrase = secret_file(tmp_path / "gateway-pass", "gateway pass")
    hop_passphrase = secret_file(tmp_path / "hop-pass", "hop pass")
    async with asyncio.timeout(120), MockProvider() as provider, contextlib.AsyncExitStack() as stack:
        provider.mode = "stream_lingers"  # the whole answer is on its way, and the call goes on
        provider.stream = [chunk(f"{ANSWER} ") for _ in range(200)] + [b"data: [DONE]\n\n"]
        (folder / "gateway.toml").write_text(CONFIG.format(base_url=provider.base_url))
        gateway_pid, ready = await stack.enter_async_context(relay(
            "gateway", "serve", "--config", str(folder / "gateway.toml"), "--passphrase-file", passphrase
        ))
        https = "https://" + ready.partition("https=")[2].split()[0]

        async def invite(path: str) -> Invitation:
            return Invitation.parse((await call(folder, "invite", {"path": path}))["invitation"])

        await join_hop(HopHome(home, Passphrase("hop pass")), await invite("hop/pi"), https)
        hop_pid, ready = await stack.enter_async_context(relay(
            "hop", "serve", "--home", str(home), "--passphrase-file", hop_passphrase, "--listen", "tcp:127.0.0.1:0"
        ))
        hop = Endpoint.parse(ready.split()[-1])
        await join(settings, await invite("edge/lap-1"), await dial(hop), (str(hop),))

        async def ask() -> None:
            """Until the last word of the answer is here."""
            body = chat(text=f"{PROMPT} " * 5_000, stream=True)
            answer, words = await asker.request("POST", "/v1/chat/completions", body), b""
            async for part in answer.chunks():
                words += part
                if words.count(ANSWER.encode()) == 200:
                    return
            raise AssertionError("the answer ended early")

        await asyncio.gather(*(ask() for _ in range(REQUESTS)))
        assert all(PROMPT.encode() in body for body in provider.bodies) and len(provider.bodies) == REQUESTS

        forms = canaries.forms(PROMPT) | canaries.forms(ANSWER)
        own = f"{DOMAIN}/hop/pi".encode()  # which any hop knows: the search can read this process
        assert await asyncio.to_thread(found_in, hop_pid, forms | {own}) == {own}
        assert {PROMPT.encode(), ANSWER.encode()} <= await asyncio.to_thread(found_in, gateway_pid, forms)
        provider.release.set()

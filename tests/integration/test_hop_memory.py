"""A hop under load, its memory read as whoever seizes it would: no word of a prompt or an answer is there."""

import asyncio
import contextlib
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from edge_client.dialing import Dialer
from edge_client.gateway_client import GatewayClient
from edge_client.identity import NAMESPACE, join
from edge_client.outbox import Outbox
from relay.hop.identity import HopHome
from relay.hop.identity import join as join_hop
from scripts import canaries
from store.database import STORE_SCHEMA, Database
from store.keys import DatabaseKey, Passphrase
from store.queue import Queue
from store.settings import Settings
from tests.support.gateway_lab import DOMAIN, chat
from tests.support.mock_provider import MockProvider, chunk
from tests.support.process_memory import found_in
from tests.support.relay_process import gateway_process, relay, secret_file
from transport import telemetry
from transport.links.base import Endpoint

PROMPT, ANSWER = canaries.word(), canaries.word()
REQUESTS = 4


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
    home = tmp_path / "hop"
    hop_passphrase = secret_file(tmp_path / "hop-pass", "hop pass")
    async with asyncio.timeout(300), MockProvider() as provider, contextlib.AsyncExitStack() as stack:
        provider.mode = "stream_lingers"  # the whole answer is on its way, and the call goes on
        provider.stream = [chunk(f"{ANSWER} ") for _ in range(200)] + [b"data: [DONE]\n\n"]
        gateway = await stack.enter_async_context(gateway_process(tmp_path / "gateway", provider.base_url))
        await join_hop(HopHome(home, Passphrase("hop pass")), await gateway.invite("hop/pi"), gateway.https)
        hop_pid, ready = await stack.enter_async_context(relay(
            "hop", "serve", "--home", str(home), "--passphrase-file", hop_passphrase, "--listen", "tcp:127.0.0.1:0"
        ))
        hop = Endpoint.parse(ready.split()[-1])
        await join(settings, await gateway.invite("edge/lap-1"), await dial(hop), (str(hop),))

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
        assert {PROMPT.encode(), ANSWER.encode()} <= await asyncio.to_thread(found_in, gateway.pid, forms)
        provider.release.set()

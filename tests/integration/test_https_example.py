"""The example of docs/HTTPS.md as somebody would run it: a process of its own beside a gateway's."""

import asyncio
import contextlib
import dataclasses
import json
import os
import re
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from relay.gateway.control import call
from relay.gateway.identity.ca import Authority
from tests.support.gateway_lab import DOMAIN, PASSPHRASE, audit_lines
from tests.support.mock_provider import WORDS, MockProvider
from tests.support.relay_process import ROOT, Gateway, gateway_process
from transport.identity.svid import SpiffeId, Svid
from transport.identity.tls import server_context
from transport.primitives import SigningKey

SECTIONS = """
[[allow]]
id = "/workload/*"
models = ["small"]
[workload_api]
socket = "w.sock"
[[workload]]
id = "/workload/reports"
uid = {uid}
"""


@pytest.fixture
async def gateway(tmp_path: Path) -> AsyncIterator[Gateway]:
    async with (
        MockProvider() as provider,
        gateway_process(tmp_path / "g", provider.base_url, more=SECTIONS.format(uid=os.getuid())) as gateway,
    ):
        yield gateway


async def example(gateway: Gateway, *more: str, model: str = "small") -> tuple[int | None, str, str]:
    process = await asyncio.create_subprocess_exec(
        sys.executable, str(ROOT / "examples" / "https_client.py"), gateway.https, model, "How do I prime it?", *more,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        env={**os.environ, "SPIFFE_ENDPOINT_SOCKET": f"unix://{gateway.folder}/w.sock"},
    )
    out, errors = await asyncio.wait_for(process.communicate(), 60)
    return process.returncode, out.decode(), errors.decode()


async def test_the_example_asks_by_its_svid_and_by_a_token(gateway: Gateway) -> None:
    for more in ((), ("--token",)):
        assert await example(gateway, *more) == (0, "".join(WORDS) + "\n", "")
    lines = audit_lines(gateway.folder / "audit.jsonl")
    intents = [line for line in lines if line["event"] == "request.intent"]
    assert {line["id"] for line in intents} == {"spiffe://field.example/workload/reports"}
    (issued,) = (line for line in lines if line["event"] == "token.issued")
    assert [line.get("token") for line in intents] == [None, issued["token"]]
    status, _, errors = await example(gateway, model="large")
    assert status == 1 and errors.startswith("403: "), errors
    assert json.loads(errors[5:])["error"]["code"] == "model_not_allowed"
    await call(gateway.folder, "revoke", {"who": "workload/reports", "reason": "test"})
    status, _, errors = await example(gateway)
    assert status == 1 and "PERMISSION_DENIED" in errors


async def test_the_example_tells_nothing_to_who_is_no_gateway(gateway: Gateway) -> None:
    """Every SVID is good for a server, too: one of the same trust domain that poses as the gateway gets no request."""
    authority, key = await asyncio.to_thread(Authority.open, gateway.folder, PASSPHRASE), SigningKey.generate()
    issued = authority.issue(SpiffeId(DOMAIN, "/hop/gateway"), key.public, now=time.time())
    svid = Svid(issued.id, issued.chain, key, issued.not_before, issued.not_after)
    heard = bytearray()

    async def listen(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            heard.extend(await reader.read())
        writer.close()

    context = server_context(svid, authority.bundle, ("workload",), require_client=False)
    async with await asyncio.start_server(listen, "127.0.0.1", 0, ssl=context) as server:
        port = server.sockets[0].getsockname()[1]
        status, _, errors = await example(dataclasses.replace(gateway, https=f"https://127.0.0.1:{port}"))
    assert status == 1 and "the server is not the gateway" in errors and not heard


def test_the_page_has_the_example_s_commands() -> None:
    page = (ROOT / "docs" / "HTTPS.md").read_text()
    assert "examples/https_client.py" in page
    codes = set(re.findall(r"\| `([a-z_]+)` \|", page))
    assert {"identity_unknown", "identity_refused", "invalid_token", "invalid_dpop_proof", "use_dpop_nonce"} <= codes

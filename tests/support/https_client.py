"""A connected client, as somebody would write one, and a gateway as `serve` builds it for it to ask.

    async with https_gateway(folder, provider) as gateway:
        client = await Workload.joined(gateway, "workload/report-1")
        status, answer = await client.ask(chat())
"""

import asyncio
import base64
import contextlib
import json
import shutil
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp

from relay.gateway import app
from relay.gateway.config import parse
from relay.gateway.control import call
from relay.gateway.identity.ca import Authority
from tests.support.gateway_lab import DOMAIN, PASSPHRASE, audit_lines
from tests.support.mock_provider import KEY, STREAM, MockProvider
from transport.identity.join import DEVICE_LABEL, HttpsOperation, Invitation, https_transcript, signed_input
from transport.identity.svid import Svid, TrustBundle, make_csr
from transport.identity.tls import client_context, peer_of
from transport.primitives import SigningKey, sha256

LIMIT = 60.0
CHAT = "/v1/chat/completions"
CONFIG = """
trust_domain = "field.example"
[listen]
https = "127.0.0.1:0"
[provider]
base_url = "{base_url}"
key_file = "provider.key"
[limits]
drain_s = 5.0
[[allow]]
id = "/workload/*"
models = ["small"]
[[allow]]
id = "/edge/*"
models = ["small"]
"""


def pack(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


def unpack(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


@dataclass
class Gateway:
    folder: Path
    provider: MockProvider
    ready: app.Ready
    stop: asyncio.Event
    task: asyncio.Task[None]

    @property
    def url(self) -> str:
        return f"https://{self.ready.https}"

    async def admin(self, operation: str, **arguments: Any) -> dict[str, Any]:
        return await call(self.folder, operation, arguments)

    async def invite(self, path: str) -> Invitation:
        return Invitation.parse((await self.admin("invite", path=path))["invitation"])

    def audit(self, event: str = "") -> list[dict[str, Any]]:
        return [line for line in audit_lines(self.folder / app.AUDIT_FILE) if not event or line["event"] == event]

    async def audited(self, event: str, count: int = 1) -> list[dict[str, Any]]:
        """The records of an event, once there are so many."""
        async with asyncio.timeout(LIMIT):
            while len(found := self.audit(event)) < count:  # noqa: ASYNC110 - what is waited for is in a file
                await asyncio.sleep(0)
        return found

    def allow(self, text: str) -> None:
        """Writes other rules than CONFIG's; the operation `policy_reload` brings them into force."""
        stem = CONFIG.partition("[[allow]]")[0].format(base_url=self.provider.base_url)
        (self.folder / "gateway.toml").write_text(stem + text)


@contextlib.asynccontextmanager
async def https_gateway(
    made: Path, folder: Path, provider: MockProvider, *, text: str = CONFIG, clock: Any = None, **more: Any
) -> AsyncIterator[Gateway]:
    """`made`: by `make_folder`, to be copied. `more`: for `app.serve`."""
    if not folder.exists():  # noqa: ASYNC240
        shutil.copytree(made, folder)
    (folder / "provider.key").write_text(KEY)
    (folder / "provider.key").chmod(0o600)
    (folder / "gateway.toml").write_text(text.format(base_url=provider.base_url))
    config = parse((folder / "gateway.toml").read_bytes(), folder)
    stop, told = asyncio.Event(), asyncio.get_running_loop().create_future()
    timing = {} if clock is None else {"clock": clock}
    task = asyncio.create_task(app.serve(config, PASSPHRASE, ready=told.set_result, stop=stop, **timing, **more))
    await asyncio.wait({task, told}, return_when=asyncio.FIRST_COMPLETED)
    if task.done():
        await task
    try:
        async with asyncio.timeout(LIMIT):
            yield Gateway(folder, provider, await told, stop, task)
    finally:
        stop.set()
        await asyncio.wait_for(task, LIMIT)


class _Response(aiohttp.ClientResponse):
    leaf: bytes = b""

    async def start(self, connection: Any) -> "aiohttp.ClientResponse":
        peer = peer_of(connection.transport)
        assert peer is not None
        self.leaf = peer.leaf_sha256
        return await super().start(connection)


@dataclass
class Workload:
    """Device key, SVID and connections of its own."""

    gateway: Gateway
    bundle: TrustBundle
    device_key: SigningKey = field(default_factory=SigningKey.generate)
    svid: Svid | None = None
    enrolment: int = 0

    @classmethod
    async def joined(cls, gateway: Gateway, path: str = "workload/report-1") -> "Workload":
        bundle = (await asyncio.to_thread(Authority.open, gateway.folder, PASSPHRASE)).bundle
        client = cls(gateway, bundle)
        status, answer = await client.join(await gateway.invite(path))
        assert status == 200, answer
        return client

    async def join(self, invitation: Invitation) -> tuple[int, bytes]:
        """Status and body of the answer."""
        return await self._obtain(HttpsOperation.JOIN, invitation.token_id, {
            "token_id": pack(invitation.token_id), "secret": pack(invitation.secret.expose()),
            "device_key": pack(self.device_key.public.spki),
        })

    async def renew(self) -> None:
        device_id = sha256(self.device_key.public.spki)
        status, answer = await self._obtain(HttpsOperation.RENEW, device_id, {"device_id": pack(device_id)})
        assert status == 200, answer

    async def _obtain(self, operation: HttpsOperation, subject: bytes, body: dict[str, str]) -> tuple[int, bytes]:
        key = SigningKey.generate()
        connector = aiohttp.TCPConnector(ssl=client_context(self.bundle), limit=1)
        async with aiohttp.ClientSession(self.gateway.url, connector=connector, response_class=_Response) as client:
            async with client.post("/v1/join/nonce") as response:
                nonce, leaf = unpack((await response.json())["nonce"]), response.leaf  # type: ignore[attr-defined]
            csr = make_csr(key)
            h = https_transcript(operation, nonce, csr, subject, leaf)
            signature = self.device_key.sign(signed_input(DEVICE_LABEL, h, sha256(self.device_key.public.spki)))
            proof = {"csr": pack(csr), "nonce": pack(nonce), "signature": pack(signature)}
            async with client.post(f"/v1/{operation.name.lower()}", json=body | proof) as response:
                answer = await response.read()
        if response.status == 200:
            issued = json.loads(answer)
            self.svid = Svid.from_chain([unpack(one) for one in issued["chain"]], key)
            self.enrolment = issued["enrolment"]
        return response.status, answer

    @property
    def id(self) -> str:
        assert self.svid is not None
        return str(self.svid.id)

    @contextlib.asynccontextmanager
    async def client(self, svid: Svid | None = None, *, bare: bool = False) -> AsyncIterator[aiohttp.ClientSession]:
        """Connections with the SVID, with another, or `bare` of any."""
        context = client_context(self.bundle, None if bare else svid or self.svid)
        async with aiohttp.ClientSession(
            self.gateway.url, connector=aiohttp.TCPConnector(ssl=context), auto_decompress=False
        ) as client:
            yield client

    @contextlib.asynccontextmanager
    async def stalled(
        self, *, headers: dict[str, str] | None = None, bare: bool = False
    ) -> AsyncIterator[asyncio.StreamReader]:
        """A streamed answer of which two events have come, while the provider holds back the third; as bytes of HTTP.

        A client library may lose what came together with the end of a connection, and that is what is looked at.
        """
        self.gateway.provider.mode = "stream_stall"
        body = json.dumps({"model": "small", "messages": [{"role": "user", "content": "Go on."}], "stream": True})
        lines = {
            "Host": "gateway", "Content-Type": "application/json", "Content-Length": str(len(body)), **(headers or {})
        }
        host, _, port = self.gateway.ready.https.rpartition(":")
        context = client_context(self.bundle, None if bare else self.svid)
        reader, writer = await asyncio.open_connection(host, int(port), ssl=context)
        try:
            head = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
            writer.write(f"POST {CHAT} HTTP/1.1\r\n{head}\r\n{body}".encode())
            assert b" 200 " in await reader.readline()
            await reader.readuntil(STREAM[1].rstrip())
            yield reader
        finally:
            writer.transport.abort()

    async def ask(
        self, body: bytes | None = None, path: str = CHAT, *, method: str = "POST",
        headers: dict[str, str] | None = None, bare: bool = False,
    ) -> tuple[int, Any]:
        """Status, and what the answer's JSON says."""
        kind = {"Content-Type": "application/json"} if body is not None else {}
        async with self.client(bare=bare) as client, client.request(
            method, path, data=body, headers=kind | (headers or {})
        ) as response:
            return response.status, json.loads(await response.read())


async def last_words(reader: asyncio.StreamReader) -> str:
    """The code of the error that a stream has ended by, and that HTTP does not take it to be whole."""
    rest = await reader.read()
    assert b"[DONE]" not in rest and not rest.endswith(b"0\r\n\r\n"), rest
    error = json.loads(rest.rpartition(b"data: ")[2].splitlines()[0])["error"]
    assert len(error["trace_id"]) == 32
    return str(error["code"])


__all__ = ["CHAT", "CONFIG", "DOMAIN", "Gateway", "Workload", "https_gateway", "last_words", "pack", "unpack"]

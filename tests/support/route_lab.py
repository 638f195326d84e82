"""Requests of each route with all that they may carry, and one client that asks them by a session or by HTTPS.

    async with two_ways(gateway) as ways:
        status, answer = await ways["session"].ask("/v1/responses", body)
"""

import contextlib
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from tests.support.gateway_lab import DOMAIN
from tests.support.https_client import Gateway, Workload
from tests.support.mock_provider import KEY, MockProvider
from transport.edge_session import EdgeSession, RemoteAnswer, obtain
from transport.errors import RequestRefused
from transport.events import CONTENT_TYPE, EventDecoder
from transport.identity.join import bundle_from_joined_root
from transport.identity.svid import Svid, TrustBundle, make_csr
from transport.identity.verify import VerifiedPeer, verify_svid
from transport.initiator import Joining, SvidLogin
from transport.links.base import Endpoint, connect
from transport.messages import RequestHeader, encode_header
from transport.primitives import SigningKey, random_bytes

PATHS = {"chat": "/v1/chat/completions", "responses": "/v1/responses", "embeddings": "/v1/embeddings",
         "messages": "/v1/messages"}
PIXEL = "data:image/png;base64,iVBORw0KGgo="

HEAD = """
trust_domain = "field.example"
[listen]
session = "tcp:127.0.0.1:0"
https = "127.0.0.1:0"
"""
ALLOWED = """
[[allow]]
id = "/workload/*"
models = {models}
[[allow]]
id = "/edge/*"
models = {models}
"""


def request(what: str, model: str = "small", *, stream: bool = False) -> bytes:
    """With tools, an image and a form of the answer; spaced and escaped as no library would."""
    tool = {"type": "object", "properties": {"model": {"type": "string"}}}
    text = 'the \\"model\\": \\"pump\\" \\u00e9 \\ud83d\\udca1'
    part = {"type": "text", "text": "TEXT"}
    body: dict[str, Any] = {
        "chat": {
            "messages": [{"role": "user", "content": [part, {"type": "image_url", "image_url": {"url": PIXEL}}]}],
            "tools": [{"type": "function", "function": {"name": "look", "parameters": tool}}],
            "response_format": {"type": "json_object"}, "temperature": 0.5,
        },
        "responses": {
            "input": [{"role": "user", "content": [
                {"type": "input_text", "text": "TEXT"}, {"type": "input_image", "image_url": PIXEL, "detail": "auto"},
            ]}],
            "tools": [{"type": "function", "name": "look", "parameters": tool, "strict": False}],
            "text": {"format": {"type": "json_object"}}, "store": False,
        },
        "embeddings": {"input": ["TEXT", "two"], "encoding_format": "float"},
        "messages": {
            "messages": [{"role": "user", "content": [
                part, {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": PIXEL[22:]}},
            ]}],
            "tools": [{"name": "look", "input_schema": tool}], "max_tokens": 100,
        },
    }[what]
    more = {"stream": True} if stream else {}
    raw = json.dumps({**body, **more, "model": model}, indent=1).replace("TEXT", text)
    return raw.replace(f'"model": "{model}"\n}}', f'"model"\t:  "{model}"\r\n }}').encode()


def section(provider: MockProvider, **fields: Any) -> str:
    """A [[provider]]; its key is in a file of its name."""
    api = {"azure-v1": "azure"}.get(provider.kind, provider.kind)
    settings = {"name": provider.kind, "api": api, "base_url": provider.base_url, **fields}
    if provider.kind == "azure":
        settings.setdefault("api_version", "2024-10-21")
    settings.setdefault("key_file", f"{settings['name']}.key")
    return "[[provider]]\n" + "".join(f"{name} = {json.dumps(value)}\n" for name, value in settings.items())


def write_keys(folder: Path, **keys: str) -> None:
    for name, key in keys.items():
        (folder / f"{name}.key").write_text(key)
        (folder / f"{name}.key").chmod(0o600)


class Way(Protocol):
    async def ask(self, path: str, body: bytes) -> tuple[int, bytes]:
        """Status, and the answer or, for a refusal, its code."""
        ...


@dataclass
class ByHttps:
    client: Workload

    async def ask(self, path: str, body: bytes) -> tuple[int, bytes]:
        headers = {"Content-Type": "application/json"}
        async with self.client.client() as http, http.post(path, data=body, headers=headers) as answer:
            data = await answer.read()
            if answer.status != 200:
                return answer.status, json.loads(data)["error"]["code"].encode()
            return answer.status, data


@dataclass
class BySession:
    session: EdgeSession
    anew: Callable[[], Awaitable[EdgeSession]]
    headers: dict[bytes, bytes] = field(default_factory=dict)

    def begin(self, path: str, body: bytes, request_id: bytes = b"") -> RemoteAnswer:
        """The same bytes again under a `request_id` that was there before."""
        kept = RequestHeader("POST", path, "application/json", "", len(body), int(time.time()) + 600)
        request_id = request_id or random_bytes(16)
        header = self.headers.setdefault(request_id, encode_header(kept))
        return self.session.request(request_id, header, body)

    async def ask(self, path: str, body: bytes, request_id: bytes = b"") -> tuple[int, bytes]:
        try:
            answer = await self.begin(path, body, request_id).started()
            data = b"".join([part async for part in answer])
        except RequestRefused as refused:
            return refused.status, refused.reason.encode()
        return answer.status, b"".join(EventDecoder().feed(data)) if answer.content_type == CONTENT_TYPE else data


@contextlib.asynccontextmanager
async def by_session(gateway: Gateway, path: str = "edge/lap-1") -> AsyncIterator[BySession]:
    invitation = await gateway.invite(path)
    device, key, endpoint = SigningKey.generate(), SigningKey.generate(), Endpoint.parse(gateway.ready.session)

    bundles: list[TrustBundle] = []

    def check(chain: Any, now: float) -> VerifiedPeer:
        bundle = bundles[0] if bundles else bundle_from_joined_root(invitation, chain)
        return verify_svid(chain, bundle, role="gateway", now=now)

    joining = Joining(invitation, device.public.spki, make_csr(key))
    issued = await obtain(await connect(endpoint), joining, device, check)
    bundles.append(TrustBundle(DOMAIN, tuple(issued.roots), issued.bundle_sequence))
    svid = Svid.from_chain(issued.chain, key)
    login = SvidLogin(svid.chain, svid.not_after)

    async def anew() -> EdgeSession:
        return await EdgeSession(await connect(endpoint), login, svid.key, check).open()

    way = BySession(await anew(), anew)
    try:
        yield way
    finally:
        await way.session.close()


@contextlib.asynccontextmanager
async def two_ways(gateway: Gateway) -> AsyncIterator[dict[str, Way]]:
    async with by_session(gateway) as session:
        yield {"session": session, "https": ByHttps(await Workload.joined(gateway))}


__all__ = [
    "ALLOWED", "HEAD", "KEY", "PATHS", "ByHttps", "BySession", "Way", "by_session", "request", "section", "two_ways",
    "write_keys",
]

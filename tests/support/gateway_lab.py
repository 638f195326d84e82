"""A gateway's parts for tests: a folder with a real authority, requests, and a sink that keeps what it gets."""

import asyncio
import json
import time
from pathlib import Path
from typing import Any

from relay.gateway.identity.ca import create_authority
from relay.gateway.pipeline import Refusal, RequestContext
from relay.gateway.policy.decisions import Policy
from relay.gateway.policy.settings import Allow, Policies, checked
from relay.gateway.state.sqlcipher import create_state
from store.keys import Passphrase
from transport.identity.svid import SpiffeId
from transport.identity.verify import VerifiedPeer
from transport.primitives import SigningKey, random_bytes

DOMAIN = "field.example"
PASSPHRASE = Passphrase("gateway pass")
ROOT_PASSPHRASE = Passphrase("root pass")


def make_folder(directory: Path, *, now: float | None = None) -> Path:
    """Authority and state, without configuration. Costs 0.8 s: make it once a module and copy it."""
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    create_authority(
        directory, DOMAIN, passphrase=PASSPHRASE, root_passphrase=ROOT_PASSPHRASE, now=now or time.time()
    )
    create_state(directory, PASSPHRASE)
    return directory


class Clock:
    """Unix seconds that move when told to."""

    def __init__(self, now: float | None = None) -> None:
        self.now = time.time() if now is None else now

    def __call__(self) -> float:
        return self.now


def peer(path: str = "edge/lap-1", *, serial: int = 7, not_after: float | None = None) -> VerifiedPeer:
    now = time.time()
    return VerifiedPeer(
        SpiffeId(DOMAIN, "/" + path), SigningKey.generate().public, b"\0" * 32, serial, now - 300,
        now + 3300 if not_after is None else not_after,
    )


def chat(model: str = "small", text: str = "How do I prime the pump?", **fields: Any) -> bytes:
    return json.dumps({"model": model, "messages": [{"role": "user", "content": text}], **fields}).encode()


def context(
    body: bytes = b"", *, route: str = "/v1/chat/completions", method: str = "POST", **changes: Any
) -> RequestContext:
    values: dict[str, Any] = {
        "request_id": random_bytes(16), "method": method, "route": route, "content_type": "application/json",
        "body": body, "traceparent": "", "expires_at": int(time.time()) + 600, "peer": peer(), "enrolment": 1,
        "via": "", "link_id": "00" * 8,
    }
    return RequestContext(**(values | changes))


def allowing(models: dict[str, list[str]] | list[Allow]) -> Policy:
    """A policy of the simple form, for instance models by ID pattern."""
    allows = [Allow(id=pattern, models=names) for pattern, names in models.items()] if isinstance(models, dict) else (
        models
    )
    return Policy(checked(Path(), [], allows, Policies(), []))


class KeptSink:
    """Keeps an answer; `refused` is (status, code, retryable)."""

    def __init__(self) -> None:
        self.called = False
        self.begun: tuple[int, str, bool] | None = None
        self.data = b""
        self.ended = False
        self.refused: tuple[int, str, bool] | None = None
        self.message = ""
        self.wrote = asyncio.Event()

    async def calling(self) -> None:
        self.called = True

    async def begin(self, status: int, content_type: str, *, streamed: bool) -> None:
        self.begun = (status, content_type, streamed)

    async def write(self, data: bytes) -> None:
        self.data += data
        self.wrote.set()

    async def end(self) -> None:
        self.ended = True

    async def refuse(self, refusal: Refusal) -> None:
        self.refused = (refusal.status, refusal.code, refusal.retryable)
        self.message = refusal.message


def audit_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]

"""What the phone's page says to a gateway, without a browser: proofs of its key, joining, renewing, a tunnel.

Proofs are put together here by hand, so that a test can get any part of one wrong.
"""

import base64
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import msgspec

from transport.primitives import SigningKey, random_bytes, sha256

LEFT_OUT: Any = object()  # as a value: this member is not there at all


def pack(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


def jwk_of(key: SigningKey) -> dict[str, str]:
    point = key.public.spki[-64:]
    return {"kty": "EC", "crv": "P-256", "x": pack(point[:32]), "y": pack(point[32:])}


def ath(token: str) -> str:
    return pack(sha256(token.encode()))


def jws(header: Any, claims: Any, key: SigningKey) -> str:
    """Signed with ES256, whatever the header says."""
    body = ".".join(pack(part if isinstance(part, bytes) else json.dumps(part).encode()) for part in (header, claims))
    return f"{body}.{pack(key.sign(body.encode()))}"


def without(values: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not LEFT_OUT}


@dataclass
class DpopPage:
    """One page with its key. `origin` is what it believes to be at, `url` where its requests go."""

    client: aiohttp.ClientSession
    origin: str
    url: str
    key: SigningKey = field(default_factory=SigningKey.generate)
    nonce: str = ""
    token: str = ""
    clock: Callable[[], float] = time.time
    server_hostname: str | None = None  # whose certificate it is, if `url` does not say

    def proof(
        self, method: str, path: str, *, token: str | None = None, header: dict[str, Any] | None = None, **claims: Any
    ) -> str:
        """A good one but for what `header` and `claims` put in place of its members."""
        head = {"typ": "dpop+jwt", "alg": "ES256", "jwk": jwk_of(self.key)}
        body = {
            "jti": pack(random_bytes(16)), "htm": method, "htu": self.origin + path, "iat": int(self.clock()),
            "nonce": self.nonce, "ath": LEFT_OUT if token is None else ath(token),
        }
        return jws(without(head | (header or {})), without(body | claims), self.key)

    async def post(self, path: str, body: Any, proof: str | None = None, **claims: Any) -> tuple[int, dict[str, Any]]:
        """Keeps the nonce that comes back."""
        headers = {"DPoP": self.proof("POST", path, **claims) if proof is None else proof}
        async with self.client.post(
            self.url + path, json=body, headers=headers, server_hostname=self.server_hostname
        ) as response:
            self.nonce = response.headers["DPoP-Nonce"]
            return response.status, msgspec.json.decode(await response.read())

    async def greet(self) -> None:
        """Gets a nonce, as a page does that has none."""
        self.nonce = ""
        status, answer = await self.post("/hop/token", {})
        assert (status, answer["error"]["code"]) == (401, "use_dpop_nonce")

    async def join(self, invitation: str) -> tuple[int, dict[str, Any]]:
        return self._took(*await self.post("/hop/join", {"invitation": invitation}))

    async def renew(self) -> tuple[int, dict[str, Any]]:
        return self._took(*await self.post("/hop/token", {}))

    def first(self, *, proof: str | None = None) -> str:
        """A tunnel's first message."""
        made = self.proof("GET", "/hop/tunnel", token=self.token) if proof is None else proof
        return json.dumps({"token": self.token, "proof": made})

    async def open(self, first: str | None = None, *, origin: str | None = None) -> aiohttp.ClientWebSocketResponse:
        """A tunnel to which its first message has been sent."""
        socket = await self.client.ws_connect(
            f"{self.url}/hop/tunnel", headers={"Origin": self.origin if origin is None else origin},
            server_hostname=self.server_hostname,
        )
        await socket.send_str(self.first() if first is None else first)
        return socket

    def _took(self, status: int, answer: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        self.token = answer.get("access_token", self.token)
        return status, answer

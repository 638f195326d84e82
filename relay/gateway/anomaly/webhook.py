"""Alerts by HTTP, signed as Standard Webhooks 1.0 has it: who has the secret knows whose they are, and when made."""

import base64
from pathlib import Path
from typing import Final

import aiohttp

from relay.gateway.anomaly.sending import NotTaken
from relay.gateway.errors import ConfigError
from store.errors import StoreError
from store.files import file_errors
from transport.primitives import Secret, hmac_sha256

PREFIX: Final = "whsec_"
TIME_S: Final = 10.0
_HINT: Final = 'one line: whsec_ and 24 to 64 random bytes in base64, as of `echo "whsec_$(openssl rand -base64 32)"`'


def secret_from_file(path: Path) -> Secret:
    """Raises ConfigError, which says nothing of what is there."""
    try:
        with file_errors(path):
            text = path.read_bytes()[:256].decode("ascii", "replace").strip()
    except StoreError as error:
        raise ConfigError(f"alerts.webhook_secret_file: {error}", hint=error.hint or _HINT) from None
    try:
        secret = base64.b64decode(text.removeprefix(PREFIX), validate=True)
    except ValueError:
        secret = b""
    if not text.startswith(PREFIX) or not 24 <= len(secret) <= 64:
        raise ConfigError("alerts.webhook_secret_file: there is no secret in it", hint=_HINT)
    return Secret(secret)


def signed(secret: Secret, id: str, timestamp: int, body: bytes) -> dict[str, str]:
    """The headers by which a receiver tells that a body is ours."""
    mac = hmac_sha256(secret.expose(), f"{id}.{timestamp}.".encode() + body)
    return {
        "webhook-id": id, "webhook-timestamp": str(timestamp),
        "webhook-signature": f"v1,{base64.b64encode(mac).decode()}",
    }


class Webhook:
    """A `Receiver`. Each attempt is signed anew, with its own time; no redirect is followed, no answer read."""

    def __init__(self, url: str, secret: Secret) -> None:
        self._url, self._secret = url, secret

    async def send(self, id: str, body: bytes, now: float) -> None:
        headers = {"Content-Type": "application/json", **signed(self._secret, id, int(now), body)}
        try:
            async with aiohttp.ClientSession(
                timeout=aiohttp.ClientTimeout(total=TIME_S), cookie_jar=aiohttp.DummyCookieJar(), trust_env=False,
            ) as client, client.post(self._url, data=body, headers=headers, allow_redirects=False) as answer:
                status = answer.status
        except (TimeoutError, aiohttp.ClientError, OSError, ValueError) as error:
            raise NotTaken(f"no answer ({type(error).__name__})") from None
        if not 200 <= status < 300:
            raise NotTaken(f"it answered {status}")

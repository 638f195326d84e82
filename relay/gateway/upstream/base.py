"""What the gateway needs of a provider, whatever its API looks like; without HTTP, which few commands need."""

import ipaddress
import re
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Protocol
from urllib.parse import urlsplit

from relay.gateway.errors import ConfigError
from relay.gateway.pipeline import Answer
from relay.gateway.upstream.formats import AnswerFormat
from transport.primitives import Secret

_HOST = re.compile(r"[A-Za-z0-9._-]{1,253}|[0-9A-Fa-f:.]{2,45}")  # as it is in DNS, so IDNA's xn--; or an IP address


@dataclass(frozen=True)
class Timeouts:
    """Seconds: to have a connection, until the first byte of an answer, between two pieces of it."""

    connect: float = 10.0
    first_byte: float = 120.0
    idle: float = 60.0


def checked_base_url(url: str) -> str:
    """`url` without trailing slash. Raises ConfigError unless it is https, or http to loopback, without credentials."""
    parts = urlsplit(url)
    try:
        host, port = parts.hostname or "", parts.port
    except ValueError:
        host, port = "", None
    if parts.scheme not in ("http", "https") or not _HOST.fullmatch(host) or port == 0:
        raise ConfigError("the provider's base URL is not an http(s) URL", hint='like "https://api.example.com/v1"')
    if parts.username is not None or parts.password is not None or parts.query or parts.fragment:
        raise ConfigError("the provider's base URL holds more than scheme, host, port and path",
                          hint="the key belongs in key_file or key_env")
    if parts.scheme == "http" and not is_loopback(host):
        raise ConfigError("the provider's base URL is plain http to another machine",
                          hint="use https; http would show the key to everyone on the way")
    return url.rstrip("/")


def is_loopback(host: str) -> bool:
    """Whether it is this machine, by an address of its own or as `localhost`; no other name counts."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class Upstream(Protocol):
    """One configured provider. `name` is for spans (gen_ai.provider.name), `host` the one host it ever talks to."""

    name: str
    host: str

    def call(
        self, route: str, body: bytes, *, form: AnswerFormat, model: str, stream: bool, key: Secret | None
    ) -> AbstractAsyncContextManager[Answer]:
        """Posts `body` as it is. Leaving the context early ends the call at the provider. `model`: its name there.

        A streamed answer comes in whole lines. Raises ProviderFailure, also while chunks are read; nothing of what the
        provider says on failure gets into it.
        """
        ...

    async def ping(self, *, key: Secret | None) -> tuple[int, bool]:
        """Asks for something that costs nothing: its HTTP status, and whether JSON came, of which nothing is read.

        Raises ProviderFailure if there was no answer.
        """
        ...

    async def close(self) -> None: ...

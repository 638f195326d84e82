"""The certificate that browsers see: of a public authority, from files that some other program renews."""

import asyncio
import logging
import ssl
from pathlib import Path
from typing import Final

from relay.gateway.errors import ConfigError

CHECK_S: Final = 60.0
_log = logging.getLogger(__name__)


def public_context(chain: Path, key: Path) -> ssl.SSLContext:
    """TLS 1.3 with the certificates and the key in two PEM files. Raises ConfigError."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.set_alpn_protocols(["http/1.1"])
    _load(context, chain, key)
    return context


async def stay_current(context: ssl.SSLContext, chain: Path, key: Path) -> None:
    """Gives `context` what the files hold when they change, for new connections; keeps the last that was good."""
    seen = _versions(chain, key)
    while True:
        await asyncio.sleep(CHECK_S)
        if (now := _versions(chain, key)) != seen:
            seen = now
            try:
                public_context(chain, key)  # first: a live one that is given half of a pair has lost what it had
                _load(context, chain, key)
            except ConfigError as error:
                _log.error("the certificate has changed and is not used: %s", error)


def _load(context: ssl.SSLContext, chain: Path, key: Path) -> None:
    try:
        context.load_cert_chain(chain, key, password=lambda: "")  # else it would ask at the terminal
        return
    except (ssl.SSLError, ValueError):
        why = "they are not a certificate and its unencrypted key, as PEM"
    except OSError as error:
        why = (error.strerror or "").lower()
    raise ConfigError(f"public: cannot use {chain} and {key}: {why}",
                      hint="name the full chain by cert_file and its key by key_file")


def _versions(*files: Path) -> list[tuple[int, int] | None]:
    found: list[tuple[int, int] | None] = []
    for file in files:
        try:
            status = file.stat()
            found.append((status.st_mtime_ns, status.st_ino))
        except OSError:
            found.append(None)
    return found

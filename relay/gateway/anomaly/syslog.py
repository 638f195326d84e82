"""Alerts by syslog (RFC 5424): a datagram to a Unix socket, or TCP with or without TLS (RFC 6587, RFC 5425)."""

import asyncio
import contextlib
import os
import re
import socket
import ssl
from pathlib import Path
from typing import Any, Final

import msgspec

from relay.gateway.anomaly.sending import NotTaken
from relay.gateway.errors import ConfigError
from transport.links.base import Endpoint

TIME_S: Final = 10.0
FACILITY: Final = 10  # security and authorization messages
SEVERE: Final = ("device.copied", "device.quarantined", "device.revoked")
SD_ID: Final = "causeway@32473"  # of the enterprise number for examples, since this project has none
_ESCAPED: Final = re.compile(r'["\\\]]')
_UNSEEN: Final = re.compile(r"[^\x20-\x7e]")


def message(id: str, body: bytes, host: str, process: int) -> bytes:
    """One message without framing, made of an alert's JSON; printable ASCII, whatever names there are."""
    told: dict[str, Any] = msgspec.json.decode(body)
    data: dict[str, Any] = told["data"]
    severity = 2 if told["type"] in SEVERE else 4
    elements = {"id": id, **{name: data[name] for name in ("gateway", "device", "enrolment", "reasons")}}
    structured = " ".join(f'{name}="{_value(value)}"' for name, value in elements.items())
    line = (
        f"<{8 * FACILITY + severity}>1 {told['timestamp']} {_UNSEEN.sub('', host.replace(' ', ''))[:255] or '-'}"
        f" causeway-gateway {process} {told['type'][:32]} [{SD_ID} {structured}] "
        f"{_UNSEEN.sub('?', data['device'])}: {_UNSEEN.sub('?', data['message'])}"
    )
    return line.encode("ascii")


def _value(value: object) -> str:
    """A parameter's value (section 6.3.3)."""
    return _ESCAPED.sub(lambda found: "\\" + found[0], _UNSEEN.sub("?", str(value)))


class Syslog:
    """A `Receiver`. What TCP has taken may still be lost with the other end; a syslog server does not say."""

    def __init__(self, place: str, *, ca_file: Path | None = None) -> None:
        """`place` as in the configuration. Raises ConfigError for a file that holds no certificates."""
        self._scheme, _, self._place = place.partition(":")
        self._context: ssl.SSLContext | None = None
        if self._scheme == "tls":
            try:
                self._context = ssl.create_default_context(cafile=ca_file)
            except (OSError, ssl.SSLError):
                raise ConfigError("alerts.syslog_ca_file: there are no certificates in it", hint="PEM") from None

    async def send(self, id: str, body: bytes, now: float) -> None:
        line = message(id, body, socket.gethostname(), os.getpid())
        try:
            async with asyncio.timeout(TIME_S):
                await (self._datagram(line) if self._scheme == "unix" else self._stream(line))
        except (OSError, TimeoutError, ValueError) as error:
            raise NotTaken(f"it cannot be reached ({type(error).__name__})") from None

    async def _datagram(self, line: bytes) -> None:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as out:
            out.setblocking(False)  # a full one is one that cannot be reached
            out.connect(self._place)
            out.send(line)

    async def _stream(self, line: bytes) -> None:
        host, port = Endpoint.parse(f"tcp:{self._place}").host_port()
        _, writer = await asyncio.open_connection(host, port, ssl=self._context)
        try:
            writer.write(b"%d %s" % (len(line), line))
            await writer.drain()
        finally:
            writer.close()
            with contextlib.suppress(OSError, ssl.SSLError):
                await writer.wait_closed()

"""The Link interface: ordered bytes between two ends, and the endpoint specs that name where they meet.

A link promises order and back-pressure, and nothing else: no secrecy, no integrity, no message boundaries.
"""

import re
import ssl
import sys
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol, Self

from transport.errors import BadInput, CloseReason

if TYPE_CHECKING:
    from transport.links.rfcomm_bumble import BumbleRfcomm

RECEIVE_MAX: Final = 64 * 1024  # bytes that one receive() returns at most
SEND_HIGH_WATER: Final = 64 * 1024  # bytes waiting in user space above which send() waits
CLOSE_TIMEOUT_S: Final = 5.0  # a peer that reads nothing may hold up close() for this long
UNIX_PATH_MAX: Final = 107  # bytes, sockaddr_un on Linux

_LABELS: Final = r"(?=[^:/]{1,253}(?:[:/]|\Z))[A-Za-z0-9_-]{1,63}(?:\.[A-Za-z0-9_-]{1,63})*\.?"  # RFC 1035, 2.3.4
_HOST = re.compile(rf"{_LABELS}|\[[0-9A-Fa-f:.]+\]", re.ASCII)
_URL = re.compile(rf"//(?P<host>{_LABELS}|\[[0-9A-Fa-f:.]+\])(:(?P<port>[0-9]{{1,5}}))?(?P<path>/[\x21-\x7e]*)?")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9 ._:-]{0,63}", re.ASCII)
_SIM = re.compile(r"(?P<weather>[a-z0-9][a-z0-9-]{0,31}(\?[\x21-\x3f\x41-\x7e]{0,255})?)@(?P<inner>.+)", re.ASCII)
_RFCOMM = re.compile(r"((?:[0-9A-F]{2}:){5}[0-9A-F]{2})?(\?channel=([1-9]|[12][0-9]|30))?", re.ASCII)
_FORMS: Final = (
    "an endpoint is tcp:HOST:PORT, unix:PATH, wss://HOST:PORT, ble: or ble:NAME, phone:, rfcomm:[ADDRESS][?channel=N], "
    "or sim:PROFILE@ENDPOINT"
)


class Link(Protocol):
    """Bytes both ways. One task may send while another receives; two may not do the same."""

    @property
    def peer(self) -> str:
        """The other end, for logs."""

    async def send(self, data: bytes) -> None:
        """Sends all of `data`; waits while the peer reads too slowly. Raises LinkLost.

        If it is cancelled, a part may have been sent: the link is then only good for close().
        """

    async def receive(self) -> bytes:
        """1 to 65,536 bytes; b"" at a clean end of file. Raises LinkLost. A cancelled call loses no byte."""

    async def close(self, reason: CloseReason = "done") -> None:
        """Ends the link. "done" comes after what was sent (at most 5 s later): the peer reads it all, then b"".

        For another reason what is under way may be dropped, and the peer gets LinkLost with that `reason` where the
        link can carry one, else with "lost"; a Unix socket cannot even tell it from the end of a file. Never raises;
        more calls do nothing.
        """


class Listener(Protocol):
    """Something that accepts links. `endpoint` has the port that was really bound."""

    @property
    def endpoint(self) -> "Endpoint": ...

    async def close(self) -> None:
        """Stops accepting, cancels the handlers that still run, waits for them, and closes their links."""


@dataclass(frozen=True)
class Endpoint:
    """Where to connect or listen. `address` is HOST:PORT, a path, a Bluetooth name or address ("" for any hop), for
    `phone` the name under which one is waited for ("" for a generic one), for `rfcomm` an address ("" to listen) and a
    channel, what follows `wss:`, or for `sim` a profile of weather (`transport.links.simulated`) and the endpoint that
    it lies over.
    """

    scheme: str
    address: str

    @classmethod
    def parse(cls, text: str) -> Self:
        """From `tcp:HOST:PORT` (an IPv6 host in brackets), `unix:PATH`, `wss://HOST[:PORT][/PATH]`, `ble:[NAME]`,
        `phone:[NAME]`, `rfcomm:[ADDRESS][?channel=1..30]` or `sim:PROFILE[?NAME=VALUE&...]@ENDPOINT`. BadInput.
        """
        scheme, colon, address = text.strip().partition(":")
        valid = _VALID.get(scheme)
        if not colon or valid is None:
            raise BadInput("this is not an endpoint", hint=_FORMS)
        if not valid(address):
            raise BadInput(f"this is not a valid {scheme} endpoint", hint=_FORMS)
        return cls(scheme, address)

    def __str__(self) -> str:
        return f"{self.scheme}:{self.address}"

    def host_port(self) -> tuple[str, int]:
        """Host without brackets, and port (443 if a URL names none). Raises BadInput for other endpoints."""
        if self.scheme not in ("tcp", "wss"):
            raise BadInput(f"a {self.scheme} endpoint has no port")
        if self.scheme == "wss" and (match := _URL.fullmatch(self.address)):
            return match["host"].strip("[]"), int(match["port"] or 443)
        host, _, port = self.address.rpartition(":")
        return host.strip("[]"), int(port)


class Radio(Protocol):
    """A Bluetooth radio of this process, opened by `transport.links.radio.open_radio`."""

    @property
    def rfcomm(self) -> "BumbleRfcomm | None":
        """RFCOMM by a radio that this program drives itself; None: the system's."""

    async def connect(self, name: str, *, timeout_s: float) -> Link:
        """To the best hop in reach, or to the one of that name or address. Raises LinkLost."""

    async def listen(self, on_link: "Callable[[Link], Awaitable[None]]", *, name: str) -> "Listener":
        """As a peripheral that edges find. Raises LinkLost, BadInput if this radio cannot be one."""

    async def wait_for_phone(self, name: str, *, timeout_s: float) -> Link:
        """As a peripheral that a phone's page finds, until it begins a pipe. Raises as `listen`, and LinkLost with
        reason "out_of_range" if none came.
        """

    async def close(self) -> None: ...


async def connect(
    endpoint: Endpoint, *, timeout_s: float = 10.0, tls: ssl.SSLContext | None = None, radio: Radio | None = None
) -> Link:
    """Opens a link. `tls` is for wss endpoints alone (default: the system's certificate authorities), `radio` for
    ble, for phone, which is to wait until one has come, and for rfcomm if this program drives the radio itself.

    Raises LinkLost. What may happen to the bytes is the handshake's concern: no link is trusted, with TLS or without.
    """
    if endpoint.scheme == "sim":
        from transport.links.simulated import connect_simulated

        return await connect_simulated(endpoint, timeout_s=timeout_s, tls=tls, radio=radio)
    if endpoint.scheme in ("ble", "phone"):
        if radio is None:
            raise BadInput("no Bluetooth radio is open", hint="open one, see transport.links.radio")
        if endpoint.scheme == "phone":
            return await radio.wait_for_phone(endpoint.address, timeout_s=timeout_s)
        return await radio.connect(endpoint.address, timeout_s=timeout_s)
    if endpoint.scheme == "wss":
        from transport.links.websocket import connect_websocket  # the HTTP client takes 170 ms to import

        return await connect_websocket(endpoint, tls=tls, timeout_s=timeout_s)
    if endpoint.scheme == "rfcomm":
        if radio is not None and radio.rfcomm is not None:
            return await radio.rfcomm.connect(endpoint, timeout_s=timeout_s)
        from transport.links.rfcomm import DIALER

        return await DIALER.connect(endpoint, timeout_s=timeout_s)
    from transport.links.tcp import connect_stream

    return await connect_stream(endpoint, timeout_s=timeout_s)


async def listen(
    endpoint: Endpoint, on_link: Callable[[Link], Awaitable[None]], *, radio: Radio | None = None
) -> Listener:
    """Accepts links on a tcp, unix, ble or rfcomm endpoint; each runs `on_link` in its own task, is closed after it.

    Raises LinkLost if the address cannot be had, BadInput for wss (that is an HTTP server's to accept), phone and sim.
    """
    if endpoint.scheme in ("wss", "phone", "sim"):
        raise BadInput(f"cannot listen on a {endpoint.scheme} endpoint", hint="listen on tcp:HOST:PORT or unix:PATH")
    if endpoint.scheme == "ble":
        if radio is None:
            raise BadInput("no Bluetooth radio is open", hint="open one, see transport.links.radio")
        return await radio.listen(on_link, name=endpoint.address)
    if endpoint.scheme == "rfcomm":
        if radio is not None and radio.rfcomm is not None:
            return await radio.rfcomm.listen(endpoint, on_link)
        if sys.platform != "linux":
            raise BadInput("a hop for RFCOMM needs Linux and its BlueZ", hint='or a dongle: radio "hci:usb:0"')
        from transport.links.rfcomm_bluez import listen_rfcomm

        return await listen_rfcomm(endpoint, on_link)
    from transport.links.tcp import listen_stream

    return await listen_stream(endpoint, on_link)


def _is_host_port(address: str) -> bool:
    host, _, port = address.rpartition(":")
    return _HOST.fullmatch(host) is not None and _is_port(port)


def _is_port(port: str) -> bool:
    return re.fullmatch("[0-9]{1,5}", port, re.ASCII) is not None and int(port) <= 65535


def _is_ble(address: str) -> bool:
    return not address or _NAME.fullmatch(address) is not None


def _is_rfcomm(address: str) -> bool:
    return _RFCOMM.fullmatch(address) is not None


def _is_sim(address: str) -> bool:
    match = _SIM.fullmatch(address)
    if match is None or match["inner"].startswith("sim:"):
        return False
    try:
        Endpoint.parse(match["inner"])
    except BadInput:
        return False
    return True


def _is_path(address: str) -> bool:
    try:
        encoded = address.encode(errors="surrogateescape")
    except UnicodeEncodeError:  # a lone surrogate that stands for no byte of a file name
        return False
    return 0 < len(encoded) <= UNIX_PATH_MAX and b"\0" not in encoded


def _is_url(address: str) -> bool:
    match = _URL.fullmatch(address)
    return match is not None and (match["port"] is None or _is_port(match["port"]))


_VALID: Final[dict[str, Callable[[str], bool]]] = {
    "tcp": _is_host_port, "unix": _is_path, "wss": _is_url, "ble": _is_ble, "phone": _is_ble,
    "rfcomm": _is_rfcomm, "sim": _is_sim,
}

"""A connection to one host by TCP, and TLS where it is asked for: all of its addresses are tried, on any event loop."""

import asyncio
import socket
import ssl
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from itertools import chain, zip_longest
from typing import Any, Final

HEAD_START_S: Final = 0.25  # RFC 8305 section 5: what an address has before the next one is tried beside it
ADDRESSES_MAX: Final = 16  # of one name
_Address = tuple[socket.AddressFamily, Any]


def tls_context() -> ssl.SSLContext:
    """WebPKI, host names checked, HTTP/1.1 alone."""
    context = ssl.create_default_context()
    context.set_alpn_protocols(["http/1.1"])
    return context


async def dial(
    make: Callable[[], asyncio.Protocol], host: str, port: int, tls: ssl.SSLContext | None
) -> asyncio.BaseTransport:
    """Raises OSError (so ssl.SSLError) and UnicodeError, for a name that can be none. It has no time limit."""
    loop = asyncio.get_running_loop()
    found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    connected = await _first([(family, address) for family, _, _, _, address in found][:ADDRESSES_MAX])
    transport, _ = await loop.create_connection(
        make, sock=connected, ssl=tls, server_hostname=None if tls is None else host
    )
    return transport


async def _first(addresses: Sequence[_Address]) -> socket.socket:
    """A socket connected to whichever of `addresses` answers first. Raises OSError: of the last one that failed."""
    left = deque(_by_turns(addresses))
    trying: set[asyncio.Task[socket.socket]] = set()
    failure = OSError("no address")
    try:
        while left or trying:
            if left:
                trying.add(asyncio.create_task(_connected(*left.popleft())))
            done, _ = await asyncio.wait(
                trying, timeout=HEAD_START_S if left else None, return_when=asyncio.FIRST_COMPLETED
            )
            for task in done:
                trying.discard(task)
                if not isinstance(error := task.exception(), OSError):
                    return task.result()
                failure = error
    finally:
        for task in trying:
            if not task.cancel() and task.exception() is None:
                task.result().close()  # came second
    raise failure


def _by_turns(addresses: Iterable[_Address]) -> Iterable[_Address]:
    """The first one's family and the others by turns; in the order given otherwise (RFC 8305 section 4)."""
    families: dict[int, list[_Address]] = {}
    for one in addresses:
        families.setdefault(one[0], []).append(one)
    return (one for one in chain.from_iterable(zip_longest(*families.values())) if one is not None)


async def _connected(family: socket.AddressFamily, address: Any) -> socket.socket:
    one = socket.socket(family, socket.SOCK_STREAM)
    try:
        one.setblocking(False)
        await asyncio.get_running_loop().sock_connect(one, address)
    except BaseException:
        one.close()
        raise
    return one

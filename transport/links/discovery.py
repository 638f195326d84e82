"""Hops on a trusted Wi-Fi by multicast DNS (RFC 6762, RFC 6763): a hop says that it is there, an edge asks who is.

What is said is the service and a port, under a name made up at each start. What is heard comes from anybody: a few
answers are taken, of each a private address and a port, and no name of theirs is ever shown. Who really answers at the
address shows in the handshake.
"""

import asyncio
import ipaddress
import secrets
from collections.abc import Iterable, Sequence
from typing import Final

from transport.errors import BadInput, LinkLost
from transport.links.base import Endpoint

SERVICE: Final = "_causeway._tcp.local."
FIND_S: Final = 1.5
HOPS_MAX: Final = 8  # endpoints that one search gives
NAMES_MAX: Final = 32  # names that one search follows up
_NEARBY: Final = tuple(map(ipaddress.ip_network, (  # RFC 1918, 3927 and 4193; "private" in RFC 6890 takes in far more
    "10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "169.254.0.0/16", "fc00::/7",
)))


class Announcement:
    """Says that a hop listens here, until it is closed."""

    def __init__(self, port: int, addresses: Sequence[str]) -> None:
        """`addresses`: numeric; those on which the network will find the hop."""
        self._port, self._addresses = port, addresses

    async def start(self) -> None:
        """Raises LinkLost where there is no network to say it on."""
        from zeroconf import Error
        from zeroconf.asyncio import AsyncServiceInfo, AsyncZeroconf

        name = secrets.token_hex(4)
        info = AsyncServiceInfo(
            SERVICE, f"{name}.{SERVICE}", port=self._port, server=f"{name}.local.",
            parsed_addresses=list(self._addresses),
        )
        try:
            self._zeroconf = AsyncZeroconf(interfaces=list(self._addresses))
            try:
                await (await self._zeroconf.async_register_service(info))
            except BaseException:
                await self._zeroconf.async_close()
                raise
        except (OSError, RuntimeError, Error) as error:  # RuntimeError: there is no interface of such an address
            raise LinkLost("cannot announce this hop on the network", hint="leave out --announce") from error

    async def close(self) -> None:
        await self._zeroconf.async_unregister_all_services()
        await self._zeroconf.async_close()


def own_addresses(bound: str) -> list[str]:
    """Under which addresses a listener on `bound` is found: that one, or for a wildcard each of this host's (IPv4).

    Raises BadInput for a host name.
    """
    import ifaddr

    try:
        if not ipaddress.ip_address(bound).is_unspecified:
            return [bound]
    except ValueError:
        raise BadInput("a hop that announces itself listens on a numeric address", hint="tcp:0.0.0.0:PORT") from None
    every = [str(ip.ip) for adapter in ifaddr.get_adapters() for ip in adapter.ips if ip.is_IPv4]
    return [text for text in every if not ipaddress.ip_address(text).is_loopback]


async def find(*, wait_s: float = FIND_S, interfaces: Sequence[str] | None = None) -> list[Endpoint]:
    """tcp endpoints of hops that answer within `wait_s`, at most HOPS_MAX; none where there is no network.

    `interfaces`: the addresses of this host to ask on; by default all.
    """
    from zeroconf import DNSQuestionType, Error, InterfaceChoice
    from zeroconf.asyncio import AsyncServiceBrowser, AsyncServiceInfo, AsyncZeroconf

    names: asyncio.Queue[str] = asyncio.Queue(NAMES_MAX)
    seen: set[str] = set()

    def heard(zeroconf: object, service_type: str, name: str, state_change: object) -> None:
        if name not in seen and len(seen) < NAMES_MAX:
            seen.add(name)
            names.put_nowait(name)

    found: list[Endpoint] = []
    loopback = interfaces is not None and all(ipaddress.ip_address(text).is_loopback for text in interfaces)

    async def follow_up(zeroconf: AsyncZeroconf) -> None:
        while len(found) < HOPS_MAX:
            try:
                info = AsyncServiceInfo(SERVICE, await names.get())
            except Error:  # no name at all
                continue
            if await info.async_request(zeroconf.zeroconf, wait_s * 1000, question_type=DNSQuestionType.QM):
                take(found, info.parsed_addresses(), info.port, loopback=loopback)

    if interfaces is None and not own_addresses("0.0.0.0"):  # the library would leave a socket behind  # noqa: S104
        return found
    try:
        zeroconf = AsyncZeroconf(interfaces=InterfaceChoice.All if interfaces is None else list(interfaces))
    except (OSError, RuntimeError, Error):  # RuntimeError: there is no such interface
        return found
    try:
        browser = AsyncServiceBrowser(zeroconf.zeroconf, SERVICE, handlers=[heard])
        try:
            async with asyncio.timeout(wait_s), asyncio.TaskGroup() as group:
                for _ in range(NAMES_MAX):  # names that nobody resolves must not hold up the others
                    group.create_task(follow_up(zeroconf))
        except TimeoutError:
            pass
        await browser.async_cancel()
    finally:
        await zeroconf.async_close()
    return found


def take(found: list[Endpoint], addresses: Iterable[str], port: int | None, *, loopback: bool = False) -> None:
    """Adds one answer, its first address nearby alone: nobody shall send an edge out into the world, nor to its own
    host's services, unless it is on `loopback` that was asked.
    """
    for text in addresses:
        address = ipaddress.ip_address(text.partition("%")[0])
        if address.version == 6 and address.is_link_local:  # good for nothing without the name of an interface
            continue
        near = any(address in network for network in _NEARBY) or (loopback and address.is_loopback)
        if near and port:
            endpoint = Endpoint("tcp", f"[{address}]:{port}" if address.version == 6 else f"{address}:{port}")
            if endpoint not in found and len(found) < HOPS_MAX:
                found.append(endpoint)
            return

"""Stands in for a gateway's sessions: carries a tunnel's bytes back to who sent them, until somebody ends it."""

import contextlib
from collections.abc import Callable

from relay.gateway.requests import Settled
from transport.errors import LinkLost
from transport.links.base import Link

LINK_ID = "00112233aabbccdd"


class FakeSessions:
    """`served` has the hop of each tunnel. The first bytes count as a handshake, which fails unless `handshakes`."""

    def __init__(self) -> None:
        self.served: list[str] = []
        self.handshakes = True

    async def serve_link(
        self, link: Link, *, via: str = "", known: Callable[[str], None] = lambda _: None, settled: Settled = None
    ) -> None:
        self.served.append(via)
        with contextlib.suppress(LinkLost):
            while data := await link.receive():
                if not self.handshakes:
                    break
                known(LINK_ID)
                await link.send(data)
        await link.close()

"""Links that a listener has accepted, each served by a task of its own."""

import asyncio
from collections.abc import Awaitable, Callable

from transport.links.base import Link

OnLink = Callable[[Link], Awaitable[None]]


class ServedLinks:
    """A link is closed when its handler ends, however that is."""

    def __init__(self, on_link: OnLink) -> None:
        self._on_link = on_link
        self._running: dict[asyncio.Task[None], Link] = {}

    def serve(self, link: Link) -> None:
        task = asyncio.get_running_loop().create_task(self._run(link))
        self._running[task] = link
        task.add_done_callback(self._running.pop)

    async def close(self) -> None:
        """Ends all handlers, and closes their links."""
        running = dict(self._running)
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
        await asyncio.gather(*(link.close() for link in running.values()))  # of handlers that never got to run, too

    async def _run(self, link: Link) -> None:
        try:
            await self._on_link(link)
        finally:
            await link.close()

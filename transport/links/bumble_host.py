"""bumble's host with a guard that this project's cancellations need."""

import asyncio
from typing import Any

from bumble import hci
from bumble.host import Host


class SteadyHost(Host):
    """A host whose commands outlive their callers. bumble's own forgets a command whose caller is cancelled, and takes
    the controller's late answer for that of the next command, or for a fault.
    """

    async def _send_command(
        self, command: hci.HCI_SyncCommand[Any] | hci.HCI_AsyncCommand, response_timeout: float | None = None
    ) -> Any:
        answer = asyncio.get_running_loop().create_task(super()._send_command(command, response_timeout))
        answer.add_done_callback(_retrieved)
        return await asyncio.shield(answer)


def _retrieved(answer: asyncio.Task[Any]) -> None:
    """A failure that nobody waits for any more is nobody's concern."""
    if not answer.cancelled():
        answer.exception()

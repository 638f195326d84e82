"""What `relay hop status` asks of a hop that runs: its blurred counters, and nothing else."""

import contextlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from relay.hop.errors import HopMisuse
from relay.local_socket import LocalSocket, PathTooLong, ask

_QUESTION = {"operation": "status"}


class StatusServer:
    """Answers on `folder`/run/control.sock, with mode 0700 beside the hop's identity."""

    def __init__(self, folder: Path, status: Callable[[], dict[str, Any]]) -> None:
        """Raises HopMisuse."""
        self._folder, self._status = folder, status
        try:
            self._socket = LocalSocket(folder, self._answer)
        except PathTooLong:
            raise _too_long() from None

    async def start(self) -> None:
        """Raises HopMisuse if another hop runs on this folder, or nothing can run there."""
        try:
            with contextlib.suppress(ValueError, TimeoutError):  # it hangs, but it runs
                await ask(self._folder, _QUESTION)
        except OSError:
            pass
        else:
            raise HopMisuse("a hop runs already with this identity", hint="end it, or choose another --home")
        try:
            await self._socket.start()
        except OSError as error:
            reason = os.strerror(error.errno or 0).lower()
            raise HopMisuse(f"cannot make the control socket: {reason}", hint=f"look at {self._folder}") from None

    async def close(self) -> None:
        await self._socket.close()

    async def _answer(self, line: bytes) -> dict[str, Any]:
        return self._status()


async def status(folder: Path) -> dict[str, Any]:
    """Of the hop that runs with the identity in `folder`. Raises HopMisuse if none does."""
    try:
        return await ask(folder, _QUESTION)
    except PathTooLong:
        raise _too_long() from None
    except PermissionError:
        raise HopMisuse("the hop's control socket belongs to another user", hint="run as that user") from None
    except (FileNotFoundError, NotADirectoryError, ConnectionRefusedError):
        raise HopMisuse(
            f"no hop runs with the identity in {folder}", hint="`relay hop serve` starts one; --home names another"
        ) from None
    except (OSError, ValueError, TimeoutError):
        raise HopMisuse("the running hop did not answer", hint="look at what it has said") from None


def _too_long() -> HopMisuse:
    return HopMisuse("the hop's folder has too long a path for a control socket", hint="use a shorter --home")

"""How commands reach a process that runs: one line of JSON each way, over a Unix socket in a private folder.

The folder has mode 0700 and the peer's user id is checked, so whoever gets through is the process's own user or root.
"""

import asyncio
import contextlib
import json
import os
import socket
import struct
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Final

FOLDER: Final = "run"
SOCKET: Final = "control.sock"
LINE_MAX: Final = 4 << 20
_CALL_MAX: Final = 65_536
_PATH_MAX: Final = 107  # bytes, sockaddr_un on Linux
_ANSWER_S: Final = 30.0


class PathTooLong(Exception):
    """The folder's path is too long for a socket in it."""


class LocalSocket:
    """Serves `answer`, which takes a line and gives an object, on `directory`/run/control.sock."""

    def __init__(self, directory: Path, answer: Callable[[bytes], Awaitable[dict[str, Any]]]) -> None:
        """Raises PathTooLong."""
        self._path = _socket_path(directory)
        self._answer = answer
        self._server: asyncio.Server | None = None

    async def start(self) -> None:
        """Takes the place of a crashed process's socket: that none runs is the caller's to know. Raises OSError."""
        self._path.parent.mkdir(mode=0o700, exist_ok=True)
        self._path.parent.chmod(0o700)
        with contextlib.suppress(FileNotFoundError):
            self._path.unlink()
        self._server = await asyncio.start_unix_server(self._serve, self._path, limit=_CALL_MAX)

    async def close(self) -> None:
        if self._server is not None:
            self._server.close()
            with contextlib.suppress(FileNotFoundError):
                self._path.unlink()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            if not _is_own_user(writer.get_extra_info("socket")):
                return
            async with asyncio.timeout(_ANSWER_S):
                line = await reader.readline()
                writer.write(json.dumps(await self._answer(line)).encode() + b"\n")
                await writer.drain()
        except (OSError, ValueError, TimeoutError):
            pass  # the command went away, or was none
        finally:
            writer.close()


async def ask(directory: Path, question: dict[str, Any]) -> dict[str, Any]:
    """Asks the process that serves `directory`.

    Raises FileNotFoundError or ConnectionRefusedError if none does, PermissionError if it is another user's, OSError,
    ValueError or TimeoutError if it does not answer in 30 s or not so, and PathTooLong.
    """
    reader, writer = await asyncio.open_unix_connection(_socket_path(directory), limit=LINE_MAX)
    try:
        writer.write(json.dumps(question).encode() + b"\n")
        await writer.drain()
        async with asyncio.timeout(_ANSWER_S):
            answer = json.loads(await reader.readline())
    finally:
        writer.close()
    if not isinstance(answer, dict):
        raise ValueError("not an answer")
    return answer


def _socket_path(directory: Path) -> Path:
    path = directory / FOLDER / SOCKET
    if len(os.fsencode(path)) > _PATH_MAX:
        raise PathTooLong
    return path


def _is_own_user(connection: Any) -> bool:
    if not hasattr(socket, "SO_PEERCRED"):
        return True  # the folder's mode stands alone there
    _, uid, _ = struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    return uid in (0, os.getuid())

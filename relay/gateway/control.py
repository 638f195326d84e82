"""How commands reach a gateway that runs: one JSON object a line, each way, over a Unix socket in a private folder.

The folder has mode 0700 and the peer's user id is checked, so whoever gets through is the gateway's own user or root.
"""

import asyncio
import contextlib
import json
import os
import socket
import struct
from pathlib import Path
from typing import Any, Final

import msgspec

from relay.gateway.admin import Admin, error_object
from relay.gateway.errors import ConfigError, GatewayError, NotReady

FOLDER: Final = "run"
SOCKET: Final = "control.sock"
LINE_MAX: Final = 4 << 20
_PATH_MAX: Final = 107  # bytes, sockaddr_un on Linux
_ANSWER_S: Final = 30.0


class _Call(msgspec.Struct, forbid_unknown_fields=True):
    operation: str
    arguments: dict[str, Any] = {}


class RemoteError(GatewayError):
    """What a running gateway answered; code, fault and hint are its own."""

    def __init__(self, message: str, *, code: str, fault: str, hint: str | None) -> None:
        super().__init__(message, hint=hint)
        self.code = code  # type: ignore[misc]
        self.fault = fault  # type: ignore[misc]


class ControlServer:
    """Serves `admin` on `directory`/run/control.sock."""

    def __init__(self, directory: Path, admin: Admin) -> None:
        self._path = _socket_path(directory)
        self._admin = admin
        self._server: asyncio.Server | None = None

    async def start(self) -> None:
        """Raises ConfigError if the path is too long for a socket."""
        self._path.parent.mkdir(mode=0o700, exist_ok=True)
        self._path.parent.chmod(0o700)
        with contextlib.suppress(FileNotFoundError):
            self._path.unlink()  # a crashed gateway's; the state's lock says that none runs
        self._server = await asyncio.start_unix_server(self._serve, self._path, limit=65_536)

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

    async def _answer(self, line: bytes) -> dict[str, Any]:
        try:
            call = msgspec.json.decode(line, type=_Call)
            return {"result": await self._admin.call(call.operation, call.arguments)}
        except msgspec.MsgspecError:
            return {"error": {"code": "bad_call", "fault": "local", "message": "not a control call", "hint": None}}
        except Exception as error:
            return {"error": error_object(error)}


async def call(directory: Path, operation: str, arguments: dict[str, Any]) -> dict[str, Any]:
    """Asks the gateway that runs in `directory`. Raises NotReady if none does, RemoteError with its refusal."""
    try:
        reader, writer = await asyncio.open_unix_connection(_socket_path(directory), limit=LINE_MAX)
    except (FileNotFoundError, ConnectionRefusedError):
        raise NotReady("no gateway runs here") from None
    except PermissionError:
        raise NotReady("the gateway's control socket belongs to another user", hint="run as that user") from None
    try:
        writer.write(json.dumps({"operation": operation, "arguments": arguments}).encode() + b"\n")
        await writer.drain()
        async with asyncio.timeout(_ANSWER_S):
            line = await reader.readline()
        answer = json.loads(line)
    except (OSError, ValueError, TimeoutError):
        raise NotReady("the running gateway did not answer", hint="look at its log") from None
    finally:
        writer.close()
    if "error" in answer:
        error = answer["error"]
        raise RemoteError(error["message"], code=error["code"], fault=error["fault"], hint=error["hint"])
    result: dict[str, Any] = answer["result"]
    return result


def _socket_path(directory: Path) -> Path:
    path = directory / FOLDER / SOCKET
    if len(os.fsencode(path)) > _PATH_MAX:
        raise ConfigError("the gateway's folder has too long a path for a control socket", hint="use a shorter one")
    return path


def _is_own_user(connection: Any) -> bool:
    if not hasattr(socket, "SO_PEERCRED"):
        return True  # the folder's mode stands alone there
    _, uid, _ = struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    return uid in (0, os.getuid())

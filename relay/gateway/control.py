"""How commands reach a gateway that runs, over `relay.local_socket`: operations by name, and errors as they are."""

from pathlib import Path
from typing import Any

import msgspec

from relay.gateway.admin import Admin, error_object
from relay.gateway.errors import ConfigError, GatewayError, NotReady
from relay.local_socket import LocalSocket, PathTooLong, ask


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
        """Raises ConfigError if the path is too long for a socket."""
        self._admin = admin
        try:
            self._socket = LocalSocket(directory, self._answer)
        except PathTooLong:
            raise _too_long() from None

    async def start(self) -> None:
        """The state's lock says that no other gateway runs here."""
        await self._socket.start()

    async def close(self) -> None:
        await self._socket.close()

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
        answer = await ask(directory, {"operation": operation, "arguments": arguments})
    except PathTooLong:
        raise _too_long() from None
    except (FileNotFoundError, ConnectionRefusedError):
        raise NotReady("no gateway runs here") from None
    except PermissionError:
        raise NotReady("the gateway's control socket belongs to another user", hint="run as that user") from None
    except (OSError, ValueError, TimeoutError):
        raise NotReady("the running gateway did not answer", hint="look at its log") from None
    if "error" in answer:
        error = answer["error"]
        raise RemoteError(error["message"], code=error["code"], fault=error["fault"], hint=error["hint"])
    result: dict[str, Any] = answer["result"]
    return result


def _too_long() -> ConfigError:
    return ConfigError("the gateway's folder has too long a path for a control socket", hint="use a shorter one")

"""What strangers get to hear over HTTP: short JSON, and refusals that tell nothing. And how they are listened to."""

import asyncio
import base64
import binascii
import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import Final, TypeVar, cast

import msgspec
from aiohttp import web

from relay.gateway.errors import AuditUnavailable, EnrolmentRefused, GatewayError
from store.errors import StoreError

BODY_MAX: Final = 16_384
_JOINING: Final = ("/v1/join", "/hop/join")
NOWHERE: Final[web.AppKey[Callable[[web.Request, web.HTTPException], web.Response]]] = web.AppKey("NOWHERE")
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
STRAIGHT: Final[web.AppKey[Mapping[tuple[str, str], Handler]]] = web.AppKey("STRAIGHT")  # by method and path
_log = logging.getLogger(__name__)
T = TypeVar("T")
_Server = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]


class Refused(Exception):
    """Becomes a neutral answer."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status, self.code = status, code


@web.middleware
async def neutral(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Every failure becomes a short JSON error that tells a stranger nothing."""
    try:
        return await handler(request)
    except Refused as refusal:
        answer = error_answer(refusal.status, refusal.code, str(refusal))
        if refusal.status == 408:
            answer.force_close()
        return answer
    except EnrolmentRefused:
        code = "invitation" if request.path in _JOINING else "refused"
        return error_answer(403, code, "the gateway does not accept this")
    except AuditUnavailable:
        return error_answer(503, "overloaded", "try again later")
    except (GatewayError, StoreError) as error:
        _log.error("%s failed: %s", request.path, error)
        return error_answer(503, "unavailable", "try again later")
    except web.HTTPException as error:
        if error.status in (404, 405) and (nowhere := request.app.get(NOWHERE)) is not None:
            return nowhere(request, error)
        return error_answer(error.status, "bad_request" if error.status < 500 else "unavailable", "not possible")
    except (OSError, web.RequestPayloadError):  # it went away in the middle; nobody will read this answer
        return error_answer(400, "bad_request", "the request is not whole")
    except Exception as error:  # no traceback: its values could be an invitation's
        _log.error("%s failed with %s", request.path, type(error).__name__)
        return error_answer(500, "unavailable", "not possible")


def straight(app: web.Application, handle: _Server) -> _Server:
    """As `handle`, which is `app`'s, but for what is in STRAIGHT: no router is asked for that, only `neutral`."""
    routes = app.get(STRAIGHT, {})

    async def first(request: web.BaseRequest) -> web.StreamResponse:
        handler = routes.get((request.method, request.raw_path))
        if handler is None or "Expect" in request.headers:
            return await handle(request)
        return await neutral(cast(web.Request, request), handler)

    return first


def tcp_peer(request: web.Request) -> str:
    """As a TCP link names its peer, so that an address has one share of the places, whichever door it comes by."""
    name = request.transport.get_extra_info("peername") if request.transport is not None else None
    return f"tcp:{name[0]}:{name[1]}" if isinstance(name, tuple) else "tcp:unknown:0"


async def body_of(request: web.Request, kind: type[T], seconds: float) -> T:
    try:
        async with asyncio.timeout(seconds):
            data = await request.read()
    except TimeoutError:
        raise Refused(408, "timeout", "the request came too slowly") from None
    try:
        return msgspec.json.decode(data, type=kind)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError):
        raise Refused(400, "bad_request", "the request is not valid") from None


def json_answer(status: int, value: object) -> web.Response:
    return web.Response(status=status, body=msgspec.json.encode(value), content_type="application/json")


def error_answer(status: int, code: str, message: str) -> web.Response:
    return json_answer(status, {"error": {"code": code, "message": message}})


def pack(data: bytes) -> str:
    """base64url without padding (RFC 4648 section 5)."""
    return base64.urlsafe_b64encode(data).decode("ascii").rstrip("=")


def unpack(text: str) -> bytes:
    try:
        return base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
    except (binascii.Error, ValueError):
        raise Refused(400, "bad_request", "the request is not valid") from None

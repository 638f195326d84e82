"""Links over WebSocket: the tunnel between hop and gateway. Binary frames carry bytes, text frames carry notes.

Notes are small side remarks (a hop's span); they are no part of the byte stream. Close codes 1000 and 1001 are a clean
end of file, 4001 to 4004 a lost link with its reason, every other end a lost link without. A WebSocket has no
half-close, so the end that takes notes says "end" in a note before it closes: the other end reads that as end of file,
sends its last note and closes.
"""

import asyncio
import contextlib
import socket as sockets
import ssl
from collections.abc import Callable
from typing import Any, Final

import aiohttp
from aiohttp import WSMsgType, web

from transport.errors import BadInput, CloseReason, LinkLost, LostReason, PeerRefused
from transport.identity.tls import refusal_in
from transport.links.base import CLOSE_TIMEOUT_S, RECEIVE_MAX, Endpoint
from transport.links.tcp import tune_socket

NOTE_MAX: Final = 4096  # bytes of UTF-8
_CLEAN: Final = (1000, 1001)
_CODES: Final[dict[CloseReason, int]] = {"done": 1000, "idle": 4001, "limit": 4002, "shutdown": 4003, "error": 4004}
_REASONS: Final[dict[int, LostReason]] = {4001: "idle", 4002: "limit", 4003: "shutdown", 4004: "error"}
_IN_A_HURRY_S: Final = 1.0  # how long a peer that reads nothing may hold up a close for a reason
_END: Final = "end"
_LAST_NOTES_S: Final = 2.0  # how long close() waits for the peer's last note
_NOT_UNDERSTOOD: Final = 1003
_TOO_BIG: Final = 1009
_MESSAGE_MAX: Final = RECEIVE_MAX + 1  # the library's bound is exclusive

_Socket = aiohttp.ClientWebSocketResponse[Any] | web.WebSocketResponse[Any]


class WebSocketLink:
    """A link over one WebSocket, at either end."""

    def __init__(
        self, socket: _Socket, peer: str, *, on_note: Callable[[str], None] | None = None,
        session: aiohttp.ClientSession | None = None,
    ) -> None:
        self.peer = peer
        self._socket = socket
        self._on_note = on_note
        self._session = session  # the client's end owns the session that opened it
        self._closed = False
        self._ended = False
        self._ended_by_peer: LinkLost | None = None
        self._receiving = False
        self._sending = False
        self._last_word = asyncio.Event()  # the peer has closed, or is gone
        self._beneath = socket.get_extra_info("socket")  # the library forgets it when it closes
        tune_socket(self._beneath)

    @property
    def response(self) -> web.StreamResponse:
        """What the server's request handler returns once the link has ended."""
        assert isinstance(self._socket, web.WebSocketResponse)
        return self._socket

    async def send(self, data: bytes) -> None:
        for start in range(0, len(data), RECEIVE_MAX):
            await self._guard(self._socket.send_bytes(data[start:start + RECEIVE_MAX]))

    async def send_note(self, text: str) -> None:
        """Sends a text frame of at most 4,096 bytes. Raises BadInput if it is longer, LinkLost."""
        if len(text.encode()) > NOTE_MAX:
            raise BadInput(f"a note is longer than {NOTE_MAX} bytes")
        await self._guard(self._socket.send_str(text))

    async def receive(self) -> bytes:
        self._check_open()
        if self._ended_by_peer is not None:
            raise self._ended_by_peer
        if self._ended:
            return b""
        self._receiving = True
        try:
            while True:
                message = await self._next()
                if message.type is WSMsgType.BINARY:
                    if message.data and not self._closed:
                        return bytes(message.data)
                elif message.type is WSMsgType.TEXT and message.data == _END and self._on_note is None:
                    self._ended = True
                    return b""
                elif message.type is WSMsgType.TEXT:
                    await self._note(message.data)
                elif message.type is WSMsgType.CLOSE and not self._closed:
                    self._end(message.data)
                    return b""
                else:  # CLOSED, CLOSING, ERROR: the library has given up
                    self._check_open()
                    raise LinkLost("the link broke while receiving")
        except LinkLost:
            self._last_word.set()
            raise
        finally:
            self._receiving = False

    async def close(self, reason: CloseReason = "done") -> None:
        await self._close(_CODES[reason])

    async def _close(self, code: int) -> None:
        if self._closed:
            return
        self._closed = True
        try:
            if self._on_note is not None and code == 1000 and not self._ended:
                await self._await_last_note()
            with contextlib.suppress(OSError, RuntimeError, TimeoutError, aiohttp.ClientError):
                async with asyncio.timeout(CLOSE_TIMEOUT_S if code == 1000 else _IN_A_HURRY_S):
                    await self._socket.close(code=code)
            if self._sending and self._beneath is not None:
                # to a peer that reads nothing: only the end of the connection wakes the sender
                with contextlib.suppress(OSError):
                    self._beneath.shutdown(sockets.SHUT_RDWR)
        finally:
            if self._session is not None:
                await self._session.close()

    async def _await_last_note(self) -> None:
        with contextlib.suppress(OSError, RuntimeError, TimeoutError, aiohttp.ClientError, LinkLost):
            async with asyncio.timeout(_LAST_NOTES_S):
                with contextlib.suppress(OSError, RuntimeError, aiohttp.ClientError):
                    await self._socket.send_str(_END)  # fails if the peer has gone; its last note is here all the same
                if self._receiving:  # another task reads already; it takes the notes
                    await self._last_word.wait()
                    return
                while (message := await self._next()).type in (WSMsgType.BINARY, WSMsgType.TEXT):
                    if message.type is WSMsgType.TEXT:
                        await self._note(message.data)

    async def _next(self) -> aiohttp.WSMessage:
        """Answers pings. One read may bring 40,000 of them, or empty messages: everybody else is served in between."""
        try:
            while True:
                await asyncio.sleep(0)  # first, so that who is cancelled here has lost nothing
                message = await self._socket.receive()
                if message.type is WSMsgType.PING:
                    await self._socket.pong(message.data)
                elif message.type is not WSMsgType.PONG:
                    return message
        except (OSError, RuntimeError, aiohttp.ClientError) as error:
            raise LinkLost("the link broke while receiving") from error

    def _end(self, code: int) -> None:
        if code not in _CLEAN:
            reason = _REASONS.get(code, "lost")
            self._ended_by_peer = LinkLost(f"the peer ended the link with code {code}", reason=reason)
            raise self._ended_by_peer
        self._ended = True
        self._last_word.set()

    def _check_open(self) -> None:
        if self._closed:
            raise LinkLost("the link is closed at this end")

    async def _note(self, text: str) -> None:
        if self._on_note is None or len(text.encode(errors="replace")) > NOTE_MAX:
            await self._close(_TOO_BIG if self._on_note else _NOT_UNDERSTOOD)
            raise LinkLost("the peer sent a note that is too long or not expected")
        self._on_note(text)

    async def _guard(self, sending: Any) -> None:
        if self._closed:
            sending.close()
        self._check_open()
        self._sending = True
        try:
            await sending
        except (OSError, RuntimeError, aiohttp.ClientError) as error:
            raise LinkLost("the link broke while sending") from error
        finally:
            self._sending = False


async def accept_websocket(
    request: web.BaseRequest, peer: str, *, on_note: Callable[[str], None] | None = None
) -> WebSocketLink:
    """Upgrades a request at the server; its handler runs as long as the link and returns `link.response`."""
    socket = web.WebSocketResponse(
        timeout=CLOSE_TIMEOUT_S, max_msg_size=_MESSAGE_MAX, compress=False, autoping=False
    )
    await socket.prepare(request)
    return WebSocketLink(socket, peer, on_note=on_note)


async def connect_websocket(
    endpoint: Endpoint, *, tls: ssl.SSLContext | None = None, timeout_s: float = 10.0,
    on_note: Callable[[str], None] | None = None, headers: dict[str, str] | None = None,
) -> WebSocketLink:
    """Opens a WebSocket to a wss endpoint, by default verified by the system's certificate authorities.

    Raises LinkLost (nobody there, no answer in time), IdentityRefused (either end's certificate), PeerRefused (HTTP
    status instead of an upgrade; `reason` is "http_403" and the like).
    """
    session = aiohttp.ClientSession(trust_env=False)
    try:
        async with asyncio.timeout(timeout_s):
            socket = await session.ws_connect(
                str(endpoint), ssl=True if tls is None else tls, headers=headers,
                timeout=aiohttp.ClientWSTimeout(ws_close=CLOSE_TIMEOUT_S),
                max_msg_size=_MESSAGE_MAX, compress=0, autoping=False,
            )
    except BaseException as error:
        await session.close()
        if isinstance(error, TimeoutError):
            raise LinkLost(f"no answer from {endpoint} within {timeout_s:g} s", hint="is it in reach?") from None
        if isinstance(error, aiohttp.WSServerHandshakeError):
            raise PeerRefused(
                f"{endpoint} answered {error.status} instead of opening a tunnel", reason=f"http_{error.status}"
            ) from None
        if isinstance(error, (OSError, aiohttp.ClientError)):
            refusal = refusal_in(error)
            if refusal is not None:
                raise refusal from None
            if isinstance(error, aiohttp.ServerDisconnectedError):  # how a server refuses that sends no TLS alert
                raise LinkLost(
                    f"{endpoint} hung up before it answered",
                    hint="if it does so each time, it refuses this side's certificate: expired, revoked or foreign",
                ) from error
            raise LinkLost(f"cannot reach {endpoint}", hint="is it running, and in reach?") from error
        raise
    return WebSocketLink(socket, str(endpoint), on_note=on_note, session=session)

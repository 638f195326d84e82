"""An answer of the pipeline as an HTTP response: JSON whole, or events as they come, as fast as the client reads."""

import asyncio
from collections.abc import Mapping
from typing import Final

import msgspec
from aiohttp import HttpVersion11, web
from aiohttp.abc import AbstractStreamWriter
from aiohttp.helpers import rfc822_formatted_time
from aiohttp.http import SERVER_SOFTWARE

from relay.gateway.checks.problems import body, media_type
from relay.gateway.pipeline import Refusal, RequestContext
from transport.errors import LinkLost

STALL_S: Final = 60.0  # how long a client may read nothing of what waits for it
INSPECTION: Final = "Causeway-Inspection"  # of an answer to a request that inspection has flagged
RETRY: Final = "X-Should-Retry"  # what OpenAI's clients go by
WHOLE_MAX: Final = 65_536  # bytes of an answer that goes in one piece with its head; also what may wait to be sent
_PARTING_S: Final = 0.5  # for the last words to a client whose answer is cut


def refused(
    request: web.Request, refusal: Refusal, trace_id: str, headers: Mapping[str, str] | None = None
) -> web.Response:
    """A refusal as the whole answer, in the shape that clients of its route know."""
    return web.Response(
        status=refusal.status, body=msgspec.json.encode(body(refusal, trace_id, request.path)),
        content_type=media_type(request.headers.get("Accept", "")),
        headers={
            "Cache-Control": "no-store", **(headers or {}), RETRY: "true" if refusal.retryable else "false",
            **refusal.headers,
        },
    )


class _Whole(web.Response):
    """What nearly every answer is, a 200 by HTTP/1.1 that leaves its connection open: written at once, head and all."""

    def __init__(self, *, status: int, body: bytes, headers: Mapping[str, str]) -> None:
        super().__init__(status=status)
        fields = "".join([f"{name}: {value}\r\n" for name, value in headers.items()])
        self._wire = (
            f"HTTP/1.1 200 OK\r\n{fields}Content-Length: {len(body)}\r\nDate: {rfc822_formatted_time()}\r\n"
            f"Server: {SERVER_SOFTWARE}\r\n\r\n"
        ).encode("ascii") + body

    @property
    def keep_alive(self) -> bool:
        return True

    async def prepare(self, request: web.BaseRequest) -> AbstractStreamWriter:
        transport = request.transport
        if transport is None or transport.is_closing():
            raise ConnectionResetError
        transport.write(self._wire)
        await request.writer.drain()
        return request.writer

    async def write_eof(self, data: bytes = b"") -> None:
        """Nothing: all is written."""


class HttpSink:
    """One response. `response` is there once a part of it may have been sent, or it is a refusal to be sent whole."""

    def __init__(self, request: web.Request, context: RequestContext, *, stall_s: float = STALL_S) -> None:
        self._request, self._context, self._stall_s = request, context, stall_s
        self._head: tuple[int, str, bool] = (200, "application/json", False)
        self._held = b""  # of an answer that may still go in one piece
        self.response: web.StreamResponse | None = None
        self.whole = False  # nothing more is to be sent: should the client go away now, it has what it asked for

    async def calling(self) -> None:
        """Nothing: nobody asks again for the answer of a request that came by HTTPS."""

    async def begin(self, status: int, content_type: str, *, streamed: bool) -> None:
        """A whole answer's head goes with its first part, so that it can be a refusal until then."""
        self._head = status, content_type, streamed
        if streamed:
            await self._begun()

    async def write(self, data: bytes) -> None:
        """Returns when little waits to be sent. Raises LinkLost, also for a client that reads nothing for too long."""
        if self.response is None:
            self._held += data
            if len(self._held) <= WHOLE_MAX:
                return
            data, self._held = self._held, b""
        await self._sent(data)

    async def end(self) -> None:
        """An answer in one piece is sent by whoever takes `response`."""
        self.whole = True
        if self.response is not None:
            await self._sent(b"", last=True)
            return
        status, content_type, _ = self._head
        request, headers = self._request, self._headers(content_type)
        said = "".join(headers.values())
        usual = status == 200 and request.version == HttpVersion11 and request.keep_alive
        usual = usual and said.isascii() and said.isprintable()
        self.response = (_Whole if usual else web.Response)(status=status, body=self._held, headers=headers)

    async def refuse(self, refusal: Refusal) -> None:
        """Also ends a begun answer: by an event that says why, if it has events; it is not whole in any case."""
        if self.response is None:
            self.response = refused(self._request, refusal, self._context.trace_id, self._headers())
            return
        transport = self._request.transport
        if transport is None:
            return
        if self._head[2] and (target := self._context.target) is not None:
            try:
                async with asyncio.timeout(_PARTING_S):
                    error = body(refusal, self._context.trace_id, self._context.route)
                    await self.response.write(target.format.error(error))
            except (TimeoutError, OSError):
                transport.abort()
        transport.close()  # without the last chunk, by which every client sees that something is missing

    async def _begun(self) -> web.StreamResponse:
        if self.response is None:
            status, content_type, _ = self._head
            self.response = web.StreamResponse(status=status, headers=self._headers(content_type))
            try:
                await self.response.prepare(self._request)
            except OSError:
                raise LinkLost("the client has gone") from None
        return self.response

    async def _sent(self, data: bytes, *, last: bool = False) -> None:
        response, transport = await self._begun(), self._request.transport
        try:
            if transport is not None and not transport.get_write_buffer_size() and len(data) <= WHOLE_MAX and not last:
                await response.write(data)  # which the kernel takes, or the transport: it waits for nobody
                return
            async with asyncio.timeout(self._stall_s):
                await (response.write_eof() if last else response.write(data))
        except (TimeoutError, OSError) as error:
            if self._request.transport is not None:
                self._request.transport.abort()
            why = "the client does not read its answer" if isinstance(error, TimeoutError) else "the client has gone"
            raise LinkLost(why) from None

    def _headers(self, content_type: str = "") -> dict[str, str]:
        headers = {
            "Cache-Control": "no-store", "X-Content-Type-Options": "nosniff", "X-Request-Id": self._context.trace_id,
        }
        if self._context.hold is not None:
            headers |= self._context.hold.headers()
        if self._context.flagged:
            headers[INSPECTION] = "flag"
        if self._context.span:
            headers["Traceparent"] = self._context.span
        if content_type:
            headers["Content-Type"] = content_type
        return headers

"""An OpenAI-compatible provider that behaves, or fails in a chosen way. A real server on loopback.

    async with MockProvider() as provider:
        provider.mode = "stream_cut"
        ... provider.base_url, provider.calls ...

It takes one key only, counts accepted calls, and quotes the key in every error text, as real providers do.
"""

import asyncio
import json
from collections.abc import Callable
from typing import Any, Self

from aiohttp import web

KEY = "sk-mock-0123456789abcdef"
WORDS = ("The ", "pump ", "runs ", "at ", "6 bar.")


def chunk(text: str | None, *, usage: dict[str, int] | None = None) -> bytes:
    """One event of a streamed completion."""
    choices = [] if text is None else [{"index": 0, "delta": {"content": text}, "finish_reason": None}]
    event: dict[str, Any] = {"id": "c1", "object": "chat.completion.chunk", "model": "mock-1", "choices": choices}
    if usage is not None:
        event["usage"] = usage
    return b"data: " + json.dumps(event).encode() + b"\n\n"


USAGE = {"prompt_tokens": 11, "completion_tokens": 5, "total_tokens": 16}
STREAM = [*(chunk(word) for word in WORDS), chunk(None, usage=USAGE), b"data: [DONE]\n\n"]
WHOLE = {
    "id": "c1", "object": "chat.completion", "model": "mock-1", "usage": USAGE,
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "".join(WORDS)}, "finish_reason": "stop"}],
}
_ERROR = {"error": {"message": f"something about {KEY}", "type": "some_error", "code": "context_length_exceeded"}}


class MockProvider:
    """Modes: ok, 400, 401, 429, 500, 503, redirect, timeout, html, not_json, error_200, huge, cut, quotes_key, gzip,
    and for streams stream_garbage, stream_cut, stream_no_done, stream_error, stream_stall, stream_json, stream_lingers.
    """

    def __init__(self) -> None:
        self.mode = "ok"
        self.calls = 0  # accepted: right key, well-formed request
        self.bodies: list[bytes] = []
        self.headers: list[dict[str, str]] = []
        self.began = asyncio.Event()
        self.ended = asyncio.Event()  # the handler is over, whoever ended it
        self.release = asyncio.Event()
        self.stream: list[bytes] = STREAM
        self.refusing: Callable[[], object] = lambda: None  # called before a key is refused
        self.base_url = ""
        self._runner: web.AppRunner | None = None

    async def __aenter__(self) -> Self:
        app = web.Application(client_max_size=4 << 20)
        app.router.add_post("/v1/chat/completions", self._chat)
        app.router.add_get("/v1/models", self._models)
        self._runner = web.AppRunner(app, access_log=None, handler_cancellation=True, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        self.base_url = f"http://127.0.0.1:{self._runner.addresses[0][1]}/v1"
        return self

    async def __aexit__(self, *_: object) -> None:
        self.release.set()
        assert self._runner is not None
        await self._runner.cleanup()

    async def _models(self, request: web.Request) -> web.StreamResponse:
        if request.headers.get("Authorization") != f"Bearer {KEY}" or self.mode == "401":
            return web.json_response({"error": {"message": f"Incorrect API key provided: {KEY}"}}, status=401)
        return await self._whole(request)

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        body = await request.read()
        self.headers.append(dict(request.headers))
        if request.headers.get("Authorization") != f"Bearer {KEY}" or self.mode == "401":
            self.refusing()
            return web.json_response({"error": {"message": f"Incorrect API key provided: {KEY}"}}, status=401)
        self.calls += 1
        self.bodies.append(body)
        self.began.set()
        try:
            if json.loads(body).get("stream") and not self.mode.isdigit() and self.mode not in ("timeout", "redirect"):
                return await self._streamed(request)
            return await self._whole(request)
        finally:
            self.ended.set()

    async def _whole(self, request: web.Request) -> web.StreamResponse:
        mode = self.mode
        if mode.isdigit():
            return web.json_response(_ERROR, status=int(mode))
        if mode == "redirect":
            return web.Response(status=307, headers={"Location": f"{self.base_url}/elsewhere"})
        if mode == "timeout":
            await self.release.wait()
        if mode == "html":
            return web.Response(text=f"<html>{KEY}</html>", content_type="text/html")
        if mode == "not_json":
            return web.Response(body=b'{"id": ', content_type="application/json")
        if mode == "error_200":
            return web.json_response(_ERROR)
        if mode == "gzip":
            response = web.json_response(WHOLE)
            response.enable_compression(web.ContentCoding.gzip)
            response.headers["Content-Encoding"] = "gzip"
            return response
        if mode == "huge":
            return web.json_response(WHOLE | {"padding": "x" * (9 << 20)})
        if mode == "quotes_key":
            return web.json_response(WHOLE | {"note": KEY})
        if mode == "cut":
            response = web.StreamResponse(headers={"Content-Type": "application/json", "Content-Length": "9999"})
            await response.prepare(request)
            await response.write(json.dumps(WHOLE).encode())
            assert request.transport is not None
            request.transport.abort()
            return response
        return web.json_response(WHOLE)

    async def _streamed(self, request: web.Request) -> web.StreamResponse:
        if self.mode == "stream_json":
            return web.json_response(WHOLE)
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream; charset=utf-8"})
        await response.prepare(request)
        for number, event in enumerate(self.stream):
            if number == 2 and self.mode.startswith("stream_"):
                if self.mode == "stream_garbage":
                    await response.write(b"this is no event\n\n")
                if self.mode == "stream_error":
                    await response.write(b"data: " + json.dumps(_ERROR).encode() + b"\n\n")
                if self.mode == "stream_stall":
                    await self.release.wait()
                if self.mode == "stream_cut":
                    assert request.transport is not None
                    request.transport.abort()
                    return response
            if event.startswith(b"data: [DONE]") and self.mode == "stream_no_done":
                break
            half = len(event) // 2  # events come in two writes, so that a reader meets their middle
            await response.write(event[:half])
            await response.write(event[half:])
        if self.mode == "stream_lingers":
            await self.release.wait()
        await response.write_eof()
        return response

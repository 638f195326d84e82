"""A provider that behaves, or fails in a chosen way: OpenAI-compatible, Azure or Anthropic. A real server on loopback.

    async with MockProvider() as provider:
        provider.mode = "stream_cut"
        ... provider.base_url, provider.calls ...

It takes one key only, counts accepted calls, and quotes the key in every error text, as real providers do.
"""

import asyncio
import json
from collections.abc import Callable
from functools import partial
from typing import Any, Self

from aiohttp import web

from tests.support import answer_streams

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
VECTORS = {
    "object": "list", "model": "mock-1", "data": [{"object": "embedding", "index": 0, "embedding": [0.5, -1e-3]}],
    "usage": {"prompt_tokens": 11, "total_tokens": 11},
}
_ERROR = {"error": {"message": f"something about {KEY}", "type": "some_error", "code": "context_length_exceeded"}}


def whole_of(what: str) -> dict[str, Any]:
    """The answer that is not streamed: chat, responses, messages or embeddings."""
    if what in ("chat", "embeddings"):
        return WHOLE if what == "chat" else VECTORS
    return answer_streams.whole(what, "".join(WORDS))


def stream_of(what: str) -> list[bytes]:
    return STREAM if what == "chat" else answer_streams.stream(what, WORDS)


class MockProvider:
    """Modes: ok, 400, 401, 429, 500, 503, redirect (to `elsewhere`), timeout, html, not_json, error_200, huge, cut,
    quotes_key, gzip, and for streams stream_garbage, stream_cut, stream_no_done, stream_error, stream_stall,
    stream_json, stream_lingers.
    """

    def __init__(self, kind: str = "openai", key: str = KEY) -> None:
        """`kind`: openai, azure (by deployments), azure-v1, anthropic."""
        self.kind, self.key = kind, key
        self.mode = "ok"
        self.paths: list[str] = []
        self.elsewhere = ""
        self.calls = 0  # accepted: right key, well-formed request
        self.bodies: list[bytes] = []
        self.headers: list[dict[str, str]] = []
        self.began = asyncio.Event()
        self.ended = asyncio.Event()  # the handler is over, whoever ended it
        self.release = asyncio.Event()
        self.stream: list[bytes] = STREAM  # of chat; the others' are by `answer_streams`
        self.refusing: Callable[[], object] = lambda: None  # called before a key is refused
        self.base_url = ""
        self._runner: web.AppRunner | None = None

    async def __aenter__(self) -> Self:
        app = web.Application(client_max_size=4 << 20)
        stem = {"azure": "/openai", "azure-v1": "/openai/v1"}.get(self.kind, "/v1")
        by_name = stem + ("/deployments/{name}" if self.kind == "azure" else "")
        routes = {"chat": f"{by_name}/chat/completions", "embeddings": f"{by_name}/embeddings",
                  "responses": f"{stem}/responses"}
        for what, path in ({"messages": "/v1/messages"} if self.kind == "anthropic" else routes).items():
            app.router.add_post(path, partial(self._asked, what))
        app.router.add_get(f"{stem}/models", self._models)
        self._runner = web.AppRunner(app, access_log=None, handler_cancellation=True, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        self.base_url = f"http://127.0.0.1:{self._runner.addresses[0][1]}{'' if self.kind == 'azure' else stem}"
        return self

    async def __aexit__(self, *_: object) -> None:
        self.release.set()
        assert self._runner is not None
        await self._runner.cleanup()

    def _refused(self, request: web.Request) -> web.Response | None:
        """In every way in which this kind of provider refuses who asks."""
        name = {"openai": "Authorization", "anthropic": "x-api-key"}.get(self.kind, "api-key")
        wanted = f"Bearer {self.key}" if self.kind == "openai" else self.key
        if request.headers.get(name) != wanted or self.mode == "401":
            self.refusing()
            return web.json_response({"error": {"message": f"Incorrect API key provided: {self.key}"}}, status=401)
        if self.kind == "anthropic" and request.headers.get("anthropic-version") != "2023-06-01":
            return web.json_response({"type": "error", "error": {"type": "invalid_request_error"}}, status=400)
        if self.kind == "azure" and request.query.get("api-version") != "2024-10-21":
            return web.json_response({"error": {"code": "404", "message": "Resource not found"}}, status=404)
        return None

    async def _models(self, request: web.Request) -> web.StreamResponse:
        return self._refused(request) or await self._whole(request, "chat")

    async def _asked(self, what: str, request: web.Request) -> web.StreamResponse:
        body = await request.read()
        self.headers.append(dict(request.headers))
        self.paths.append(request.path_qs)
        if (refused := self._refused(request)) is not None:
            return refused
        self.calls += 1
        self.bodies.append(body)
        self.began.set()
        try:
            if json.loads(body).get("stream") and not self.mode.isdigit() and self.mode not in ("timeout", "redirect"):
                return await self._streamed(request, what)
            return await self._whole(request, what)
        finally:
            self.ended.set()

    async def _whole(self, request: web.Request, what: str) -> web.StreamResponse:
        mode, whole = self.mode, whole_of(what)
        if mode.isdigit():
            return web.json_response(_ERROR, status=int(mode))
        if mode == "redirect":
            return web.Response(status=307, headers={"Location": self.elsewhere or f"{self.base_url}/elsewhere"})
        if mode == "timeout":
            await self.release.wait()
        if mode == "html":
            return web.Response(text=f"<html>{KEY}</html>", content_type="text/html")
        if mode == "not_json":
            return web.Response(body=b'{"id": ', content_type="application/json")
        if mode == "error_200":
            return web.json_response(_ERROR)
        if mode == "gzip":
            response = web.json_response(whole)
            response.enable_compression(web.ContentCoding.gzip)
            response.headers["Content-Encoding"] = "gzip"
            return response
        if mode == "huge":
            return web.json_response(whole | {"padding": "x" * (9 << 20)})
        if mode == "quotes_key":
            return web.json_response(whole | {"note": self.key})
        if mode == "cut":
            response = web.StreamResponse(headers={"Content-Type": "application/json", "Content-Length": "9999"})
            await response.prepare(request)
            await response.write(json.dumps(whole).encode())
            assert request.transport is not None
            request.transport.abort()
            return response
        return web.json_response(whole)

    async def _streamed(self, request: web.Request, what: str) -> web.StreamResponse:
        if self.mode == "stream_json":
            return web.json_response(whole_of(what))
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream; charset=utf-8"})
        await response.prepare(request)
        for number, event in enumerate(events := self.stream if what == "chat" else stream_of(what)):
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
            if number == len(events) - 1 and self.mode == "stream_no_done":
                break
            half = len(event) // 2  # events come in two writes, so that a reader meets their middle
            await response.write(event[:half])
            await response.write(event[half:])
        if self.mode == "stream_lingers":
            await self.release.wait()
        await response.write_eof()
        return response

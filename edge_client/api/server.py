"""`/v1/chat/completions`, `/v1/models` and `/healthz` on 127.0.0.1. One request is one question to the assistant."""

import asyncio
import logging
import secrets
import signal
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Final, Protocol

import msgspec
from aiohttp import web

from edge_client.answering import Answer, Assistant, Question, Routed
from edge_client.api.guard import guard, load_token
from edge_client.api.shapes import (
    ChatRequest,
    answer_object,
    chunk_object,
    error_response,
    failure_response,
    messages_of,
    parse_request,
    sampling_of,
    usage_object,
)
from edge_client.engine.base import Text
from edge_client.errors import CannotListen, UnknownModel

__all__ = ["Models", "Names", "make_runner", "serve_until_stopped"]

_BODY_MAX: Final = 2 << 20
_log = logging.getLogger(__name__)


class Models(Protocol):
    """Which names this server answers to, and who answers."""

    def names(self) -> list[str]: ...

    async def assistant(self, model: str) -> tuple[Assistant, Question]:
        """The assistant for a model name, and a question to copy its flag and model from. Raises UnknownModel."""
        ...


def make_runner(models: Models, token: str) -> web.AppRunner:
    """The application, to be bound to an address. A client that goes cancels its request, which stops the model."""
    app = web.Application(middlewares=[guard(token), _errors], client_max_size=_BODY_MAX)
    api = _Api(models)
    app.router.add_get("/healthz", api.healthz)
    app.router.add_get("/v1/models", api.models)
    app.router.add_post("/v1/chat/completions", api.chat)
    return web.AppRunner(app, handler_cancellation=True, access_log=None, shutdown_timeout=5)


@web.middleware
async def _errors(request: web.Request, handler: Any) -> web.StreamResponse:
    try:
        response: web.StreamResponse = await handler(request)
        return response
    except web.HTTPException as error:
        reason = (error.reason or "error").lower()
        return error_response(error.status, reason.replace(" ", "_"), reason)
    except Exception as error:  # the last door of a request: whatever comes becomes an answer
        status, body = failure_response(error)
        if body["error"]["code"] == "internal_error":
            _log.error("a request ended in %s", type(error).__name__)
        return web.json_response(body, status=status)


class _Api:
    def __init__(self, models: Models) -> None:
        self._models = models
        self._started = int(time.time())

    async def healthz(self, request: web.Request) -> web.Response:
        return web.json_response({"status": "ok"})

    async def models(self, request: web.Request) -> web.Response:
        return web.json_response({"object": "list", "data": [
            {"id": name, "object": "model", "created": self._started, "owned_by": "causeway"}
            for name in self._models.names()
        ]})

    async def chat(self, request: web.Request) -> web.StreamResponse:
        parsed = parse_request(await request.read())
        assistant, pattern = await self._models.assistant(parsed.model)
        question = Question(messages_of(parsed), pattern.flag, pattern.model, sampling_of(parsed))
        id = f"chatcmpl-{secrets.token_hex(12)}"
        if not parsed.stream:
            answer = await assistant.answer(question, _ignore)
            return web.json_response(answer_object(id, parsed.model, answer))
        return await _Stream(request, parsed, id).run(assistant, question)


async def _ignore(event: Routed | Text) -> None:
    """A whole answer is wanted, not its pieces."""


class _Stream:
    """One streamed answer. Until the first event an error is an ordinary HTTP answer; after it, an event."""

    def __init__(self, request: web.Request, parsed: ChatRequest, id: str) -> None:
        self._request = request
        self._parsed = parsed
        self._id = id
        self._created = int(time.time())
        self._response: web.StreamResponse | None = None

    async def run(self, assistant: Assistant, question: Question) -> web.StreamResponse:
        try:
            answer = await assistant.answer(question, self._deliver)
            await self._end(answer)
        except ConnectionError:
            pass  # the client has gone; leaving `answer` has stopped the model
        except Exception as error:
            if self._response is None:
                raise
            _, body = failure_response(error)
            await self._send(body)
        assert self._response is not None  # answer() delivers Routed before it returns
        return self._response

    async def _deliver(self, event: Routed | Text) -> None:
        if isinstance(event, Text):
            await self._chunk({"content": event.text})
            return
        self._response = web.StreamResponse(
            headers={"Content-Type": "text/event-stream", "Cache-Control": "no-store"}
        )
        await self._response.prepare(self._request)
        await self._chunk({"role": "assistant", "content": ""}, routed=event)

    async def _end(self, answer: Answer) -> None:
        await self._chunk({}, answer.finish_reason)
        if self._parsed.stream_options is not None and self._parsed.stream_options.include_usage:
            await self._chunk(None, usage=usage_object(answer))
        assert self._response is not None
        await self._response.write(b"data: [DONE]\n\n")
        await self._response.write_eof()

    async def _chunk(self, delta: dict[str, str] | None, finish_reason: str | None = None, **more: Any) -> None:
        await self._send(chunk_object(self._id, self._parsed.model, self._created, delta, finish_reason, **more))

    async def _send(self, event: dict[str, Any]) -> None:
        assert self._response is not None
        await self._response.write(b"data: " + msgspec.json.encode(event) + b"\n\n")


class Names:
    """`local` and its alias: the model alone. `auto`: documents, router and, when joined, the gateway."""

    def __init__(self, *, alone: Assistant, auto: Callable[[], Awaitable[Assistant]], alias: str | None = None) -> None:
        """`auto` is an async function that makes an assistant: documents and membership may change while serving."""
        self._alone = alone
        self._auto = auto
        self._local = ["local", *([alias] if alias else [])]

    def names(self) -> list[str]:
        return [*self._local, "auto"]

    async def assistant(self, model: str) -> tuple[Assistant, Question]:
        if model in self._local:
            return self._alone, Question((), "local")
        if model == "auto":
            return await self._auto(), Question(())
        raise UnknownModel("no such model; /v1/models lists them")


async def serve_until_stopped(models: Models, token_path: Path, port: int, note: Callable[[str], None]) -> None:
    """Serves on 127.0.0.1 until SIGINT or SIGTERM. Raises CannotListen, or BadUse if the token is not private."""
    runner = make_runner(models, load_token(token_path))
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", port)
        try:
            await site.start()
        except OSError as error:
            reason = error.strerror or "it is taken"
            raise CannotListen(f"cannot listen on port {port}: {reason}", hint="another --port, or 0 for any") from None
        actual = runner.addresses[0][1]
        note(f"ready, serving http://127.0.0.1:{actual}/v1 (token in {token_path})")
        stopped = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, stopped.set)
        await stopped.wait()
    finally:
        await runner.cleanup()

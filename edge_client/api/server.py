"""The HTTP server on 127.0.0.1: its routes, and how one question to the assistant becomes one answer."""

import asyncio
import contextlib
import logging
import os
import secrets
import signal
import time
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any, Final, Protocol

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from edge_client.answering import Answer, Assistant, Question, Routed
from edge_client.api.embeddings import embeddings_object, parse_embeddings
from edge_client.api.errors import error_response, failure_object, failure_response
from edge_client.api.guard import guard, load_token
from edge_client.api.names import Models, Names
from edge_client.api.page import Behind, Page
from edge_client.api.responses import ResponsesVoice, parse_responses, response_object, responses_question
from edge_client.api.shapes import ChatVoice, answer_object, parse_request, question_of
from edge_client.engine.base import Text
from edge_client.errors import CannotListen
from edge_client.idle import Activity

__all__ = ["Models", "Names", "make_runner", "serve_until_stopped"]

_BODY_MAX: Final = 2 << 20
_log = logging.getLogger(__name__)


def make_runner(
    models: Models, token: str, page: Page | None = None, activity: Activity | None = None
) -> web.AppRunner:
    """The application, to be bound to an address. A client that goes cancels its request, which stops the model.

    `activity` hears of every request that shows the token, but for those that an open page makes by itself.
    """
    open_paths = page.open_paths if page else ()
    quiet = frozenset({"/healthz", "/causeway/status", *open_paths})
    counted = [_counted(activity, quiet)] if activity else []
    app = web.Application(middlewares=[guard(token, open_paths), *counted, _errors], client_max_size=_BODY_MAX)
    api = _Api(models)
    app.router.add_get("/healthz", api.healthz)
    app.router.add_get("/v1/models", api.models)
    app.router.add_get("/v1/models/{model:.+}", api.model)
    app.router.add_post("/v1/chat/completions", api.chat)
    app.router.add_post("/v1/responses", api.responses)
    app.router.add_post("/v1/embeddings", api.embeddings)
    app.router.add_post("/v2/models/{model:[A-Za-z0-9][A-Za-z0-9._-]{0,63}}/infer", api.infer)
    if page is not None:
        page.add_routes(app)
    return web.AppRunner(app, handler_cancellation=True, access_log=None, shutdown_timeout=5)


def _counted(activity: Activity, quiet: Collection[str]) -> Middleware:
    @web.middleware
    async def count(request: web.Request, handler: Handler) -> web.StreamResponse:
        with contextlib.nullcontext() if request.path in quiet else activity.lasting():
            return await handler(request)

    return count


@web.middleware
async def _errors(request: web.Request, handler: Any) -> web.StreamResponse:
    try:
        response: web.StreamResponse = await handler(request)
        return response
    except web.HTTPException as error:
        reason = (error.reason or "error").lower()
        return error_response(error.status, reason.replace(" ", "_"), reason)
    except Exception as error:  # the last door of a request: whatever comes becomes an answer
        if not isinstance(getattr(error, "code", None), str):
            _log.error("a request ended in %s", type(error).__name__)
        return failure_response(error)


class _Api:
    def __init__(self, models: Models) -> None:
        self._models = models
        self._started = int(time.time())

    async def healthz(self, request: web.Request) -> web.Response:
        return web.json_response({"status": "ok"})

    async def models(self, request: web.Request) -> web.Response:
        data = [self._model(name) for name in await self._models.names()]
        return web.json_response({"object": "list", "data": data})

    async def model(self, request: web.Request) -> web.Response:
        name = request.match_info["model"]
        await self._models.assistant(name)
        return web.json_response(self._model(name))

    def _model(self, name: str) -> dict[str, Any]:
        return {"id": name, "object": "model", "created": self._started, "owned_by": "causeway"}

    async def chat(self, request: web.Request) -> web.StreamResponse:
        parsed = parse_request(await request.read())
        assistant, pattern = await self._models.assistant(parsed.model)
        question = question_of(parsed, pattern)
        id = f"chatcmpl-{secrets.token_hex(12)}"
        if parsed.stream:
            return await _Stream(request, ChatVoice(id, parsed)).run(assistant, question)
        return web.json_response(answer_object(id, parsed, await assistant.answer(question, _ignore)))

    async def responses(self, request: web.Request) -> web.StreamResponse:
        parsed = parse_responses(await request.read())
        assistant, pattern = await self._models.assistant(parsed.model)
        question = responses_question(parsed, pattern)
        id = f"resp_{secrets.token_hex(12)}"
        if parsed.stream:
            return await _Stream(request, ResponsesVoice(id, parsed)).run(assistant, question)
        created = int(time.time())
        return web.json_response(response_object(id, parsed, created, await assistant.answer(question, _ignore)))

    async def embeddings(self, request: web.Request) -> web.Response:
        parsed, texts = parse_embeddings(await request.read())
        return web.json_response(await embeddings_object(parsed, texts, await self._models.embedder(parsed.model)))

    async def infer(self, request: web.Request) -> web.Response:
        answer = await self._models.infer(request.match_info["model"], await request.read())
        return web.Response(body=answer, content_type="application/json")


async def _ignore(event: Routed | Text) -> None:
    """A whole answer is wanted, not its pieces."""


class _Voice(Protocol):
    """How an API says the steps of a streamed answer, in bytes of server-sent events."""

    def begin(self, routed: Routed) -> Iterator[bytes]: ...
    def piece(self, text: Text) -> Iterator[bytes]: ...
    def end(self, answer: Answer) -> Iterator[bytes]: ...
    def fail(self, body: dict[str, Any]) -> Iterator[bytes]: ...


class _Stream:
    """One streamed answer. Until the first event an error is an ordinary HTTP answer; after it, an event."""

    def __init__(self, request: web.Request, voice: _Voice) -> None:
        self._request = request
        self._voice = voice
        self._response: web.StreamResponse | None = None

    async def run(self, assistant: Assistant, question: Question) -> web.StreamResponse:
        try:
            answer = await assistant.answer(question, self._deliver)
            await self._send(self._voice.end(answer))
            assert self._response is not None  # answer() delivers Routed before it returns
            await self._response.write_eof()
        except ConnectionError:
            if self._response is None:
                raise
            # The client has gone; leaving `answer` has stopped the model.
        except Exception as error:
            if self._response is None:
                raise
            await self._send(self._voice.fail(failure_object(error)[1]))
        return self._response

    async def _deliver(self, event: Routed | Text) -> None:
        if isinstance(event, Text):
            await self._send(self._voice.piece(event))
            return
        self._response = web.StreamResponse(
            headers={"Content-Type": "text/event-stream", "Cache-Control": "no-store"}
        )
        await self._response.prepare(self._request)
        await self._send(self._voice.begin(event))

    async def _send(self, events: Iterator[bytes]) -> None:
        assert self._response is not None
        if data := b"".join(events):
            await self._response.write(data)


async def serve_until_stopped(
    models: Models, token_path: Path, port: int, note: Callable[[str], None], behind: Behind | None = None,
    activity: Activity | None = None, listens: Callable[[int], None] = lambda port: None,
) -> None:
    """Serves on 127.0.0.1 until SIGINT or SIGTERM. `listens` is told the port.

    Raises CannotListen, or BadUse if the token is not private.
    """
    token, address = load_token(token_path), ""
    page = Page(behind, token, lambda fragment: note(f"for another tab: {address}{fragment}")) if behind else None
    runner = make_runner(models, token, page, activity)
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", port)
        try:
            await site.start()
        except OSError as error:
            # asyncio puts a long text of its own in place of the system's.
            reason = os.strerror(error.errno).lower() if error.errno else "it is taken"
            raise CannotListen(
                f"cannot listen on port {port}: {reason}",
                hint="another --port, or 0 for any; `edge serve` may run already",
            ) from None
        listens(runner.addresses[0][1])
        address = f"http://127.0.0.1:{runner.addresses[0][1]}"
        note(f"ready, serving {address}/v1 (token in {token_path})")
        if page is not None:
            note(f"the chat page, by a link that works once: {address}{page.fragment}")
        stopped = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, stopped.set)
        await stopped.wait()
    finally:
        await runner.cleanup()

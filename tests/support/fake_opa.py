"""A stand-in for OPA that speaks its REST: one boolean, answered by a function, or a failure of a chosen kind."""

import asyncio
import json
from collections.abc import Callable
from typing import Any, Self

from aiohttp import web

PATH = "/v1/data/causeway/allow"


class FakeOpa:
    """`answer` gets the input document. Modes: ok, undefined, word, object, one, redirect, 500, garbage, huge, stall,
    drop.
    """

    def __init__(self, answer: Callable[[dict[str, Any]], bool]) -> None:
        self.answer, self.mode, self.asked = answer, "ok", 0
        self.headers: dict[str, str] = {}
        self.url = ""
        self.release = asyncio.Event()

    async def __aenter__(self) -> Self:
        app = web.Application()
        app.router.add_post(PATH, self._decide)
        app.router.add_post("/v1/data/elsewhere", self._yes)
        app.router.add_get("/v1/data/elsewhere", self._yes)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1, handler_cancellation=True)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        self.url = f"http://127.0.0.1:{self._runner.addresses[0][1]}{PATH}"
        return self

    async def __aexit__(self, *_: object) -> None:
        self.release.set()
        await self._runner.cleanup()

    async def _yes(self, _: web.Request) -> web.Response:
        return web.json_response({"result": True})

    async def _decide(self, request: web.Request) -> web.Response:
        self.asked += 1
        self.headers = dict(request.headers)
        document = json.loads(await request.read())
        assert set(document) == {"input"}
        match self.mode:
            case "undefined":
                return web.json_response({})
            case "word":
                return web.json_response({"result": "true"})
            case "object":
                return web.json_response({"result": {"allow": True}})
            case "one":
                return web.json_response({"result": 1})
            case "redirect":
                return web.Response(status=307, headers={"Location": "/v1/data/elsewhere"})
            case "500":
                return web.json_response({"result": True}, status=500)
            case "garbage":
                return web.Response(text='{"result": true', content_type="application/json")
            case "huge":
                return web.Response(text='{"result": true}' + " " * (1 << 17), content_type="application/json")
            case "stall":
                await self.release.wait()
            case "drop":
                assert request.transport is not None
                request.transport.abort()
        return web.json_response({"result": self.answer(document["input"]), "decision_id": "d-1"})

"""Processes beside the gateway: `python -m benchmarks.bare_proxy provider|proxy PORT UPSTREAM`, both on aiohttp.

`provider` answers each chat completion at once, or in events at a pace, to one key. `proxy` is the least that a gateway
on aiohttp can be: it compares a token, puts the provider's key in its place, and passes the bytes on.
"""

import asyncio
import sys

import aiohttp
from aiohttp import web

KEY, TOKEN = "sk-upstream", "sk-client-0123456789"
PATH = "/v1/chat/completions"
ANSWER = (
    b'{"id":"c1","object":"chat.completion","created":1,"model":"mock-model","choices":[{"index":0,"message":{"role":'
    b'"assistant","content":"Air scatters blue light more than red."},"finish_reason":"stop"}],"usage":{'
    b'"prompt_tokens":21,"completion_tokens":9,"total_tokens":30}}'
)
EVENTS, PACE_S = 64, 0.010
_EVENT = (
    b'data: {"id":"c1","object":"chat.completion.chunk","created":1,"model":"mock-pace","choices":[{"index":0,"delta":{'
    b'"content":" token"},"finish_reason":%s}]}\n\n'
)
_UPSTREAM = web.AppKey("upstream", str)
_SESSION = web.AppKey("session", aiohttp.ClientSession)


async def _answer(request: web.Request) -> web.StreamResponse:
    body = await request.read()
    if request.headers.get("Authorization") != f"Bearer {KEY}":
        return web.Response(status=401)
    if b'"stream": true' in body:
        return await _streamed(request)
    return web.Response(body=ANSWER, content_type="application/json")


async def _streamed(request: web.Request) -> web.StreamResponse:
    answer = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
    await answer.prepare(request)
    clock = asyncio.get_running_loop().time
    began = clock()
    for number in range(1, EVENTS + 1):
        whole = number == EVENTS
        await answer.write(_EVENT % (b'"stop"' if whole else b"null") + b"data: [DONE]\n\n" * whole)
        await asyncio.sleep(began + number * PACE_S - clock())
    await answer.write_eof()
    return answer


async def _pass(request: web.Request) -> web.Response:
    body = await request.read()
    if request.headers.get("Authorization") != f"Bearer {TOKEN}":
        return web.Response(status=401)
    headers = {"Authorization": f"Bearer {KEY}", "Content-Type": "application/json"}
    async with request.app[_SESSION].post(request.app[_UPSTREAM] + PATH, data=body, headers=headers) as answer:
        return web.Response(status=answer.status, body=await answer.read(), content_type=answer.content_type)


async def _session(app: web.Application) -> None:
    app[_SESSION] = aiohttp.ClientSession(cookie_jar=aiohttp.DummyCookieJar())


def main() -> None:
    role, port, upstream = sys.argv[1:]
    app = web.Application(client_max_size=2 << 20)
    app.router.add_post(PATH, _answer if role == "provider" else _pass)
    if role == "proxy":
        app[_UPSTREAM] = upstream
        app.on_startup.append(_session)
    web.run_app(app, host="127.0.0.1", port=int(port), access_log=None, print=None)


if __name__ == "__main__":
    main()

"""A stand-in for Triton: the open inference protocol's one call, whose model finds a defect where a number is large."""

import json
from typing import Any, Self

from aiohttp import web


class FakeTriton:
    """Counts calls and keeps bodies; `status` other than 200 is answered with the protocol's error object."""

    def __init__(self) -> None:
        self.status = 200
        self.bodies: list[bytes] = []
        self.paths: list[str] = []
        self.headers: dict[str, str] = {}
        self.padding = 0
        self.base_url = ""

    async def __aenter__(self) -> Self:
        app = web.Application(client_max_size=4 << 20)
        app.router.add_post("/v2/models/{name}/infer", self._infer)
        app.router.add_get("/v2/health/ready", self._ready)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        self.base_url = f"http://127.0.0.1:{self._runner.addresses[0][1]}"
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._runner.cleanup()

    async def _ready(self, request: web.Request) -> web.Response:
        return web.Response(status=self.status)

    async def _infer(self, request: web.Request) -> web.Response:
        self.bodies.append(await request.read())
        self.paths.append(request.path)
        self.headers = dict(request.headers)
        if self.status != 200:
            return web.json_response({"error": "the model said CANARY-3"}, status=self.status)
        (tensor,) = json.loads(self.bodies[-1])["inputs"]
        answer: dict[str, Any] = {
            "model_name": request.match_info["name"], "model_version": "1",
            "outputs": [{"name": "defect", "datatype": "BOOL", "shape": [1], "data": [max(tensor["data"]) > 0.5]}],
        }
        if self.padding:
            answer["parameters"] = {"x": "y" * self.padding}
        return web.json_response(answer)


def tensors(*values: float, **fields: Any) -> bytes:
    """The body of a request with one input."""
    tensor = {"name": "image", "shape": [1, len(values)], "datatype": "FP32", "data": list(values)}
    return json.dumps({"inputs": [tensor], **fields}).encode()

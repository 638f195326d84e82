"""A request that is over is freed at once, whatever became of it: its body does not wait for who looks for cycles."""

import asyncio
import contextlib
import gc
import shutil
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from relay.gateway.pipeline import RequestContext
from tests.support.gateway_lab import chat
from tests.support.https_client import CHAT, Gateway, Workload, https_gateway
from tests.support.mock_provider import MockProvider
from tests.support.session_lab import gateway as session_gateway
from transport.errors import RequestRefused
from transport.messages import RequestHeader, encode_header
from transport.primitives import random_bytes

# How the provider answers, and whether a stream is asked for. "": the model is refused, nobody is called.
WAYS = [("ok", False), ("ok", True), ("500", False), ("not_json", False), ("stream_cut", True),
        ("stream_garbage", True), ("", False)]


@contextlib.contextmanager
def without_collector() -> Iterator[None]:
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


async def all_freed() -> None:
    """A request may outlast its answer by some turns of the loop."""
    async with asyncio.timeout(20):
        while any(type(one) is RequestContext for one in gc.get_objects()):  # noqa: ASYNC110 - nothing tells of it
            await asyncio.sleep(0.02)


@pytest.fixture
async def provider() -> AsyncIterator[MockProvider]:
    async with MockProvider() as provider:
        yield provider


@pytest.fixture
async def gateway(made: Path, tmp_path: Path, provider: MockProvider) -> AsyncIterator[Gateway]:
    async with https_gateway(made, tmp_path / "gateway", provider) as gateway:
        yield gateway


async def test_by_https(gateway: Gateway, provider: MockProvider) -> None:
    workload = await Workload.joined(gateway)
    async with workload.client() as client:
        with without_collector():
            for mode, stream in WAYS:
                provider.mode = mode
                body = chat("small" if mode else "other", stream=stream)
                async with client.post(CHAT, data=body, headers={"Content-Type": "application/json"}) as response:
                    with contextlib.suppress(Exception):  # of a stream that is cut
                        await response.read()
                await all_freed()
            async with workload.stalled():
                pass  # and it leaves
            await all_freed()


async def test_by_session(made: Path, tmp_path: Path, provider: MockProvider) -> None:
    shutil.copytree(made, tmp_path / "gateway")
    async with asyncio.timeout(60), session_gateway(tmp_path / "gateway", provider.base_url) as lab:
        session = await lab.session(await lab.device("lap-1"))
        with without_collector():
            for mode, stream in WAYS:
                provider.mode = mode
                body = chat("small" if mode else "other", stream=stream)
                header = encode_header(
                    RequestHeader("POST", CHAT, "application/json", "", len(body), int(time.time()) + 600))
                with contextlib.suppress(RequestRefused):
                    async for _ in await session.request(random_bytes(16), header, body).started():
                        pass
                await all_freed()
        await session.close()

"""One session's streams over one kind of link after another, each broken in the middle of the answer."""

import asyncio
import contextlib
import shutil
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from tests.support.gateway_lab import chat, make_folder
from tests.support.mock_provider import MockProvider, chunk
from tests.support.session_lab import Lab, gateway
from transport.errors import LinkLost, StreamEnded
from transport.events import EventEncoder
from transport.links.base import Endpoint, Link, Radio, connect, listen
from transport.links.radio import OpenRadio
from transport.links.virtual_radio import VirtualRadio
from transport.messages import RequestHeader, encode_header
from transport.primitives import random_bytes
from transport.stream import Progress
from transport.tickets import Wallet

# long against what a session has under way, so that no break comes when everything is there already
STREAM = [chunk(f"{number} " + "x" * 900) for number in range(1_300)] + [b"data: [DONE]\n\n"]
_encoder = EventEncoder()
WHOLE = _encoder.feed(b"".join(STREAM)) + _encoder.finish()

Break = Callable[[], None]
Way = Callable[[], Awaitable[tuple[Link, Break]]]


@pytest.fixture
async def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[tuple[Lab, MockProvider]]:
    folder = make_folder(tmp_path / "made")
    shutil.copytree(folder, tmp_path / "gateway")
    async with MockProvider() as provider, asyncio.timeout(60):
        provider.stream = STREAM
        async with gateway(tmp_path / "gateway", provider.base_url) as made:
            yield made, provider


@contextlib.asynccontextmanager
async def ways(lab: Lab, path: Path) -> AsyncIterator[dict[str, Way]]:
    """How to reach the gateway, and how to break what was opened."""
    air = VirtualRadio("instant", seed=3)
    edge, hop = OpenRadio(await air.device("edge")), OpenRadio(await air.device("hop"))

    async def serve(link: Link) -> None:
        await lab.sessions.serve_link(link, via="")

    listeners = {
        "ble": await listen(Endpoint("ble", ""), serve, radio=hop),
        "tcp": await listen(Endpoint.parse("tcp:127.0.0.1:0"), serve),
        "unix": await listen(Endpoint("unix", str(path)), serve),
    }

    def way(scheme: str, radio: Radio | None) -> Way:
        async def open_link() -> tuple[Link, Break]:
            link = await connect(listeners[scheme].endpoint, radio=radio)
            return link, air.drop if scheme == "ble" else link._writer.transport.abort  # type: ignore[attr-defined]

        return open_link

    yield {scheme: way(scheme, edge if scheme == "ble" else None) for scheme in listeners}
    for listener in listeners.values():
        await listener.close()
    await asyncio.gather(edge.close(), hop.close())


@pytest.mark.parametrize("route", ["ble tcp ble", "tcp ble unix", "ble ble ble tcp"])
async def test_an_answer_moves_from_link_to_link(
    lab: tuple[Lab, MockProvider], tmp_path: Path, route: str
) -> None:
    made, provider = lab
    schemes = route.split()
    svid, body = await made.device("lap-1"), chat(stream=True)
    header = encode_header(
        RequestHeader("POST", "/v1/chat/completions", "application/json", "", len(body), int(time.time()) + 600))
    request_id, progress, wallet = random_bytes(16), Progress(), Wallet()
    got = bytearray()
    async with ways(made, tmp_path / "s") as open_by:
        for number, scheme in enumerate(schemes):
            link, break_it = await open_by[scheme]()
            ticket = wallet.take(time.time())
            assert (ticket is None) == (number == 0)
            session = made.unopened(link, svid, ticket)  # type: ignore[arg-type]
            asked = session.resume(request_id, progress) if number else session.request(
                request_id, header, body, progress)
            await session.open()
            wallet.put(session.tickets)
            answer = await asked.started()
            last, upto = number == len(schemes) - 1, len(WHOLE) * (number + 1) // len(schemes)
            with contextlib.suppress(LinkLost, StreamEnded):
                async for data in answer:
                    got += data
                    if not last and len(got) >= upto:
                        break_it()  # and goes on with what had come by then
                        upto = len(WHOLE) + 1
            assert WHOLE.startswith(got) and (len(got) == len(WHOLE)) == last
            await session.close()
    assert bytes(got) == WHOLE and provider.calls == 1

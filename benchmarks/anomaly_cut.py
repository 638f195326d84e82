"""How long an answer goes on once its device has done too much: a gateway in this process, in real time."""

import asyncio
import contextlib
import logging
import tempfile
import time
from collections.abc import AsyncIterator
from pathlib import Path

from relay.gateway.anomaly.ladder import Level
from relay.gateway.anomaly.settings import Anomaly
from relay.gateway.pipeline import Answer, Refusal, RequestContext
from tests.support.gateway_lab import chat, context, make_folder
from tests.support.session_lab import Lab, gateway
from transport.errors import RequestRefused
from transport.messages import RequestHeader, encode_header
from transport.primitives import random_bytes

LOW = Anomaly(warn=1, throttle=2, quarantine=20)
WORD_S = 0.02


class _Words:
    """A provider that never comes to an end."""

    @contextlib.asynccontextmanager
    async def answer(self, context: RequestContext) -> AsyncIterator[Answer]:
        async def chunks() -> AsyncIterator[bytes]:
            while True:
                yield b"word "
                await asyncio.sleep(WORD_S)

        yield Answer(200, "text/plain", True, chunks())


def cut_after(rounds: int) -> list[float]:
    """Seconds from the last request before quarantine to the last word that the device gets, for each round."""
    with tempfile.TemporaryDirectory() as place:
        return asyncio.run(_rounds(make_folder(Path(place) / "gateway"), rounds))


async def _rounds(directory: Path, rounds: int) -> list[float]:
    ahead = 0.0  # of the clock that states last by

    def judging() -> float:
        return time.time() + ahead

    found = []
    logging.getLogger("relay").setLevel(logging.ERROR)  # each state would be told on the terminal
    async with gateway(directory, anomaly=LOW, judging=judging, answerer=_Words()) as lab:
        keeping = asyncio.create_task(lab.guard.keep())
        for number in range(1, rounds + 1):
            svid = await lab.device(f"lap-{number}")
            while lab.guard.level(number) < Level.THROTTLED:
                _nonsense(lab, number, 30)
                ahead += 11
                await lab.guard.tick()
            session = await lab.session(svid)
            body = chat(stream=True)
            header = encode_header(RequestHeader(
                "POST", "/v1/chat/completions", "application/json", "", len(body), int(time.time()) + 600
            ))
            last, begun = 0.0, asyncio.Event()
            told = await session.request(random_bytes(16), header, body).started()

            async def listen() -> None:
                nonlocal last
                with contextlib.suppress(RequestRefused):
                    async for _ in told:  # noqa: B023 - over before the next round
                        last = time.monotonic()
                        begun.set()  # noqa: B023

            listening = asyncio.create_task(listen())
            await begun.wait()
            ahead += 11
            too_much = time.monotonic()
            _nonsense(lab, number, 300)
            await listening
            found.append(max(0.0, last - too_much))
            await session.close()
        keeping.cancel()
        await asyncio.gather(keeping, return_exceptions=True)
    return found


def _nonsense(lab: Lab, enrolment: int, count: int) -> None:
    for _ in range(count):
        lab.guard.refused(context(b"{}", enrolment=enrolment), Refusal(400, "malformed_json", ""))

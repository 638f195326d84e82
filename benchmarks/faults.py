"""`scripts/bench faults [--runs N] [--seed S] [--early-data on|off]`: does each prompt arrive once, whatever is done?

Everything between the edge's outbox and the provider is the product's own code over SQLCipher stores: gateway client,
sessions, handshakes, records, journal, pipeline, provider client. Three things are not: links are in memory, the
provider is a scripted server on loopback that counts what it accepts, and waits are shorter (between attempts to
reconnect by 50 times, for a silent peer by 100 times, for a step of a handshake by 10 times). One run is one prompt
with one plan of faults, drawn from the seed:

    clean, cut, stall (then cut), duplicate, corrupt, reorder     a link, at a byte of a random class, up to three times
    kill edge                                                     the process ends; another one takes its outbox up
    kill gateway                                                  the process ends; another one opens its state
    lose journal                                                  as after a restore of a backup: another epoch

Printed: runs, delivered, told *interrupted*, other typed ends, silently lost, byte-identical, the most calls that the
provider accepted for one prompt, and the time from a cut to the next byte of the answer, waits taken out. Every
interruption has one of these causes, in this order:

    in_call          the gateway died, with its journal or without, before the provider's answer was whole
    answer_lost      the journal was lost with a whole answer in it that the edge did not have yet
    epoch            the journal had been lost before the edge sent, which it did before it was told so
    without_a_kill   none of these: a mistake
"""

import argparse
import asyncio
import contextlib
import json
import os
import random
import shutil
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from aiohttp import web

from benchmarks.faulty_links import FaultyLink, Plan
from edge_client.errors import EdgeError, Interrupted
from edge_client.gateway_client import GatewayClient
from edge_client.identity import NAMESPACE, DeviceIdentity
from edge_client.outbox import Outbox
from edge_client.sessions import Clock
from relay.gateway.state.sqlcipher import open_state
from store.database import STORE_SCHEMA, Connection, Database
from store.keys import DatabaseKey
from store.queue import Queue
from store.settings import Settings
from tests.support.gateway_lab import PASSPHRASE, make_folder
from tests.support.session_lab import Lab, gateway
from transport import connection, initiator, responder, telemetry
from transport.errors import TransportError
from transport.identity.svid import Svid, make_csr
from transport.links.base import Endpoint, Link
from transport.primitives import SigningKey

HASTE: Final = 50.0
connection.IDLE_S, connection.SILENCE_S = 0.3, 0.45
for module in (connection, initiator, responder):
    module.STEP_DEADLINE_S = 1.0
FORGET: Final = ("DELETE FROM answer_parts", "DELETE FROM calls", "UPDATE journal SET epoch = randomblob(16)")
ENDPOINTS: Final = (Endpoint.parse("tcp:127.0.0.1:1"), Endpoint.parse("tcp:127.0.0.1:2"))
CAUSES: Final = ("in_call", "answer_lost", "epoch", "without_a_kill")


class Hasty(Clock):
    """Waits pass quicker, and are added up so that they can be taken out of what is measured."""

    def __init__(self) -> None:
        self.slept = 0.0

    async def sleep(self, seconds: float) -> None:
        begun = time.perf_counter()
        await asyncio.sleep(seconds / HASTE)
        self.slept += time.perf_counter() - begun


class ScriptedProvider:
    """Answers each numbered prompt with the same seeded text, streamed, and counts what it accepts by number."""

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self.accepted: Counter[int] = Counter()
        self.answering: set[int] = set()  # prompts whose answer it has not given whole
        self.base_url = ""

    def text(self, number: int) -> list[bytes]:
        dice = random.Random(f"{self._seed} answer {number}")
        words = [
            "".join(dice.choices("abcdefgh \u00e4\n", k=dice.randint(1, 30))) for _ in range(dice.randint(1, 60))
        ]
        events = [json.dumps({
            "id": f"c{number}", "object": "chat.completion.chunk", "model": "small",
            "choices": [{"index": 0, "delta": {"content": word}, "finish_reason": None}],
        }) for word in words]
        return [f"data: {event}\n\n".encode() for event in events] + [b"data: [DONE]\n\n"]

    @contextlib.asynccontextmanager
    async def serve(self) -> AsyncIterator[None]:
        async def chat(request: web.Request) -> web.StreamResponse:
            number = int(json.loads(await request.read())["messages"][0]["content"].split()[-1])
            self.accepted[number] += 1
            self.answering.add(number)
            response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
            await response.prepare(request)
            for event in self.text(number):
                await response.write(event)
                await asyncio.sleep(0)
            self.answering.discard(number)
            return response

        app = web.Application()
        app.router.add_post("/v1/chat/completions", chat)
        runner = web.AppRunner(app, access_log=None, handler_cancellation=True, shutdown_timeout=0.1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        self.base_url = f"http://127.0.0.1:{runner.addresses[0][1]}/v1"
        try:
            yield
        finally:
            await runner.cleanup()


class World:
    """One edge's store, one gateway's folder and the provider; processes on them come and go."""

    def __init__(self, folder: Path, provider: ScriptedProvider, *, early_data: bool) -> None:
        self._folder, self.provider, self._early_data = folder, provider, early_data
        self._database = Database.open(folder / "edge.db", DatabaseKey.generate(), schema=STORE_SCHEMA)
        self.queue = Queue(self._database, "outbox")
        self._settings = Settings(self._database, NAMESPACE)
        self._tracing = telemetry.start("edge")
        self._stack = contextlib.AsyncExitStack()
        self._open: list[FaultyLink] = []
        self._faults: list[tuple[str, str, int]] = []
        self._cut_at: float | None = None
        self.clock = Hasty()
        self._slept = 0.0
        self.resumed: list[float] = []
        self.lab: Lab
        self.client: GatewayClient

    async def start(self) -> None:
        await self.start_gateway()
        invitation = await self.lab.enrolment.invite("edge/faults")
        device, key = SigningKey.generate(), SigningKey.generate()
        joined = await self.lab.enrolment.join(
            invitation.token_id, invitation.secret, make_csr(key), device.public.spki, roles=("edge",)
        )
        svid = Svid.from_chain(joined.issued.chain, key)
        await DeviceIdentity(
            svid.id, joined.enrolment, device, svid, self.lab.authority.bundle, tuple(map(str, ENDPOINTS))
        ).save(self._settings)
        self.start_edge()

    async def start_gateway(self) -> None:
        self.lab = await self._stack.enter_async_context(gateway(self._folder / "gateway", self.provider.base_url))

    def start_edge(self) -> None:
        self.client = GatewayClient(
            self._settings, Outbox(self.queue), (), self._tracing, self.dial, clock=self.clock, give_up_s=3_000.0,
            early_data=self._early_data,
        )

    async def dial(self, endpoint: Endpoint) -> Link:
        fault = self._faults.pop(0) if self._faults else ("", "", 0)
        via = "" if endpoint == ENDPOINTS[0] else "spiffe://field.example/hop/other"
        link = FaultyLink(self.lab.link(via=via), *fault, self.cut)
        self._open.append(link)
        return link

    def arm(self, plan: Plan) -> None:
        self._faults, self._cut_at = list(plan.links), None

    def cut(self) -> None:
        self._cut_at, self._slept = time.perf_counter(), self.clock.slept

    def went_on(self) -> None:
        """A byte of the answer has reached the reader."""
        if self._cut_at is not None:
            self.resumed.append(time.perf_counter() - self._cut_at - (self.clock.slept - self._slept))
            self._cut_at = None

    @property
    def epoch_unknown(self) -> bool:
        """Whether the gateway's journal is another than the one the edge knows."""
        return self.client._sessions._epoch not in (None, self.lab.journal.epoch)

    async def drop_links(self) -> None:
        links, self._open = self._open, []
        for link in links:
            await link.abort()

    async def kill_edge(self) -> None:
        await self.drop_links()
        await self.client.close()
        self.start_edge()

    async def kill_gateway(self, *, lose_journal: bool) -> None:
        await self.drop_links()
        await self._stack.aclose()
        self._stack = contextlib.AsyncExitStack()
        if lose_journal:
            forget_journal(self._folder / "gateway")
        await self.start_gateway()

    async def close(self) -> None:
        await self.client.close()
        await self.drop_links()
        await self._stack.aclose()
        self._tracing.close()
        self._database.close()


def forget_journal(folder: Path) -> None:
    """What a restored backup has: registrations, but no claim, and another epoch."""

    def work(database: Connection) -> None:
        for statement in FORGET:
            database.execute(statement)

    with open_state(folder, PASSPHRASE) as database:
        database.run_sync(work)


@dataclass
class Result:
    runs: int = 0
    delivered: int = 0
    interrupted: int = 0
    causes: Counter[str] = field(default_factory=Counter)  # of being told interrupted
    failed: int = 0
    lost: int = 0
    different: int = 0
    ends: Counter[str] = field(default_factory=Counter)


async def one(world: World, number: int, plan: Plan, result: Result) -> None:
    body = json.dumps({
        "model": "small", "stream": True, "messages": [{"role": "user", "content": f"prompt number {number}"}],
    }).encode()
    world.arm(plan)
    if number % 5 == 0:
        await world.drop_links()  # begin without a session
    kill, got, harm = plan.kill, b"", ""
    # After a lost journal the edge may send before it is told so: then it cannot know what became of that.
    epoch_unknown = world.epoch_unknown
    request_id: bytes | None = None
    try:
        answer = await world.client.request("POST", "/v1/chat/completions", body)
        while True:
            request_id, got = answer.request_id, b""
            async with contextlib.aclosing(answer.chunks()) as chunks:
                async for chunk in chunks:
                    got += chunk
                    world.went_on()
                    if kill and len(got) > plan.kill_after:
                        break
                else:
                    break
                # Killed: nothing of this process goes on. A gateway's death is the link's end for the reader.
                if kill in ("gateway", "journal"):
                    harm = "answer_lost" if kill == "journal" and number not in world.provider.answering else "in_call"
                    await world.kill_gateway(lose_journal=kill == "journal")
                    kill = ""
                    async for chunk in chunks:
                        got += chunk
                        world.went_on()
                    break
                await world.kill_edge()
            kill = ""
            answer = await world.client.take_up(request_id)
    except Interrupted as error:
        result.interrupted += 1
        result.ends[f"interrupted: {error.reason}, {plan.kill or 'links alone'}"] += 1
        result.causes[harm or ("epoch" if epoch_unknown else "without_a_kill")] += 1
    except (EdgeError, TransportError) as error:
        code = str(error.code)
        result.failed += 1
        result.ends[f"{code}, {plan.kill or 'links alone'}"] += 1
    else:
        result.delivered += 1
        if got != b"".join(world.provider.text(number)):
            result.different += 1
    result.runs += 1
    if request_id is not None:
        row = await world.queue.get(request_id)
        result.lost += row is None or row.state not in ("done", "interrupted", "failed", "expired")


async def campaign(runs: int, seed: int, *, early_data: bool, quiet: bool) -> dict[str, object]:
    dice = random.Random(seed)
    provider, result = ScriptedProvider(seed), Result()
    with tempfile.TemporaryDirectory(prefix="causeway-faults-") as name:
        folder = Path(name)
        made = make_folder(folder / "made")
        async with provider.serve():
            begun = time.perf_counter()
            resumed: list[float] = []
            for start in range(0, runs, 500):  # fresh stores now and then, as a fleet has
                part = folder / f"part-{start}"
                part.mkdir()
                shutil.copytree(made, part / "gateway")
                world = World(part, provider, early_data=early_data)
                await world.start()
                try:
                    for number in range(start, min(start + 500, runs)):
                        async with asyncio.timeout(60):
                            await one(world, number, Plan.draw(dice), result)
                        if not quiet and number % 100 == 99:
                            rate = (number + 1) / (time.perf_counter() - begun)
                            print(
                                f"\r{number + 1}/{runs} · {100 * (number + 1) // runs} % · about "
                                f"{(runs - number - 1) / rate:.0f} s left  ", end="", file=sys.stderr, flush=True,
                            )
                finally:
                    await world.close()
                    resumed += world.resumed
                shutil.rmtree(part)
    if not quiet:
        print(file=sys.stderr)
    quantiles = statistics.quantiles(resumed, n=20) if len(resumed) > 1 else [0.0] * 19
    return {
        "runs": result.runs, "delivered": result.delivered, "interrupted": result.interrupted,
        "lost": result.lost, "identical": result.delivered - result.different,
        "accepted_per_id_max": max(provider.accepted.values(), default=0),
        "resume_p50_s": round(quantiles[9], 4), "resume_p95_s": round(quantiles[18], 4),
        **{f"interrupted_{cause}": result.causes[cause] for cause in CAUSES},
        "failed": result.failed, "early_data": early_data, "ends": dict(result.ends),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description="Fault campaign.")
    parser.add_argument("--runs", type=int)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--smoke", action="store_true", help="200 runs")
    parser.add_argument(
        "--early-data", choices=("on", "off"), default="on", help="off: no request leaves before `welcome`"
    )
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    runs = options.runs or (200 if options.smoke else 10_000)
    os.environ.pop("OTEL_EXPORTER_OTLP_ENDPOINT", None)
    report = asyncio.run(campaign(runs, options.seed, early_data=options.early_data == "on", quiet=options.json))
    if options.json:
        print(json.dumps(report))
    else:
        for key, value in report.items():
            print(f"{key:28} {value}")
    good = (
        report["lost"] == 0 and report["identical"] == report["delivered"] and report["accepted_per_id_max"] == 1
        and report["failed"] == 0 and report["interrupted_without_a_kill"] == 0
    )
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())

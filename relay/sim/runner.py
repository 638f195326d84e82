"""Plays a scenario under virtual time, and keeps what happened."""

import asyncio
import contextlib
import gc
import os
import random
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Final, TypeVar

from edge_client.errors import EdgeError, GaveUp, Interrupted
from edge_client.remote_answer import RemoteAnswer
from relay.sim.cast import Edge, Gateway, Hop
from relay.sim.lifelines import PENDING, Course, Lifeline, Sample
from relay.sim.scenario import Fault, Scenario, seconds
from relay.sim.scripted_provider import ScriptedProvider
from transport.errors import TransportError
from transport.links import virtual_time
from transport.links.simulated import Air

SAMPLES: Final = 400  # moments of a run that are kept
COLLECT_EVERY: Final = 25  # a full collection takes 50 ms and more
TRY_AGAIN_S: Final = (5.0, 30.0)  # after an edge has given up, it takes its outbox up again within this
GRACE_S: Final = 3_600.0  # for what is under way at the end; nothing new is asked
_PAGE: Final = os.sysconf("SC_PAGE_SIZE")
T = TypeVar("T")


def run(
    scenario: Scenario, *, seed: int | None = None, duration_s: float | None = None,
    progress: Callable[[float], None] = lambda share: None, begun: Callable[[], None] = lambda: None,
) -> Course:
    """Plays it and tells all. `progress` is told the share of the run that is over, some hundred times; `begun` is
    called in the run's task when it begins.

    Raises BadInput for a scenario that does not fit together.
    """
    seed = scenario.seed if seed is None else seed
    start = time.perf_counter()
    memory = Path("/dev/shm")  # noqa: S108  # nothing has to survive, and a commit need not wait for a disk
    where = memory if os.access(memory, os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="causeway-sim-", dir=where) as name:
        stage = _Stage(scenario.checked(), seed, duration_s or seconds(scenario.duration), Path(name), progress)
        course = virtual_time.run(stage.play(begun))
    course.real_s = time.perf_counter() - start
    return course


class _Stage:
    """One run."""

    def __init__(
        self, scenario: Scenario, seed: int, duration_s: float, folder: Path, progress: Callable[[float], None]
    ) -> None:
        self._scenario, self._seed, self._folder, self._progress = scenario, seed, folder, progress
        self._course = Course(scenario.title, seed, duration_s, scenario.edge_names)
        self._provider = ScriptedProvider(scenario.prompts, seed)
        self._asking: dict[str, set[asyncio.Task[None]]] = {name: set() for name in scenario.edge_names}
        self._started = 0.0
        self._back = 0.0  # when somebody last came back who had been killed
        self._failures: list[BaseException] = []  # of our own code, not of what is played

    @property
    def _now(self) -> float:
        return asyncio.get_running_loop().time() - self._started

    async def play(self, begun: Callable[[], None]) -> Course:
        begun()
        scenario, course = self._scenario, self._course
        self._gateway = Gateway(self._folder / "gateway", self._provider)
        await self._gateway.start()
        self._hops = {name: Hop(name, self._gateway) for name in scenario.hop_names}
        self._edges = {name: self._edge(name) for name in scenario.edge_names}
        for name, edge in self._edges.items():
            await edge.join(await self._gateway.enrolment.invite(f"edge/{name}"), self._gateway.straight())
            edge.start()
        self._started = asyncio.get_running_loop().time()
        played = {asyncio.create_task(work) for work in (
            self._sample(), *map(self._ask_on, scenario.edge_names), *map(self._spoil, scenario.faults),
        )}
        try:
            done, _ = await asyncio.wait(played, timeout=course.duration_s, return_when=asyncio.FIRST_EXCEPTION)
            for task in done:
                task.result()
            await _stopped(played)
            if under_way := set().union(*self._asking.values()):
                await asyncio.wait(under_way, timeout=GRACE_S)
        finally:
            await _stopped(played)
            for edge in self._edges.values():
                await edge.close()
            for tasks in self._asking.values():
                await _stopped(tasks)
            for hop in self._hops.values():
                await hop.kill()
            await self._gateway.kill()
        if self._failures:
            raise self._failures[0]
        for name, edge in self._edges.items():
            start, end = self._started, self._started + course.duration_s
            course.apart[name] = [(one - start, other - start) for one, other in edge.apart(start, end)]
        course.up, course.down = self._carried()
        course.accepted = self._provider.accepted
        return course

    def _edge(self, name: str) -> Edge:
        airs = {
            hop: Air(replace(weather, seed=weather.seed or self._seed), name=f"{name} {hop}")
            for hop in self._hops if (weather := self._scenario.weather_between(name, hop)) is not None
        }
        hops = {hop: self._hops[hop] for hop in airs}
        dice = random.Random(f"{self._seed} pauses {name}")  # noqa: S311  # a play, not a key
        return Edge(name, self._folder, hops, airs, self._scenario.padding, dice, partial(self._parted, name))

    # --- prompts ----------------------------------------------------------------------------------------------------

    async def _ask_on(self, name: str) -> None:
        dice = random.Random(f"{self._seed} prompts {name}")  # noqa: S311  # a play, not a key
        every = seconds(self._scenario.prompts.every)
        while True:
            await asyncio.sleep(every * dice.uniform(0.5, 1.5))
            line = Lifeline(len(self._course.lifelines), name, self._now)
            self._course.lifelines.append(line)
            self._follow(line)

    def _follow(self, line: Lifeline) -> None:
        tasks = self._asking[line.edge]
        tasks.add(task := asyncio.create_task(self._ask(line)))
        task.add_done_callback(lambda task: self._asked(tasks, task))

    def _asked(self, tasks: set[asyncio.Task[None]], task: asyncio.Task[None]) -> None:
        tasks.discard(task)
        if not task.cancelled() and (failure := task.exception()) is not None:
            self._failures.append(failure)

    async def _ask(self, line: Lifeline) -> None:
        """Asks, and takes up again what an edge has given up, until there is an outcome or the edge is killed."""
        edge = self._edges[line.edge]
        client, life = edge.client, edge.lives
        dice = random.Random(f"{self._seed} patience {line.number}")  # noqa: S311  # a play, not a key
        while True:
            try:
                if line.request_id is None:
                    answer = await client.request(
                        "POST", "/v1/chat/completions", self._provider.body(line.number)
                    )
                    line.request_id = answer.request_id
                else:
                    answer = await client.take_up(line.request_id)
                await self._read(line, answer)
                self._over(line, "delivered")
            except GaveUp as error:
                line.request_id = (await edge.outbox.find(error.request)).id
                await asyncio.sleep(dice.uniform(*TRY_AGAIN_S))
                continue
            except Interrupted:
                self._over(line, "interrupted")
            except (EdgeError, TransportError) as error:
                if edge.lives == life:
                    self._over(line, str(error.code))
            return

    async def _read(self, line: Lifeline, answer: RemoteAnswer) -> None:
        got = bytearray()
        line.had = 0
        async with contextlib.aclosing(answer.chunks()) as chunks:
            async for chunk in chunks:
                self._heard(line, chunk)
                got += chunk
        line.whole = bytes(got) == b"".join(self._provider.events(line.number))

    def _heard(self, line: Lifeline, chunk: bytes) -> None:
        now = self._now
        line.began = now if line.began is None else line.began
        if line.broken is not None:
            way_back = self._edges[line.edge].in_reach_at(line.broken + self._started) - self._started
            line.gaps += ((line.broken, now),)
            self._course.resumed.append(now - min(now, max(line.broken, way_back, self._back)))
            line.broken = None
        line.had += len(chunk)
        written = self._provider.written.get(line.number, ())
        while line.tokens < len(written) and written[line.tokens][0] <= line.had:
            self._course.token_delays.append(now + self._started - written[line.tokens][1])
            line.tokens += 1

    def _over(self, line: Lifeline, outcome: str) -> None:
        line.outcome, line.ended = outcome, self._now
        self._provider.written.pop(line.number, None)

    def _parted(self, name: str, broke: bool) -> None:
        """An edge has no link any more; whether that matters, the streams tell that were under way."""
        cut = [
            line for line in self._course.lifelines
            if line.edge == name and line.outcome == PENDING and line.began is not None and line.broken is None
        ]
        for line in cut:
            line.broken = self._now
        if broke or cut:
            self._course.drops.append((self._now, name))

    # --- faults -----------------------------------------------------------------------------------------------------

    async def _spoil(self, fault: Fault) -> None:
        await asyncio.sleep(seconds(fault.at))
        while self._now + seconds(fault.lasts) < self._course.duration_s:  # whoever was killed comes back
            self._course.faults.append((self._now, f"{fault.do} {fault.who}".rstrip()))
            begun = self._now
            match fault.do:
                case "drop link":
                    for edge in self._chosen(self._edges, fault.who):
                        edge.cut()
                case "kill edge":
                    for edge in self._chosen(self._edges, fault.who):
                        await self._kill_edge(edge, seconds(fault.lasts))
                case "kill hop":
                    hops = self._chosen(self._hops, fault.who)
                    for hop in hops:
                        await hop.kill()
                    await asyncio.sleep(seconds(fault.lasts))
                    for hop in hops:
                        hop.up = True
                    self._back = self._now
                case "kill gateway":
                    await self._gateway.kill()
                    await asyncio.sleep(seconds(fault.lasts))
                    await self._gateway.start()
                    self._back = self._now
            if not fault.every:
                return
            await asyncio.sleep(max(0.0, begun + seconds(fault.every) - self._now))

    async def _kill_edge(self, edge: Edge, lasts_s: float) -> None:
        await edge.kill()
        await _stopped(self._asking[edge.name])
        await asyncio.sleep(lasts_s)
        edge.start()
        self._back = self._now
        for entry in await edge.client.unsettled():  # as `edge serve` does when it starts
            if entry.body is not None:
                line = self._course.lifelines[self._provider.number_of(entry.body)]
                line.request_id = entry.id
                self._follow(line)

    @staticmethod
    def _chosen(all_: dict[str, T], who: str) -> list[T]:
        return [one for name, one in all_.items() if who in ("", name)]

    # --- what is seen -----------------------------------------------------------------------------------------------

    async def _sample(self) -> None:
        every, course, objects = self._course.duration_s / SAMPLES, self._course, 0
        while True:
            await asyncio.sleep(every)
            if self._failures:
                raise self._failures[0]
            if len(course.samples) % COLLECT_EVERY == 0:
                gc.collect()
                objects = len(gc.get_objects()) - len(course.lifelines) - len(course.samples)
            links = [link for edge in self._edges.values() for air in edge.airs.values() for link in air.links]
            course.samples.append(Sample(
                self._now, sum(self._carried()),
                sum(link.up.take_most() + link.down.take_most() for link in links if not link.closed),
                len(asyncio.all_tasks()), _descriptors(), objects, _resident(),
            ))
            self._progress(min(1.0, self._now / course.duration_s))

    def _carried(self) -> tuple[int, int]:
        every = [air.carried for edge in self._edges.values() for air in edge.airs.values()]
        return sum(up for up, _ in every), sum(down for _, down in every)


def _descriptors() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text("ascii").split()[1]) * _PAGE // 1024


async def _stopped(tasks: set[asyncio.Task[None]]) -> None:
    waiting = set(tasks)
    for task in waiting:
        task.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)

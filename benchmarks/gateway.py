"""`scripts/bench gateway`: what the gateway costs a request on plain loopback, beside other gateways.

With `--harness DIR` (or $GATEWAY_HARNESS) a harness of mock provider, load generator and peers is run, with our gateway
among them; of its peers those count that are installed under $PEERS. Without one, our gateway and a bare aiohttp proxy
are measured before the same aiohttp provider. CPU time of the gateway's process is what a busy machine tells
truly; rates are what it had left. Then, in both cases, the encrypted session beside HTTPS, events that come at a pace,
and with `--soak N` memory after so many requests more. docs/BENCHMARKS.md says more.
"""

import argparse
import asyncio
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from statistics import median, quantiles

from benchmarks import gateway_prompts, gateway_soak, gateway_streams, session_path
from benchmarks.bare_proxy import EVENTS, KEY, PACE_S, TOKEN
from benchmarks.gateway_harness import built, with_harness
from benchmarks.gateway_load import BODY, ROOT, Generator, cpu_seconds, free_port, load, running
from benchmarks.measure import Row, cost_row, note, show
from benchmarks.plain_gateway import invited, prepare

HARNESS = ROOT.parent / "shared" / "bench" / "gateway"
_BARE = [sys.executable, "-m", "benchmarks.bare_proxy"]


class Effort:
    """How long a run measures, where the harness does not say."""

    def __init__(self, *, smoke: bool, soak: int) -> None:
        self.rounds = 2 if smoke else 9
        self.requests = 200 if smoke else 4_000  # of a round
        self.prompts = 20 if smoke else 400
        self.session_requests = 60 if smoke else 1_000
        self.streams, self.answers = (4, 1) if smoke else (gateway_streams.STREAMS, 10)
        self.first, self.soak = (100, 200) if smoke else (gateway_soak.FIRST, soak)


def beside_a_bare_proxy(own: int, pid: int, provider: int, effort: Effort) -> Row:
    bare = free_port()
    costs: dict[int, list[float]] = {own: [], bare: []}
    with running([*_BARE, "proxy", str(bare), f"http://127.0.0.1:{provider}"], bare) as bare_pid:
        pids = {own: pid, bare: bare_pid}
        for port in pids:
            asyncio.run(load(port, clients=16, requests=effort.requests // 4))
        for _ in range(effort.rounds):
            for port, pid in pids.items():
                started = cpu_seconds(pid)
                asyncio.run(load(port, clients=16, requests=effort.requests))
                costs[port].append((cpu_seconds(pid) - started) / effort.requests * 1e6)
    first, _, third = quantiles(costs[own], n=4)
    ours = median(costs[own])
    return cost_row("CPU per request, 16 clients", ours, "us", median(costs[bare]), "aiohttp proxy, no checks",
                    wanted=None, spread=(third - first) / ours)


def alone(folder: Path, effort: Effort, harness: Path | None) -> list[Row]:
    """What needs no other gateway: one of ours, before a provider of the harness's or one on aiohttp."""
    provider, port, session, https = free_port(), free_port(), free_port(), free_port()
    command = prepare(folder / "alone", port=port, upstream=f"http://127.0.0.1:{provider}", key=KEY, token=TOKEN,
                      session=session, https=https)
    bundle, invitations = asyncio.run(invited(
        folder / "alone", [f"edge/bench-{number}" for number in range(session_path.DEVICES)]
    ))
    mock: Sequence[str | Path] = [*_BARE, "provider", str(provider), "-"]
    if harness is not None:
        mock = [built(harness, "mock"), str(provider), KEY, str(EVENTS), str(round(PACE_S * 1e3))]
    cores = sorted(os.sched_getaffinity(0))
    rows = []
    with ExitStack() as stack:
        stack.callback(os.sched_setaffinity, 0, cores)
        os.sched_setaffinity(0, cores[:1])  # the gateway's; all else is on the others, where there are any
        pid = stack.enter_context(running(command, port))
        os.sched_setaffinity(0, cores[1:] or cores)
        stack.enter_context(running(mock, provider))
        if harness is None:
            note("no harness: beside a bare proxy on the same provider ...")
            rows.append(beside_a_bare_proxy(port, pid, provider, effort))
        note("sessions beside HTTPS ...")
        rows.append(asyncio.run(session_path.measured(
            pid, session, https, bundle, invitations, BODY, rounds=effort.rounds, requests=effort.session_requests
        )))
        note("prompts of 16 KB ...")
        rows += gateway_prompts.measured(port, pid, rounds=min(5, effort.rounds), requests=effort.prompts)
        note("streams ...")
        rows += asyncio.run(gateway_streams.measured(
            port, TOKEN, provider, KEY, streams=effort.streams, answers=effort.answers
        ))
        if effort.soak:
            note(f"{effort.first + effort.soak:,} requests ...")
            rows.append(gateway_soak.soaked(
                pid, _asking(port, folder, harness), first=effort.first, more=effort.soak
            ))
    return rows


def _asking(port: int, folder: Path, harness: Path | None) -> Callable[[int], int]:
    if harness is not None:
        (folder / "body.json").write_bytes(BODY)
        generator = Generator(built(harness, "load"), port, folder / "body.json")
        return lambda count: generator.run(clients=16, seconds=5.0)

    def ask(count: int) -> int:
        asyncio.run(load(port, clients=16, requests=count))
        return count

    return ask


def main() -> int:
    parser = argparse.ArgumentParser(prog="scripts/bench gateway", description="Measures the gateway on loopback.")
    parser.add_argument("--smoke", action="store_true", help="a short run, whose numbers are rough; no harness")
    parser.add_argument("--json", action="store_true", help="one JSON object on standard output")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--secs", type=float, default=3.0, help="of load for each round, target and scenario")
    parser.add_argument("--harness", type=Path, default=Path(os.environ.get("GATEWAY_HARNESS", HARNESS)))
    parser.add_argument("--stacks", action="store_true", help="the harness's bare stacks with checks, too")
    parser.add_argument("--soak", type=int, default=0, metavar="N",
                        help=f"also memory after N requests more than {gateway_soak.FIRST:,}")
    parser.add_argument("--only", choices=("peers", "alone"), help="a part of it")
    asked = parser.parse_args()
    harness = asked.harness
    if asked.smoke or not (harness / "run.sh").exists() or not shutil.which("gcc"):
        harness = None
    effort = Effort(smoke=asked.smoke, soak=asked.soak)
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as folder:
        if asked.only != "alone" and harness is not None:
            rows += with_harness(harness, Path(folder), rounds=asked.rounds, seconds=asked.secs, stacks=asked.stacks)
        if asked.only != "peers":
            rows += alone(Path(folder), effort, harness)
    show("gateway", rows, as_json=asked.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""`scripts/bench gateway`: what the gateway costs a request on plain loopback, beside other gateways.

With `--harness DIR` (or $GATEWAY_HARNESS) a harness of mock provider, load generator and peers is run, with our gateway
among them; of its peers those count that are installed under $PEERS. Without one, our gateway and a bare aiohttp proxy
are measured before the same aiohttp provider. CPU time of the gateway's process is what a busy machine tells
truly; rates are what it had left. docs/BENCHMARKS.md says more.
"""

import argparse
import asyncio
import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import aiohttp

from benchmarks.bare_proxy import KEY, PATH, TOKEN
from benchmarks.measure import Row, cost_row, note, show
from benchmarks.plain_gateway import as_shell, prepare

ROOT = Path(__file__).resolve().parent.parent
HARNESS = ROOT.parent / "shared" / "bench" / "gateway"
PROVIDER_PORT, PORT = 18_080, 18_090  # the harness's provider, and ours
PEERS = {"litellm": "litellm/bin/litellm", "portkey": "portkey/node_modules/@portkey-ai/gateway/build/start-server.js"}
SCENARIOS = {
    "json_c1": "1 client", "json_c16": "16 clients", "json_c64": "64 clients", "json16k_c16": "16 KB, 16 clients",
    "pace_c64": "64 streams",
}
MUST = {  # how many times as good as the peer: rates, and for the streams CPU per event
    ("json_c16", "litellm"): 60, ("json_c16", "portkey"): 5, ("json_c64", "litellm"): 60, ("json_c64", "portkey"): 6,
    ("json16k_c16", "litellm"): 40, ("json16k_c16", "portkey"): 4, ("pace_c64", "litellm"): 15,
    ("pace_c64", "portkey"): 2,
}
BODY = json.dumps({
    "model": "mock-model", "max_tokens": 64, "messages": [
        {"role": "system", "content": "You are a helpful assistant."},
        {"role": "user", "content": "Explain in two sentences why the sky is blue."},
    ],
}).encode()


# --- the harness ------------------------------------------------------------------------------------------------------


def with_harness(harness: Path, folder: Path, *, rounds: int, seconds: float) -> list[Row]:
    peers = Path(os.environ.get("PEERS", "/tmp/peers"))
    peers.mkdir(exist_ok=True)
    for name in ("mock", "load"):
        if not (peers / name).exists():
            subprocess.run(["gcc", "-O2", "-o", peers / name, harness / f"{name}.c"], check=True)
    installed = [name for name, file in PEERS.items() if (peers / file).exists()]
    for name in PEERS.keys() - set(installed):
        note(f"{name} is not installed under {peers}: not measured")
    command = prepare(
        folder / "gateway", port=PORT, upstream=f"http://127.0.0.1:{PROVIDER_PORT}", key=KEY, token=TOKEN
    )
    result = folder / "result.json"
    subprocess.run(
        ["sh", harness / "run.sh", "--targets", ",".join(["direct", *installed]), "--scenarios", ",".join(SCENARIOS),
         "--rounds", str(rounds), "--secs", str(seconds), "--warm", str(min(3.0, seconds)), "--out", result],
        check=True, stdout=sys.stderr, env={
            **os.environ, "PEERS": str(peers), "NO_SETUP": "1", "GATEWAY_TOKEN": TOKEN,
            "GATEWAY_URL": f"http://127.0.0.1:{PORT}{PATH}", "GATEWAY_CMD": as_shell(command, ROOT),
        },
    )
    return rows_of(json.loads(result.read_text()), installed)


def rows_of(result: dict[str, Any], peers: list[str]) -> list[Row]:
    rows: list[Row] = []
    for scenario, runs in result["runs"].items():
        what, stream = SCENARIOS[scenario], scenario.startswith("pace")
        rate, cpu = ("eps", "cpu_us_event") if stream else ("rps", "cpu_us_req")
        unit = "event" if stream else "request"
        bad = sum(run["bad_status"] + run["conn_err"] for run in runs["own"])
        if bad or not all(run["ok"] for run in runs["own"]):
            raise SystemExit(f"{scenario}: {bad} answers of ours were not good")
        for peer in peers or [""]:
            rows += [
                _compared(f"{unit}s a second, {what}", runs, rate, "/s", peer, more=True,
                          wanted=None if stream else MUST.get((scenario, peer))),
                _compared(f"CPU per {unit}, {what}", runs, cpu, "us", peer, more=False,
                          wanted=MUST.get((scenario, peer)) if stream else None),
            ]
        if scenario == "json_c1":
            rows.append(_added("added at the median, 1 client", runs, "p50", 0.5))
        if scenario == "json_c16":
            rows.append(_added("added at the 99th percentile, 16 clients", runs, "p99", 4.0))
    rows.append(cost_row("resident memory after load", result["end_rss"]["own"], "MiB", 120.0, "must", wanted=1.0))
    return rows


def _median(runs: dict[str, Any], target: str, key: str) -> float:
    return median(run[key] for run in runs[target])


def _compared(
    what: str, runs: dict[str, Any], key: str, unit: str, peer: str, *, more: bool, wanted: float | None
) -> Row:
    ours = _median(runs, "own", key)
    if not peer:
        return Row(what, ours, unit, None, "no peer: not measured", None)
    theirs = _median(runs, peer, key)
    return Row(what, ours, unit, theirs, peer, ours / theirs if more else theirs / ours, wanted)


def _added(what: str, runs: dict[str, Any], key: str, must_ms: float) -> Row:
    ours = max(1e-3, _median(runs, "own", key) - _median(runs, "direct", key))
    return cost_row(what, ours, "ms", must_ms, "must", wanted=1.0)


# --- without it -------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def running(command: list[str], port: int) -> Iterator[int]:
    """A process that answers on `port`; yields its id."""
    process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for _ in range(600):
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                break
            if process.poll() is not None:
                raise SystemExit(f"{command[-1]} has ended")
            time.sleep(0.1)
        yield process.pid
    finally:
        process.terminate()
        process.wait(60)


def cpu_seconds(pid: int) -> float:
    """User and system, of all threads."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as bound:
        return int(bound.getsockname()[1])


async def load(port: int, *, clients: int, requests: int) -> None:
    """`requests` in all, by `clients` connections in a closed loop. Raises for any answer but 200."""
    left = iter(range(requests))
    headers = {"Authorization": f"Bearer {TOKEN}", "Content-Type": "application/json"}
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=clients)) as session:

        async def client() -> None:
            for _ in left:
                url = f"http://127.0.0.1:{port}{PATH}"
                async with session.post(url, data=BODY, headers=headers) as answer:
                    await answer.read()
                    if answer.status != 200:
                        raise SystemExit(f"an answer with status {answer.status}")

        await asyncio.gather(*(client() for _ in range(clients)))


def by_itself(folder: Path, *, rounds: int, requests: int) -> list[Row]:
    provider, bare, own = free_port(), free_port(), free_port()
    upstream = f"http://127.0.0.1:{provider}"
    module = [sys.executable, "-m", "benchmarks.bare_proxy"]
    command = prepare(folder / "gateway", port=own, upstream=upstream, key=KEY, token=TOKEN)
    costs: dict[int, list[float]] = {own: [], bare: []}
    with (
        running([*module, "provider", str(provider), "-"], provider),
        running([*module, "proxy", str(bare), upstream], bare) as bare_pid, running(command, own) as own_pid,
    ):
        pids = {own: own_pid, bare: bare_pid}
        for port in pids:
            asyncio.run(load(port, clients=16, requests=requests // 4))
        for _ in range(rounds):
            for port, pid in pids.items():
                started = cpu_seconds(pid)
                asyncio.run(load(port, clients=16, requests=requests))
                costs[port].append((cpu_seconds(pid) - started) / requests * 1e6)
    first, _, third = quantiles(costs[own], n=4)
    ours = median(costs[own])
    return [cost_row("CPU per request, 16 clients", ours, "us", median(costs[bare]), "aiohttp proxy, no checks",
                     wanted=None, spread=(third - first) / ours)]


def main() -> int:
    parser = argparse.ArgumentParser(prog="scripts/bench gateway", description="Measures the gateway on loopback.")
    parser.add_argument("--smoke", action="store_true", help="a short run, whose numbers are rough; no harness")
    parser.add_argument("--json", action="store_true", help="one JSON object on standard output")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--secs", type=float, default=3.0, help="of load for each round, target and scenario")
    parser.add_argument("--harness", type=Path, default=Path(os.environ.get("GATEWAY_HARNESS", HARNESS)))
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if not asked.smoke and (asked.harness / "run.sh").exists() and shutil.which("gcc"):
            rows = with_harness(asked.harness, Path(folder), rounds=asked.rounds, seconds=asked.secs)
        else:
            note("no harness: beside a bare proxy on the same provider")
            rows = by_itself(Path(folder), rounds=3 if asked.smoke else 9, requests=400 if asked.smoke else 4_000)
    show("gateway", rows, as_json=asked.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())

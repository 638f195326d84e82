"""The gateway among other gateways: a harness of mock provider, load generator and peers, and what its table says."""

import json
import os
import subprocess
import sys
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.bare_proxy import KEY, PATH, TOKEN
from benchmarks.gateway_load import ROOT
from benchmarks.measure import Row, cost_row, note
from benchmarks.plain_gateway import as_shell, prepare

PROVIDER_PORT, PORT = 18_080, 18_090  # the harness's provider, and ours
PEERS = {"litellm": "litellm/bin/litellm", "portkey": "portkey/node_modules/@portkey-ai/gateway/build/start-server.js"}
STACKS = ("stack:aiohttp_policy", "stack:aiohttp_policy_std")  # bare proxies that do such checks: where to aim
SCENARIOS = {
    "json_c1": "1 client", "json_c16": "16 clients", "json_c64": "64 clients", "json16k_c16": "16 KB, 16 clients",
    "pace_c64": "64 streams",
}
MUST = {  # how many times as good as the peer: rates, and for the streams CPU per event
    ("json_c16", "litellm"): 60, ("json_c16", "portkey"): 5, ("json_c64", "litellm"): 60, ("json_c64", "portkey"): 6,
    ("json16k_c16", "litellm"): 40, ("json16k_c16", "portkey"): 4, ("pace_c64", "litellm"): 15,
    ("pace_c64", "portkey"): 2,
}


def built(harness: Path, name: str) -> Path:
    """One of the harness's two C programs."""
    peers = Path(os.environ.get("PEERS", "/tmp/peers"))
    peers.mkdir(exist_ok=True)
    if not (peers / name).exists():
        subprocess.run(["gcc", "-O2", "-o", peers / name, harness / f"{name}.c"], check=True)
    return peers / name


def with_harness(harness: Path, folder: Path, *, rounds: int, seconds: float, stacks: bool) -> list[Row]:
    peers = built(harness, "mock").parent
    built(harness, "load")
    installed = [name for name, file in PEERS.items() if (peers / file).exists()]
    for name in PEERS.keys() - set(installed):
        note(f"{name} is not installed under {peers}: not measured")
    if stacks and (peers / "stacks/bin/python").exists():
        installed += STACKS
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
    """Of what the harness writes. Raises SystemExit if an answer of ours was not good: then no figure counts."""
    rows: list[Row] = []
    for scenario, runs in result["runs"].items():
        what, stream = SCENARIOS[scenario], scenario.startswith("pace")
        rate, cpu = ("eps", "cpu_us_event") if stream else ("rps", "cpu_us_req")
        unit = "event" if stream else "request"
        bad = sum(run["bad_status"] + run["conn_err"] for run in runs["own"])
        if bad or not all(run["ok"] for run in runs["own"]):
            raise SystemExit(f"{scenario}: {bad} answers of ours were not good")
        for peer in peers or [""]:
            must = MUST.get((scenario, peer))
            of_rate, of_cpu = (None, must) if stream else (must, None)
            rows += [
                _compared(f"{unit}s a second, {what}", runs, rate, "/s", peer, more=True, must=of_rate),
                _compared(f"CPU per {unit}, {what}", runs, cpu, "us", peer, more=False, must=of_cpu),
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
    what: str, runs: dict[str, Any], key: str, unit: str, peer: str, *, more: bool, must: float | None
) -> Row:
    ours = _median(runs, "own", key)
    if not peer:
        return Row(what, ours, unit, None, "no peer: not measured", None)
    theirs = _median(runs, peer, key)
    return Row(what, ours, unit, theirs, peer, ours / theirs if more else theirs / ours, must)


def _added(what: str, runs: dict[str, Any], key: str, must_ms: float) -> Row:
    ours = max(1e-3, _median(runs, "own", key) - _median(runs, "direct", key))
    return cost_row(what, ours, "ms", must_ms, "must", wanted=1.0)

"""What reading a prompt of 16 KB costs the gateway: one that it has not seen, one that it has, and none read at all.

A text that was judged lately is not judged again; a load generator sends one and the same, conversations do not.
"""

import asyncio
import itertools
import json
from collections.abc import Iterator
from statistics import median

from benchmarks.gateway_load import cpu_seconds, load
from benchmarks.measure import Row, cost_row
from benchmarks.plain_gateway import UNREAD

_LINES = 300


def bodies(model: str, first: int, *, new: bool) -> Iterator[bytes]:
    """Chat completions with a prompt of 16 KB, each another one if they are to be `new`: from number `first` on."""
    for number in itertools.count(first, step=1 if new else 0):
        text = " ".join(f"Line {number + line}: the quick brown fox jumps over the lazy dog." for line in range(_LINES))
        yield json.dumps({"model": model, "messages": [{"role": "user", "content": text}]}).encode()


def measured(port: int, pid: int, *, rounds: int, requests: int) -> list[Row]:
    """CPU of the gateway's process; what is sent is made beforehand."""
    costs: dict[str, list[float]] = {"unread": [], "known": [], "new": []}
    for round_ in range(rounds):
        for way, found in costs.items():
            made = bodies(UNREAD if way == "unread" else "mock-model", 1_000 + round_ * requests, new=way == "new")
            sent = list(itertools.islice(made, requests))
            started = cpu_seconds(pid)
            asyncio.run(load(port, clients=16, requests=requests, bodies=iter(sent)))
            found.append((cpu_seconds(pid) - started) / requests * 1e6)
    plain = median(costs["unread"])
    return [
        cost_row(f"CPU per request, 16 KB, {what}", median(costs[way]), "us", plain, "without the classifier",
                 wanted=None)
        for way, what in (("new", "each prompt a new one"), ("known", "the same prompt again"))
    ]

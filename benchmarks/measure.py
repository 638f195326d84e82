"""Rows of a benchmark: functions timed in turns, medians, and how they are shown.

Whoever is compared runs in the same process and the same seconds: a round gives each function a short turn, so that a
machine that slows down slows all of them. A row's `ratio` is over 1 where Causeway is the better one.
"""

import argparse
import json
import os
import platform
import ssl
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from statistics import median, quantiles

import cryptography
from rich.console import Console
from rich.table import Table


@dataclass(frozen=True)
class Row:
    """One comparison. `spread` is the interquartile range of our rounds over their median; `wanted` is of `ratio`."""

    what: str
    ours: float
    unit: str
    peer: float | None
    peer_name: str
    ratio: float | None
    wanted: float | None = None
    spread: float | None = None


@dataclass(frozen=True)
class Times:
    """What rounds gave for one function: seconds for one call."""

    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        return median(self.seconds)

    @property
    def spread(self) -> float:
        first, _, third = quantiles(self.seconds, n=4)
        return (third - first) / self.median


def in_turns(functions: Mapping[str, Callable[[], object]], *, rounds: int, turn_s: float) -> dict[str, Times]:
    """CPU seconds of this thread for one call of each function, over `rounds` rounds of `turn_s` seconds a turn.

    CPU time, since both ends run in this one thread and other processes' turns are nobody's cost. The garbage collector
    stays on. At least 3 rounds.
    """
    counts = {name: _calls_in(function, turn_s) for name, function in functions.items()}
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(rounds):
        for name, function in functions.items():
            count = counts[name]
            started = time.thread_time()
            for _ in range(count):
                function()
            seconds[name].append((time.thread_time() - started) / count)
    return {name: Times(tuple(values)) for name, values in seconds.items()}


def _calls_in(function: Callable[[], object], seconds: float) -> int:
    count = 1
    while True:
        started = time.thread_time()
        for _ in range(count):
            function()
        taken = time.thread_time() - started
        if taken >= seconds / 4:
            return max(1, round(count * seconds / taken))
        count *= 2


def rate_row(
    what: str, ours: Times, peer: Times | None, peer_name: str, *, wanted: float | None, unit: str = "/s",
    scale: float = 1.0,
) -> Row:
    """A row in which more is better: `scale` units of work a call. Without a peer `ratio` is None."""
    mine = scale / ours.median
    theirs = scale / peer.median if peer else None
    return Row(what, mine, unit, theirs, peer_name, mine / theirs if theirs else None, wanted, ours.spread)


def cost_row(
    what: str, ours: float, unit: str, peer: float, peer_name: str, *, wanted: float | None, spread: float | None = None
) -> Row:
    """A row in which less is better."""
    return Row(what, ours, unit, peer, peer_name, peer / ours, wanted, spread)


def arguments(description: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="scripts/bench", description=description)
    parser.add_argument("--smoke", action="store_true", help="a short run, whose numbers are rough")
    parser.add_argument("--json", action="store_true", help="one JSON object on standard output")
    return parser.parse_args()


def machine() -> dict[str, str]:
    return {
        "cores": str(os.cpu_count()),
        "architecture": platform.machine(),
        "python": platform.python_version(),
        "cryptography": cryptography.__version__,
        "ssl": ssl.OPENSSL_VERSION,
    }


def note(text: str) -> None:
    """Progress, for a person who waits."""
    print(text, file=sys.stderr, flush=True)


def show(name: str, rows: list[Row], *, as_json: bool) -> None:
    if as_json:
        print(json.dumps({"name": name, "machine": machine(), "rows": [asdict(row) for row in rows]}))
        return
    table = Table(title=f"{name}: {', '.join(f'{key} {value}' for key, value in machine().items())}")
    table.add_column("what")
    for title in ("ours", "peer", "ratio", "wanted", "spread"):
        table.add_column(title, justify="right")
    table.add_column("peer's name")
    for row in rows:
        missed = row.ratio is not None and row.wanted is not None and row.ratio < row.wanted
        table.add_row(
            row.what, f"{_figure(row.ours)} {row.unit}", "-" if row.peer is None else f"{_figure(row.peer)} {row.unit}",
            "-" if row.ratio is None else f"[{'red' if missed else 'green'}]{row.ratio:.2f}[/]",
            "" if row.wanted is None else f"{row.wanted:g}", "" if row.spread is None else f"{row.spread:.0%}",
            row.peer_name,
        )
    # Wide enough for the table wherever it goes: folded cells cannot be read, or pasted into a document.
    Console(width=max(150, Console().width)).print(table)


def _figure(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.2f}"

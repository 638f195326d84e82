"""Resident memory of the gateway's process after many requests: what the first ones took is not to grow for days."""

from collections.abc import Callable, Iterator

from benchmarks.gateway_load import resident_mib
from benchmarks.measure import Row, cost_row, note

FIRST = 100_000
GROWTH = 1.05  # at most so many times what the first requests left
STEPS = 10  # the memory is looked at so often


def soaked(pid: int, ask: Callable[[int], int], *, first: int, more: int) -> Row:
    """`ask(count)` makes some requests, best that many, and says how many. The largest of the later looks counts."""
    begin, *later = looks(pid, ask, first=first, more=more)
    worst = max(later)
    return cost_row(
        f"resident memory, {more:,} requests after the first {first:,}", worst, "MiB", begin * GROWTH,
        f"5 % over what these left ({begin:.1f} MiB)", wanted=1.0,
    )


def looks(pid: int, ask: Callable[[int], int], *, first: int, more: int) -> Iterator[float]:
    """MiB after the first requests, and then after each part of the others."""
    done = 0
    for step in range(STEPS + 1):
        wanted = first + more * step // STEPS
        while done < wanted:
            done += ask(wanted - done)
        memory = resident_mib(pid)
        note(f"{done:,} requests: {memory:.1f} MiB")
        yield memory

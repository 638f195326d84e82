"""What a step has measured: a line a row, which benchmarks/bluez.py finds in what the machine says."""

import json
from collections.abc import Sequence
from statistics import median, quantiles

MARK = "row "


def show(what: str, ours: Sequence[float], peer: Sequence[float], peer_name: str) -> str:
    """Prints the row of these rounds, bytes a second each, at least two; says it in short.

    The ratio is the middle one of the rounds' own, whose two turns followed each other: the machine's speed varies more
    than what is compared.
    """
    first, _, third = quantiles(ours, n=4, method="inclusive")
    mine, theirs = median(ours), median(peer)
    ratio = median(one / other for one, other in zip(ours, peer, strict=True))
    print(MARK + json.dumps({
        "what": what, "ours": mine, "peer": theirs, "peer_name": peer_name, "ratio": ratio,
        "spread": (third - first) / mine,
    }), flush=True)
    return f"{what} {mine / 1000:.0f} kB/s, {peer_name} {theirs / 1000:.0f}, {ratio:.2f} times"

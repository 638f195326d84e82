"""`scripts/bench session`: handshakes, records, one request and idle memory, each beside a named peer.

docs/BENCHMARKS.md says what is measured and how, and what the numbers do not say.
"""

import ssl
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

from benchmarks import idle, loopback
from benchmarks.chains import Chains
from benchmarks.cores import Handshakes, record_carrier
from benchmarks.measure import Row, arguments, cost_row, in_turns, note, rate_row, show
from benchmarks.peers import TlsPair, noise_handshake, noiseprotocol
from transport.initiator import EdgeConnection

TLS = "ssl (MemoryBIO), TLS 1.3 mutual"
SIZES = ((256, "256 B", 1.0), (1_024, "1 KiB", 1.0), (16_384, "16 KiB", 1.7))
MEMORY_LIMIT_KIB = 16.0


class Effort:
    """How long a run measures."""

    def __init__(self, *, smoke: bool) -> None:
        self.rounds = 4 if smoke else 31
        self.handshake_turn_s = 0.01 if smoke else 0.05
        self.record_turn_s = 0.002 if smoke else 0.02
        self.requests = 10 if smoke else 100
        self.sessions = 500 if smoke else 10_000


def _tls_handshake(client: ssl.SSLContext, server: ssl.SSLContext) -> TlsPair:
    return TlsPair(client, server).shake_hands()


def _carry_noise(edge: Any, gateway: Any, data: bytes) -> bytes:
    opened: bytes = gateway.decrypt(edge.encrypt(data))
    return opened


def handshake_rows(effort: Effort) -> list[Row]:
    rows = []
    for intermediate, wanted in ((False, 1.6), (True, 1.4)):
        chains = Chains(intermediate=intermediate)
        ours = Handshakes(chains)
        client = chains.tls(chains.issue("edge/bench"), server=False)
        server = chains.tls(chains.issue("gateway/bench"), server=True)
        times = in_turns(
            {
                "ours": ours.full,
                "cached": ours.full_cached,
                "tls": partial(_tls_handshake, client, server),
            },
            rounds=effort.rounds, turn_s=effort.handshake_turn_s,
        )
        chain = "leaf and intermediate" if intermediate else "leaf alone"
        rows.append(rate_row(
            f"full handshake with KEM, {chain}, verified each time", times["ours"], times["tls"], TLS, wanted=wanted
        ))
        rows.append(rate_row(
            f"full handshake with KEM, {chain}, path remembered", times["cached"], times["tls"], TLS, wanted=None
        ))
    return rows


def without_kem_row(effort: Effort) -> Row:
    ours = Handshakes(Chains(intermediate=False))
    connection, name = noiseprotocol()
    functions: dict[str, Callable[[], object]] = {"ours": ours.without_kem}
    if connection is not None:
        functions["peer"] = noise_handshake(connection)
        name += " XX 25519, no certificates"
    times = in_turns(functions, rounds=effort.rounds, turn_s=effort.handshake_turn_s)
    return rate_row(
        "handshake without KEM, path remembered", times["ours"], times.get("peer"), name, wanted=0.9
    )


def resumption_rows(effort: Effort) -> list[Row]:
    chains = Chains(intermediate=True)
    ours = Handshakes(chains)
    client = chains.tls(chains.issue("edge/bench"), server=False)
    server = chains.tls(chains.issue("gateway/bench"), server=True)
    session = TlsPair(client, server).shake_hands().ticket()
    before: list[EdgeConnection] = [ours.full_cached()]

    def resume() -> None:
        before[0] = ours.resumed(before[0].tickets[0])

    def resume_tls() -> TlsPair:
        return TlsPair(client, server, session).shake_hands()

    again = resume_tls()
    if not again.client.session_reused:
        raise RuntimeError("the TLS peer did not resume")
    times = in_turns({"ours": resume, "tls": resume_tls}, rounds=effort.rounds, turn_s=effort.handshake_turn_s)
    return [
        rate_row("resumption", times["ours"], times["tls"], TLS + ", session ticket", wanted=2.0),
        cost_row(
            "resumption, both ways, without early data", float(ours.resumed_bytes()), "bytes", float(again.bytes),
            TLS + ", session ticket", wanted=None,
        ),
    ]


def record_rows(effort: Effort) -> list[Row]:
    chains = Chains(intermediate=False)
    tls = TlsPair(
        chains.tls(chains.issue("edge/bench"), server=False), chains.tls(chains.issue("gateway/bench"), server=True)
    ).shake_hands()
    tls.ticket()
    connection, name = noiseprotocol()
    rows = []
    for size, shown, wanted in SIZES:
        data = bytes(size)
        functions: dict[str, Callable[[], object]] = {
            "ours": record_carrier(size), "tls": partial(tls.carry, data)
        }
        if connection is not None:
            edge, gateway = noise_handshake(connection)()
            functions["noise"] = partial(_carry_noise, edge, gateway, data)
        times = in_turns(functions, rounds=effort.rounds, turn_s=effort.record_turn_s)
        for peer, peer_name, least in (("tls", TLS, wanted), ("noise", name, 1.5)):
            rows.append(rate_row(
                f"records, seal and open, {shown}", times["ours"], times.get(peer), peer_name, wanted=least,
                unit="MB/s", scale=size / 1e6,
            ))
    return rows


def request_row(effort: Effort) -> Row:
    ours, theirs = loopback.run(effort.rounds, effort.requests)
    return cost_row(
        "one small request and answer, loopback TCP, padding off", ours.median * 1e6, "µs", theirs.median * 1e6,
        "aiohttp, HTTPS keep-alive", wanted=1.0, spread=ours.spread,
    )


def memory_row(effort: Effort) -> Row:
    kib = idle.bytes_per_session(effort.sessions) / 1024
    return cost_row(
        f"memory per idle session at the gateway, {effort.sessions:,} sessions", kib, "KiB", MEMORY_LIMIT_KIB,
        "the limit that is wanted", wanted=1.0,
    )


def main() -> int:
    asked = arguments("Measures a session beside its peers.")
    effort = Effort(smoke=asked.smoke)
    rows: list[Row] = []
    note("handshakes ...")
    rows += handshake_rows(effort)
    rows.append(without_kem_row(effort))
    rows += resumption_rows(effort)
    note("records ...")
    rows += record_rows(effort)
    note("requests ...")
    rows.append(request_row(effort))
    note(f"{effort.sessions:,} idle sessions ...")
    rows.append(memory_row(effort))
    show("session", rows, as_json=asked.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""`scripts/bench identity`: what identity and authorisation cost a request on a warm session, a TLS handshake, and how
many devices a second join.

docs/BENCHMARKS.md says what is measured and how, and what the numbers do not say.
"""

import ssl
import sys
from functools import partial

from benchmarks import joining, warm
from benchmarks.chains import Chains
from benchmarks.measure import Row, arguments, in_turns, note, rate_row, show
from benchmarks.peers import TlsPair
from transport.identity.tls import client_context, server_context


def tls_row(*, smoke: bool) -> Row:
    """Handshakes of a hop with a gateway: the contexts of the product, and `ssl`'s own with the same chains, which
    check paths and validity but not who it is. Neither gives out tickets.
    """
    chains = Chains(intermediate=True)
    hop, gateway = chains.issue("hop/bench"), chains.issue("gateway/bench")
    ours = client_context(chains.bundle, hop), server_context(gateway, chains.bundle, ("hop",), require_client=True)
    plain = chains.tls(hop, server=False), chains.tls(gateway, server=True)
    plain[1].num_tickets = 0
    times = in_turns(
        {"ours": partial(shake_hands, *ours), "plain": partial(shake_hands, *plain)},
        rounds=4 if smoke else 31, turn_s=0.01 if smoke else 0.05,
    )
    peer = "ssl (MemoryBIO), TLS 1.3 mutual, any name"
    return rate_row("TLS handshake with the SVIDs checked inside", times["ours"], times["plain"], peer, wanted=None)


def shake_hands(client: ssl.SSLContext, server: ssl.SSLContext) -> TlsPair:
    return TlsPair(client, server).shake_hands()


def main() -> int:
    asked = arguments("Measures what identity and authorisation cost.")
    note("TLS handshakes ...")
    rows = [tls_row(smoke=asked.smoke)]
    note("requests on warm sessions ...")
    rows += warm.run(smoke=asked.smoke)
    note("joins ...")
    rows += joining.run(smoke=asked.smoke)
    show("identity", rows, as_json=asked.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())

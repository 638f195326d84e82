#!/usr/bin/env python3
"""Writes tests/vectors/causeway*.json, for a second implementation to check against. docs/SPEC.md section 10.

    make_vectors.py [sessions] [values] [refused] [faults]   what is made from causeway.json; all four if none is named
    make_vectors.py whole                                    causeway.json itself: new certificates, a new encapsulation
    make_vectors.py chains                                   new certificate chains

What the first line writes is the same in every run: its secrets and certificates are those of the first vector of
causeway.json, and every signature is deterministic. Certificates and the ML-KEM encapsulation draw randomness; they are
recorded in their files. The tests replay all files; run this only when the protocol changes, and say why in the commit.
"""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from tests.support.ca import Ca  # noqa: E402
from tests.support.recorded import Recorded, run_session  # noqa: E402
from transport.primitives import SigningKey  # noqa: E402

NOW = 1_900_000_000  # 2030-03-17, so that the vectors' certificates never depend on today's clock
COMMENT = "Causeway 1; docs/SPEC.md section 10. Byte strings in hex. Made by scripts/make_vectors.py."


def whole() -> dict[str, Any]:
    ca = Ca(now=NOW)
    vectors = []
    for name, edge_path, body in (
        ("request of 6 bytes", "edge/lap-1", b"prompt"),
        ("long name, request of 20,000 bytes", "edge/" + "n" * 200, bytes(i % 251 for i in range(20_000))),
    ):
        edge, gateway = ca.issue(edge_path), ca.issue("gateway/main")
        recorded = Recorded.fresh(name)
        vector = {
            "name": name,
            "now": NOW,
            "trust_domain": ca.trust_domain,
            "root": ca.root_der.hex(),
            "edge": _party(edge.chain, edge.key),
            "gateway": _party(gateway.chain, gateway.key),
            **recorded.as_json(),
        }
        vectors.append({**vector, **run_session(vector, body)})
    return {"suite": "Noise_NNhfs_P256+MLKEM768_AESGCM_SHA256", "vectors": vectors}


def _party(chain: tuple[bytes, ...], key: SigningKey) -> dict[str, object]:
    return {"chain": [part.hex() for part in chain], "svid_key_pkcs8": key.to_pkcs8().expose().hex()}


def sessions() -> dict[str, Any]:
    from tests.support.scripted_modes import MODES
    from tests.support.scripted_sessions import SCRIPTS

    return {"sessions": {name: script() for name, script in (SCRIPTS | MODES).items()}}


def values() -> dict[str, Any]:
    from tests.support.vector_values import values as made

    return made()


def refused() -> dict[str, Any]:
    from tests.support.vector_accepted import accepted
    from tests.support.vector_decoders import ends
    from tests.support.vector_hex import shorten
    from tests.support.vector_refusals import KEY, entries
    from tests.support.vector_violations import written, written_allowed

    return {
        "record_key": KEY.hex(),
        "decoders": [
            {"kind": kind, "what": what, "bytes": shorten(data), "ends": ends(kind, data)}
            for kind, what, data in entries()
        ],
        "accepted": [{"kind": kind, "what": what, "bytes": shorten(data)} for kind, what, data in accepted()],
        "violations": written(),
        "allowed": written_allowed(),
    }


def faults() -> dict[str, Any]:
    from tests.support.vector_events import events
    from tests.support.vector_faults import handshakes, resumptions

    return {"handshakes": handshakes(), "resumptions": resumptions(), "events": events()}


def chains() -> dict[str, Any]:
    from tests.support.vector_chains import DOMAIN
    from tests.support.vector_chains import chains as made

    return {"now": NOW, "trust_domain": DOMAIN, "role": "gateway", "chains": made(NOW)}


FILES: dict[str, tuple[str, Callable[[], dict[str, Any]]]] = {
    "whole": ("causeway.json", whole),
    "sessions": ("causeway_sessions.json", sessions),
    "values": ("causeway_values.json", values),
    "refused": ("causeway_refused.json", refused),
    "faults": ("causeway_faults.json", faults),
    "chains": ("causeway_chains.json", chains),
}


def main() -> None:
    wanted = sys.argv[1:] or ["sessions", "values", "refused", "faults"]
    if unknown := set(wanted) - set(FILES):
        sys.exit(f"not a part of the vectors: {', '.join(sorted(unknown))}; there are {', '.join(FILES)}")
    for name in wanted:
        file, make = FILES[name]
        target = ROOT / "tests" / "vectors" / file
        target.write_text(json.dumps({"comment": COMMENT, **make()}, indent=1) + "\n")
        print(f"{target.relative_to(ROOT)}: {target.stat().st_size} bytes", file=sys.stderr)


if __name__ == "__main__":
    main()

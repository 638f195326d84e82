#!/usr/bin/env python3
"""Writes tests/vectors/causeway.json: whole sessions with every secret, for a second implementation to check against.

Keys are derived from fixed labels, so a run gives the same handshakes again, but for the certificates' signatures and
the ML-KEM encapsulation, which draw randomness; those are recorded in the file. The tests replay the file; run this
only when the protocol changes, and say why in the commit.
"""

import json
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from tests.support.ca import Ca  # noqa: E402
from tests.support.recorded import Recorded, run_session  # noqa: E402
from transport.primitives import SigningKey  # noqa: E402

NOW = 1_900_000_000  # 2030-03-17, so that the vectors' certificates never depend on today's clock


def main() -> None:
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
    comment = "Causeway 1; docs/SPEC.md section 10. All byte strings in hex. Made by scripts/make_vectors.py."
    target = ROOT / "tests" / "vectors" / "causeway.json"
    target.write_text(
        json.dumps(
            {"comment": comment, "suite": "Noise_NNhfs_P256+MLKEM768_AESGCM_SHA256", "vectors": vectors}, indent=1
        )
        + "\n"
    )
    print(f"{target.relative_to(ROOT)}: {len(vectors)} vectors, {target.stat().st_size} bytes", file=sys.stderr)


def _party(chain: tuple[bytes, ...], key: SigningKey) -> dict[str, object]:
    return {"chain": [part.hex() for part in chain], "svid_key_pkcs8": key.to_pkcs8().expose().hex()}


if __name__ == "__main__":
    main()

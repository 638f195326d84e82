"""Writes what docs/ says of the gateway's API from the code that checks it: openapi.json, and the table of refusals.

    python scripts/gateway_api.py [--check]
"""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from relay.gateway.checks.openapi import errors, published  # noqa: E402

BEGIN, END = "<!-- by scripts/gateway_api.py -->\n", "<!-- end -->\n"


def written() -> dict[Path, bytes]:
    """The files as they have to be."""
    page = ROOT / "docs" / "GATEWAY_API.md"
    before, begin, rest = page.read_text().partition(BEGIN)
    after = rest.partition(END)[2]
    document = published("openapi")
    assert document is not None and begin, "no place for the table"
    return {
        ROOT / "docs" / "openapi.json": document,
        page: f"{before}{BEGIN}{errors()}\n{END}{after}".encode(),
    }


def main(check: bool) -> int:
    old = [path for path, text in written().items() if not path.exists() or path.read_bytes() != text]
    for path in old:
        print(f"{path.relative_to(ROOT)} {'is old' if check else 'is written'}")
        if not check:
            path.write_bytes(written()[path])
    return 1 if check and old else 0


if __name__ == "__main__":
    sys.exit(main("--check" in sys.argv[1:]))

"""Runs the tests that need a real OPA: makes it with Go, pinned and kept for the next time, or says that it did not.

    python scripts/check_opa.py [OPA]     with an OPA that is there already
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
OPA = "github.com/open-policy-agent/opa@v1.22.2"
KEPT = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "causeway" / OPA.rpartition("/")[2]


def made() -> Path | None:
    """OPA's program; None without Go. The module proxy's checksums are Go's to check."""
    program = KEPT / "opa"
    if not program.is_file():
        go = shutil.which("go") or shutil.which("go", path="/usr/local/go/bin")
        if go is None:
            return None
        KEPT.mkdir(parents=True, exist_ok=True)
        subprocess.run(
            [go, "install", OPA], env={**os.environ, "GOBIN": str(KEPT), "CGO_ENABLED": "0", "GOFLAGS": ""}, check=True
        )
    return program


def main() -> int:
    program = Path(sys.argv[1]).resolve() if len(sys.argv) > 1 else made()
    if program is None:
        print("not run: there is no Go on this machine to make OPA with")
        return 0
    if not program.is_file():
        print(f"there is no {program}")
        return 2
    tests = ["tests/interop/test_policy_real_opa.py"]
    command = [sys.executable, "-m", "pytest", "-v", "-m", "opa", *tests]
    return subprocess.run(command, cwd=ROOT, env={**os.environ, "CAUSEWAY_OPA": str(program)}, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())

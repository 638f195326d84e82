"""Runs the chain with a real SPIRE: makes server and agent with Go, pinned and kept for the next time, or says that it
did not.

    python scripts/check_spire.py [FOLDER]     with a spire-server and spire-agent that are there already

The module's checksum is pinned here, and with it SPIRE's own go.sum, which pins whatever it is built of.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
MODULE, VERSION = "github.com/spiffe/spire", "v1.13.3"
SUM = "h1:wDTK8tj8ShO5izjue/OFanVaehmjUxSxHtSWxBY+FJQ="
PROGRAMS = ("spire-server", "spire-agent")
KEPT = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "causeway" / f"spire@{VERSION}"
LIMIT_S = 2_400  # to make both; eleven minutes on two busy cores


def made() -> Path | str:
    """The folder with both programs; without Go, a C compiler or the module, why there is none.

    Raises SystemExit for a module that is not the pinned one, CalledProcessError, TimeoutExpired.
    """
    if all((KEPT / name).is_file() for name in PROGRAMS):
        return KEPT
    go = shutil.which("go") or shutil.which("go", path="/usr/local/go/bin")
    if go is None:
        return "there is no Go on this machine to make SPIRE with"
    if shutil.which("gcc") is None and shutil.which("cc") is None:  # of its database
        return "there is no C compiler on this machine to make SPIRE with"
    ends = time.monotonic() + LIMIT_S
    environment = {**os.environ, "GOFLAGS": "-buildvcs=false", "CGO_ENABLED": "1"}
    with tempfile.TemporaryDirectory(prefix="causeway-spire-") as scratch:
        answer = subprocess.run(
            [go, "mod", "download", "-json", f"{MODULE}@{VERSION}"], cwd=scratch, env=environment,
            capture_output=True, text=True, check=False, timeout=LIMIT_S,
        )
        told = json.loads(answer.stdout or "{}")
        if answer.returncode or "Dir" not in told:
            return f"the module proxy does not give SPIRE: {told.get('Error', answer.stderr).strip()}"
        if told.get("Sum") != SUM:
            raise SystemExit(f"SPIRE {VERSION} is not the one that is pinned here: {told.get('Sum')}")
        source = Path(scratch) / "spire"  # Go's own copy is read-only, and a replaced module has no `go install`
        shutil.copytree(told["Dir"], source, copy_function=shutil.copyfile)
        for name in PROGRAMS:
            print(f"making {name} {VERSION}; this takes minutes, once", flush=True)
            command = ["nice", "-n", "10", go, "build", "-trimpath", "-o", f"{scratch}/{name}", f"./cmd/{name}"]
            subprocess.run(command, cwd=source, env=environment, check=True, timeout=max(1.0, ends - time.monotonic()))
        KEPT.mkdir(parents=True, exist_ok=True)
        for name in PROGRAMS:
            shutil.move(f"{scratch}/{name}", KEPT / name)
    return KEPT


def main() -> int:
    programs = Path(sys.argv[1]).resolve() if len(sys.argv) > 1 else made()
    if isinstance(programs, str):
        print(f"not run: {programs}")
        return 0
    if missing := [name for name in PROGRAMS if not (programs / name).is_file()]:
        print(f"there is no {programs / missing[0]}")
        return 2
    command = [sys.executable, "-m", "pytest", "-v", "-s", "-m", "spire", "tests/interop/test_spire_real.py"]
    environment = {**os.environ, "CAUSEWAY_SPIRE": str(programs)}
    return subprocess.run(command, cwd=ROOT, env=environment, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())

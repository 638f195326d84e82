"""The one way to run the tests: `scripts/test [quick|full|ci|long]`.

    quick   60 s    lint, types, import contracts, budget, unit, vectors, properties (short); no root, no model
    full     8 min  quick, then everything that needs processes, the command line or the local model   (the default)
    ci      22 min  full, then the wheel in an empty environment, the model of exactly once (needs spin), every
                    command of the README, the demo, and the real Bluetooth stack in a virtual machine (needs QEMU)
    long            Hypothesis with long profiles, kill -9 at every point, a real OPA and a real SPIRE (need Go); prints
                    what belongs to it

Every stage is a process of its own with a time limit. A time table ends the output, followed by pytest's closing lines.
Exit code 0 if every stage passed, 1 otherwise.
"""

import argparse
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.metadata import requires
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
BIN = Path(sys.executable).parent
TIERS = {"quick": 60, "full": 8 * 60, "ci": 22 * 60, "long": 60 * 60}  # seconds a tier should take after set-up

ENDINGS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

# `-v` undoes the `-q` of pyproject.toml, so that progress and the usual closing line show; `-rs` says each skip aloud.
PYTEST = [str(BIN / "python"), "-m", "pytest", "-v", "-rs", "--durations=5", "--durations-min=1"]
QUICK_TESTS = ["unit", "vectors", "properties", "fuzz", "contract", "architecture"]
FULL_TESTS = ["cli", "integration", "faults", "interop"]
LONG_TESTS = ["properties", "contract"]


@dataclass(frozen=True)
class Stage:
    name: str
    command: Sequence[str]
    limit_s: int
    environment: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Outcome:
    stage: Stage
    result: str  # "passed", "failed (code)", "timed out"
    seconds: float
    closing: str  # pytest's last line, "" for other tools

    @property
    def passed(self) -> bool:
        return self.result == "passed"


def present(folders: Sequence[str]) -> list[str]:
    """The test folders that hold tests; pytest refuses a folder that is not there."""
    return [f"tests/{name}" for name in folders if any((ROOT / "tests" / name).rglob("test_*.py"))]


def pytest_stage(name: str, folders: Sequence[str], limit_s: int, *arguments: str, profile: str = "default") -> Stage:
    return Stage(name, [*PYTEST, f"--hypothesis-profile={profile}", *arguments, *present(folders)], limit_s)


def quick() -> list[Stage]:
    python = str(BIN / "python")
    return [
        Stage("lint", [str(BIN / "ruff"), "check", "."], 20),
        Stage("types", [str(BIN / "mypy")], 120),  # 10 s once its cache is warm
        Stage("import contracts", [str(BIN / "lint-imports")], 30),
        Stage("source budget", [python, "scripts/budget.py"], 20),
        pytest_stage("fast tests", QUICK_TESTS, 300, "-n", "auto", "-m", "not model and not demo", profile="quick"),
    ]


def full() -> list[Stage]:
    return [
        *quick(),
        pytest_stage("whole processes", FULL_TESTS, 900, "-n", "auto", "-m", "not model and not demo"),
        pytest_stage("local model", [*QUICK_TESTS, *FULL_TESTS], 300, "-m", "model and not demo"),
    ]


def ci(scratch: Path) -> list[Stage]:
    python, dist, empty, alone = str(BIN / "python"), scratch / "dist", scratch / "empty", scratch / "alone"
    install = (  # the wheel with nothing of the repository on the path; hashes come from the lock
        f"set -eu; {python} -m hatchling build -t wheel -d {dist}; {python} -m venv {empty}; "
        f"{empty}/bin/python -m pip install -q --disable-pip-version-check --no-deps --require-hashes"
        f" -r {scratch}/light.lock; "
        f"{empty}/bin/python -m pip install -q --disable-pip-version-check --no-deps {dist}/*.whl; "
        f"cd {scratch}; {empty}/bin/edge --help; {empty}/bin/relay --help; {empty}/bin/relay hop --help; "
        f"{python} -m venv {alone}; {alone}/bin/python -m pip install -q --disable-pip-version-check --no-deps"
        f" --require-hashes -r {scratch}/store.lock; "
        f"{alone}/bin/python -m pip install -q --disable-pip-version-check --no-deps {dist}/*.whl; "
        f"for package in edge_client relay transport; do rm -r {alone}/lib/python*/site-packages/$package; done; "
        f"{alone}/bin/python -W error {ROOT}/examples/encrypted_store.py"
    )
    return [
        *full(),
        Stage("wheel, empty venvs", ["bash", "-c", install], 300),
        Stage("model of exactly once", [python, "scripts/check_model.py"], 200),  # some 40 s on a machine at rest
        pytest_stage("README and demo", FULL_TESTS, 600, "-m", "demo"),
        Stage("BlueZ in a machine", [python, "-m", "scripts.bluez_vm", "ci"], 1100),  # four minutes at rest
    ]


def long() -> list[Stage]:
    print("The long tier: property and contract suites with the Hypothesis profile `long` (2,000 examples a property),")
    print("a store killed at every call that changes a file, a real OPA beside Cedar, and the whole chain with a real")
    print("SPIRE, made from their sources where Go is here.")
    return [
        pytest_stage("long properties", LONG_TESTS, 3600, profile="long"),
        pytest_stage("kill -9 anywhere", ["faults"], 1800, "-k", "test_store_kills", profile="long"),
        Stage("real OPA", [str(BIN / "python"), "scripts/check_opa.py"], 1800),  # three minutes to compile, once
        Stage("real SPIRE", [str(BIN / "python"), "scripts/check_spire.py"], 3000),  # eleven minutes to compile, once
        Stage("BlueZ, every step", [str(BIN / "python"), "-m", "scripts.bluez_vm"], 1100),
    ]


def light_lock(*packages: str) -> str:
    """The lock's entries for these packages and what they need without any extra: the wheel is tried with these."""
    wanted, ahead = set(packages), list(packages)
    while ahead:
        for text in requires(ahead.pop()) or []:
            needed = Requirement(text)
            name = canonicalize_name(needed.name)
            if name not in wanted and (needed.marker is None or needed.marker.evaluate({"extra": ""})):
                wanted.add(name)
                ahead.append(name)
    kept: list[str] = []
    keep = False
    for line in (ROOT / "requirements.lock").read_text(encoding="utf-8").splitlines(keepends=True):
        if line[:1] not in (" ", "#", "\n"):
            keep = canonicalize_name(line.split("==")[0]) in wanted
        if keep:
            kept.append(line)
    return "".join(kept)


def run(stage: Stage) -> Outcome:
    """Runs one stage with its output shown as it comes. Past the limit the stage and all it started are ended."""
    print(f"\n=== {stage.name} (limit {stage.limit_s} s) ===", flush=True)
    started = time.monotonic()
    # Compiled once, even where the machine says not to keep that: else each worker compiles every test (4 s) and each
    # of some hundred processes its own modules (up to 2 s). An empty value is as good as none.
    kept = {"PYTHONUNBUFFERED": "1", "PYTHONDONTWRITEBYTECODE": ""}
    environment = {**os.environ, **kept, **stage.environment}
    process = subprocess.Popen(
        stage.command, cwd=ROOT, env=environment, start_new_session=True, text=True, errors="replace",
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    late = threading.Event()

    def end() -> None:
        late.set()
        kill_group(process)

    timer = threading.Timer(stage.limit_s, end)
    timer.start()
    closing = ""
    try:
        assert process.stdout is not None
        for line in process.stdout:
            sys.stdout.write(line)
            sys.stdout.flush()
            if line.startswith("=") and " in " in line:
                closing = line.strip()
        code = process.wait()
    finally:
        timer.cancel()
        kill_group(process)
    result = "timed out" if late.is_set() else "passed" if code == 0 else f"failed ({code})"
    return Outcome(stage, result, time.monotonic() - started, closing if "pytest" in stage.command else "")


def kill_group(process: "subprocess.Popen[str]") -> None:
    """Ends the stage and whatever it started and left behind; nothing to do is the usual case."""
    for number, grace_s in ((signal.SIGTERM, 5.0), (signal.SIGKILL, 5.0)):
        deadline = time.monotonic() + grace_s
        try:
            os.killpg(process.pid, number)
            while time.monotonic() < deadline:
                process.poll()  # collects the leader, or its group would never be empty
                os.killpg(process.pid, 0)
                time.sleep(0.05)
        except ProcessLookupError:
            return


def interrupted(number: int, frame: object) -> None:
    """The first signal ends the run; further ones must not cut short the ending of what it started."""
    for each in ENDINGS:
        signal.signal(each, signal.SIG_IGN)
    raise KeyboardInterrupt


def report(tier: str, outcomes: Sequence[Outcome]) -> None:
    width = max(len(outcome.stage.name) for outcome in outcomes)
    print(f"\n{'stage':{width}}  {'result':11}  {'seconds':>7}  {'limit':>6}")
    for outcome in outcomes:
        print(f"{outcome.stage.name:{width}}  {outcome.result:11}  {outcome.seconds:7.1f}  {outcome.stage.limit_s:6}")
    total = sum(outcome.seconds for outcome in outcomes)
    print(f"{'all of ' + tier:{width}}  {'':11}  {total:7.1f}  {TIERS[tier]:6}")
    if not (Path(os.environ.get("CAUSEWAY_SHARED", ROOT.parent / "shared"))).is_dir():
        print("note: ../shared is absent, so the outside vectors were skipped; the project's own vectors ran")
    print()
    for outcome in outcomes:
        if outcome.closing:
            print(outcome.closing)
    if bad := [outcome.stage.name for outcome in outcomes if not outcome.passed]:
        print(f"FAILED: {', '.join(bad)}")


def main() -> int:
    parser = argparse.ArgumentParser(prog="scripts/test", description="Runs the tests.")
    parser.add_argument("tier", nargs="?", choices=list(TIERS), default="full")
    tier = parser.parse_args().tier
    for number in ENDINGS:
        signal.signal(number, interrupted)
    outcomes: list[Outcome] = []
    with tempfile.TemporaryDirectory(prefix="causeway-test-") as folder:
        scratch = Path(folder)
        (scratch / "light.lock").write_text(light_lock("causeway"), encoding="utf-8")
        (scratch / "store.lock").write_text(light_lock("cryptography", "numpy", "sqlcipher3"), encoding="utf-8")
        stages = {"quick": quick, "full": full, "ci": lambda: ci(scratch), "long": long}[tier]()
        try:
            for stage in stages:
                outcomes.append(run(stage))
        except KeyboardInterrupt:
            print("\nstopped")
            return 130
    report(tier, outcomes)
    return 0 if all(outcome.passed for outcome in outcomes) else 1


if __name__ == "__main__":
    if shutil.which("ruff", path=str(BIN)) is None:
        sys.exit("run scripts/test, which sets up first")
    sys.exit(main())

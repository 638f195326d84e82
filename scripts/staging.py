"""What the demo stands on: its processes, the network namespace, the steps' progress, a stand-in for the control."""

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from rich.console import Console
from rich.padding import Padding

from scripts.canaries import Said


class DemoFailed(Exception):
    """A step did not do what it should. The message says which and shows what the command said."""


@dataclass
class Steps:
    """Says which step runs, how much is done and how long the rest will take."""

    console: Console
    expected: Mapping[str, float]  # what each step took on a 2-core machine, in seconds: the base of the time left
    done: list[str] = field(default_factory=list)
    began: float = field(default_factory=time.monotonic)

    def next(self, name: str) -> None:
        total = sum(self.expected.values())
        past = sum(self.expected[step] for step in self.done)
        pace = (time.monotonic() - self.began) / past if past else 1.0
        left = max(1, round((total - past) * pace))
        self.done.append(name)
        at = f"[bold]{len(self.done):2}/{len(self.expected)}[/]"
        self.console.print(f"{at} [dim]{100 * past / total:3.0f} %, about {left} s left[/]  {name}")

    def tell(self, text: str) -> None:
        self.console.print(Padding(text, (0, 0, 0, 6)), highlight=False)


class Processes:
    """What the demo starts, ended by process id in reverse order whatever happens."""

    def __init__(self, logs: Path) -> None:
        self._logs = logs
        self._started: list[tuple[str, subprocess.Popen[bytes]]] = []

    def start(self, name: str, command: Sequence[str], ready: str, environment: dict[str, str]) -> None:
        """Returns once the process has printed `ready`. Raises DemoFailed if it ends or says nothing for 60 s."""
        log = self._logs / f"{name}.log"
        with log.open("wb") as out:
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=out, stderr=out, env=environment, start_new_session=True
            )
        self._started.append((name, process))
        deadline = time.monotonic() + 60
        while ready not in log.read_text(errors="replace"):
            if process.poll() is not None or time.monotonic() > deadline:
                raise DemoFailed(f"{name} did not start:\n{log.read_text(errors='replace')[-2000:]}")
            time.sleep(0.05)

    def pids(self) -> dict[str, int]:
        return {name: process.pid for name, process in self._started}

    def stop(self) -> None:
        for number, grace in ((signal.SIGTERM, 5.0), (signal.SIGKILL, 5.0)):
            for _, process in reversed(self._started):
                if process.poll() is None:
                    with contextlib.suppress(ProcessLookupError):
                        os.killpg(process.pid, number)
            deadline = time.monotonic() + grace
            for _, process in self._started:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(max(0.0, deadline - time.monotonic()))


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def confinement() -> list[str]:
    """The command prefix that takes a process off every network: a fresh network namespace has no working interface."""
    for prefix in (["unshare", "-n"], ["unshare", "-Urn"]):
        if os.geteuid() != 0 and prefix[1] == "-n":
            continue
        if (
            shutil.which("unshare")
            and subprocess.run([*prefix, "true"], capture_output=True, check=False).returncode == 0
        ):
            return prefix
    raise DemoFailed(
        "this machine does not allow a network namespace (unshare -n as root, unshare -Urn as a user), "
        "so the demo cannot take the edge off the network"
    )


@contextlib.contextmanager
def echo(said: Said, text: str) -> Iterator[int]:
    """A listener that answers as a provider would, for the plaintext control beside a real provider. Gives its port."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            names = {"model": said.answer[0], "object": " ".join(said.answer[1:])}
            content = json.dumps({**names, "choices": [{"message": {"content": text}}]}, ensure_ascii=False).encode()
            self.send_response(200)
            self.send_header("Content-Type", "text/event-stream" if asked["stream"] else "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *arguments: object) -> None:
            """Says nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server.server_port
    finally:
        server.shutdown()
        server.server_close()
        thread.join()

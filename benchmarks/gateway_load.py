"""What the gateway's benchmark starts and asks: processes on a core of their own, and requests in closed loops."""

import asyncio
import contextlib
import itertools
import json
import os
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import aiohttp

from benchmarks.bare_proxy import PATH, TOKEN

ROOT = Path(__file__).resolve().parent.parent
BODY = json.dumps({
    "model": "mock-model", "max_tokens": 64, "messages": [
        {"role": "system", "content": "You are a helpful assistant."},
        {"role": "user", "content": "Explain in two sentences why the sky is blue."},
    ],
}).encode()


@contextlib.contextmanager
def running(command: Sequence[str | Path], port: int) -> Iterator[int]:
    """A process that answers on `port`; yields its id."""
    process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for _ in range(600):
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                break
            if process.poll() is not None:
                raise SystemExit(f"{command[-1]} has ended")
            time.sleep(0.1)
        yield process.pid
    finally:
        process.terminate()
        process.wait(60)


def cpu_seconds(pid: int) -> float:
    """User and system, of all threads, in nanoseconds' steps: the number of clock_getcpuclockid(3) for that process."""
    return time.clock_gettime((~pid << 3) | 2)


def resident_mib(pid: int) -> float:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as bound:
        return int(bound.getsockname()[1])


async def load(port: int, *, clients: int, requests: int, bodies: Iterator[bytes] | None = None) -> None:
    """`requests` in all, by `clients` connections in a closed loop. Raises for any answer but 200."""
    left = itertools.islice(bodies or itertools.repeat(BODY), requests)
    headers = {"Authorization": f"Bearer {TOKEN}", "Content-Type": "application/json"}
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=clients)) as session:

        async def client() -> None:
            for body in left:
                url = f"http://127.0.0.1:{port}{PATH}"
                async with session.post(url, data=body, headers=headers) as answer:
                    await answer.read()
                    if answer.status != 200:
                        raise SystemExit(f"an answer with status {answer.status}")

        await asyncio.gather(*(client() for _ in range(clients)))


class Generator:
    """The harness's load generator: many times as fast as `load`, and it leaves the gateway its core."""

    def __init__(self, program: Path, port: int, body: Path) -> None:
        self._command = [str(program), f"127.0.0.1:{port}", PATH]
        self._rest = [str(body), f"Authorization: Bearer {TOKEN}"]

    def run(self, *, clients: int, seconds: float) -> int:
        """How many answers came. Raises for any that was not good."""
        done = subprocess.run(
            [*self._command, str(clients), str(seconds), *self._rest], capture_output=True, text=True, check=True
        )
        told = json.loads(done.stdout)
        if bad := told["bad_status"] + told["conn_err"]:
            raise SystemExit(f"{bad} answers were not good: {done.stderr.strip()[:200]}")
        return int(told["ok"])

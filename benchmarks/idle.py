"""Memory of idle sessions at a gateway: a process of its own, measured from inside, with all edges in a second one.

Counted is what the gateway's resident memory grew by from its first hundred sessions to its last, divided by their
number: transport objects, asyncio streams and tasks, and the tickets that a gateway keeps. Socket buffers are the
kernel's and not in it.
"""

import asyncio
import gc
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path
from typing import Final

from benchmarks.chains import Chains
from benchmarks.loopback import open_session, responder, serve
from transport.edge_session import EdgeSession
from transport.links.base import Endpoint, Link, listen

WARM: Final = 100  # sessions before counting starts: imports, caches and arenas are there by then
AT_ONCE: Final = 16
SPARE_FILES: Final = 256
SETTLE_S: Final = 1.0  # for what the last handshakes still hold


def bytes_per_session(sessions: int) -> float:
    """Runs gateway and edges in processes of their own. Raises RuntimeError if that fails."""
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.idle", str(sessions)],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parent.parent)},
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True, timeout=900, check=False,
    )
    if done.returncode != 0:
        raise RuntimeError("the measurement of idle sessions failed")
    return float(done.stdout)


def raise_limit(sessions: int) -> None:
    """Enough open files; raises RuntimeError that says how many are allowed."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = sessions + WARM + SPARE_FILES
    if soft < wanted:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, max(hard, wanted)))
        except (ValueError, OSError):
            raise RuntimeError(f"{wanted} open files are needed and {hard} allowed; see ulimit -n") from None


async def _be_gateway(chains: Chains, sessions: int, port_to: int) -> float:
    here = lost = 0
    warm, all_here = asyncio.Event(), asyncio.Event()
    gateway = responder(chains)

    def admitted() -> None:
        nonlocal here
        here += 1
        if here == WARM:
            warm.set()
        elif here == WARM + sessions:
            all_here.set()

    async def on_link(link: Link) -> None:
        nonlocal lost
        await serve(link, gateway, admitted)
        lost += 1

    listener = await listen(Endpoint.parse("tcp:127.0.0.1:0"), on_link)
    os.write(port_to, str(listener.endpoint).encode())
    os.close(port_to)
    await warm.wait()
    before = _resident()
    await all_here.wait()
    await asyncio.sleep(SETTLE_S)
    if lost:
        raise RuntimeError(f"{lost} sessions ended while others were opened; is the machine too busy?")
    return (_resident() - before) / sessions


async def _be_edges(chains: Chains, endpoint: Endpoint, sessions: int) -> None:
    """Opens the sessions, the first ones before the others, and stays until it is ended."""
    kept: list[EdgeSession] = []
    turns = asyncio.Semaphore(AT_ONCE)

    async def open_one() -> None:
        async with turns:
            kept.append(await open_session(endpoint, chains))

    for count in (WARM, sessions):
        await asyncio.gather(*(open_one() for _ in range(count)))
    await asyncio.Event().wait()


def _resident() -> int:
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def main() -> int:
    sessions = int(sys.argv[1])
    raise_limit(sessions)
    chains = Chains(intermediate=True)
    port_from, port_to = os.pipe()
    edges = os.fork()
    if edges == 0:
        os.close(port_to)
        endpoint = Endpoint.parse(os.read(port_from, 100).decode())
        asyncio.run(_be_edges(chains, endpoint, sessions))
        return 1
    try:
        result = asyncio.run(_be_gateway(chains, sessions, port_to))
    except RuntimeError as error:
        print(f"idle sessions: {error}", file=sys.stderr)
        return 1
    finally:
        os.kill(edges, signal.SIGKILL)
        os.waitpid(edges, 0)
    print(result)
    return 0


if __name__ == "__main__":  # a part of `session`, and the process that it measures
    sys.exit(main())

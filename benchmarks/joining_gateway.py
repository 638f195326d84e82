"""The gateway of `identity`'s joins: a process of its own on one core, as `relay gateway serve` runs it, that says what
it has used when it is asked.

Takes a gateway folder; says where it listens in one line of JSON, answers each byte of standard input with another, and
ends with standard input, if it is not ended before.
"""

import asyncio
import json
import logging
import os
import sys
import time
from pathlib import Path

from relay.gateway.app import Ready, serve
from relay.gateway.config import CONFIG_FILE, load
from tests.support.gateway_lab import PASSPHRASE


class Syncs:
    """Counts the audit's waits for the disk, and how long they took. The database's are SQLite's own and not seen."""

    def __init__(self) -> None:
        self.count, self.seconds = 0, 0.0
        self._real = os.fsync

    def __call__(self, descriptor: int) -> None:
        began = time.perf_counter()
        self._real(descriptor)
        self.seconds += time.perf_counter() - began
        self.count += 1


async def run(folder: Path) -> None:
    syncs, stop = Syncs(), asyncio.Event()
    os.fsync = syncs

    def tell(told: Ready) -> None:
        print(json.dumps({"session": told.session, "https": told.https}), flush=True)

    def answer() -> None:
        if not sys.stdin.buffer.raw.read(1):
            stop.set()
            asyncio.get_running_loop().remove_reader(sys.stdin.fileno())
            return
        print(json.dumps({
            "cpu": time.process_time(), "wall": time.perf_counter(), "syncs": syncs.count, "sync_s": syncs.seconds,
        }), flush=True)

    asyncio.get_running_loop().add_reader(sys.stdin.fileno(), answer)
    await serve(load(folder / CONFIG_FILE), PASSPHRASE, ready=tell, stop=stop)


def main() -> int:
    logging.disable()
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    asyncio.run(run(Path(sys.argv[1])))
    return 0


if __name__ == "__main__":  # a part of `identity`, and the process that it measures
    sys.exit(main())

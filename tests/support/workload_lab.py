"""A gateway's Workload API on a socket, its clock in the test's hand, and programs that ask it."""

import asyncio
import json
import os
import shutil
import signal
import socket
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from relay.gateway.audit.log import AuditLog
from relay.gateway.audit.refusals import Refusals
from relay.gateway.identity.ca import SVID_LIFETIME_S, Authority
from relay.gateway.identity.enrolment import Enrolment
from relay.gateway.identity.registrations import Registration
from relay.gateway.identity.revocation import Revocation
from relay.gateway.identity.token_keys import JWT_SVID, TokenKeys
from relay.gateway.identity.workloads.entries import Workload
from relay.gateway.identity.workloads.mount import Workloads
from relay.gateway.state.sqlcipher import open_state
from tests.support.gateway_lab import DOMAIN, PASSPHRASE, Clock, audit_lines
from transport.identity.verify import VerifiedPeer, verify_svid

ROOT = Path(__file__).resolve().parents[2]
PYTHON = Path(os.path.realpath(sys.executable))
LIMIT_S = 120  # for hanging alone
ME = Workload(id="/workload/me", uid=os.getuid())


@dataclass
class Lab:
    directory: Path
    authority: Authority
    enrolment: Enrolment
    revocation: Revocation
    keys: TokenKeys
    audit: AuditLog
    refusals: Refusals
    clock: Clock
    socket: Path
    workloads: Workloads = field(init=False)

    def events(self, event: str) -> list[dict[str, Any]]:
        return [line for line in audit_lines(self.directory / "a.jsonl") if line["event"] == event]

    def verified(self, chain: Sequence[bytes]) -> VerifiedPeer:
        return verify_svid(chain, self.authority.bundle, role="workload", now=self.clock())

    async def later(self, seconds: float) -> None:
        """As if so much time had passed for the gateway."""
        self.clock.now += seconds
        await self.keys.tend()
        self.workloads.look_again()


@asynccontextmanager
async def workload_lab(
    made: Path, tmp_path: Path, entries: Sequence[Workload] = (ME,), *, clock: Clock | None = None,
    at: Path | None = None,
) -> AsyncIterator[Lab]:
    """`made`: a folder of `make_folder`."""
    directory, clock = tmp_path / "gateway", clock or Clock()
    shutil.copytree(made, directory)
    with open_state(directory, PASSPHRASE) as database:
        audit = AuditLog(directory / "a.jsonl", clock=clock)
        refusals = Refusals(audit, clock=clock)
        authority = Authority.open(directory, PASSPHRASE)
        enrolment = Enrolment(database, authority, audit, refusals=refusals, clock=clock)
        await enrolment.load()
        keys = TokenKeys(database, JWT_SVID, longest_s=SVID_LIFETIME_S, clock=clock)
        await keys.load()

        async def cut(ended: Sequence[Registration]) -> None:
            lab.workloads.look_again()

        revocation = Revocation(directory, database, authority, enrolment, audit, cut=cut, clock=clock)
        await revocation.refresh()
        lab = Lab(
            directory, authority, enrolment, revocation, keys, audit, refusals, clock, at or tmp_path / "w.sock"
        )
        lab.workloads = Workloads(
            lab.socket, entries, enrolment=enrolment, bundle=lambda: authority.bundle, keys=keys, audit=audit,
            refusals=refusals, clock=clock,
        )
        await lab.workloads.start()
        try:
            yield lab
        finally:
            await lab.workloads.close()
            await audit.close()


class Client:
    """A process of tests/support/spiffe_client.py."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self.pid = process.pid

    async def hear(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        async with asyncio.timeout(LIMIT_S):
            line = await self._process.stdout.readline()
        told: dict[str, Any] = json.loads(line)
        return told

    async def ask(self, *call: Any) -> dict[str, Any]:
        await self.say(*call)
        return await self.hear()

    async def say(self, *call: Any) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(call).encode() + b"\n")
        await self._process.stdin.drain()


@asynccontextmanager
async def stock_client(socket: Path) -> AsyncIterator[Client]:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.support.spiffe_client", str(socket), cwd=ROOT, stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE, limit=1 << 20, env={**os.environ, "GRPC_VERBOSITY": "NONE"},
    )
    try:
        yield Client(process)
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


@asynccontextmanager
async def handed_on(path: Path, onward: Path, uid: int) -> AsyncIterator[int]:
    """A process of another user that connects to `path` and hands the connection to us; whoever connects to `onward`
    speaks by it. Yields the process's id.
    """
    ours, theirs = socket.socketpair()
    pid = os.fork()
    if not pid:
        try:
            if os.getuid() != uid:
                os.setgroups([])
                os.setuid(uid)
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as made:
                made.connect(str(path))
                socket.send_fds(theirs, [b"x"], [made.fileno()])
            signal.pause()
        finally:
            os._exit(1)
    try:
        theirs.close()
        ours.settimeout(LIMIT_S)
        _, (held,), _, _ = await asyncio.to_thread(socket.recv_fds, ours, 1, 1)
        far_in, far_out = await asyncio.open_unix_connection(sock=socket.socket(fileno=held))

        async def carry(near_in: asyncio.StreamReader, near_out: asyncio.StreamWriter) -> None:
            async def copy(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
                while data := await source.read(65_536):
                    sink.write(data)
                sink.close()

            await asyncio.gather(copy(near_in, far_out), copy(far_in, near_out))

        async with await asyncio.start_unix_server(carry, onward):
            yield pid
            far_out.close()
    finally:
        ours.close()
        os.kill(pid, signal.SIGKILL)
        await asyncio.to_thread(os.waitpid, pid, 0)


def workload(name: str, **selectors: Any) -> Workload:
    return Workload(**{"id": f"/workload/{name}", "uid": os.getuid(), **selectors})


def spiffe_id(name: str) -> str:
    return f"spiffe://{DOMAIN}/workload/{name}"

"""A device is revoked while its owner reads an answer: five kinds of process, as people run them, and what they say."""

import asyncio
import contextlib
import json
import os
import re
import socket
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.support.mock_provider import KEY, MockProvider, chunk

ROOT = Path(__file__).resolve().parents[2]
LIMIT_S = 120  # for hanging alone
CONFIG = """
trust_domain = "field.example"
[listen]
https = "127.0.0.1:{port}"
[provider]
base_url = "{base_url}"
key_file = "provider.key"
[[allow]]
id = "/edge/*"
models = ["small"]
"""


@dataclass
class Done:
    code: int
    out: str
    err: str


@dataclass
class Machines:
    """One folder for every part; `edge` and `relay` are the commands."""

    folder: Path
    running: list[asyncio.subprocess.Process] = field(default_factory=list)

    async def start(self, *command: str | Path, **environment: str) -> asyncio.subprocess.Process:
        clean = {name: value for name, value in os.environ.items() if not name.startswith("CAUSEWAY_")}
        process = await asyncio.create_subprocess_exec(
            sys.executable, *map(str, command), cwd=ROOT, env={**clean, **environment},
            stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        )
        self.running.append(process)
        return process

    async def relay(self, *arguments: str | Path) -> Done:
        passphrase = ("--passphrase-file", self.folder / "passphrase")
        return await ended(await self.start("-c", "from relay.cli import main; main()", *arguments, *passphrase))

    async def gateway(self, verb: str, *arguments: str | Path) -> Done:
        return await self.relay("gateway", verb, *arguments, "--config", self.folder / "gw" / "gateway.toml")

    async def serve(self, *arguments: str | Path) -> tuple[asyncio.subprocess.Process, str]:
        """A server, and the line by which it says that it is ready."""
        passphrase = ("--passphrase-file", self.folder / "passphrase")
        process = await self.start("-c", "from relay.cli import main; main()", *arguments, *passphrase)
        assert process.stderr is not None
        said = ""
        while "ready" not in said:
            line = (await process.stderr.readline()).decode()
            assert line, said
            said += line
        return process, said

    async def edge(self, *arguments: str | Path) -> asyncio.subprocess.Process:
        return await self.start(
            "-m", "edge_client.cli", *arguments, CAUSEWAY_HOME=str(self.folder / "edge"),
            CAUSEWAY_PASSPHRASE_FILE=str(self.folder / "passphrase"),
        )

    def write(self, name: str, text: str) -> Path:
        path = self.folder / name
        path.write_text(text)
        path.chmod(0o600)
        return path


async def ended(process: asyncio.subprocess.Process) -> Done:
    out, err = await process.communicate()
    assert process.returncode is not None
    return Done(process.returncode, out.decode(), err.decode())


@pytest.fixture
async def machines(tmp_path: Path) -> AsyncIterator[Machines]:
    machines = Machines(tmp_path)
    try:
        async with asyncio.timeout(LIMIT_S):
            yield machines
    finally:
        for process in machines.running:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


async def test_a_stolen_laptop_is_cut_off_while_it_reads(machines: Machines) -> None:
    folder = machines.folder
    machines.write("passphrase", "correct horse\n")
    root = machines.write("rootpass", "another battery\n")
    async with MockProvider() as provider:
        provider.mode = "stream_stall"
        provider.stream = [chunk("The "), chunk("pump "), chunk("runs."), b"data: [DONE]\n\n"]
        made = await machines.relay("gateway", "init", folder / "gw", "--trust-domain", "field.example",
                                    "--root-passphrase-file", root)
        assert made.code == 0, made.err
        port = free_port()
        (folder / "gw" / "gateway.toml").write_text(CONFIG.format(port=port, base_url=provider.base_url))
        machines.write("gw/provider.key", KEY)
        gateway, _ = await machines.serve("gateway", "serve", "--config", folder / "gw" / "gateway.toml")
        for path in ("hop/pi-1", "edge/lap-1"):
            invited = await machines.gateway("invite", path)
            machines.write(path.replace("/", "-"), invited.out)
        url = f"https://127.0.0.1:{port}"
        joined = await machines.relay("hop", "join", "--home", folder / "hop", "--invitation-file", folder / "hop-pi-1",
                                      "--gateway", url)
        assert joined.code == 0, joined.err
        _, ready = await machines.serve("hop", "serve", "--home", folder / "hop", "--listen", "tcp:127.0.0.1:0")
        found = re.search(r"tcp:127\.0\.0\.1:\d+", ready)
        assert found is not None
        done = await ended(await machines.edge(
            "join", "--invitation-file", folder / "edge-lap-1", "--hop", found[0]
        ))
        assert done.code == 0, done.err
        backup = await machines.gateway("backup", folder / "backup")
        assert backup.code == 0, backup.err

        reading = await machines.edge("ask", "--relay", "--no-documents", "Does the pump run?")
        assert reading.stdout is not None
        assert await reading.stdout.read(4) == b"The "
        revoked = await machines.gateway("revoke", "edge/lap-1", "--reason", "stolen from a car")
        assert (revoked.code, revoked.out) == (0, "revoked spiffe://field.example/edge/lap-1: enrolment 2\n")
        told = await ended(reading)
        assert told.code == 6
        assert "edge: the gateway has revoked this device" in told.err
        assert "ask the gateway's administrator" in told.err and "stolen" not in told.err
        await provider.ended.wait()

        gateway.terminate()
        assert await gateway.wait() == 0
        assert (await machines.gateway("revoke", "edge/lap-1", "--reason", "again")).out.endswith("revoked before\n")
        await machines.serve("gateway", "serve", "--config", folder / "gw" / "gateway.toml")
        told = await ended(await machines.edge("ask", "--relay", "--no-documents", "And now?"))
        assert told.code == 6 and "did not accept this identity" in told.err and "administrator" in told.err
        listed = json.loads((await machines.gateway("devices", "--json")).out)["devices"]
        assert [(one["status"], one["reason"]) for one in listed] == [("active", ""), ("revoked", "stolen from a car")]

        unsaid = await machines.relay("gateway", "restore", folder / "backup", folder / "again")
        assert unsaid.code == 3 and "--nothing-revoked" in unsaid.err and not (folder / "again").exists()
        restored = await machines.relay("gateway", "restore", folder / "backup", folder / "again", "--revocations",
                                        folder / "gw" / "revocations.list")
        assert restored.code == 0 and "revoked since the backup: spiffe://field.example/edge/lap-1" in restored.out

        again = await machines.gateway("reinstate", "edge/lap-1")
        assert again.out == "reinstated spiffe://field.example/edge/lap-1 as enrolment 3\n"
        provider.mode = "ok"
        answered = await ended(await machines.edge("ask", "--relay", "--no-documents", "And now?"))
        assert (answered.code, answered.out) == (0, "The pump runs.\n"), answered.err

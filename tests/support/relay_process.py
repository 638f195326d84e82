"""Processes of `relay`: a gateway with a folder of its own, and whatever else says that it is ready."""

import asyncio
import contextlib
import os
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

from relay.gateway.control import call
from tests.support.gateway_lab import make_folder
from tests.support.mock_provider import KEY
from transport.identity.join import Invitation

ROOT = Path(__file__).resolve().parents[2]
CONFIG = """
trust_domain = "field.example"
[listen]
https = "127.0.0.1:0"
public = "127.0.0.1:0"
[provider]
base_url = "{base_url}"
key_file = "provider.key"
[[allow]]
id = "/edge/*"
models = ["small"]
"""


@dataclass(frozen=True)
class Gateway:
    pid: int
    folder: Path
    https: str
    origin: str  # of the public listener, where the phone page is

    async def invite(self, path: str, *hints: str) -> Invitation:
        answer = await call(self.folder, "invite", {"path": path, "hints": list(hints)})
        return Invitation.parse(answer["invitation"])

    async def page_url(self, name: str) -> str:
        """What `relay gateway invite hop/NAME --qr` shows."""
        return str((await call(self.folder, "invite", {"path": f"hop/{name}"}))["url"])


@contextlib.asynccontextmanager
async def relay(*arguments: str) -> AsyncIterator[tuple[int, str]]:
    """A process of `relay`: its id, and the line with which it says that it is ready."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", "from relay.cli import main; main()", *arguments, cwd=ROOT,
        stdin=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.PIPE, env={**os.environ, "NO_COLOR": "1"},
    )
    try:
        assert process.stderr is not None
        line = (await asyncio.wait_for(process.stderr.readline(), 60)).decode()
        assert "ready" in line, line
        yield process.pid, line
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
        await asyncio.wait_for(process.communicate(), 60)


@contextlib.asynccontextmanager
async def gateway_process(folder: Path, base_url: str, *, more: str = "") -> AsyncIterator[Gateway]:
    """A gateway that hops, wss edges and the phone page reach, with a provider at `base_url`. Takes two seconds.

    `more` is further sections of its configuration.
    """
    await asyncio.to_thread(make_folder, folder)
    secret_file(folder / "provider.key", KEY)
    (folder / "gateway.toml").write_text(CONFIG.format(base_url=base_url) + more)
    passphrase = secret_file(folder / "pass", "gateway pass")
    arguments = ["gateway", "serve", "--config", str(folder / "gateway.toml"), "--passphrase-file", passphrase]
    async with relay(*arguments) as (pid, ready):
        at = dict(place.split("=", 1) for place in ready.split() if "=" in place)
        yield Gateway(pid, folder, f"https://{at['https']}", f"http://{at['public']}")


def secret_file(path: Path, text: str) -> str:
    path.write_text(text)
    path.chmod(0o600)
    return str(path)

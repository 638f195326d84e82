"""The whole chain with a real SPIRE: agent healthy, issuance, handshake, an answered prompt, rotation, the server away.

`scripts/check_spire.py` makes SPIRE and runs this; with CAUSEWAY_SPIRE_TIMES it leaves a line for each step there.
"""

import asyncio
import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from relay.gateway.control import call
from tests.support.gateway_lab import audit_lines, make_folder
from tests.support.mock_provider import KEY, MockProvider, chunk
from tests.support.real_spire import DOMAIN, LIMIT_S, Spire, environment, interpreter, program
from tests.support.relay_process import ROOT, secret_file

BINARIES = Path(os.environ.get("CAUSEWAY_SPIRE", ""))
TTL_S = 40  # SPIRE renews at about half of it
AWAY_S = 10.0
pytestmark = pytest.mark.spire
CONFIG = """
trust_domain = "{domain}"
[listen]
https = "127.0.0.1:0"
session = "tcp:127.0.0.1:0"
[provider]
base_url = "{base_url}"
key_file = "provider.key"
[identity]
source = "spire"
socket = "{socket}"
[[allow]]
id = "/edge/*"
models = ["small"]
"""


class PacedProvider(MockProvider):
    """A piece of an answer each fifth of a second, until `enough` is set."""

    def __init__(self) -> None:
        super().__init__()
        self.enough = asyncio.Event()
        self.pieces = 0

    async def _streamed(self, request: web.Request, what: str) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        self.pieces = 0
        while not (self.enough.is_set() and self.pieces):
            await response.write(chunk(f"{self.pieces} "))
            self.pieces += 1
            await asyncio.sleep(0.2)
        await response.write(b"data: [DONE]\n\n")
        await response.write_eof()
        return response


class Steps:
    """What took how long."""

    def __init__(self) -> None:
        self._began = time.monotonic()
        self.done: list[tuple[str, float]] = []

    def over(self, name: str) -> None:
        now = time.monotonic()
        self.done.append((name, round(now - self._began, 2)))
        print(f"  {self.done[-1][1]:7.2f} s  {name}", flush=True)
        self._began = time.monotonic()
        if where := os.environ.get("CAUSEWAY_SPIRE_TIMES"):
            Path(where).write_text(json.dumps(dict(self.done), indent=1) + "\n")


@pytest.fixture
def short() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="cw-spire-"))
    yield folder
    shutil.rmtree(folder)


async def run(python: Path, module: str, *arguments: str, code: int = 0, **changes: str) -> Any:
    """A command of ours with --json, by that interpreter."""
    process = await asyncio.create_subprocess_exec(
        str(python), "-c", f"from {module} import main; main()", *arguments, "--json", cwd=ROOT,
        env=environment() | changes, stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await asyncio.wait_for(process.communicate(), LIMIT_S * 2)
    assert process.returncode == code, err.decode() + out.decode()
    return json.loads(out)


def _tail(path: Path) -> str:
    return path.read_text()[-4_000:] if path.exists() else ""


def sessions(folder: Path, identity: str) -> list[dict[str, Any]]:
    return [
        line for line in audit_lines(folder / "audit.jsonl")
        if line.get("event") == "session.opened" and line.get("id") == identity
    ]


async def until(condition: Any) -> None:
    async with asyncio.timeout(LIMIT_S):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.2)


async def test_a_whole_chain_by_spire(short: Path, tmp_path: Path) -> None:
    steps, pythons = Steps(), {role: interpreter(short, role) for role in ("gateway", "hop", "edge")}
    folder, upstream = make_folder(tmp_path / "gateway"), tmp_path / "upstream"
    passphrase, root = secret_file(tmp_path / "pass", "gateway pass"), secret_file(tmp_path / "root", "root pass")
    secret_file(folder / "provider.key", KEY)
    file = folder / "gateway.toml"
    spire = Spire(BINARIES, short, upstream, ttl=f"{TTL_S}s")
    async with PacedProvider() as provider:
        file.write_text(CONFIG.format(domain=DOMAIN, base_url=provider.base_url, socket=spire.socket))
        made = await run(
            pythons["gateway"], "relay.cli", "gateway", "rotate-key", "upstream", "--out", str(upstream),
            "--config", str(file), "--passphrase-file", passphrase, "--root-passphrase-file", root,
        )
        assert made["directory"] == str(upstream)
        steps.over("an authority for SPIRE, signed by the root")
        try:
            await spire.start_server()
            steps.over("server healthy")
            await spire.start_agent()
            steps.over("agent healthy")
            for role, path in (("gateway", "gateway/main"), ("hop", "hop/pi"), ("edge", "edge/lap-1")):
                await spire.entry(path, pythons[role])
            await chain(spire, steps, provider, pythons, folder, tmp_path, passphrase)
        except BaseException:
            for name in ("server", "agent"):
                print(f"--- {name}\n{spire.log(name)[-4_000:]}")
            for name in ("gateway.log", "hop.log"):
                print(f"--- {name}\n{_tail(tmp_path / name)}")
            raise
        finally:
            await spire.close()


async def chain(
    spire: Spire, steps: Steps, provider: PacedProvider, pythons: dict[str, Path], folder: Path, tmp_path: Path,
    passphrase: str,
) -> None:
    home = tmp_path / "home"
    home.mkdir(mode=0o700)
    edge = {"CAUSEWAY_HOME": str(home), "CAUSEWAY_PASSPHRASE_FILE": secret_file(tmp_path / "edge-pass", "horse")}
    me, hop_id = f"spiffe://{DOMAIN}/edge/lap-1", f"spiffe://{DOMAIN}/hop/pi"

    async def ask(**more: Any) -> Any:
        return await run(pythons["edge"], "edge_client.cli", "ask", "--relay", "How fast is the pump?", **edge, **more)

    gateway = program(
        pythons["gateway"], "relay.cli", "gateway", "serve", "--config", str(folder / "gateway.toml"),
        "--passphrase-file", passphrase, log=tmp_path / "gateway.log",
    )
    async with gateway as line:
        at = dict(place.split("=", 1) for place in line.split() if "=" in place)
        steps.over("issuance: the gateway has its SVID and serves")
        hop = program(
            pythons["hop"], "relay.cli", "hop", "serve", "--spire", spire.socket, "--home", str(tmp_path / "hop"),
            "--gateway", f"https://{at['https']}", "--listen", "tcp:127.0.0.1:0", log=tmp_path / "hop.log",
        )
        async with hop as ready:
            steps.over("issuance: the hop has its SVID and listens")
            (home / "config.toml").write_text(
                f'[relay]\nmodel = "small"\nendpoints = ["{ready.split()[-1]}"]\n'
                f'[identity]\nsource = "spire"\nsocket = "{spire.socket}"\n'
            )
            await run(pythons["edge"], "edge_client.cli", "setup", "--yes", **edge)
            status = await run(pythons["edge"], "edge_client.cli", "status", **edge)
            assert (status["identity"]["id"], status["identity"]["svid_valid"]) == (me, True)
            steps.over("issuance: the edge has its SVID, without an invitation")

            provider.enough.set()
            assert (await ask())["via"] == hop_id
            steps.over("handshake, and a prompt answered through the hop")

            provider.enough.clear()
            before = len(sessions(folder, me))
            asking = asyncio.create_task(ask())
            await until(lambda: len(sessions(folder, me)) >= before + 4)
            opened = sessions(folder, me)[before:]
            provider.enough.set()
            answer = await asking
            assert answer["answer"] == "".join(f"{number} " for number in range(provider.pieces))
            assert provider.calls == 2, "one call for each question, however many sessions it took"
            steps.over(f"rotation: an answer of {provider.pieces} pieces over {len(opened)} sessions, none missing")

            provider.enough.clear()
            before = len(sessions(folder, me))
            asking = asyncio.create_task(ask())
            await until(lambda: len(sessions(folder, me)) > before)
            await spire.stop("server")
            await asyncio.sleep(AWAY_S)
            status = await run(pythons["edge"], "edge_client.cli", "status", **edge)
            assert status["identity"]["id"] == me, "the agent gives what it has"
            await spire.start_server()
            seen = len(sessions(folder, me))
            await until(lambda: len(sessions(folder, me)) > seen)
            provider.enough.set()
            assert (await asking)["answer"] == "".join(f"{number} " for number in range(provider.pieces))
            steps.over(f"server stopped for {AWAY_S:.0f} s and back under an answer, rotation goes on")

            devices = (await call(folder, "devices", {}))["devices"]
            assert {(one["id"], one["status"], one["source"]) for one in devices} == {
                (me, "active", "spire"), (hop_id, "active", "spire"),
            }
            await call(folder, "revoke", {"who": "edge/lap-1", "reason": "lost"})
            refused = await run(
                pythons["edge"], "edge_client.cli", "ask", "--relay", "Once more?", code=6, **edge
            )
            assert refused["error"]["code"] == "peer_refused"
            await call(folder, "reinstate", {"who": "edge/lap-1"})
            assert (await ask())["via"] == hop_id
            steps.over("revoked, refused although SPIRE goes on issuing, reinstated, answered")



"""A SPIRE server and agent as processes on this machine, with programs of our own that the agent tells apart.

Nodes are attested by a join token, workloads by user and executable: each role has a copy of the interpreter, so that
the path of the program says which it is.
"""

import asyncio
import contextlib
import os
import shutil
import socket
import sys
import sysconfig
from collections.abc import AsyncIterator
from pathlib import Path

from tests.support.relay_process import ROOT

DOMAIN = "field.example"
LIMIT_S = 120
_SERVER = """
server {{
    bind_address = "127.0.0.1"
    bind_port = "{port}"
    socket_path = "{folder}/server.sock"
    trust_domain = "{domain}"
    data_dir = "{folder}/server"
    log_level = "INFO"
    ca_ttl = "{ca}"
    default_x509_svid_ttl = "{ttl}"
}}
plugins {{
    DataStore "sql" {{
        plugin_data {{ database_type = "sqlite3" connection_string = "{folder}/server/store.sqlite3" }}
    }}
    NodeAttestor "join_token" {{ plugin_data {{}} }}
    KeyManager "disk" {{ plugin_data {{ keys_path = "{folder}/server/keys.json" }} }}
    UpstreamAuthority "disk" {{
        plugin_data {{
            key_file_path = "{upstream}/upstream.key"
            cert_file_path = "{upstream}/upstream.pem"
            bundle_file_path = "{upstream}/bundle.pem"
        }}
    }}
}}
"""
_AGENT = """
agent {{
    data_dir = "{folder}/agent"
    log_level = "INFO"
    server_address = "127.0.0.1"
    server_port = "{port}"
    socket_path = "{folder}/agent.sock"
    trust_bundle_path = "{upstream}/bundle.pem"
    trust_domain = "{domain}"
}}
plugins {{
    NodeAttestor "join_token" {{ plugin_data {{}} }}
    KeyManager "memory" {{ plugin_data {{}} }}
    WorkloadAttestor "unix" {{ plugin_data {{ discover_workload_path = true }} }}
}}
"""


class Spire:
    """`folder` has a short path, for its sockets. `ttl` is how long SVIDs live, as in "40s"."""

    def __init__(self, binaries: Path, folder: Path, upstream: Path, *, ttl: str, ca: str = "1h") -> None:
        self._binaries, self._folder = binaries, folder
        self.socket = f"unix://{folder}/agent.sock"
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]
        for name, text in (("server", _SERVER), ("agent", _AGENT)):
            (folder / name).mkdir()
            filled = text.format(folder=folder, port=port, upstream=upstream, domain=DOMAIN, ttl=ttl, ca=ca)
            (folder / f"{name}.conf").write_text(filled)
        self._processes: dict[str, asyncio.subprocess.Process] = {}

    async def start_server(self) -> None:
        await self._start("server")
        await self._healthy("server")

    async def start_agent(self) -> None:
        said = await self.server("token", "generate", "-spiffeID", f"spiffe://{DOMAIN}/node/one")
        await self._start("agent", "-joinToken", said.split()[1])
        await self._healthy("agent")

    async def entry(self, path: str, program: Path) -> None:
        """Registers a program of this user for one ID."""
        await self.server(
            "entry", "create", "-parentID", f"spiffe://{DOMAIN}/node/one", "-spiffeID", f"spiffe://{DOMAIN}/{path}",
            "-selector", f"unix:uid:{os.getuid()}", "-selector", f"unix:path:{program}",
        )

    async def server(self, *arguments: str) -> str:
        code, said = await self._run("spire-server", *arguments, "-socketPath", f"{self._folder}/server.sock")
        assert code == 0, said
        return said

    async def stop(self, name: str) -> None:
        process = self._processes.pop(name)
        process.terminate()
        await asyncio.wait_for(process.wait(), LIMIT_S)

    async def close(self) -> None:
        for name in list(self._processes):
            await self.stop(name)

    def log(self, name: str) -> str:
        return (self._folder / f"{name}.log").read_text()

    async def _start(self, name: str, *arguments: str) -> None:
        with (self._folder / f"{name}.log").open("ab") as log:
            self._processes[name] = await asyncio.create_subprocess_exec(
                str(self._binaries / f"spire-{name}"), "run", "-config", f"{self._folder}/{name}.conf", *arguments,
                stdin=asyncio.subprocess.DEVNULL, stdout=log, stderr=log,
            )

    async def _healthy(self, name: str) -> None:
        path = f"{self._folder}/{name}.sock"
        async with asyncio.timeout(LIMIT_S):
            while (await self._run(f"spire-{name}", "healthcheck", "-socketPath", path))[0]:
                assert self._processes[name].returncode is None, self.log(name)
                await asyncio.sleep(0.2)

    async def _run(self, program: str, *arguments: str) -> tuple[int, str]:
        process = await asyncio.create_subprocess_exec(
            str(self._binaries / program), *arguments, stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
        )
        said, _ = await process.communicate()
        assert process.returncode is not None
        return process.returncode, said.decode()


def interpreter(folder: Path, role: str) -> Path:
    """A copy of this Python, at a path of its own, with the packages of this environment."""
    home = folder / role
    (home / "bin").mkdir(parents=True)
    real = Path(os.path.realpath(sys.executable))
    program = home / "bin" / real.name
    shutil.copy2(real, program)
    (home / "pyvenv.cfg").write_text(f"home = {real.parent}\ninclude-system-site-packages = false\n")
    return program


def _lines(path: Path) -> list[str]:
    return path.read_text().splitlines()


def environment() -> dict[str, str]:
    packages = sysconfig.get_path("purelib")
    return {**os.environ, "NO_COLOR": "1", "PYTHONPATH": f"{ROOT}{os.pathsep}{packages}"}


@contextlib.asynccontextmanager
async def program(python: Path, module: str, *arguments: str, log: Path) -> AsyncIterator[str]:
    """`relay` or another of ours by that interpreter: the line with which it says that it is ready."""
    with log.open("wb") as stderr:
        process = await asyncio.create_subprocess_exec(
            str(python), "-c", f"from {module} import main; main()", *arguments, cwd=ROOT, env=environment(),
            stdin=asyncio.subprocess.DEVNULL, stderr=stderr,
        )
    try:
        async with asyncio.timeout(LIMIT_S):
            while not (ready := [line for line in _lines(log) if " ready " in line]):
                assert process.returncode is None, "\n".join(_lines(log))
                await asyncio.sleep(0.05)
        yield ready[0]
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
        await asyncio.wait_for(process.wait(), LIMIT_S)

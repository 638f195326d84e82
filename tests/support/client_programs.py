"""Programs that others wrote for OpenAI's API, in an environment of their own: `.venv-clients`, from a hashed lock."""

import asyncio
import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
LOCK = ROOT / "tests" / "interop" / "clients.lock"
FOLDER = ROOT / ".venv-clients"
INSTALL_S = 300


def client_programs() -> Path:
    """The folder with `python` and the commands; made when it is not there. Skips the test aloud if that fails."""
    mark = FOLDER / hashlib.sha256(LOCK.read_bytes()).hexdigest()
    with (ROOT / ".venv-clients.lock").open("w") as only_one:
        fcntl.flock(only_one, fcntl.LOCK_EX)
        if not mark.exists():
            shutil.rmtree(FOLDER, ignore_errors=True)
            install = [
                str(FOLDER / "bin" / "python"), "-m", "pip", "install", "-q", "--disable-pip-version-check",
                "--no-deps", "--require-hashes", "-r", str(LOCK),
            ]
            try:
                for command in ([sys.executable, "-m", "venv", str(FOLDER)], install):
                    subprocess.run(command, check=True, stdin=subprocess.DEVNULL, timeout=INSTALL_S)
            except (OSError, subprocess.SubprocessError) as error:
                pytest.skip(f"tests/interop/clients.lock cannot be installed ({type(error).__name__})")
            mark.touch()
    return FOLDER / "bin"


async def run_client(*command: str | Path, environment: Mapping[str, str]) -> tuple[int, str, str]:
    """Exit code, output and messages of a client; at most 60 s. It inherits no settings for OpenAI or proxies."""
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
    process = await asyncio.create_subprocess_exec(
        *map(str, command), env={**kept, **environment}, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(60):
            out, err = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert process.returncode is not None
    return process.returncode, out.decode(), err.decode()

"""A gateway for benchmarks: a folder of its own, and the command that serves it on plain loopback to one token."""

import shlex
import sys
import time
from pathlib import Path

from relay.gateway.identity.ca import create_authority
from relay.gateway.state.sqlcipher import create_state
from store.keys import Passphrase

_CONFIG = """
trust_domain = "bench.example"
[listen]
https = "127.0.0.1:0"
insecure = "127.0.0.1:{port}"
[provider]
base_url = "{upstream}/v1"
key_file = "provider.key"
[[allow]]
id = "/edge/*"
models = ["mock-model", "mock-pace"]
"""


def prepare(folder: Path, *, port: int, upstream: str, key: str, token: str) -> list[str]:
    """Makes a gateway in `folder` and returns the command that runs it: every check, and the audit, as for anybody."""
    folder.mkdir(mode=0o700, parents=True)
    passphrase = Passphrase("bench")
    create_authority(
        folder, "bench.example", passphrase=passphrase, root_passphrase=Passphrase("bench root"), now=time.time()
    )
    create_state(folder, passphrase)
    (folder / "gateway.toml").write_text(_CONFIG.format(port=port, upstream=upstream))
    for name, text in (("provider.key", key), ("token", token), ("passphrase", "bench")):
        (folder / name).touch(mode=0o600)
        (folder / name).write_text(text)
    return [
        sys.executable, "-c", "from relay.cli import main; main()", "gateway", "serve",
        "--config", str(folder / "gateway.toml"), "--passphrase-file", str(folder / "passphrase"),
        "--insecure-loopback", str(folder / "token"),
    ]


def as_shell(command: list[str], root: Path) -> str:
    """For `sh -c "exec ..."`."""
    return f"env PYTHONPATH={shlex.quote(str(root))} {shlex.join(command)}"

"""A gateway for benchmarks: a folder of its own, and the command that serves it, on plain loopback to one token.

Every check is on, with limits that the load does not come to.
"""

import asyncio
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from relay.gateway.audit.log import AUDIT_FILE, AuditLog
from relay.gateway.identity.ca import Authority, create_authority
from relay.gateway.identity.enrolment import Enrolment
from relay.gateway.state.sqlcipher import create_state, open_state
from store.keys import Passphrase
from transport.identity.join import Invitation
from transport.identity.svid import TrustBundle

PASSPHRASE = Passphrase("bench")
UNREAD = "mock-unread"  # a model whose prompts are not inspected
_CONFIG = """
trust_domain = "bench.example"
[listen]
https = "127.0.0.1:{https}"
session = "tcp:127.0.0.1:{session}"
insecure = "127.0.0.1:{port}"
[provider]
base_url = "{upstream}/v1"
key_file = "provider.key"
[[allow]]
id = "/edge/*"
models = ["mock-model", "mock-pace", "mock-unread"]
[[inspect]]
mode = "off"
models = ["mock-unread"]
[[inspect]]
mode = "flag"
[[quota]]
name = "hour"
id = "/edge/*"
per = "device"
window = "1h"
requests = 1_000_000_000
tokens = 1_000_000_000_000
money = "1000000"
[[price]]
model = "mock-model"
input = "0.15"
output = "0.60"
output_max = 4096
[[price]]
model = "mock-pace"
input = "0.15"
output = "0.60"
output_max = 4096
[[price]]
model = "mock-unread"
input = "0.15"
output = "0.60"
output_max = 4096
[anomaly]
warn = 1e8
throttle = 2e8
quarantine = 3e8
revoke_at = 4e8
"""


def prepare(
    folder: Path, *, port: int, upstream: str, key: str, token: str, session: int = 0, https: int = 0
) -> list[str]:
    """Makes a gateway in `folder` and returns the command that runs it: every check, and the audit, as for anybody."""
    folder.mkdir(mode=0o700, parents=True)
    create_authority(
        folder, "bench.example", passphrase=PASSPHRASE, root_passphrase=Passphrase("bench root"), now=time.time()
    )
    create_state(folder, PASSPHRASE)
    (folder / "gateway.toml").write_text(_CONFIG.format(port=port, upstream=upstream, session=session, https=https))
    for name, text in (("provider.key", key), ("token", token), ("passphrase", "bench")):
        (folder / name).touch(mode=0o600)
        (folder / name).write_text(text)
    return [
        sys.executable, "-c", "from relay.cli import main; main()", "gateway", "serve",
        "--config", str(folder / "gateway.toml"), "--passphrase-file", str(folder / "passphrase"),
        "--insecure-loopback", str(folder / "token"),
    ]


async def invited(folder: Path, paths: Sequence[str]) -> tuple[TrustBundle, list[Invitation]]:
    """Invitations to a gateway that does not run yet."""
    with open_state(folder, PASSPHRASE) as database:
        audit, authority = AuditLog(folder / AUDIT_FILE), Authority.open(folder, PASSPHRASE)
        try:
            enrolment = Enrolment(database, authority, audit)
            await enrolment.load()
            return authority.bundle, list(await asyncio.gather(*(enrolment.invite(path) for path in paths)))
        finally:
            await audit.close()


def as_shell(command: list[str], root: Path) -> str:
    """For `sh -c "exec ..."`."""
    return f"env PYTHONPATH={shlex.quote(str(root))} {shlex.join(command)}"

"""A gateway that is killed, as a process of its own: what was spent stays spent, and what ran counts as reserved."""

import asyncio
import re
import shutil
import sys
from pathlib import Path

import aiohttp

from relay.gateway.admin_alone import open_admin
from relay.gateway.config import load
from tests.support.gateway_lab import PASSPHRASE, chat
from tests.support.https_client import CHAT, CONFIG
from tests.support.mock_provider import KEY, MockProvider

TOKEN = "a-token-of-24-characters"
QUOTA = '[[quota]]\nname = "edges"\nid = "/edge/*"\nwindow = "1h"\nrequests = 50\ntokens = 20000\n'
ROOT = Path(__file__).resolve().parents[2]
PROGRAM = "from relay.cli import main; main()"


async def test_a_killed_gateway_has_forgotten_nothing(made: Path, tmp_path: Path) -> None:
    folder = tmp_path / "gateway"
    shutil.copytree(made, folder)
    for name, secret in (("provider.key", KEY), ("passphrase", "gateway pass"), ("token", TOKEN)):
        (folder / name).write_text(secret)
        (folder / name).chmod(0o600)
    text = CONFIG.replace("[provider]", 'insecure = "127.0.0.1:0"\n[provider]') + QUOTA
    body, last = chat(max_tokens=1_000), b""
    async with asyncio.timeout(120), MockProvider() as provider:
        (folder / "gateway.toml").write_text(text.format(base_url=provider.base_url))
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", PROGRAM, "gateway", "serve", "--config", str(folder / "gateway.toml"),
            "--passphrase-file", str(folder / "passphrase"), "--insecure-loopback", str(folder / "token"),
            stderr=asyncio.subprocess.PIPE, cwd=ROOT,
        )
        assert process.stderr is not None
        try:
            while b"gateway ready" not in last:
                last = await process.stderr.readline()
                assert last, "it ended"
            found = re.search(r"insecure=(\S+)", last.decode())
            assert found is not None
            async with aiohttp.ClientSession(
                f"http://{found[1]}", headers={"Authorization": f"Bearer {TOKEN}", "Content-Type": "application/json"}
            ) as http:
                async with http.post(CHAT, data=chat()) as response:
                    assert response.status == 200  # 16 tokens, the provider says
                provider.mode = "timeout"
                provider.began.clear()
                hanging = asyncio.create_task(http.request("POST", CHAT, data=body))
                await provider.began.wait()
                process.kill()
                await asyncio.wait({hanging})
                assert isinstance(hanging.exception(), aiohttp.ClientError)
        finally:
            if process.returncode is None:
                process.kill()
            await process.communicate()
    for _ in range(2):  # and a second start counts nothing twice
        async with open_admin(load(folder / "gateway.toml"), PASSPHRASE) as admin:
            lines = (await admin.call("usage", {}))["quotas"]
        assert [(one["counts"], one["used"], one["reserved"]) for one in lines] == [
            ("requests", 2, 0), ("tokens", 16 + len(body) + 1_000, 0)]

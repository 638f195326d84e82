"""`relay doctor` as a person and a script run it."""

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path

from tests.support.gateway_lab import make_folder
from tests.support.mock_provider import KEY, MockProvider
from tests.support.relay_process import CONFIG, ROOT, gateway_process, secret_file


def doctor(*arguments: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-c", "from relay.cli import main; main()", "doctor", *arguments]
    environment = {name: value for name, value in os.environ.items() if name != "CREDENTIALS_DIRECTORY"}
    return subprocess.run(
        command, capture_output=True, text=True, timeout=60, stdin=subprocess.DEVNULL, cwd=ROOT,
        env=environment | {"NO_COLOR": "1"},
    )


async def test_a_chain_and_its_break_in_words_and_as_json(tmp_path: Path) -> None:
    async with MockProvider() as provider, gateway_process(tmp_path / "gw", provider.base_url):
        config = ("--config", str(tmp_path / "gw" / "gateway.toml"))
        done = await asyncio.to_thread(doctor, *config)
        assert done.returncode == 0 and not done.stderr, done
        rows = [line.split() for line in done.stdout.splitlines()[1:]]
        assert [row[:2] for row in rows] == [
            [stage, "ok"] for stage in ("source", "issuance", "handshake", "authorisation", "provider")
        ]
        provider.mode = "401"
        done = await asyncio.to_thread(doctor, *config)
        assert done.returncode == 7 and "FAILED" in done.stdout and "hint: put a key that is good" in done.stdout
        done = await asyncio.to_thread(doctor, *config, "--json")
        told = json.loads(done.stdout)
        assert done.returncode == 7 and not told["ok"] and told["gateway"] == "spiffe://field.example/gateway/main"
        assert [one["status"] for one in told["stages"]] == ["ok", "ok", "ok", "ok", "failed"]
        assert all(one["ms"] >= 0 for one in told["stages"]) and KEY not in done.stdout


def test_a_gateway_that_does_not_run(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "gw")
    (folder / "gateway.toml").write_text(CONFIG.format(base_url="http://127.0.0.1:1/v1"))
    config = ("--config", str(folder / "gateway.toml"))
    done = doctor(*config)
    assert done.returncode == 4 and "no gateway runs" in done.stdout and done.stdout.count("not run") == 4
    passphrase = secret_file(tmp_path / "pass", "gateway pass")
    told = json.loads(doctor(*config, "--passphrase-file", passphrase, "--json").stdout)
    assert "its intermediate ends" in told["stages"][0]["finding"]
    assert [one["ms"] for one in told["stages"][1:]] == [None] * 4
    done = doctor("--config", str(tmp_path / "absent.toml"), "--json")
    assert done.returncode == 3 and json.loads(done.stdout)["error"]["code"] == "config_error"

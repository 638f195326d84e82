"""`relay gateway usage`, beside no gateway: what the last one left."""

import asyncio
import json
import shutil
from pathlib import Path

import pytest

from relay.cli import main
from relay.gateway.quota.kept import Kept
from relay.gateway.quota.quotas import CallHold, Quotas
from relay.gateway.state.sqlcipher import open_state
from tests.support.gateway_lab import PASSPHRASE, chat, context, peer
from tests.support.https_client import CONFIG
from tests.support.quota_lab import limiting, quota

EDGES = '[[quota]]\nname = "edges"\nid = "/edge/*"\nwindow = "1d"\nrequests = 500\ntokens = 20000\n'


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    directory = tmp_path / "gateway"
    shutil.copytree(made, directory)
    (directory / "passphrase").write_text("gateway pass\n")
    (directory / "passphrase").chmod(0o600)
    return directory


def usage(
    folder: Path, text: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *more: str
) -> str:
    (folder / "gateway.toml").write_text(CONFIG.format(base_url="http://127.0.0.1:1/v1") + text)
    monkeypatch.setattr("sys.argv", [
        "relay", "gateway", "usage", "--config", str(folder / "gateway.toml"), "--passphrase-file",
        str(folder / "passphrase"), *more,
    ])
    with pytest.raises(SystemExit) as ended:
        main()
    assert not ended.value.code
    return capsys.readouterr().out


async def spend(folder: Path) -> None:
    """1,200 tokens in one request."""
    with open_state(folder, PASSPHRASE) as database:
        quotas = Quotas(limiting(quota(name="edges", window="1d", requests=500, tokens=20_000)))
        kept = Kept(quotas, database, folder / "audit.jsonl", lambda: (0, ""))
        request = context(chat(), model="small", parsed=True, peer=peer())
        hold = quotas.admit(request, True, 100)
        assert isinstance(hold, CallHold)
        request.usage.input_tokens, request.usage.output_tokens = 1_000, 200
        hold.settle("answered")
        await kept.close()


async def test_a_table_and_the_same_as_json(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    await spend(folder)
    table = await asyncio.to_thread(usage, folder, EDGES, capsys, monkeypatch)
    head, *lines = [line.split() for line in table.splitlines()]
    assert " ".join(head) == "quota for models window of used reserved limit frees in"
    assert [line[:9] for line in lines] == [
        ["edges", "/edge/lap-1", "any", "1", "d", "requests", "1", "0", "500"],
        ["edges", "/edge/lap-1", "any", "1", "d", "tokens", "1,200", "0", "20,000"],
    ]
    told = json.loads(await asyncio.to_thread(usage, folder, EDGES, capsys, monkeypatch, "--json"))["quotas"]
    found = [(one["counts"], one["used"], one["limit"]) for one in told]
    assert found == [("requests", 1, 500), ("tokens", 1_200, 20_000)]
    assert 86_000 < told[0]["frees_s"] <= 86_400 + 1_440


def test_without_quotas_it_says_how_there_are_some(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "[[quota]]" in usage(folder, "", capsys, monkeypatch)

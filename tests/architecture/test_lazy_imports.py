"""Commands load what they need: `edge --help` must not cost a model, and a hop must not hold a gateway's code."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from typer.main import get_command

import relay.cli
from relay.gateway.cli import app as gateway
from tests.support.gateway_lab import PASSPHRASE, make_folder
from tests.support.relay_process import CONFIG, secret_file

ROOT = Path(__file__).resolve().parent.parent.parent

# Runs the command line as the installed script does, then tells which modules were loaded, after a marker line.
RUNNER = """
import json, sys
sys.argv = json.loads(sys.argv[1])
from {module} import main
try:
    main()
except SystemExit:
    pass
print("\\n@@" + json.dumps(sorted(sys.modules)))
"""


def loaded_after(module: str, arguments: list[str]) -> tuple[set[str], str]:
    """Names of all modules loaded after running a command line, and what it printed."""
    done = subprocess.run(
        [sys.executable, "-c", RUNNER.format(module=module), json.dumps(arguments)],
        capture_output=True, text=True, timeout=60, cwd=ROOT, env={**os.environ, "NO_COLOR": "1"}, check=True,
    )  # fmt: skip
    text, _, names = done.stdout.rpartition("\n@@")
    return set(json.loads(names)), text


def test_the_runner_can_see_a_loaded_module() -> None:
    code = "import json, sys, sqlite3; print('@@' + json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert "sqlite3" in json.loads(done.stdout.partition("@@")[2])


@pytest.mark.parametrize("command", [["edge", "--help"], ["edge", "ask", "--help"], ["edge", "ingest", "--help"]])
def test_edge_help_loads_nothing_heavy(command: list[str]) -> None:
    modules, text = loaded_after("edge_client.cli", command)
    assert "Usage" in text
    heavy = {"llama_cpp", "numpy", "aiohttp", "cryptography", "bleak", "sqlcipher3", "gguf", "pypdf", "opentelemetry"}
    assert modules & heavy == set()
    assert modules & {"asyncio", "rich", "msgspec", "ssl", "readline"} == set(), "help is to be instant"
    # With an argument typer itself loads this, in as much time as all the rest takes.
    assert command != ["edge", "--help"] or "pydantic" not in modules


def test_relay_help_loads_neither_role() -> None:
    modules, text = loaded_after("relay.cli", ["relay", "--help"])
    assert "gateway" in text and "hop" in text
    assert modules & {"aiohttp", "cryptography", "sqlcipher3"} == set()


def test_a_gateways_command_loads_no_http(tmp_path: Path) -> None:
    """It asks the running gateway, or opens its folder; a web server's code would be a third of the waiting."""
    folder = make_folder(tmp_path / "gw")
    (folder / "gateway.toml").write_text(CONFIG.format(base_url="http://127.0.0.1:9/v1"))
    passphrase = secret_file(tmp_path / "pass", PASSPHRASE.expose().decode())
    config = ["--config", str(folder / "gateway.toml"), "--passphrase-file", str(passphrase)]
    modules, text = loaded_after("relay.cli", ["relay", "gateway", "devices", "--json", *config])
    assert json.loads(text) == {"devices": []}
    assert "relay.gateway.config" in modules and modules & {"aiohttp", "relay.gateway.app", "llama_cpp"} == set()


def test_a_serving_gateway_keeps_nothing_of_what_only_reads_a_command_line(tmp_path: Path) -> None:
    """It would be 9 MiB for good."""
    serve = ["relay", "gateway", "serve", "--config", str(tmp_path / "none.toml")]
    modules, _ = loaded_after("relay.cli", serve)
    assert "relay.gateway.app" in modules and modules & {"pydantic", "rich", "pygments"} == set()
    assert "pydantic" in loaded_after("relay.cli", [*serve, "--port", "1"])[0], "typer is to say what is wrong"


def test_a_plain_serve_is_read_as_typer_would(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[dict[str, Path | None]] = []
    monkeypatch.setattr("relay.gateway.cli.serve", lambda **given: told.append(given))
    monkeypatch.delenv("CAUSEWAY_GATEWAY", raising=False)
    options = {"--config": "c", "--passphrase-file": "p", "--insecure-loopback": "i"}
    known = get_command(gateway).commands["serve"].params  # type: ignore[attr-defined]
    assert {one.opts[0] for one in known if one.name != "help"} == set(options)
    for arguments in ([], ["--config", "c"], [part for pair in options.items() for part in pair]):
        monkeypatch.setattr("sys.argv", ["relay", "gateway", "serve", *arguments])
        relay.cli.main()
    monkeypatch.setenv("CAUSEWAY_GATEWAY", "e")
    monkeypatch.setattr("sys.argv", ["relay", "gateway", "serve"])
    relay.cli.main()
    assert told == [
        {"config": Path("gateway.toml")}, {"config": Path("c")},
        {"config": Path("c"), "passphrase_file": Path("p"), "insecure_loopback": Path("i")}, {"config": Path("e")},
    ]


@pytest.mark.parametrize("command", [["relay", "hop", "--help"], ["relay", "hop", "serve", "--help"]])
def test_a_hop_never_loads_the_gateway_or_a_key_to_the_traffic(command: list[str]) -> None:
    modules, text = loaded_after("relay.cli", command)
    assert "Usage" in text
    assert [name for name in modules if name.startswith("relay.gateway")] == []
    assert modules & {"sqlcipher3", "store.database", "numpy", "llama_cpp"} == set()


def test_a_hops_whole_code_cannot_read_traffic() -> None:
    """Not only at the door: with every module of relay.hop loaded, no protocol core is in the process."""
    code = (
        "import importlib, json, pkgutil, sys, relay.hop\n"
        "for found in pkgutil.walk_packages(relay.hop.__path__, 'relay.hop.'):\n"
        "    importlib.import_module(found.name)\n"
        "print('@@' + json.dumps(sorted(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, cwd=ROOT, check=True
    )
    modules = set(json.loads(done.stdout.partition("@@")[2]))
    assert any(name.startswith("relay.hop.") for name in modules), "nothing of the hop was loaded"
    blind_to = {"noise", "handshake", "records", "messages", "stream", "mux", "connection", "session"}
    assert {name for name in modules if name in {f"transport.{part}" for part in blind_to}} == set()
    assert [name for name in modules if name.startswith(("relay.gateway", "sqlcipher3", "store.database"))] == []

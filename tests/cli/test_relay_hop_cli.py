"""`relay hop` as a process: what it prints, its exit codes, and a clean stop."""

# ruff: noqa: ASYNC240 - small test files may block the loop
import asyncio
import errno
import json
import os
import signal
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

from tests.support.ca import Ca
from tests.support.joining_gateway import JoiningGateway
from transport.links.base import Endpoint, connect
from transport.links.virtual_join import serve_radio

ROOT = Path(__file__).resolve().parents[2]
RELAY = [sys.executable, "-c", "from relay.cli import main; main()"]
ENVIRONMENT = {name: value for name, value in os.environ.items() if not name.startswith(("CAUSEWAY", "CREDENTIALS"))}


async def start(*arguments: str, **environment: str) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        *RELAY, "hop", *arguments, cwd=ROOT, env={**ENVIRONMENT, "NO_COLOR": "1", **environment},
        stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE)


async def run(*arguments: str, **environment: str) -> tuple[int, str, str]:
    process = await start(*arguments, **environment)
    out, err = await asyncio.wait_for(process.communicate(), 60)
    assert "Traceback" not in err.decode(), err.decode()
    return process.returncode or 0, out.decode(), err.decode()


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Any]:
    (tmp_path / "pass").write_text("correct horse\n")
    (tmp_path / "wrong").write_text("battery staple\n")
    for name in ("pass", "wrong"):
        (tmp_path / name).chmod(0o600)
    return {"home": str(tmp_path / "hop"), "pass": str(tmp_path / "pass"), "wrong": str(tmp_path / "wrong"),
            "invitation": str(tmp_path / "invitation"), "dir": tmp_path}


async def test_join_serve_and_a_clean_stop(files: dict[str, Any]) -> None:
    async with JoiningGateway(Ca()).running() as gateway:
        line = gateway.invitation().encode()
        Path(files["invitation"]).write_text(line + "\n")
        common = ["--home", files["home"], "--passphrase-file", files["pass"]]
        code, out, err = await run("join", "--invitation-file", files["invitation"], *common, "--json")
        assert code == 0, err
        joined = json.loads(out)
        assert (joined["id"], joined["gateway"]) == ("spiffe://field.example/hop/pi", gateway.url)
        assert line not in out + err
        code, out, err = await run("join", "--invitation-file", files["invitation"], *common)
        assert code == 3 and "joined already" in err and "hint: " in err
        code, _, err = await run("serve", "--listen", "tcp:127.0.0.1:0", "--home", files["home"],
                                 "--passphrase-file", files["wrong"])
        assert code == 8 and "passphrase is wrong" in err

        # Unattended start by the service manager's credentials, and both ways to stop.
        credentials = files["dir"] / "credentials"
        credentials.mkdir()
        (credentials / "hop-passphrase").write_text("correct horse")
        for number in (signal.SIGTERM, signal.SIGINT):
            path = str(files["dir"] / "edge.sock")
            process = await start("serve", "--listen", f"unix:{path}", "--gateway", gateway.url.replace("https", "wss"),
                                  "--home", files["home"], CREDENTIALS_DIRECTORY=str(credentials))
            assert process.stderr is not None
            ready = (await asyncio.wait_for(process.stderr.readline(), 60)).decode()
            assert ready == f"relay: hop ready pi listening on unix:{path}\n"
            link = await connect(Endpoint.parse(f"unix:{path}"))
            await link.send(b"through the hop")
            assert await link.receive() == b"through the hop"
            process.send_signal(number)
            out_bytes, err_bytes = await asyncio.wait_for(process.communicate(), 30)
            assert (process.returncode, out_bytes, err_bytes) == (0, b"", b"")
            assert await link.receive() == b""
            await link.close()
            assert not Path(path).exists()


async def test_status_tells_how_a_hop_does_and_nothing_of_an_edge(files: dict[str, Any]) -> None:
    home, common = files["home"], ["--home", files["home"], "--passphrase-file", files["pass"]]
    code, _, err = await run("status", "--home", home)
    assert code == 3 and "no hop runs" in err and "hint: " in err
    async with JoiningGateway(Ca()).running() as gateway:
        Path(files["invitation"]).write_text(gateway.invitation().encode() + "\n")
        assert (await run("join", "--invitation-file", files["invitation"], *common))[0] == 0
        dead = "wss://127.0.0.1:9"
        process = await start("serve", "--listen", "tcp:127.0.0.1:0", *common, "--gateway", f"{dead},{gateway.url}")
        assert process.stderr is not None
        ready = (await asyncio.wait_for(process.stderr.readline(), 60)).decode()
        link = await connect(Endpoint.parse(ready.rpartition(" ")[2]))
        await link.send(bytes(3 << 20))
        received = 0
        while received < 3 << 20:
            received += len(await link.receive())
        code, out_json, err = await run("status", "--home", home, "--json")
        assert code == 0, err
        assert json.loads(out_json) == {
            "links": 4, "links_since_start": 4, "bytes_since_start": 8 << 20, "uptime_h": 0, "gateway": gateway.url,
            "last_error": "cannot reach wss://127.0.0.1:9/v1/tunnel; the next gateway is tried",
        }
        code, out, _ = await run("status", "--home", home)
        assert code == 0 and "up to 4 now" in out and gateway.url in out
        control = Path(home) / "run"
        assert control.stat().st_mode & 0o777 == 0o700
        code, _, err = await run("serve", "--listen", "tcp:127.0.0.1:0", *common)
        assert code == 3 and "runs already" in err
        process.send_signal(signal.SIGTERM)
        _, err_bytes = await asyncio.wait_for(process.communicate(), 30)
        assert err_bytes.decode().splitlines() == [f"relay: {json.loads(out_json)['last_error']}"]
        await link.close()
        assert list(control.iterdir()) == []
        nobody = {"DBUS_SYSTEM_BUS_ADDRESS": f"unix:path={home}/none"}  # whatever this machine has
        for radio, expected, words in (("system", 5, "cannot be reached"), ("cable:1", 3, "not a radio"),
                                       (f"virtual:{home}/none", 5, "relay sim radio")):
            code, _, err = await run("serve", "--listen", "ble", "--radio", radio, *common, **nobody)
            assert (code, words in err, "hint: " in err) == (expected, True, True), err


async def test_a_hop_that_has_lost_its_radio_does_not_look_as_if_it_served(files: dict[str, Any]) -> None:
    common = ["--home", files["home"], "--passphrase-file", files["pass"]]
    where = str(files["dir"] / "radio")
    ble = ["--listen", "ble", "--radio", f"virtual:{where}"]
    async with JoiningGateway(Ca()).running() as gateway:
        Path(files["invitation"]).write_text(gateway.invitation().encode() + "\n")
        assert (await run("join", "--invitation-file", files["invitation"], *common))[0] == 0
        for others in ([], ["--listen", "tcp:127.0.0.1:0"]):
            air = await serve_radio(where)
            process = await start("serve", *ble, *others, *common)
            assert process.stderr is not None
            ready = (await asyncio.wait_for(process.stderr.readline(), 60)).decode()
            assert ready.startswith("relay: hop ready"), ready
            await air.close()
            told = (await asyncio.wait_for(process.stderr.readline(), 60)).decode()
            assert "the Bluetooth radio is gone" in told
            if others:
                assert "go on" in told
                await (await connect(Endpoint.parse(ready.split()[-1]))).close()
                process.send_signal(signal.SIGTERM)
            _, rest = await asyncio.wait_for(process.communicate(), 60)
            assert (process.returncode, b"hint: " in rest) == ((0, False) if others else (5, True)), rest


async def test_bad_input_is_one_line_a_hint_and_a_code(files: dict[str, Any]) -> None:
    home, passphrase = files["home"], files["pass"]
    Path(files["invitation"]).write_text("cw1aeaqcaibaeaqcaibaeaqcaibaeaqcaiba")
    (files["dir"] / "empty").write_text("")
    (files["dir"] / "binary").write_bytes(b"\xff\x00\xfe")
    (files["dir"] / "large").write_bytes(bytes(100_000))
    common = ["--home", home, "--passphrase-file", passphrase]
    cases = [
        (3, "cut short", ["join", "--invitation-file", files["invitation"], *common]),
        (3, "not an invitation", ["join", "--invitation-file", str(files["dir"] / "empty"), *common]),
        (3, "not an invitation", ["join", "--invitation-file", str(files["dir"] / "binary"), *common]),
        (3, "cannot read the invitation", ["join", "--invitation-file", "/nowhere", *common]),
        (3, "no terminal", ["join", *common]),
        (3, "not joined", ["serve", "--listen", "tcp:127.0.0.1:0", *common]),
        (3, "no terminal", ["serve", "--listen", "tcp:127.0.0.1:0", "--home", home]),
        (3, "endpoint", ["serve", "--listen", "tcp:nowhere", *common]),
        (3, "not joined", ["serve", "--listen", "ble", *common]),
        (3, "file name too long", ["join", "--invitation-file", "x" * 5_000, *common]),
        (3, "too long a path", ["status", "--home", "x" * 5_000]),
        (8, "file name too long", ["serve", "--listen", "tcp:127.0.0.1:0", "--home", "x" * 5_000, *common[2:]]),
        (3, f"no hop runs with the identity in {passphrase}", ["status", "--home", passphrase]),
        (3, "empty", ["serve", "--listen", "tcp:127.0.0.1:0", "--passphrase-file", str(files["dir"] / "empty")]),
        (3, "too large", ["serve", "--listen", "tcp:127.0.0.1:0", "--passphrase-file", str(files["dir"] / "large")]),
        (2, "", ["serve", *common]),
        (2, "", ["serve", "--listen", "tcp:h:1", "--max-links", "0", *common]),
    ]
    for code, words, arguments in cases:
        got, out, err = await run(*arguments)
        assert (got, out) == (code, ""), (arguments, err)
        assert words in err
        if code != 2:
            assert err.startswith("relay: ") and "hint: " in err, err
            assert "aeaqcaib" not in err


async def test_gateways_that_are_down_or_false(files: dict[str, Any]) -> None:
    arguments = ["join", "--invitation-file", files["invitation"], "--home", files["home"], "--passphrase-file",
                 files["pass"]]
    async with JoiningGateway(Ca()).running() as false:
        genuine = JoiningGateway(Ca())
        genuine.url = false.url
        Path(files["invitation"]).write_text(genuine.invitation().encode())
        code, _, err = await run(*arguments)
        assert code == 4 and "root certificate is not the one" in err
        assert false.requests == []
    code, _, err = await run(*arguments)
    assert code == 5 and "cannot reach the gateway" in err and "hint: " in err


async def test_errors_are_objects_for_machines_and_the_version_is_told(files: dict[str, Any]) -> None:
    code, out, err = await run("join", "--invitation-file", "/nowhere", "--home", files["home"], "--json")
    assert code == 3 and json.loads(out)["error"]["code"] == "hop_misuse" and err.startswith("relay: ")
    process = await asyncio.create_subprocess_exec(
        *RELAY, "--version", cwd=ROOT, stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE
    )
    shown, _ = await asyncio.wait_for(process.communicate(), 60)
    assert (process.returncode, shown.decode()) == (0, f"relay {version('causeway')}\n")


async def test_a_folder_is_no_passphrase_file(files: dict[str, Any]) -> None:
    code, _, err = await run("serve", "--listen", "tcp:127.0.0.1:0", "--home", files["home"],
                             "--passphrase-file", str(files["dir"]))
    assert code == 8 and err.startswith("relay: ")


def test_what_the_machine_lacks_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    from relay.cli import _print_error

    assert _print_error(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))) == 1
    told = capsys.readouterr().err
    assert "no space left on device" in told and "hint: " in told and "this is a defect" not in told


def test_errors_become_words_and_exit_codes(capsys: pytest.CaptureFixture[str]) -> None:
    from relay.cli import _print_error
    from transport.errors import BadInput, IdentityRefused, LinkLost, LocalMisuse, PeerRefused, ProtocolViolation

    for error, code in (
        (BadInput("x"), 3), (IdentityRefused("x", rule="r"), 4), (LinkLost("x", hint="y"), 5),
        (PeerRefused("x", reason="r"), 6), (ProtocolViolation("x"), 10), (LocalMisuse("x"), 1),
        (ExceptionGroup("g", [ExceptionGroup("h", [LinkLost("x")])]), 5), (ValueError("secret"), 1),
    ):
        assert _print_error(error) == code
        assert "secret" not in capsys.readouterr().err
    _print_error(LinkLost("the link broke", hint="look at the cable"))
    assert capsys.readouterr().err == "relay: the link broke\nhint: look at the cable\n"


def test_no_traceback_shows_local_values() -> None:
    """They could be keys."""
    from relay.hop.cli import app

    assert app.pretty_exceptions_enable is False

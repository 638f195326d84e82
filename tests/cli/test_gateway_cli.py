"""`relay gateway ...` as a person runs it: processes, exit codes, words on the right stream."""

import json
import os
import pty
import re
import select
import shutil
import signal
import subprocess
import sys
import termios
from collections.abc import Iterator
from pathlib import Path

import pytest
import segno
from cryptography.x509 import load_pem_x509_certificate

from relay.gateway.cli import _name, _table
from tests.support.mock_provider import KEY
from transport.identity.revocation import stored_list

LIMIT = 60


def relay(*arguments: str | Path, cwd: Path | None = None) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-c", "from relay.cli import main; main()", "gateway", *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    return subprocess.run(
        command, capture_output=True, text=True, timeout=LIMIT, stdin=subprocess.DEVNULL, cwd=cwd, env=environment
    )


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cli")
    (folder / "pass").write_text("gateway pass\n")
    (folder / "rootpass").write_text("root pass\n")
    for name in ("pass", "rootpass"):
        (folder / name).chmod(0o600)
    done = relay(
        "init", folder / "gw", "--trust-domain", "field.example",
        "--passphrase-file", folder / "pass", "--root-passphrase-file", folder / "rootpass",
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    config = folder / "gw" / "gateway.toml"
    text = config.read_text()
    for port in ("7443", "8443", "8081"):
        text = text.replace(f"127.0.0.1:{port}", "127.0.0.1:0")
    config.write_text(text.replace("https://api.openai.com/v1", "http://127.0.0.1:9/v1"))
    (folder / "gw" / "provider.key").write_text(KEY)
    (folder / "gw" / "provider.key").chmod(0o600)
    return folder


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    shutil.copytree(made, tmp_path / "copy")
    return tmp_path / "copy"


@pytest.fixture
def serving(folder: Path) -> Iterator["subprocess.Popen[str]"]:
    process = subprocess.Popen(
        [sys.executable, "-c", "from relay.cli import main; main()", "gateway", "serve",
         "--config", folder / "gw" / "gateway.toml", "--passphrase-file", folder / "pass"],
        stderr=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    )
    assert process.stderr is not None
    try:
        ready, _, _ = select.select([process.stderr], [], [], LIMIT)
        assert ready
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.wait(LIMIT)
        process.stderr.close()


def config(folder: Path) -> tuple[str, str]:
    return "--config", str(folder / "gw" / "gateway.toml")


def test_a_gateway_that_crashes_leaves_no_core(serving: "subprocess.Popen[str]") -> None:
    limits = Path(f"/proc/{serving.pid}/limits").read_text()
    assert re.search(r"^Max core file size +0 +0 ", limits, re.MULTILINE), limits


def test_init_makes_private_files_and_no_open_secret(made: Path) -> None:
    names = {file.name for file in (made / "gw").iterdir()}
    assert names == {
        "gateway.toml", "root.sealed", "root.pem", "intermediate.sealed", "state.key", "state.db", "provider.key"
    }
    for file in (made / "gw").iterdir():
        assert file.stat().st_mode & 0o077 == 0
        assert b"PRIVATE KEY" not in file.read_bytes()


def test_init_changes_nothing_in_a_folder_that_is_not_empty(folder: Path) -> None:
    before = {file.name: file.read_bytes() for file in (folder / "gw").iterdir()}
    done = relay("init", folder / "gw", "--trust-domain", "x.example", "--passphrase-file", folder / "pass",
                 "--root-passphrase-file", folder / "rootpass")
    assert done.returncode == 3
    assert done.stderr.startswith("relay: ")
    assert "hint: " in done.stderr
    assert {file.name: file.read_bytes() for file in (folder / "gw").iterdir()} == before


@pytest.mark.parametrize("mistake", ["domain", "same passphrase", "no passphrase file", "empty passphrase"])
def test_a_failed_init_leaves_nothing(folder: Path, mistake: str) -> None:
    files = {"--passphrase-file": folder / "pass", "--root-passphrase-file": folder / "rootpass"}
    domain = "field.example"
    if mistake == "domain":
        domain = "Not A Domain"
    elif mistake == "same passphrase":
        files["--root-passphrase-file"] = folder / "pass"
    elif mistake == "no passphrase file":
        files["--root-passphrase-file"] = folder / "absent"
    else:
        (folder / "pass").write_text("\n")
    before = set(folder.iterdir())
    done = relay("init", folder / "new", "--trust-domain", domain, *(part for pair in files.items() for part in pair))
    assert done.returncode in (3, 8)
    assert done.stderr.startswith("relay: ")
    assert "Traceback" not in done.stderr
    assert set(folder.iterdir()) == before


def test_without_a_terminal_a_passphrase_is_not_guessed(folder: Path) -> None:
    done = relay("devices", *config(folder))
    assert done.returncode == 3
    assert "no gateway runs here" in done.stderr
    assert "relay gateway serve" in done.stderr and "--passphrase-file" in done.stderr


def test_a_name_too_long_for_a_folder_is_refused_in_words(folder: Path) -> None:
    done = relay("init", "x" * 5_000, "--trust-domain", "field.example", "--passphrase-file", folder / "pass",
                 "--root-passphrase-file", folder / "rootpass")
    assert done.returncode == 3 and done.stderr.endswith("file name too long\nhint: choose another folder\n")


@pytest.mark.parametrize("columns", [20, 40, 80, 200])
def test_no_cell_of_a_table_is_cut(columns: int) -> None:
    names = ["id", "status", "last seen"]
    row = ["spiffe://field.example/edge/laptop-1", "active", "2026-11-22T04:40:56Z"]
    code = f"from relay.gateway.cli import _table; _table({names}, [{row}], right={{1}})"
    environment = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES")}
    leader, terminal = pty.openpty()
    try:
        termios.tcsetwinsize(terminal, (24, columns))
        subprocess.run(
            [sys.executable, "-c", code], check=True, timeout=LIMIT, stdin=subprocess.DEVNULL, stdout=terminal,
            env={**environment, "PYTHONPATH": str(Path(__file__).parents[2]), "NO_COLOR": "1"},
        )
        shown = os.read(leader, 4_096).decode()
    finally:
        os.close(leader)
        os.close(terminal)
    assert all(text in shown for text in (*names, *row)), shown


@pytest.mark.parametrize("hint", ["foo", "https://", "tcp:host"])
def test_a_place_that_nobody_could_dial_is_no_hint(folder: Path, hint: str) -> None:
    done = relay("invite", "edge/lap-1", *config(folder), "--passphrase-file", folder / "pass", "--hint", hint)
    assert (done.returncode, done.stdout) == (3, "") and "hint: " in done.stderr


def test_invite_prints_one_line_and_devices_a_list(folder: Path) -> None:
    done = relay(
        "invite", "edge/lap-1", *config(folder), "--passphrase-file", folder / "pass", "--hint", "unix:/h.sock"
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("cw1")
    assert done.stdout.count("\n") == 1
    listed = relay("devices", *config(folder), "--passphrase-file", folder / "pass", "--json")
    assert json.loads(listed.stdout) == {"devices": []}


def with_a_page(folder: Path) -> None:
    file = folder / "gw" / "gateway.toml"
    text = file.read_text().replace("[listen]\n", '[listen]\npublic = "127.0.0.1:8080"\n')
    file.write_text(text.replace("[provider] ", '[public]\norigin = "https://gw.example"\n[provider] '))


def at_a_terminal(columns: int, *arguments: str | Path) -> str:
    """What a command prints on a terminal of so many columns."""
    end, other = pty.openpty()
    termios.tcsetwinsize(other, (50, columns))
    environment = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES", "NO_COLOR")}
    process = subprocess.Popen(
        [sys.executable, "-c", "from relay.cli import main; main()", "gateway", *map(str, arguments)],
        stdin=subprocess.DEVNULL, stdout=other, stderr=other,
        env={**environment, "TERM": "xterm", "PYTHONPATH": str(Path(__file__).parents[2])},
    )
    os.close(other)
    printed = b""
    try:
        while select.select([end], [], [], LIMIT)[0]:
            try:
                printed += os.read(end, 65_536)
            except OSError:  # the other end is closed
                break
        assert process.wait(LIMIT) == 0
    finally:
        process.kill()
        os.close(end)
    return printed.decode().replace("\r\n", "\n")


def test_a_row_is_a_line_where_nobody_looks(capsys: pytest.CaptureFixture[str]) -> None:
    identity, note = "spiffe://field.example/edge/" + "factory-floor/" * 6 + "lap-1", "left on a train" * 12
    _table(["id", "a", "b", "c", "d", "e", "note"], [[identity, *"abcde", note], ["other", *"abcde", ""]])
    head, one, other = capsys.readouterr().out.splitlines()
    assert head.split() == ["id", *"abcde", "note"] and other.split() == ["other", *"abcde"]
    assert one.startswith(f"{identity}  a") and one.endswith(note)


def test_a_terminal_shows_the_code_of_the_address_under_it(folder: Path) -> None:
    with_a_page(folder)
    arguments = ("invite", "hop/phone-1", "--qr", *config(folder), "--passphrase-file", folder / "pass")
    *code, url, words, last = at_a_terminal(120, *arguments).split("\n")
    assert re.fullmatch(r"https://gw\.example/hop#cw1[a-z2-7]+", url)
    assert last == "" and "60 minutes" in words
    shown = [re.fullmatch(r"\x1b\[97;40m([█▀▄ ]+)\x1b\[0m", line) for line in code]
    assert shown and all(shown)
    rows = [
        [cell in both for cell in line[1]] for line in shown if line is not None for both in ("█▀", "█▄")
    ]
    expected = [[not dark for dark in row] for row in segno.make(url, error="l").matrix_iter(border=4)]
    assert rows[:len(expected)] == expected, "light modules are light, quiet zone included"
    narrow = at_a_terminal(40, *arguments)
    assert "█" not in narrow and "https://gw.example/hop#cw1" in narrow and "columns" in narrow


def test_without_a_terminal_the_address_is_all_there_is(folder: Path) -> None:
    with_a_page(folder)
    arguments = ("invite", "hop/phone-1", *config(folder), "--passphrase-file", folder / "pass", "--qr")
    done = relay(*arguments)
    assert re.fullmatch(r"https://gw\.example/hop#cw1[a-z2-7]+\n", done.stdout), done.stderr
    answer = json.loads(relay(*arguments, "--json").stdout)
    assert answer["url"] == f"https://gw.example/hop#{answer['invitation']}"
    plain = json.loads(relay(*(one for one in arguments if one != "--qr"), "--json").stdout)
    assert plain["url"].startswith("https://gw.example/hop#cw1")
    edge = json.loads(relay("invite", "edge/x", *config(folder), "--passphrase-file", folder / "pass", "--json").stdout)
    assert edge["url"] is None


@pytest.mark.parametrize(("path", "page", "told"), [
    ("hop/phone-1", False, "no public listener"), ("edge/lap-1", True, "a phone can be a hop"),
    ("hops/phone-1", True, "a phone can be a hop"),
])
def test_a_code_that_no_phone_could_use_is_not_made(folder: Path, path: str, page: bool, told: str) -> None:
    if page:
        with_a_page(folder)
    done = relay("invite", path, "--qr", *config(folder), "--passphrase-file", folder / "pass")
    assert (done.returncode, done.stdout) == (3, "")
    assert told in done.stderr and "hint: " in done.stderr
    assert not (folder / "gw" / "audit.jsonl").exists(), "nor is the invitation"


@pytest.mark.parametrize(("arguments", "code"), [
    (["invite", "laptop/x"], 3), (["invite", "gateway/two"], 3), (["invite", "edge/x", "--ttl", "9999"], 3),
    (["invite", "hop/x", "--tpm"], 3),
    (["invite", "edge/x", "--hint", "\n"], 3), (["trace", "xyz"], 3), (["trace", "a" * 32], 3),
])
def test_bad_input_is_one_line_a_hint_and_an_exit_code(folder: Path, arguments: list[str], code: int) -> None:
    done = relay(*arguments, *config(folder), "--passphrase-file", folder / "pass")
    assert done.returncode == code
    assert done.stdout == ""
    assert done.stderr.startswith("relay: ")
    assert "Traceback" not in done.stderr
    machine = relay(*arguments, *config(folder), "--passphrase-file", folder / "pass", "--json")
    error = json.loads(machine.stdout)["error"]
    assert machine.returncode == code and error["message"] in machine.stderr and error["fault"] == "user"
    assert arguments != ["trace", "a" * 32] or "given on the device" in error["hint"]


def test_a_passphrase_file_that_others_can_read_is_used_and_warned_about(folder: Path) -> None:
    (folder / "pass").chmod(0o644)
    done = relay("devices", *config(folder), "--passphrase-file", folder / "pass", "--json")
    assert json.loads(done.stdout) == {"devices": []}
    assert done.stderr == f"relay: warning: others may read or write {folder / 'pass'}; chmod 600 it\n"


def test_a_missing_passphrase_file_names_its_option(folder: Path) -> None:
    done = relay("devices", *config(folder), "--passphrase-file", folder / "absent")
    assert done.returncode == 8 and str(folder / "absent") in done.stderr
    assert "hint: --passphrase-file names it" in done.stderr
    root = relay("rotate-key", *config(folder), "--passphrase-file", folder / "pass",
                 "--root-passphrase-file", folder / "absent")
    assert root.returncode == 8 and "hint: --root-passphrase-file names it" in root.stderr


def test_wrong_passphrase_and_missing_gateway(folder: Path) -> None:
    wrong = relay("devices", *config(folder), "--passphrase-file", folder / "rootpass")
    assert wrong.returncode == 8
    assert "passphrase is wrong" in wrong.stderr
    absent = relay("devices", "--config", folder / "absent.toml")
    assert absent.returncode == 3
    broken = folder / "gw" / "gateway.toml"
    broken.write_text(broken.read_text().replace("[listen]", "[listen]\nhelth = 1"))
    named = relay("devices", *config(folder))
    assert named.returncode == 3
    assert "listen.helth" in named.stderr


def test_serve_says_where_and_commands_ask_it_without_a_passphrase(
    folder: Path, serving: "subprocess.Popen[str]"
) -> None:
    assert serving.stderr is not None
    line = serving.stderr.readline()
    assert line.startswith("relay: gateway ready session=tcp:127.0.0.1:")
    assert "https=127.0.0.1:" in line
    invited = relay("invite", "edge/lap-1", *config(folder))
    assert invited.returncode == 0, invited.stderr
    assert invited.stdout.startswith("cw1")
    refused = relay("invite", "gateway/two", *config(folder))
    assert refused.returncode == 3
    assert "--allow-gateway" in refused.stderr
    assert json.loads(relay("devices", *config(folder), "--json").stdout) == {"devices": []}
    second = relay("serve", *config(folder), "--passphrase-file", folder / "pass")
    assert second.returncode == 8
    assert "another process" in second.stderr
    serving.send_signal(signal.SIGTERM)
    assert serving.wait(LIMIT) == 0
    assert KEY not in serving.stderr.read()


def test_a_hangup_reloads_the_configuration_and_a_broken_one_is_told(
    folder: Path, serving: "subprocess.Popen[str]"
) -> None:
    assert serving.stderr is not None
    assert "gateway ready" in serving.stderr.readline()
    file = folder / "gw" / "gateway.toml"
    good = file.read_text()
    file.write_text(good + '[limits]\ndrain_s = "soon"\n')
    serving.send_signal(signal.SIGHUP)
    assert "not reloaded, that of before stays in force: limits.drain_s" in serving.stderr.readline()
    file.write_text(good + "[limits]\ndrain_s = 0.5\n")
    serving.send_signal(signal.SIGHUP)
    assert serving.stderr.readline() == "relay: the configuration is reloaded\n"


def test_serve_starts_unattended_by_systemd_credentials(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    credentials = folder / "credentials"
    credentials.mkdir()
    shutil.copy(folder / "rootpass", credentials / "gateway-passphrase")  # wrong on purpose: it must have been read
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(credentials))
    done = relay("serve", *config(folder))
    assert done.returncode == 8
    assert "passphrase is wrong" in done.stderr


def test_serve_without_a_provider_key_says_where_it_should_be(folder: Path) -> None:
    (folder / "gw" / "provider.key").unlink()
    done = relay("serve", *config(folder), "--passphrase-file", folder / "pass")
    assert done.returncode == 3
    assert "provider.key" in done.stderr


def test_a_new_intermediate(folder: Path) -> None:
    before = (folder / "gw" / "intermediate.sealed").read_bytes()
    wrong = relay("rotate-key", *config(folder), "--passphrase-file", folder / "pass",
                  "--root-passphrase-file", folder / "pass")
    assert wrong.returncode == 8
    assert (folder / "gw" / "intermediate.sealed").read_bytes() == before
    done = relay("rotate-key", *config(folder), "--passphrase-file", folder / "pass",
                 "--root-passphrase-file", folder / "rootpass", "--json")
    assert done.returncode == 0, done.stderr
    assert "not_after" in json.loads(done.stdout)
    assert (folder / "gw" / "intermediate.sealed").read_bytes() != before


def test_keys_of_tokens_change_beside_a_gateway_that_runs(
    folder: Path, serving: "subprocess.Popen[str]"
) -> None:
    assert serving.stderr is not None
    serving.stderr.readline()
    first, second = (
        json.loads(relay("rotate-key", "token", *config(folder), "--json", *more).stdout)["keys"]
        for more in ((), ("--compromised",))
    )
    assert first.keys() == second.keys() == {"access", "jwt-svid"}
    assert not set(first.values()) & set(second.values())


def test_keys_of_tokens_change_without_one(folder: Path) -> None:
    done = relay("rotate-key", "token", *config(folder), "--passphrase-file", folder / "pass")
    assert done.returncode == 0, done.stderr
    assert "access tokens are signed by the key " in done.stdout and "jwt-svid tokens are" in done.stdout


def test_a_new_root_is_published_and_not_used_at_once(folder: Path) -> None:
    keys = ("--passphrase-file", folder / "pass", "--root-passphrase-file", folder / "rootpass")
    done = relay("rotate-key", "root", *config(folder), *keys)
    assert done.returncode == 0, done.stderr
    assert "the new root is published; the trust bundle is number 2" in done.stdout and "next:" in done.stdout
    again = relay("rotate-key", "root", *config(folder), *keys)
    assert again.returncode == 3
    assert "too early" in again.stderr and "90 days" in again.stderr


def test_an_authority_for_spire_and_the_next_when_that_was_stolen(folder: Path) -> None:
    keys = (*config(folder), "--passphrase-file", folder / "pass", "--root-passphrase-file", folder / "rootpass")
    for alone in (("upstream",), ("root", "--out", folder / "one")):
        refused = relay("rotate-key", *alone, *keys)
        assert refused.returncode == 3 and "go together" in refused.stderr
    done = relay("rotate-key", "upstream", "--out", folder / "one", *keys)
    assert done.returncode == 0, done.stderr
    assert sorted(file.name for file in (folder / "one").iterdir()) == ["bundle.pem", "upstream.key", "upstream.pem"]
    assert relay("rotate-key", "upstream", "--out", folder / "one", *keys).returncode == 3, "it is there"
    assert relay("rotate-key", "upstream", "--out", folder / "two", *keys).returncode == 0
    assert not (folder / "gw" / "revocations.list").exists(), "the first goes on"
    made = {
        load_pem_x509_certificate((folder / name / "upstream.pem").read_bytes()).serial_number
        for name in ("one", "two")
    }
    done = relay("rotate-key", "upstream", "--out", folder / "three", "--compromised", *keys)
    assert done.returncode == 0, done.stderr
    assert stored_list((folder / "gw" / "revocations.list").read_bytes()).serials == made, "whichever was stolen"


def test_serve_refuses_certificates_that_live_longer_than_configured(folder: Path) -> None:
    file = folder / "gw" / "gateway.toml"
    file.write_text(file.read_text() + "\n[identity]\nintermediate_max_days = 7\n")
    serve = ("serve", *config(folder), "--passphrase-file", folder / "pass")
    refused = relay(*serve)
    assert refused.returncode == 3
    assert "identity.intermediate_max_days" in refused.stderr and "rotate-key intermediate" in refused.stderr
    renewed = relay("rotate-key", *config(folder), "--passphrase-file", folder / "pass",
                    "--root-passphrase-file", folder / "rootpass")
    assert renewed.returncode == 0, renewed.stderr
    file.write_text(re.sub(r'https = "[^"]*"', 'https = "192.0.2.1:1"', file.read_text()))
    assert "cannot listen on 192.0.2.1:1" in relay(*serve).stderr, "the certificates are no objection any more"


def test_a_span_is_shown_with_its_route() -> None:
    assert _name({"name": "edge.ask", "attributes": {"causeway.route": "relay"}}) == "edge.ask (relay)"
    assert _name({"name": "tunnel", "attributes": {}}) == "tunnel"

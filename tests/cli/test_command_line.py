"""What holds for every command: examples that parse, `--json`, documented codes, few verbs, completion, colours."""

import importlib
import json
import os
import pkgutil
import pty
import re
import select
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

import edge_client.errors
import relay.cli
import store.errors
import transport.errors
from edge_client.cli import app
from edge_client.commands.examples import EXAMPLES
from edge_client.commands.terminal import EXIT_CODES, coloured, exit_code
from tests.architecture.test_cli_help import walk

ROOT = Path(__file__).resolve().parent.parent.parent
DOCS = (ROOT / "docs" / "COMMANDS.md").read_text()
COMMANDS = dict(walk(typer.main.get_command(app), ("edge",)))
PACKAGES = ("edge_client", "store", "transport")
GROUPS = [name for name, command in COMMANDS.items() if hasattr(command, "list_commands")]


def parse(command: Any, words: list[str]) -> None:
    """Raises what a usage error is."""
    context = command.make_context(command.name, list(words))
    rest = [*getattr(context, "_protected_args", ()), *context.args]
    if hasattr(command, "resolve_command") and rest:
        _, found, left = command.resolve_command(context, rest)
        parse(found, left)
    else:
        assert not rest, rest


@pytest.mark.parametrize("line", [line for lines in EXAMPLES.values() for line in lines])
def test_every_example_parses(line: str) -> None:
    words = shlex.split(line.rpartition("|")[2].partition("<")[0])
    assert words.pop(0) == "edge"
    parse(typer.main.get_command(app), words)


def test_what_does_not_parse_is_found() -> None:
    for line in ("ask --nonsense x", "nonsense", "documents label x secret", "search x y"):
        with pytest.raises(Exception, match=r"(?i)no such|invalid|not one of|unexpected"):
            parse(typer.main.get_command(app), line.split())


def test_every_command_shows_its_examples() -> None:
    for name, command in COMMANDS.items():
        lines = EXAMPLES.get(name.removeprefix("edge").strip())
        if lines is None:
            assert name in GROUPS and command.no_args_is_help, f"`{name}` has no example"
            continue
        assert all(shlex.split(line.rpartition("|")[2])[: len(name.split())] == name.split() for line in lines)
        assert all(f"\n  {line}" in command.epilog for line in lines), name
    assert {f"edge {name}".strip() for name in EXAMPLES} <= set(COMMANDS)


def test_verbs_are_few() -> None:
    assert len({name.split()[1] for name in COMMANDS if " " in name}) <= 14


def test_results_come_as_json_too() -> None:
    without = {
        name for name, command in COMMANDS.items()
        if (name not in GROUPS or name.removeprefix("edge ") in EXAMPLES)
        and not any("--json" in option.opts for option in command.params)
    }
    # The first two talk until they are ended, and the third speaks nothing but JSON.
    assert without == {"edge chat", "edge serve", "edge explain"}


def codes(root: type[Exception]) -> Iterator[tuple[str, str]]:
    yield root.code, root.fault  # type: ignore[attr-defined]
    for kind in root.__subclasses__():
        if kind.__module__.partition(".")[0] in PACKAGES:
            yield from codes(kind)


def import_everything() -> None:
    """So that it does not matter which tests ran before: an error is known once its module is."""
    for package in PACKAGES:
        for module in pkgutil.walk_packages(importlib.import_module(package).__path__, f"{package}."):
            importlib.import_module(module.name)


def rows(heading: str) -> list[list[str]]:
    """The cells of the table below a heading, without its own."""
    section = DOCS.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    lines = [line.strip("|").split("|") for line in section.splitlines() if line.startswith("|")]
    return [[cell.strip(" `") for cell in cells] for cells in lines[2:]]


def test_the_documented_exit_codes_are_the_real_ones() -> None:
    told = {int(code): fault for code, fault, _ in rows("Exit codes")}
    others = {0: "", 1: "local", 2: "", 130: ""}
    assert told == others | {code: fault for fault, code in EXIT_CODES.items()}
    assert relay.cli.EXIT_CODES == EXIT_CODES
    for code in told:
        assert re.search(rf"(?m)^  {code} +\S", COMMANDS["edge"].epilog), code


def test_the_documented_error_codes_are_the_real_ones() -> None:
    import_everything()
    roots = edge_client.errors.EdgeError, transport.errors.TransportError, store.errors.StoreError
    real = {code: exit_code(fault) for root in roots for code, fault in codes(root)} | {"internal": 1}
    told = [(code, int(number)) for code, number, _ in rows("Error codes")]
    assert dict(told) == real and told == sorted(told), "sorted, and each once"


def test_colours_are_for_terminals_that_want_them(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("NO_COLOR", "TERM"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    assert coloured("local", "32") == "\x1b[32mlocal\x1b[0m"
    for name, value in (("NO_COLOR", "1"), ("TERM", "dumb")):
        with monkeypatch.context() as patch:
            patch.setenv(name, value)
            assert coloured("local", "32") == "local"
    monkeypatch.setattr(sys.stderr, "isatty", lambda: False, raising=False)
    assert coloured("local", "32") == "local"


@pytest.fixture
def path(tmp_path: Path) -> str:
    """With `edge` and `relay` as an installation has them, of this source."""
    for name, module in (("edge", "edge_client.cli"), ("relay", "relay.cli")):
        script = tmp_path / "bin" / name
        script.parent.mkdir(exist_ok=True)
        code = f"import sys\nsys.path.insert(0, {str(ROOT)!r})\nfrom {module} import main\nmain()\n"
        script.write_text(f"#!{sys.executable}\n{code}")
        script.chmod(0o755)
    return f"{tmp_path / 'bin'}:{os.environ['PATH']}"


@pytest.mark.parametrize(("typed", "completed"), [
    ("edge docum", "edge documents "), ("edge store key", "edge store keyring "), ("edge ask --exp", "--explain "),
    ("edge documents label x loc", "local-only "), ("relay gat", "relay gateway "),
    ("relay hop se", "relay hop serve "),
])
def test_bash_completes(path: str, tmp_path: Path, typed: str, completed: str) -> None:
    """A real bash on a terminal, with the key pressed."""
    bash = shutil.which("bash")
    assert bash is not None
    name = typed.split()[0]
    (tmp_path / "rc").write_text(f"PS1='ready> '\neval \"$(_{name.upper()}_COMPLETE=source_bash {name})\"\n")
    ours, theirs = pty.openpty()
    shell = subprocess.Popen(
        [bash, "--noprofile", "--rcfile", str(tmp_path / "rc"), "-i"], stdin=theirs, stdout=theirs, stderr=theirs,
        env={"PATH": path, "HOME": str(tmp_path), "TERM": "dumb", "COLUMNS": "200"}, start_new_session=True,
    )
    os.close(theirs)
    shown = b""

    def until(text: str) -> None:
        nonlocal shown
        while text.encode() not in shown:
            assert select.select([ours], [], [], 60)[0], shown
            shown += os.read(ours, 4096)

    try:
        until("ready> ")
        os.write(ours, f"{typed}\t".encode())
        until(completed)
    finally:
        shell.kill()
        shell.wait()
        os.close(ours)


@pytest.mark.parametrize(("shell", "environment"), [
    ("zsh", {"_TYPER_COMPLETE_ARGS": "edge docum"}),
    ("fish", {"_TYPER_COMPLETE_ARGS": "edge docum", "_TYPER_COMPLETE_FISH_ACTION": "get-args"}),
])
def test_other_shells_are_answered(path: str, shell: str, environment: dict[str, str]) -> None:
    def edge(**variables: str) -> str:
        return subprocess.run(
            ["edge"], env={"PATH": path, **variables}, capture_output=True, text=True, timeout=60, check=True
        ).stdout

    script = edge(_EDGE_COMPLETE=f"source_{shell}")
    assert f"complete_{shell} " in script and "edge" in script
    assert "documents" in edge(_EDGE_COMPLETE=f"complete_{shell}", **environment)


def test_completing_a_hops_command_line_never_loads_the_gateway(path: str) -> None:
    code = (
        "import json, os, sys\nsys.argv = ['relay']\nfrom relay.cli import main\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\nprint('@@' + json.dumps(sorted(sys.modules)))"
    )
    environment = {**os.environ, "COMP_WORDS": "relay ", "COMP_CWORD": "1", "_RELAY_COMPLETE": "complete_bash"}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60, check=True
    )
    told, _, names = done.stdout.partition("@@")
    assert told.split() == ["gateway", "hop", "doctor", "sim"]
    assert not [name for name in json.loads(names) if name.startswith(("relay.gateway", "relay.hop", "relay.sim"))]

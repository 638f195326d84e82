"""Every command, group and option of both command lines says what it is for."""

import importlib
from collections.abc import Iterator
from typing import Any

import pytest
import typer


def walk(command: Any, path: tuple[str, ...]) -> Iterator[tuple[str, Any]]:
    """A command and all below it. By shape, not by class: typer carries a click of its own."""
    yield " ".join(path), command
    if hasattr(command, "list_commands"):
        context = command.context_class(command)
        for name in command.list_commands(context):
            found = command.get_command(context, name)
            assert found is not None, f"{' '.join(path)} lists {name} and does not have it"
            yield from walk(found, (*path, name))


def commands(name: str, module: str) -> list[tuple[str, Any]]:
    return list(walk(typer.main.get_command(importlib.import_module(module).app), (name,)))


@pytest.mark.parametrize(
    ("name", "module", "expected"),
    [
        (
            "edge", "edge_client.cli",
            {"join", "ingest", "search", "ask", "status", "serve", "outbox", "models", "documents"},
        ),
        ("relay", "relay.cli", {"gateway", "hop"}),
    ],
)
def test_every_command_says_what_it_is_for(name: str, module: str, expected: set[str]) -> None:
    found = commands(name, module)
    assert {path.split()[1] for path, _ in found if " " in path} >= expected
    for path, command in found:
        assert (command.help or "").strip(), f"`{path}` has no help text"
        for option in command.params:
            if option.param_type_name == "option" and not option.hidden:
                assert (option.help or "").strip(), f"`{path} {option.opts[0]}` has no help text"
                secret = {"passphrase", "key", "token", "secret", "password"} & set(option.name.split("_"))
                by_value = secret and not option.name.endswith(("_file", "_env"))
                assert not by_value, f"`{path} {option.opts[0]}` takes a secret from the command line"

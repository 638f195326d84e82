"""`relay`: the root of the commands, and the one place that turns an error into words and an exit code.

Each group is imported when one of its commands runs, so that a hop never loads the gateway's code.
"""

import importlib
import json
import os
import sys
from pathlib import Path
from typing import Annotated, Any, Final

import typer
from typer.core import TyperCommand, TyperGroup

# The exit codes of every command, by whose fault it was; 2 is a usage error of the command line itself.
EXIT_CODES: Final = {
    "user": 3, "identity": 4, "link": 5, "policy": 6, "provider": 7, "store": 8, "unknown_outcome": 9, "peer": 10,
}
_GROUPS: Final = {
    "gateway": ("relay.gateway.cli", "Run the gateway: the enterprise's end of the encrypted sessions."),
    "hop": ("relay.hop.cli", "Run a hop: carry links of edges to the gateway, blindly."),
    "doctor": ("relay.gateway.doctor_cli", "Test the whole chain of a gateway: source to provider."),
    "sim": ("relay.sim.cli", "Simulate links: a whole system in any weather, or a radio without a radio."),
}
_OF_SERVE: Final = {"--config", "--passphrase-file", "--insecure-loopback"}  # each is a path


class _LazyGroups(TyperGroup):
    """Knows groups and commands by name, and imports the one that is asked for."""

    listing = False

    def list_commands(self, ctx: Any) -> list[str]:
        return list(_GROUPS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        if cmd_name not in _GROUPS:
            return None
        module, text = _GROUPS[cmd_name]
        if self.listing:
            return TyperCommand(cmd_name, help=text)
        command = typer.main.get_command(importlib.import_module(module).app)
        command.name = cmd_name
        return command

    def format_help(self, ctx: Any, formatter: Any) -> None:
        self.listing = True  # for the rest of this run
        super().format_help(ctx, formatter)

    def shell_complete(self, ctx: Any, incomplete: str) -> Any:
        self.listing = True
        return super().shell_complete(ctx, incomplete)


app = typer.Typer(
    cls=_LazyGroups, no_args_is_help=True, pretty_exceptions_enable=False,
    help="Causeway's relay: blind hops, and the gateway behind them.",
)


def _show_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"relay {version('causeway')}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", help="Show the version.", callback=_show_version, is_eager=True)
    ] = False,
) -> None:
    pass


def main() -> None:
    """Runs a command; a failure is one line and perhaps a hint on stderr, and an exit code by whose fault it was."""
    try:
        given = _of_serve(sys.argv[1:])
        app() if given is None else importlib.import_module("relay.gateway.cli").serve(**given)
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception as error:
        sys.exit(_print_error(error, as_json="--json" in sys.argv[1:]))


def _of_serve(arguments: list[str]) -> dict[str, Path] | None:
    """The options of a plain `gateway serve`, which is not left to typer: what that loads to read them, 9 MiB, would
    stay with the gateway for good. None for all else, and where there is something to explain.
    """
    default = os.environ.get("CAUSEWAY_GATEWAY") or "gateway.toml"
    given = {"--config": default, **dict(zip(arguments[2::2], arguments[3::2], strict=False))}
    if arguments[:2] != ["gateway", "serve"] or len(arguments) % 2 or not given.keys() <= _OF_SERVE:
        return None
    return {name[2:].replace("-", "_"): Path(value) for name, value in given.items()}


def _print_error(error: Any, *, as_json: bool = False) -> int:
    """Words on stderr, with `as_json` an object on stdout as well. Returns the exit code."""
    while isinstance(error, ExceptionGroup) and error.exceptions:  # a task group's: the first one is the story
        error = error.exceptions[0]
    fault = getattr(error, "fault", None)
    if fault is None:
        if os.environ.get("CAUSEWAY_DEBUG"):
            raise error
        code, fault, message = "internal", "local", f"unexpected error: {type(error).__name__}"
        hint = "this is a defect; CAUSEWAY_DEBUG=1 shows where it happened"
        if isinstance(error, OSError) and error.strerror:  # a full disk, say
            message = f"unexpected error: {error.strerror.lower()}"
            hint = "look after this machine; if that is not it, CAUSEWAY_DEBUG=1 shows where it happened"
    else:
        code, message, hint = error.code, str(error), error.hint
    typer.echo(f"relay: {message}" + (f"\nhint: {hint}" if hint else ""), err=True)
    if as_json:
        typer.echo(json.dumps({"error": {"code": code, "fault": fault, "message": message, "hint": hint}}))
    return EXIT_CODES.get(fault, 1)

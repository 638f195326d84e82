"""`relay doctor`: the command and its screen."""

import asyncio
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from relay.gateway.command import CONFIG_DEFAULT, ConfigOption, JsonOption

if TYPE_CHECKING:
    from relay.gateway.doctor import Doctor, Stage
    from store.keys import Passphrase

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)

# By whose fault it is, as with every command: identity, identity, link, policy, provider.
EXITS: Final = {"source": 4, "issuance": 4, "handshake": 5, "authorisation": 6, "provider": 7}
_SIGNS: Final = {"ok": ("ok", "green"), "warning": ("look", "yellow"), "failed": ("FAILED", "bold red"),
                 "not run": ("not run", "dim")}


@app.command()
def doctor(
    config: ConfigOption = CONFIG_DEFAULT,
    passphrase_file: Annotated[
        Path | None,
        typer.Option(
            "--passphrase-file", metavar="FILE",
            help="The gateway's passphrase, to look into the authority of one that does not run.",
        ),
    ] = None,
    timeout: Annotated[
        float, typer.Option("--timeout", metavar="SECONDS", min=0.1, max=25.0, help="For each stage.")
    ] = 10.0,
    as_json: JsonOption = False,
) -> None:
    """Test the whole chain of a gateway: source, issuance, handshake, authorisation, provider.

    Each is tried for real, in this order; after one that fails the rest is not run. Nothing changes; the audit has a
    record of it. Exits with 0 if the chain holds, warnings included.
    """
    from relay.gateway.doctor import Doctor

    examined = Doctor(config, passphrase=_passphrase(passphrase_file), timeout_s=timeout)
    stages = asyncio.run(_shown(examined, quiet=as_json))
    failed = next((one for one in stages if one.status == "failed"), None)
    if as_json:
        typer.echo(json.dumps({
            "ok": failed is None, "gateway": examined.node or None, "stages": [asdict(one) for one in stages],
        }))
    if failed is not None:
        raise typer.Exit(EXITS[failed.stage])


async def _shown(examined: "Doctor", *, quiet: bool) -> "list[Stage]":
    """The table grows on a terminal; elsewhere it is printed when it is whole."""
    from rich.console import Console
    from rich.live import Live

    stages: list[Stage] = []
    console = Console(width=None if sys.stdout.isatty() else 160)
    if quiet or not console.is_terminal:
        stages += [stage async for stage in examined.stages()]
        if not quiet:
            console.print(_table(stages))
        return stages
    with Live(_table(stages), console=console, auto_refresh=False) as live:
        async for stage in examined.stages():
            stages.append(stage)
            live.update(_table(stages), refresh=True)
    return stages


def _table(stages: "Sequence[Stage]") -> Any:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    for column, right in (("stage", False), ("", False), ("ms", True), ("finding", False)):
        table.add_column(column, justify="right" if right else "left", no_wrap=column != "finding")
    for one in stages:
        sign, style = _SIGNS[one.status]
        told = Text(one.finding)
        if one.hint:
            told.append(f"\nhint: {one.hint}", style="cyan")
        table.add_row(one.stage, Text(sign, style=style), "" if one.ms is None else f"{one.ms:.1f}", told)
    return table


def _passphrase(file: Path | None) -> "Passphrase | None":
    """From a file or systemd's credentials; nobody is asked for one."""
    from relay.asking import credential, passphrase_from_file

    file = file or credential("gateway-passphrase")
    return None if file is None else passphrase_from_file(file, "--passphrase-file")

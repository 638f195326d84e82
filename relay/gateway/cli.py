"""`relay gateway ...`. Imports what a command needs when it runs, so that help is quick."""

import asyncio
import json
import logging
import signal
import sys
import time
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from relay.gateway import keys_cli, policy_cli
from relay.gateway.checks import openapi_cli
from relay.gateway.command import (
    CONFIG_DEFAULT,
    ConfigOption,
    JsonOption,
    PassphraseOption,
    RootPassphraseOption,
    ask,
    ask_passphrase,
    unlock,
)
from relay.gateway.inspection import cli as inspection_cli

if TYPE_CHECKING:
    from relay.gateway.app import Ready

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
app.add_typer(policy_cli.app, name="policy")

_ROLE_WIDTH = 9
_WIDE = 10_000  # columns: wider than any table


@app.callback()
def _group() -> None:
    """Run the gateway: the enterprise's end of the encrypted sessions."""


@app.command()
def init(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="A new or empty folder.")],
    trust_domain: Annotated[str, typer.Option("--trust-domain", metavar="NAME", help="Like field.example.")],
    passphrase_file: PassphraseOption = None,
    root_passphrase_file: RootPassphraseOption = None,
    keys: Annotated[
        Path | None,
        typer.Option("--keys", metavar="FILE", help="A section [keys]: a token or KMS holds the keys (docs/KEYS.md)."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Make a trust domain: sealed root, online intermediate, encrypted state, a configuration to edit.

    With --keys private keys are made where that file says and stay there; the passphrase is then for backups.
    """
    from relay.gateway.config import EXAMPLE, parse
    from relay.gateway.folder import create
    from relay.gateway.key_settings import keys_section, root_is_sealed
    from store.files import file_errors

    section = ""
    if keys is not None:
        with file_errors(keys):
            section = "\n" + keys_section(keys.read_bytes())
    text = EXAMPLE.format(trust_domain=trust_domain) + section
    sealed = root_is_sealed(parse(text.encode(), directory.absolute()).keys)
    passphrase = ask_passphrase(passphrase_file, "Gateway passphrase", confirm=True)
    root = ask_passphrase(
        root_passphrase_file, "Root passphrase (another one)", confirm=True, credential="root-passphrase"
    ) if sealed else None
    create(directory, trust_domain, passphrase=passphrase, root_passphrase=root, now=time.time(), keys=section)
    config = directory / "gateway.toml"
    if as_json:
        typer.echo(json.dumps({"directory": str(directory), "config": str(config), "trust_domain": trust_domain}))
        return
    typer.echo(f"made {directory}: trust domain {trust_domain}")
    typer.echo(f"next: set provider and models in {config}, write the provider's key to {directory / 'provider.key'},")
    typer.echo(f"      then run: relay gateway serve --config {config}")


@app.command()
def invite(
    path: Annotated[str, typer.Argument(metavar="ROLE/NAME", help="edge/NAME, hop/NAME, workload/NAME.")],
    config: ConfigOption = CONFIG_DEFAULT,
    hint: Annotated[
        list[str] | None,
        typer.Option("--hint", metavar="ENDPOINT", help="Where to find a hop or the gateway; may be repeated."),
    ] = None,
    ttl: Annotated[int, typer.Option("--ttl", metavar="SECONDS", help="At most 3600.")] = 3600,
    allow_gateway: Annotated[
        bool, typer.Option("--allow-gateway", help="Allow an invitation for a gateway or an administrator.")
    ] = False,
    qr: Annotated[
        bool, typer.Option("--qr", help="For a phone: a QR code of the page that makes it this hop.")
    ] = False,
    tpm: Annotated[
        bool, typer.Option("--tpm", help="Only for a device that shows that its key lies in a TPM (edge join --tpm).")
    ] = False,
    passphrase_file: PassphraseOption = None,
    as_json: JsonOption = False,
) -> None:
    """Print an invitation: one line, a secret, to be handed over out of band."""
    for place in hint or ():
        _check_hint(place)
    if qr:
        _check_page(path, config)
    arguments = {"path": path, "hints": hint or [], "ttl_s": ttl, "allow_gateway": allow_gateway, "tpm": tpm}
    answer = ask(config, passphrase_file, "invite", arguments)
    if answer["replaces"] is not None:
        typer.echo(f"relay: {path} has joined already; who joins with this invitation takes its place", err=True)
    if qr and answer["url"] is None:
        raise _no_page()
    if as_json:
        typer.echo(json.dumps(answer))
    elif qr:
        _show_qr(answer["url"], ttl)
    else:
        typer.echo(answer["invitation"])


@app.command()
def devices(
    config: ConfigOption = CONFIG_DEFAULT, passphrase_file: PassphraseOption = None, as_json: JsonOption = False
) -> None:
    """List who has joined, who was revoked or replaced, and what to look at."""
    answer = ask(config, passphrase_file, "devices", {})
    if as_json:
        typer.echo(json.dumps(answer))
        return
    _table(["id", "enrolment", "status", "attested by", "last seen", "ends", "note"], [
        [
            one["id"], str(one["enrolment"]), one["status"], _vouched_by(one), one["last_seen"],
            one["ends"], "; ".join(filter(None, (one["reason"], one["alert"], _why(one)))),
        ]
        for one in answer["devices"]
    ])


@app.command()
def revoke(
    who: Annotated[str, typer.Argument(metavar="ID|ENROLMENT", help="As in edge/lap-1, or a number of `devices`.")],
    reason: Annotated[str, typer.Option("--reason", metavar="TEXT", help="For the record and for whoever asks why.")],
    config: ConfigOption = CONFIG_DEFAULT, passphrase_file: PassphraseOption = None, as_json: JsonOption = False,
) -> None:
    """End a device at once and for good: its sessions, running calls, tickets, renewal and open invitations."""
    answer = ask(config, passphrase_file, "revoke", {"who": who, "reason": reason})
    if as_json:
        typer.echo(json.dumps(answer))
        return
    ended = [f"enrolment {number}" for number in answer["enrolments"]]
    if answer["invitations"]:
        ended.append(f"{answer['invitations']} open invitation{'s' * (answer['invitations'] > 1)}")
    typer.echo(f"revoked {answer['id']}: {', '.join(ended)}" if ended else f"{answer['id']} had been revoked before")


@app.command()
def reinstate(
    who: Annotated[str, typer.Argument(metavar="ID|ENROLMENT", help="As in edge/lap-1, or a number of `devices`.")],
    config: ConfigOption = CONFIG_DEFAULT, passphrase_file: PassphraseOption = None, as_json: JsonOption = False,
) -> None:
    """Say that all is well with a device: end its throttling or quarantine, or let it come back if it was revoked.

    What it was throttled or put in quarantine for counts little for a day. A revoked one comes back by its device key
    and under a new enrolment number.
    """
    answer = ask(config, passphrase_file, "reinstate", {"who": who})
    if as_json:
        typer.echo(json.dumps(answer))
    elif answer["was"] == "revoked":
        typer.echo(f"reinstated {answer['id']} as enrolment {answer['enrolment']}")
    else:
        typer.echo(f"reinstated {answer['id']}: it is {answer['was']} no more")


@app.command()
def trace(
    trace_id: Annotated[str, typer.Argument(metavar="ID", help="32 hexadecimal digits; every answer prints it.")],
    config: ConfigOption = CONFIG_DEFAULT, passphrase_file: PassphraseOption = None, as_json: JsonOption = False,
) -> None:
    """Show the way of one request: edge, hop, gateway, provider."""
    answer = ask(config, passphrase_file, "trace", {"trace_id": trace_id})
    if as_json:
        typer.echo(json.dumps(answer))
        return
    start = min(span["start_ms"] for span in answer["spans"])
    _table(["span", "where", "at ms", "ms", "bytes in", "bytes out", "note"], [
        [
            f"{span['role']:<{_ROLE_WIDTH}}{_name(span)}", _where(span), f"{span['start_ms'] - start:.1f}",
            f"{span['end_ms'] - span['start_ms']:.1f}", _number(span, "causeway.bytes.in"),
            _number(span, "causeway.bytes.out"), str(span["attributes"].get("error.type", "")),
        ]
        for span in answer["spans"]
    ], right={2, 3, 4, 5})


@app.command()
def usage(
    config: ConfigOption = CONFIG_DEFAULT, passphrase_file: PassphraseOption = None, as_json: JsonOption = False
) -> None:
    """Show what of each quota is used, by whom, and when it is free again (docs/QUOTAS.md)."""
    answer = ask(config, passphrase_file, "usage", {})
    if as_json:
        typer.echo(json.dumps(answer))
        return
    from relay.gateway.quota.shown import COLUMNS, row

    if not answer["quotas"]:
        typer.echo("there are no quotas; [[quota]] in gateway.toml makes them")
        return
    _table(COLUMNS, [row(one) for one in answer["quotas"]], right={5, 6, 7, 8})


@app.command()
def serve(
    config: ConfigOption = CONFIG_DEFAULT, passphrase_file: PassphraseOption = None,
    insecure_loopback: Annotated[Path | None, typer.Option(
        "--insecure-loopback", metavar="FILE",
        help="Holds a token; whoever shows it at listen.insecure, by plain HTTP, is edge/insecure-loopback.",
    )] = None,
) -> None:
    """Run the gateway until SIGTERM or SIGINT; a second one ends what is under way as well.

    SIGHUP brings a changed configuration into force, as far as that needs no restart.
    """
    from relay import event_loop
    from relay.gateway.app import serve as run
    from relay.gateway.config import load
    from relay.gateway.identity.loopback import token_from_file
    from relay.gateway.reload import set_log_level
    from store.memory import keep_private

    logging.basicConfig(level=logging.WARNING, format="relay: %(message)s", stream=sys.stderr)
    keep_private()  # prompts and keys will be in it
    settings = load(config)
    token = None if insecure_loopback is None else token_from_file(insecure_loopback)
    passphrase = unlock(settings, passphrase_file, "Gateway passphrase")
    stop, hurry, reload = asyncio.Event(), asyncio.Event(), asyncio.Event()
    set_log_level(settings.log_level)

    async def main() -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, lambda: (hurry if stop.is_set() else stop).set())
        loop.add_signal_handler(signal.SIGHUP, reload.set)
        await run(settings, passphrase, ready=_say_ready, stop=stop, hurry=hurry, loopback_token=token, reload=reload)

    event_loop.run(main())


@app.command("check-config")
def check_config(config: ConfigOption = CONFIG_DEFAULT, as_json: JsonOption = False) -> None:
    """Say what a start would find wrong with the configuration, and what it means. Nothing is started."""
    from dataclasses import asdict

    from relay.gateway.check_config import check

    logging.basicConfig(level=logging.ERROR)  # what start would log as a warning is found and told here
    found, means = asyncio.run(check(config, time.time()))
    wrong = any(not one.warning for one in found)
    if as_json:
        typer.echo(json.dumps({"ok": not wrong, "problems": [asdict(one) for one in found], "means": means}))
    else:
        for one in found:
            where = f"{one.key}: " if one.key else ""
            typer.echo(f"{'warning' if one.warning else 'wrong'}: {where}{one.problem}"
                       + (f"\n  hint: {one.hint}" if one.hint else ""))
        typer.echo("\n".join(means))
    if wrong:
        raise typer.Exit(3)


app.command("rotate-key")(keys_cli.rotate_key)
app.command("inspect")(inspection_cli.inspect)
app.command()(openapi_cli.openapi)
app.command()(keys_cli.backup)
app.command()(keys_cli.restore)


def _say_ready(ready: "Ready") -> None:
    places = {"session": ready.session, "https": ready.https, "health": ready.health, "public": ready.public,
              "workload-api": ready.workload_api, "insecure": ready.insecure}
    if ready.insecure:
        typer.echo(f"relay: INSECURE: plain HTTP at {ready.insecure}, where one static token is an identity", err=True)
    typer.echo("relay: gateway ready " + " ".join(f"{name}={at}" for name, at in places.items() if at), err=True)


def _name(span: dict[str, Any]) -> str:
    """With the route that an edge decided on: `edge.ask (relay)`."""
    route = span["attributes"].get("causeway.route")
    return f"{span['name']} ({route})" if route else str(span["name"])


def _where(span: dict[str, Any]) -> str:
    attributes = span["attributes"]
    return str(attributes.get("causeway.node") or attributes.get("server.address") or "").removeprefix("spiffe://")


def _number(span: dict[str, Any], name: str) -> str:
    value = span["attributes"].get(name)
    return "" if value is None else f"{value:,}"


def _check_hint(text: str) -> None:
    """Raises BadInput: what no device could dial shall not travel in an invitation."""
    from transport.links.base import Endpoint

    Endpoint.parse(text.replace("https://", "wss://", 1))


def _check_page(path: str, config: Path) -> None:
    """Before an invitation is made that nobody could use. Raises ConfigError, SetupRefused."""
    from relay.gateway.config import load
    from relay.gateway.errors import SetupRefused

    if not path.startswith("hop/"):
        raise SetupRefused("a phone can be a hop and nothing else", hint="as in: relay gateway invite hop/NAME --qr")
    if load(config).public is None:
        raise _no_page()


def _no_page() -> Exception:
    from relay.gateway.errors import ConfigError

    return ConfigError(
        "the gateway has no public listener, where a phone would find its page",
        hint="set listen.public and [public] in gateway.toml, and start the gateway anew",
    )


def _show_qr(url: str, seconds: int) -> None:
    """The code needs a terminal, and one wide enough; the address alone is all that a pipe gets."""
    import shutil

    from relay.gateway.qr import qr_lines, width

    if not sys.stdout.isatty():
        typer.echo(url)
        return
    lines = qr_lines(url)
    if width(lines) <= shutil.get_terminal_size().columns:
        typer.echo("\n".join(lines), color=True)
    else:
        typer.echo(f"relay: the QR code needs a terminal of {width(lines)} columns", err=True)
    typer.echo(url)
    good = f"{seconds // 60} minutes" if seconds >= 120 else f"{seconds} seconds"
    typer.echo(f"for one phone, within {good}; who scans it is this hop, so show it to nobody else")


def _why(device: dict[str, Any]) -> str:
    """Of what kinds the points are that have brought it there."""
    return ", ".join(f"{kind} {points}" for kind, points in device["reasons"].items())


def _vouched_by(device: dict[str, str]) -> str:
    in_tpm = {"any": "key in a TPM", "certified": "key in a certified TPM"}
    return device["source"] or in_tpm.get(device["tpm"], "device key")


def _table(columns: list[str], rows: list[list[str]], *, right: Collection[int] = ()) -> None:
    """Nothing is cut: a row is a line, and where the terminal is too narrow for that, there is a line for each cell."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    for number, column in enumerate(columns):
        table.add_column(column, justify="right" if number in right else "left", no_wrap=number not in (0, 1, 6))
    for row in rows:
        table.add_row(*(Text(_printable(cell)) for cell in row))
    console = Console(width=None if sys.stdout.isatty() else _WIDE)
    widest = console.measure(table, options=console.options.update(max_width=_WIDE)).maximum
    if not sys.stdout.isatty() or widest <= console.width:
        console.print(table)
        return
    wide = max(map(len, columns)) + 2
    for row in rows:
        named = zip(columns, row, strict=True)
        typer.echo("\n".join(f"{name:{wide}}{_printable(cell)}" for name, cell in named if cell) + "\n")


def _printable(text: str) -> str:
    """Names in spans come from other machines: nothing of theirs may steer the terminal."""
    return "".join(character if character.isprintable() else "?" for character in text)

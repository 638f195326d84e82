"""`relay gateway ...`. Imports what a command needs when it runs, so that help is quick.

Commands beside a running gateway ask it over its control socket; without one they open its state themselves, for which
they need its passphrase.
"""

import asyncio
import enum
import json
import logging
import os
import signal
import sys
import time
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from relay.gateway import policy_cli

if TYPE_CHECKING:
    from relay.gateway.app import Ready
    from relay.gateway.config import Config
    from store.keys import Passphrase, Unlock

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
app.add_typer(policy_cli.app, name="policy")


class AuthorityKey(enum.StrEnum):
    INTERMEDIATE = "intermediate"
    ROOT = "root"
    TOKEN = "token"
    UPSTREAM = "upstream"


ConfigOption = Annotated[
    Path, typer.Option("--config", metavar="FILE", help="The gateway's configuration.", envvar="CAUSEWAY_GATEWAY")
]
PassphraseOption = Annotated[
    Path | None,
    typer.Option(
        "--passphrase-file", metavar="FILE",
        help="Holds the gateway's passphrase. Else $CREDENTIALS_DIRECTORY/gateway-passphrase, else a prompt.",
    ),
]
RootPassphraseOption = Annotated[
    Path | None,
    typer.Option(
        "--root-passphrase-file", metavar="FILE",
        help="Holds the root key's passphrase, another one, to be kept away from this machine.",
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]
CONFIG_DEFAULT = Path("gateway.toml")
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
    passphrase = _passphrase(passphrase_file, "Gateway passphrase", confirm=True)
    root = _passphrase(
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
    answer = _ask(config, passphrase_file, "invite", arguments)
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
    answer = _ask(config, passphrase_file, "devices", {})
    if as_json:
        typer.echo(json.dumps(answer))
        return
    _table(["id", "enrolment", "status", "attested by", "last seen", "ends", "note"], [
        [
            one["id"], str(one["enrolment"]), one["status"], _vouched_by(one), one["last_seen"],
            one["ends"], "; ".join(filter(None, (one["reason"], one["alert"]))),
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
    answer = _ask(config, passphrase_file, "revoke", {"who": who, "reason": reason})
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
    """Let a revoked device come back, by its device key and under a new enrolment number."""
    answer = _ask(config, passphrase_file, "reinstate", {"who": who})
    typer.echo(json.dumps(answer) if as_json else f"reinstated {answer['id']} as enrolment {answer['enrolment']}")


@app.command()
def trace(
    trace_id: Annotated[str, typer.Argument(metavar="ID", help="32 hexadecimal digits; every answer prints it.")],
    config: ConfigOption = CONFIG_DEFAULT, passphrase_file: PassphraseOption = None, as_json: JsonOption = False,
) -> None:
    """Show the way of one request: edge, hop, gateway, provider."""
    answer = _ask(config, passphrase_file, "trace", {"trace_id": trace_id})
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
def serve(config: ConfigOption = CONFIG_DEFAULT, passphrase_file: PassphraseOption = None) -> None:
    """Run the gateway until SIGTERM or SIGINT; a second one ends what is under way as well."""
    from relay.gateway.app import serve as run
    from relay.gateway.config import load

    logging.basicConfig(level=logging.WARNING, format="relay: %(message)s", stream=sys.stderr)
    settings = load(config)
    passphrase = _unlock(settings, passphrase_file, "Gateway passphrase")
    stop, hurry = asyncio.Event(), asyncio.Event()

    def end() -> None:
        (hurry if stop.is_set() else stop).set()

    async def main() -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, end)
        await run(settings, passphrase, ready=_say_ready, stop=stop, hurry=hurry)

    asyncio.run(main())


@app.command("rotate-key")
def rotate_key(
    key: Annotated[AuthorityKey, typer.Argument(help="Which one.")] = AuthorityKey.INTERMEDIATE,
    config: ConfigOption = CONFIG_DEFAULT, passphrase_file: PassphraseOption = None,
    root_passphrase_file: RootPassphraseOption = None,
    compromised: Annotated[
        bool, typer.Option("--compromised", help="The old one was stolen: nobody shall believe what it has signed.")
    ] = False,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="DIR", help="For `upstream`: a new folder for what SPIRE needs.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Make a new intermediate, every 30 days, or take the next step to a new root: with the gateway stopped.

    A new root is published 90 days before it is used, so that every device has it, and the old one is retired an hour
    after that: give `root` three times, and each time the command says when the next one is due. Keys that sign tokens
    change every day by themselves; `token` changes them now, also while the gateway runs. `upstream` makes an authority
    for a SPIRE server, which the root signs as it does the intermediate.
    """
    from relay.gateway.config import load
    from relay.gateway.folder import make_upstream, renew_ca, rotate_root

    if key is AuthorityKey.TOKEN:
        keys = _ask(config, passphrase_file, "rotate_tokens", {"compromised": compromised})["keys"]
        lines = [f"{purpose} tokens are signed by the key {kid} from now on" for purpose, kid in keys.items()]
        typer.echo(json.dumps({"keys": keys}) if as_json else "\n".join(lines))
        return
    _check_out(key, out)
    settings = load(config)
    passphrase = _unlock(settings, passphrase_file, "Gateway passphrase")
    root = _root_unlock(settings, passphrase, root_passphrase_file)
    if out is not None:
        end = _stamp(asyncio.run(make_upstream(
            settings, out, passphrase=passphrase, root_passphrase=root, now=time.time(), compromised=compromised
        )))
        made = {"directory": str(out), "not_after": end}
        typer.echo(json.dumps(made) if as_json else f"made {out} for SPIRE's UpstreamAuthority \"disk\"; it ends {end}")
        return
    if key is AuthorityKey.INTERMEDIATE:
        renewed = asyncio.run(renew_ca(
            settings, passphrase=passphrase, root_passphrase=root, now=time.time(), compromised=compromised
        ))
        end = _stamp(renewed.not_after)
        unused = [] if renewed.unused is None else [renewed.unused]
        if as_json:
            typer.echo(json.dumps({"not_after": end, "unused": unused}))
            return
        typer.echo(f"the new intermediate certificate ends {end}")
        _say_unused(unused)
        return
    rotated = asyncio.run(rotate_root(settings, passphrase=passphrase, root_passphrase=root, now=time.time()))
    due = None if rotated.next_at is None else _stamp(rotated.next_at)
    if as_json:
        told = {"step": rotated.step, "sequence": rotated.sequence, "next": due, "unused": rotated.unused}
        typer.echo(json.dumps(told))
        return
    which = "old" if rotated.step == "retired" else "new"
    typer.echo(f"the {which} root is {rotated.step}; the trust bundle is number {rotated.sequence}")
    if due is not None:
        typer.echo(f"next: the same again, from {due} on")
    _say_unused(rotated.unused)


def _say_unused(names: Sequence[str]) -> None:
    """Keys that others hold are not destroyed from here: a backup may still need them."""
    for name in names:
        typer.echo(f"not used any more: the key {name}; delete it once no backup of before is to be restored")


def _check_out(key: AuthorityKey, out: Path | None) -> None:
    from relay.gateway.errors import SetupRefused

    if (key is AuthorityKey.UPSTREAM) != (out is not None):
        raise SetupRefused("`upstream` and --out go together", hint="as in rotate-key upstream --out spire-upstream")


def _stamp(seconds: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))


@app.command()
def backup(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A new file.")],
    config: ConfigOption = CONFIG_DEFAULT, passphrase_file: PassphraseOption = None, as_json: JsonOption = False,
) -> None:
    """Seal authority, state and configuration into one file, also while the gateway runs. Needs its passphrase.

    Left out: the provider's key, the audit log, resumption tickets.
    """
    from relay.gateway.backup import write_backup
    from relay.gateway.config import load

    settings = load(config)
    passphrase = _passphrase(passphrase_file, "Gateway passphrase")
    answer = _ask(config, passphrase_file, "snapshot", {}, passphrase)
    copy = settings.directory / answer.pop("copy")
    try:
        write_backup(
            settings.directory, copy, file, passphrase, **answer, now=time.time(), config=settings.file
        )
    finally:
        copy.unlink(missing_ok=True)
    typer.echo(json.dumps({"backup": str(file)}) if as_json else f"sealed {file} under the gateway's passphrase")


@app.command()
def restore(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="What `backup` has written.")],
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="A new or empty folder.")],
    revocations: Annotated[
        Path | None,
        typer.Option("--revocations", metavar="FILE", help="The newest revocations.list, from a hop perhaps."),
    ] = None,
    nothing_revoked: Annotated[
        bool, typer.Option("--nothing-revoked", help="Nobody was revoked or replaced since the backup was made.")
    ] = False,
    passphrase_file: PassphraseOption = None, as_json: JsonOption = False,
) -> None:
    """Make a gateway's folder from a backup. Say who was revoked since: they must not come back."""
    from relay.gateway import backup as backups
    from relay.gateway.errors import SetupRefused
    from store.files import file_errors

    if (revocations is None) != nothing_revoked:
        raise SetupRefused(
            "a backup does not know who was revoked after it was made",
            hint="give --revocations with the newest list, or --nothing-revoked if that is so",
        )
    passphrase = _passphrase(passphrase_file, "The gateway's passphrase when the backup was made")
    data = None
    if revocations is not None:
        with file_errors(revocations):
            data = revocations.read_bytes()
    ended = asyncio.run(backups.restore(file, directory, passphrase, revocations=data, now=time.time()))
    if as_json:
        typer.echo(json.dumps({"directory": str(directory), "revoked": ended}))
        return
    typer.echo(f"restored {directory}; revoked since the backup: {', '.join(ended) or 'nobody'}")
    typer.echo("next: put the provider's key back, then serve; who joined after the backup needs a new invitation")


def _say_ready(ready: "Ready") -> None:
    places = {"session": ready.session, "https": ready.https, "health": ready.health, "public": ready.public,
              "workload-api": ready.workload_api}
    typer.echo("relay: gateway ready " + " ".join(f"{name}={at}" for name, at in places.items() if at), err=True)


def _ask(
    config: Path, passphrase_file: Path | None, operation: str, arguments: dict[str, Any],
    passphrase: "Passphrase | None" = None,
) -> dict[str, Any]:
    """Of the running gateway, or of its state if none runs."""
    from relay.gateway.config import load
    from relay.gateway.control import call
    from relay.gateway.errors import NotReady

    settings = load(config)
    try:
        return asyncio.run(call(settings.directory, operation, arguments))
    except NotReady as error:
        if error.hint is not None:
            raise
    unlocks = _unlock(
        settings, passphrase_file, "No gateway runs here; the passphrase that opens its state", alone=True,
        given=passphrase,
    )
    return asyncio.run(_alone(settings, unlocks, operation, arguments))


async def _alone(
    settings: "Config", passphrase: "Unlock", operation: str, arguments: dict[str, Any]
) -> dict[str, Any]:
    from relay.gateway.app import open_admin

    async with open_admin(settings, passphrase) as admin:
        return await admin.call(operation, arguments)


def _unlock(
    settings: "Config", file: Path | None, prompt: str, *, alone: bool = False, given: "Passphrase | None" = None
) -> "Unlock":
    """By whoever holds the gateway's keys, if anybody does; else by a passphrase, `given` or asked for."""
    from relay.gateway.keys import custody_of
    from relay.gateway.state.sqlcipher import KEY_FILE

    key_file = settings.directory / KEY_FILE
    held = custody_of(settings.keys).unlock(settings.directory, key_file) if key_file.is_file() else None
    return held or given or _passphrase(file, prompt, alone=alone)


def _root_unlock(settings: "Config", gateway: "Unlock", file: Path | None) -> "Unlock":
    """What opens the root's file: a passphrase of its own where there is one that has been sealed under one."""
    from relay.gateway.identity.ca import ROOT_FILE, sealed_path

    if sealed_path(settings.directory / ROOT_FILE, gateway).is_file() and not (settings.directory / ROOT_FILE).exists():
        return gateway
    return _passphrase(file, "Root passphrase", credential="root-passphrase")


def _passphrase(
    file: Path | None, prompt: str, *, confirm: bool = False, credential: str = "gateway-passphrase",
    alone: bool = False,
) -> "Passphrase":
    """From the file, systemd's credentials, or a prompt. Raises ConfigError where nobody can be asked; `alone` if it
    is needed because no gateway runs.
    """
    from relay.asking import passphrase_from_file, passphrase_from_terminal
    from relay.gateway.errors import ConfigError
    from store.keys import Passphrase

    if file is not None:
        return passphrase_from_file(file, f"--{credential.removeprefix('gateway-')}-file")
    folder = os.environ.get("CREDENTIALS_DIRECTORY")
    if folder and (Path(folder) / credential).is_file():
        return Passphrase.from_file(Path(folder) / credential)
    if not sys.stdin.isatty():
        option = f"--{credential.removeprefix('gateway-')}-file"
        if alone:
            raise ConfigError(
                "no gateway runs here, and there is no terminal to ask for the passphrase that opens its state",
                hint=f"start it with `relay gateway serve`, or give {option}",
            )
        raise ConfigError("a passphrase is needed and there is no terminal to ask on",
                          hint=f"give it by {option}, or {credential} as a systemd credential")
    return passphrase_from_terminal(prompt, confirm=confirm)


def _name(span: dict[str, Any]) -> str:
    """With the route that an edge decided on: `edge.ask (relay)`."""
    route = span["attributes"].get("causeway.route")
    return f"{span['name']} ({route})" if route else str(span["name"])


def _where(span: dict[str, Any]) -> str:
    attributes = span["attributes"]
    place = attributes.get("causeway.node") or attributes.get("server.address") or ""
    return str(place).removeprefix("spiffe://")


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


def _vouched_by(device: dict[str, str]) -> str:
    in_tpm = {"any": "key in a TPM", "certified": "key in a certified TPM"}
    return device["source"] or in_tpm.get(device["tpm"], "device key")


def _table(columns: list[str], rows: list[list[str]], *, right: Collection[int] = ()) -> None:
    """Nothing is cut: where the terminal is too narrow for a line each, there is a line for each cell."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    for number, column in enumerate(columns):
        table.add_column(column, justify="right" if number in right else "left", no_wrap=number not in (0, 1, 6))
    for row in rows:
        table.add_row(*(Text(_printable(cell)) for cell in row))
    console = Console(width=None if sys.stdout.isatty() else 160)
    if not sys.stdout.isatty() or console.measure(table, options=console.options.update(max_width=_WIDE)).maximum <= (
        console.width
    ):
        console.print(table)
        return
    wide = max(map(len, columns)) + 2
    for row in rows:
        named = zip(columns, row, strict=True)
        typer.echo("\n".join(f"{name:{wide}}{_printable(cell)}" for name, cell in named if cell) + "\n")


def _printable(text: str) -> str:
    """Names in spans come from other machines: nothing of theirs may steer the terminal."""
    return "".join(character if character.isprintable() else "?" for character in text)

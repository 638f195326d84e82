"""`relay sim ...`: what a developer plays with. What is heavy is imported inside the commands."""

import asyncio
import contextlib
import json
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from relay.sim.lifelines import Course

app = typer.Typer(
    no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False,
    help="Simulate links: a whole system in any weather, or a radio without a radio.",
)
_WORDS = {
    "simulated_s": "simulated, s", "real_s": "played in, s", "first_token_p50_s": "first token p50, s",
    "first_token_p95_s": "first token p95, s", "token_delay_p50_s": "delay of a token p50, s",
    "token_delay_p95_s": "delay of a token p95, s", "resume_p50_s": "way back to stream p50, s",
    "resume_p95_s": "way back to stream p95, s", "memory_growth": "growth of memory, KiB",
}


@app.callback()
def _group() -> None:
    """Simulate links: a whole system in any weather, or a radio without a radio."""


@app.command()
def run(
    scenario: Annotated[
        str, typer.Argument(metavar="PROFILE|SCENARIO.toml", help="A profile like ble-1m?loss=0.1, or a scenario file.")
    ],
    seed: Annotated[int | None, typer.Option("--seed", min=0, help="Of all dice; else the scenario's.")] = None,
    duration: Annotated[str | None, typer.Option("--duration", help="As 90s, 15m, 24h; else the scenario's.")] = None,
    report: Annotated[Path | None, typer.Option("--html", help="Write a page that shows what happened.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Play edges, hops and a gateway in virtual time; ends with 1 if a prompt was lost or went out twice."""
    from relay.sim.runner import run
    from relay.sim.scenario import read, run_seconds, seconds

    played = read(scenario)
    length = None if duration is None else run_seconds(duration, "--duration")
    missed = sum(length is not None and seconds(fault.at) >= length for fault in played.faults)
    if missed:
        told = f"relay: note: faults that come after the end of so short a run: {missed} of {len(played.faults)}"
        typer.echo(told, err=True)
    if report is not None:
        _try(report)  # now, and not after an hour
    try:
        course = run(
            played, seed=seed, duration_s=length, progress=_no_progress if as_json else _progress, begun=_heed_sigterm
        )
    except asyncio.CancelledError:
        raise typer.Exit(128 + signal.SIGTERM) from None
    numbers = course.numbers()
    if as_json:
        typer.echo(json.dumps(numbers))
    else:
        for name, value in numbers.items():
            shown = "none" if value in (None, {}) else value
            typer.echo(f"{_WORDS.get(name, name.replace('_', ' ')):28} {shown}")
    if not numbers["prompts"]:
        typer.echo(f"relay: note: nothing was asked: prompts come about every {played.prompts.every}", err=True)
        typer.echo("hint: give a longer --duration", err=True)
    if report is not None:
        _write(report, course)
    raise typer.Exit(1 if numbers["lost"] or numbers["doubled"] else 0)


@app.command()
def radio(
    path: Annotated[Path, typer.Argument(metavar="PATH", help="The Unix socket at which processes join.")],
    phy: Annotated[str, typer.Option("--phy", help="instant, 1m, 2m, ios or bluez-worst.")] = "1m",
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of the radio's dice.")] = 0,
) -> None:
    """Serve a virtual Bluetooth radio, which hops and edges join as virtual:PATH, until it is interrupted."""
    asyncio.run(_radio(path, phy, seed))


async def _radio(path: Path, phy: str, seed: int) -> None:
    from transport.links.virtual_join import serve_radio

    stop, loop = asyncio.Event(), asyncio.get_running_loop()
    for name in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(name, stop.set)
    server = await serve_radio(path, phy, seed)
    typer.echo(f"radio ready at virtual:{path} ({phy})")
    await stop.wait()
    await server.close()


def _write(path: Path, course: "Course") -> None:
    from relay.sim.page import page

    with _writing(path):
        path.write_text(page(course), "utf-8")


def _try(path: Path) -> None:
    """Raises BadInput if nothing can be written there; leaves nothing behind."""
    with _writing(path):
        new = not path.exists()
        path.open("ab").close()
        if new:
            path.unlink()


@contextlib.contextmanager
def _writing(path: Path) -> Iterator[None]:
    from transport.errors import BadInput

    try:
        yield
    except (OSError, ValueError) as error:  # ValueError: a name with a zero byte
        reason = (getattr(error, "strerror", None) or "this cannot be a name").lower()
        raise BadInput(f"cannot write {path}: {reason}", hint="choose another place") from None


def _heed_sigterm() -> None:
    """In the run's task: it is to end in order, so that its folder, which may lie in memory, does not stay behind."""
    if (task := asyncio.current_task()) is not None:
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)


def _progress(share: float) -> None:
    if os.isatty(sys.stderr.fileno()):
        print(f"\r{share:4.0%} of the run  ", end="\n" if share >= 1 else "", file=sys.stderr, flush=True)


def _no_progress(share: float) -> None:
    pass

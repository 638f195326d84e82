"""What all commands share: running to an exit code, errors in one form, results as text or JSON."""

import contextlib
import json
import os
import sys
from collections.abc import Callable, Coroutine, Iterator
from typing import Any, Final

import typer

__all__ = [
    "EXIT_CODES", "JSON", "LOCAL", "RELAYED", "Exit", "coloured", "ended", "exit_code", "note", "progress", "run",
    "show", "tell",
]

# By fault; typer's own usage errors are 2. docs/COMMANDS.md has them, with the codes of all errors.
EXIT_CODES: Final = {
    "user": 3, "identity": 4, "link": 5, "policy": 6, "provider": 7, "store": 8, "unknown_outcome": 9, "peer": 10,
}
# Colours of a terminal (ECMA-48, SGR): where an answer came from, as on the page.
LOCAL, RELAYED, _FAINT = "32", "36", "2"
JSON: Final = typer.Option("--json", help="Print one JSON object.")


class Exit(Exception):
    """Ends a command with this code; what there is to say has been said."""

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.exit_code = code


def run(work: Callable[[], Coroutine[Any, Any, None]], *, as_json: bool = False) -> None:
    """Runs a command's body and ends the process with its exit code. An error is two lines on stderr, no traceback."""
    import asyncio  # a third of the time that `edge --help` takes

    ended(lambda: asyncio.run(work()), as_json=as_json)


def ended(work: Callable[[], None], *, as_json: bool = False) -> None:
    """As `run`, of a body that has no event loop around it."""
    try:
        work()
        sys.stdout.flush()
    except Exit as end:
        raise typer.Exit(end.exit_code) from None
    except KeyboardInterrupt:
        raise typer.Exit(130) from None
    except BrokenPipeError:
        # The reader has gone (`edge search ... | head`). What is still buffered would fail again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise typer.Exit(0) from None
    except Exception as error:  # the last door: whatever comes becomes a message and a code
        told = tell(error)
        if as_json:
            show({"error": told})
        raise typer.Exit(exit_code(told["fault"])) from None


def tell(error: Exception) -> dict[str, Any]:
    """An error as one or two lines on stderr, and as the object that `--json` shows."""
    code, fault = getattr(error, "code", None), getattr(error, "fault", None)
    if isinstance(code, str) and isinstance(fault, str):
        message, hint = str(error), getattr(error, "hint", None)
    else:
        if os.environ.get("CAUSEWAY_DEBUG"):
            raise error
        code, fault, message = "internal", "local", f"something unexpected went wrong ({type(error).__name__})"
        hint = "set CAUSEWAY_DEBUG=1 to see where, and please report it"
        if isinstance(error, OSError) and error.strerror:  # a full disk, a name that is too long
            message = f"this machine cannot do that: {error.strerror.lower()}"
            hint = "CAUSEWAY_DEBUG=1 shows what was tried"
    note(message)
    if hint:
        print(f"{coloured('hint:', _FAINT)} {hint}", file=sys.stderr)
    return {"code": code, "fault": fault, "message": message, "hint": hint}


def exit_code(fault: str) -> int:
    return EXIT_CODES.get(fault, 1)


def note(message: str) -> None:
    """A message, not a result: to stderr."""
    print(f"edge: {message}", file=sys.stderr, flush=True)


def coloured(text: str, colour: str) -> str:
    """For standard error, where that is a terminal and nobody objects (no-color.org)."""
    if os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb" or not sys.stderr.isatty():
        return text
    return f"\x1b[{colour}m{text}\x1b[0m"


def show(result: object) -> None:
    """A result as one line of JSON on stdout."""
    print(json.dumps(result, ensure_ascii=False), flush=True)


@contextlib.contextmanager
def progress() -> Iterator[Callable[[str, int, int], None]]:
    """tell(what, done, of) as a bar on a terminal, and as nothing elsewhere; `of` 0 means unknown."""
    if not sys.stderr.isatty():
        yield lambda what, done, total: None
        return
    from rich.console import Console
    from rich.markup import escape
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TaskProgressColumn,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TaskProgressColumn(), TimeElapsedColumn(),
        TextColumn("left"), TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=None)
        yield lambda what, done, total: bar.update(
            task, description=escape(what), completed=done, total=total or None
        )

"""The command `edge`. Help must be instant: nothing here or in the command modules imports more than typer.

A command's body imports what it needs when it runs; a test looks at `sys.modules` after `edge --help`.
"""

from typing import Annotated

import typer

from edge_client.commands.ask import ask
from edge_client.commands.chat import chat
from edge_client.commands.device import join
from edge_client.commands.documents import documents, ingest, search
from edge_client.commands.examples import add_examples
from edge_client.commands.explain import explain
from edge_client.commands.models import models
from edge_client.commands.outbox import outbox
from edge_client.commands.pair import pair
from edge_client.commands.serve import serve
from edge_client.commands.setup import setup
from edge_client.commands.status import status
from edge_client.commands.store import store
from edge_client.commands.upkeep import add_upkeep

__all__ = ["app", "main"]

# Plain help and plain errors: rich alone would take as long to import as everything else together.
app = typer.Typer(
    name="edge",
    help="Ask your documents and, through hops you need not trust, your gateway's models.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


def _show_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"edge {version('causeway')}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", help="Show the version.", callback=_show_version, is_eager=True)
    ] = False,
) -> None:
    pass


app.command()(setup)
app.command()(ask)
app.command()(chat)
app.command()(explain)
app.command()(ingest)
app.command()(search)
app.command()(serve)
app.command()(join)
app.command()(pair)
app.command()(status)
app.add_typer(documents, name="documents")
app.add_typer(store, name="store")
app.add_typer(outbox, name="outbox")
app.add_typer(models, name="models")
add_upkeep(store)
add_examples(app)


def main() -> None:
    """Entry point of the console script."""
    from store.memory import keep_private

    keep_private()  # whatever the command is: keys, documents or prompts will be in it
    app(prog_name="edge")


if __name__ == "__main__":
    main()

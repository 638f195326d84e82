"""`edge documents reembed`."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from edge_client.commands.terminal import note, progress, run, show
from edge_client.commands.within import COLLECTION

if TYPE_CHECKING:
    from edge_client.config import Config
    from edge_client.reembedding import State

_EACH_S = 1.0  # between two lines of JSON


def reembed(
    collection: Annotated[str | None, COLLECTION] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print JSON objects, a line each: how far it is, and the result.")
    ] = False,
) -> None:
    """Make vectors anew, for another embedder.

    Goes on where it was if it is stopped. Until a collection is done, searches in it go by its former vectors.
    """

    async def work() -> None:
        import time

        from edge_client.app import App
        from edge_client.config import Config
        from edge_client.errors import BadUse
        from edge_client.reembedding import reembed_all

        config = Config.load()
        async with App.open(config, store="if present") as app:
            database = app.database
            if collection is not None and not await app.documents.list(collection):
                raise BadUse(f"the collection {collection} holds nothing", hint="`edge documents` lists what there is")
            with progress() as bar:
                shown = -_EACH_S

                def tell(state: "State") -> None:
                    nonlocal shown
                    bar(f"{state.collection}: {state.step}", state.done, state.total)
                    if as_json and (time.monotonic() - shown >= _EACH_S or state.step == "replacing"):
                        shown = time.monotonic()
                        show(_event(state))

                embedder = app.embedder(lambda done, of: bar("preparing the embedder", done, of))
                changed = await reembed_all(database, embedder, collection=collection, tell=tell)
        if as_json:
            show({"event": "done", "collections": [{"name": name, "passages": count} for name, count in changed]})
        for name, count in changed if not as_json else ():
            print(f"{name}: {count} passages embedded anew")
        if not changed:
            note("all vectors are of the embedder that is in use")
        elif _serves(config):
            note("the running `edge serve` has the embedder it began with: restart it")

    run(work, as_json=as_json)


def _event(state: "State") -> dict[str, Any]:
    left = None if state.seconds_left is None else round(state.seconds_left)
    return {
        "event": "progress", "collection": state.collection, "step": state.step, "done": state.done,
        "total": state.total, "percent": state.percent, "seconds_left": left,
    }


def _serves(config: "Config") -> bool:
    from edge_client.errors import NotServing
    from edge_client.key_agent import state_of_serve

    try:
        return state_of_serve(config.home).store == "open"
    except NotServing:
        return False

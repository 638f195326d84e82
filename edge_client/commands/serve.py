"""`edge serve`."""

from pathlib import Path
from typing import Annotated

import typer

from edge_client.commands.terminal import note, run

_PATIENCE_S = 10.0  # for the gateway's list of models, which a client of this machine waits for


def serve(
    port: Annotated[int, typer.Option(min=0, max=65535, help="On 127.0.0.1; 0 picks a free one.")] = 8080,
    model: Annotated[Path | None, typer.Option(help="Another GGUF than the configured one.")] = None,
    model_id: Annotated[str | None, typer.Option(help="A further name the local model answers to.")] = None,
    no_store: Annotated[bool, typer.Option("--no-store", help="Serve the model alone, without documents.")] = False,
) -> None:
    """Serve the OpenAI API and a chat page here.

    On this machine alone, behind a token. The store is unlocked for commands beside it, too, until it is
    locked or was not used for [store] lock_after_s.
    """

    async def work() -> None:
        import asyncio
        import contextlib

        from edge_client.answering import Assistant
        from edge_client.api.page import Behind
        from edge_client.api.server import Names, serve_until_stopped
        from edge_client.app import App, StoreUse
        from edge_client.config import Config
        from edge_client.engine.registry import registered_models
        from edge_client.errors import NoPassphrase
        from edge_client.gateway_client import GatewayClient
        from edge_client.history import NAMESPACE, History
        from edge_client.idle import Activity, lock_when_idle
        from edge_client.inference import Inference
        from edge_client.ingest import Ingest
        from edge_client.key_agent import serve_key
        from edge_client.one_serve import claim
        from store.settings import Settings

        config, activity = Config.load(), Activity()
        async with contextlib.AsyncExitStack() as stack:
            only = stack.enter_context(claim(config.home))
            use: StoreUse = "none" if no_store else "if present"
            app = await stack.enter_async_context(App.open(config, store=use, tell=note, serving=True))
            if not await stack.enter_async_context(serve_key(config.home, app, activity.touch)):
                if app.store == "locked":  # nobody could open it
                    raise NoPassphrase("the store needs a passphrase", hint="set CAUSEWAY_PASSPHRASE_FILE")
                note("commands beside it unlock the store for themselves: there is no Unix socket in this home")
            if after_s := config.store.lock_after_s:
                idle = asyncio.create_task(lock_when_idle(activity, app.lock, after_s))
                stack.callback(idle.cancel)
            chat = app.chat(model)
            await chat.load()
            alone = Assistant(chat=chat, retrieval=None, relay=None, tracing=app.tracing)

            async def granted() -> list[str]:
                relay = await app.relay()
                async with asyncio.timeout(_PATIENCE_S):
                    return [] if relay is None else await relay.models()

            others = {
                added.name: Assistant(
                    chat=app.chat(Path(added.path), name=added.name), retrieval=None, relay=None, tracing=app.tracing
                )
                for added in registered_models(config.home)
            }
            names = Names(
                alone=alone, auto=lambda: app.assistant(chat), alias=model_id, granted=granted, others=others,
                embedder=lambda: asyncio.to_thread(app.embedder),  # its first use converts weights
                infer=Inference(app.relay, app.tracing),
            )

            async def ingest() -> Ingest:
                return Ingest(app.documents, await asyncio.to_thread(app.embedder))

            async def way() -> GatewayClient | None:
                return None if await app.relay() is None else app.client

            behind = Behind(
                documents=lambda: app.documents, outbox=lambda: app.outbox, promises=lambda: app.promises,
                later=lambda: app.assistant(chat, later=True), ingest=ingest, relay=way,
                history=lambda: History(Settings(app.database, NAMESPACE)),
                store=lambda: app.store,
            )
            app.drain()
            await serve_until_stopped(names, config.token_path, port, note, behind, activity, only.listens)

    run(work)

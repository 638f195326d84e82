"""`edge store check|backup|restore|rekey|wipe`: looking after the store."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from edge_client.commands.terminal import JSON, Exit, exit_code, progress, run, show

if TYPE_CHECKING:
    from edge_client.config import Config
    from store.keys import DatabaseKey

__all__ = ["add_upkeep"]

_WAYS = {"passphrase": "a passphrase", "held": "the login keyring", "tpm": "the TPM"}


def check(as_json: Annotated[bool, JSON] = False) -> None:
    """Look whether the store is whole, who may read its files, and whether what is to open it does.

    Reads all of it, also beside a running `edge serve`. Ends with 0 if nothing is wrong, else with 8.
    """

    async def work() -> None:
        import asyncio

        from edge_client.config import Config
        from edge_client.upkeep import examine

        config = Config.load()
        key = _key(config)
        with progress() as tell:
            found, ways = await asyncio.to_thread(examine, config, key, lambda step: tell(step, 0, 0))
        result: dict[str, Any] = {
            "ok": not found.problems, "problems": [vars(one) for one in found.problems], "schema": found.schema,
            "documents": found.documents, "chunks": found.chunks, "bytes": found.size,
            "ways": {"keyring" if way == "held" else way: opens for way, opens in ways.items()},
        }
        if as_json:
            show(result)
        else:
            print(f"store      {found.documents} documents, {found.chunks} passages, {_size(found.size)}")
            print(f"opened by  {', '.join(_WAYS[way] for way, opens in ways.items() if opens is not False)}")
            for one in found.problems:
                print(f"wrong      {one.message}\n           {one.hint}")
            if not found.problems:
                print("nothing is wrong: every page is authentic, and every table agrees with the others")
        if found.problems:
            raise Exit(exit_code("store"))

    run(work, as_json=as_json)


def add_upkeep(group: typer.Typer) -> None:
    """Gives `edge store` these commands."""
    group.command()(check)


def _key(config: "Config") -> "DatabaseKey":
    """From a running `edge serve`, or by whatever opens the store. Raises NoStore, and as app.unlocked_key."""
    from edge_client.app import unlocked_key
    from edge_client.errors import NoStore
    from edge_client.key_agent import key_from_serve
    from edge_client.passphrase import given, passphrase
    from store.errors import StoreMissing

    if not config.key_path.exists():
        if not config.store_path.exists():
            raise NoStore
        hint = "`edge store restore` brings back a backup; `edge store wipe` removes what is left"
        raise StoreMissing("there is a database, and no key file that could open it", hint=hint)
    return (None if given() else key_from_serve(config.home)) or unlocked_key(config, passphrase)


def _size(size: int) -> str:
    return f"{size / 1e6:,.1f} MB"

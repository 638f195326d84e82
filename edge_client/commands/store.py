"""`edge store`: how the store is unlocked, and by a running `edge serve` whether."""

from enum import StrEnum
from typing import Annotated

import typer

from edge_client.commands.terminal import JSON, run, show

store = typer.Typer(help="How the store is unlocked.", no_args_is_help=True, rich_markup_mode=None)


class Switch(StrEnum):
    ON = "on"
    OFF = "off"


@store.callback()
def _group() -> None:
    """How the store is unlocked."""


@store.command()
def keyring(
    state: Annotated[Switch, typer.Argument(help="Whether the login keyring unlocks it, beside the passphrase.")],
    as_json: Annotated[bool, JSON] = False,
) -> None:
    """Let the login keyring unlock the store, so that nobody is asked; the passphrase opens it as before."""

    async def work() -> None:
        from edge_client import login_keyring
        from edge_client.config import Config
        from edge_client.errors import NoStore
        from edge_client.passphrase import passphrase
        from store.keys import add_held, remove_held, unlock_key

        path = Config.load().key_path
        if not path.exists():
            raise NoStore
        if state is Switch.ON:
            add_held(path, unlock_key(path, passphrase(new=False)), login_keyring.put)
        else:
            login_keyring.drop(remove_held(path))
        if as_json:
            show({"keyring": str(state)})
        else:
            what = "the login keyring" if state is Switch.ON else "only the passphrase"
            print(f"{what} unlocks the store")

    run(work, as_json=as_json)


@store.command()
def lock(as_json: Annotated[bool, JSON] = False) -> None:
    """Make the running `edge serve` forget the store's key; the local model goes on without documents."""

    async def work() -> None:
        from edge_client.config import Config
        from edge_client.key_agent import lock_serve

        lock_serve(Config.load().home)
        _say("locked", as_json)

    run(work, as_json=as_json)


@store.command()
def unlock(as_json: Annotated[bool, JSON] = False) -> None:
    """Unlock the store for the running `edge serve` and the commands beside it, by passphrase or login keyring."""

    async def work() -> None:
        from edge_client.app import unlocked_key
        from edge_client.config import Config
        from edge_client.errors import BadUse, NoStore
        from edge_client.key_agent import state_of_serve, unlock_serve
        from edge_client.passphrase import passphrase

        config = Config.load()
        state = state_of_serve(config.home).store
        if state == "none":
            if not config.key_path.exists():
                raise NoStore
            raise BadUse("the running `edge serve` was told --no-store", hint="end it, and start it without")
        if state == "locked":
            unlock_serve(config.home, unlocked_key(config, passphrase))
        _say("open", as_json)

    run(work, as_json=as_json)


def _say(state: str, as_json: bool) -> None:
    if as_json:
        show({"store": state})
    else:
        print(f"the store is {state}")

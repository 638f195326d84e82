"""`edge store`: how the store is unlocked, and by a running `edge serve` whether."""

from collections.abc import Callable
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Final

import typer

from edge_client.commands.terminal import JSON, note, run, show

if TYPE_CHECKING:
    from edge_client.config import Config
    from store.keys import DatabaseKey

_WORDS: Final = {"passphrase": "the passphrase", "held": "the login keyring", "tpm": "the TPM"}

store = typer.Typer(help="What unlocks the store, and looking after it.", no_args_is_help=True, rich_markup_mode=None)


class Switch(StrEnum):
    ON = "on"
    OFF = "off"


@store.callback()
def _group() -> None:
    """What unlocks the store, and looking after it."""


@store.command()
def keyring(
    state: Annotated[Switch, typer.Argument(help="Whether the login keyring unlocks it, beside other ways.")],
    as_json: Annotated[bool, JSON] = False,
) -> None:
    """Let the login keyring unlock the store. Nobody is asked then; the passphrase opens it as before."""

    def change(config: "Config", key: "Callable[[], DatabaseKey]") -> None:
        from edge_client import login_keyring
        from store.keys import add_held, remove_held

        if state is Switch.ON:
            add_held(config.key_path, key(), login_keyring.put)
        else:
            login_keyring.drop(remove_held(config.key_path))

    _switch("held", state, change, as_json)


@store.command()
def tpm(
    state: Annotated[Switch, typer.Argument(help="Whether this machine's TPM unlocks it, beside other ways.")],
    as_json: Annotated[bool, JSON] = False,
) -> None:
    """Let this machine's TPM unlock the store. Nobody is asked then; the passphrase opens it as before."""

    def change(config: "Config", key: "Callable[[], DatabaseKey]") -> None:
        from store.keys import add_tpm, remove_tpm
        from store.tpm import Tpm

        device = Tpm(config.tpm.tcti)
        if state is Switch.ON:
            device.check()
            add_tpm(config.key_path, key(), lambda held: device.seal(held).encode())
        else:
            remove_tpm(config.key_path)

    _switch("tpm", state, change, as_json)


@store.command("passphrase")
def by_passphrase(
    state: Annotated[Switch, typer.Argument(help="on sets a new one; off leaves the TPM or the login keyring alone.")],
    as_json: Annotated[bool, JSON] = False,
) -> None:
    """Set a new passphrase, or have none. Without one the store is lost with what still opens it."""

    def change(config: "Config", key: "Callable[[], DatabaseKey]") -> None:
        from edge_client.passphrase import passphrase
        from store.keys import add_passphrase, remove_passphrase

        if state is Switch.ON:
            add_passphrase(config.key_path, key(), passphrase(new=True, what="the store from now on"))
        else:
            remove_passphrase(config.key_path)

    _switch("passphrase", state, change, as_json)


def _switch(
    way: str, state: Switch, change: "Callable[[Config, Callable[[], DatabaseKey]], None]", as_json: bool
) -> None:
    async def work() -> None:
        from edge_client.app import key_without_asking, unlocked_key
        from edge_client.config import Config
        from edge_client.errors import BadUse, NoKeyring, NoStore
        from edge_client.passphrase import given, passphrase
        from store.errors import StoreMisuse, TpmError, WrongKey
        from store.keys import unlock_key, ways_in

        config = Config.load()
        if not config.key_path.exists():
            raise NoStore

        def key() -> "DatabaseKey":
            if way != "passphrase" and "passphrase" in ways_in(config.key_path):
                return unlock_key(config.key_path, passphrase(new=False))  # who switches a way on knows it
            if way == "passphrase" and way not in ways and (opened := key_without_asking(config, ways)) is not None:
                return opened  # what the environment names is the new one
            return unlocked_key(config, passphrase)

        ways = set(ways_in(config.key_path))
        others = ways - {way}
        if state is Switch.OFF and way in ways and others and "passphrase" not in others:
            try:
                key_without_asking(config, others)  # a TPM that was cleared, a keyring that was emptied: all lost
            except (NoKeyring, TpmError, WrongKey) as error:
                raise BadUse(
                    f"nothing else opens the store just now: {error}",
                    hint="first switch on another anew: `edge store passphrase on`, `tpm on` or `keyring on`",
                ) from None

        try:
            change(config, key)
        except StoreMisuse:
            raise BadUse(
                "this is the only way to unlock the store",
                hint="first switch on another: `edge store passphrase on`, `tpm on` or `keyring on`",
            ) from None
        left = ways_in(config.key_path)
        if as_json:
            show({"keyring" if way == "held" else way: str(state)})
        else:
            rest = "only " + " or ".join(_WORDS[one] for one in left)
            print(f"{_WORDS[way] if state is Switch.ON else rest} unlocks the store")
            if way == "passphrase" and state is Switch.ON and given():
                note("it is what the environment names; unset that, and you are asked for one")
            if "passphrase" not in left:
                note("what is in the store is lost with that; `edge store passphrase on` sets a passphrase")

    run(work, as_json=as_json)


@store.command()
def lock(as_json: Annotated[bool, JSON] = False) -> None:
    """Have `edge serve` forget the store's key. Its local model goes on without documents."""

    async def work() -> None:
        from edge_client.config import Config
        from edge_client.key_agent import lock_serve

        lock_serve(Config.load().home)
        _say("locked", as_json)

    run(work, as_json=as_json)


@store.command()
def unlock(as_json: Annotated[bool, JSON] = False) -> None:
    """Unlock the store for `edge serve`, and for the commands beside it, by whichever way is switched on."""

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

"""`edge setup`: three questions, and then an assistant that works."""

import shutil
import sys
import textwrap
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, TypeVar

import typer

from edge_client.commands.device import HOP, TPM, find_ways, read_invitation, redeem
from edge_client.commands.documents import take_in
from edge_client.commands.status import models_there
from edge_client.commands.terminal import JSON, Exit, exit_code, note, run, show, tell

if TYPE_CHECKING:
    from edge_client.app import App
    from edge_client.config import Config
    from store.keys import Passphrase
    from transport.identity.join import Invitation

_INVITATION: Final = (
    "1 of 3: an invitation lets this device ask a gateway's models when its own "
    "is not enough. What you type or paste is not shown; Enter goes without.",
    "Invitation: ",
)
_FOLDER: Final = (
    "2 of 3: which folder shall be read into the encrypted store, to answer from? "
    "Text, Markdown, PDF, Word, HTML, CSV and code; Enter goes without.",
    "Folder: ",
)
_UNLOCK: Final = (
    "3 of 3: what unlocks the store? A passphrase does in any case; the login "
    "keyring or this machine's TPM can do it as well, so that you are not asked.",
    "passphrase, keyring or tpm [passphrase]: ",
)
_INGEST: Final = ("edge ingest FOLDER", "adds documents")
_NEXT: Final = (
    ('edge ask "..."', "asks one question"),
    ("edge chat", "talks with you in the terminal"),
    ("edge serve", "answers other programs, and has a page"),
)
_Parsed = TypeVar("_Parsed")


class Unlock(StrEnum):
    PASSPHRASE = "passphrase"
    KEYRING = "keyring"
    TPM = "tpm"


def setup(
    invitation_file: Annotated[
        Path | None, typer.Option("--invitation-file", help="Where the invitation is, - for stdin; else it is asked.")
    ] = None,
    hop: Annotated[str | None, HOP] = None,
    folder: Annotated[Path | None, typer.Option(help="Documents to answer from; else it is asked.")] = None,
    unlock: Annotated[
        Unlock | None, typer.Option(help="What unlocks the store, a passphrase in any case; else it is asked.")
    ] = None,
    in_tpm: Annotated[bool, TPM] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Ask nothing: what no option gives is left out.")] = False,
    as_json: Annotated[bool, JSON] = False,
) -> None:
    """Set this device up, by three questions.

    Invitation, folder, how to unlock: what is left out can follow later, for it may be run again.
    """

    async def work() -> None:
        from asyncio import CancelledError

        from edge_client.app import App
        from edge_client.config import Config
        from edge_client.passphrase import passphrase

        def asked(*, new: bool) -> "Passphrase":
            secrets.append(passphrase(new=new))
            return secrets[-1]

        async def opened() -> App:
            return await stack.enter_async_context(App.open(config, store="create", ask=asked, tell=note))

        config, failures, ingested = Config.load(), list[dict[str, Any]](), None
        secrets: list[Passphrase] = []
        # All that can be refused comes first: nothing is created for an answer that cannot be used.
        invitation = _invitation(read_invitation(invitation_file)) if invitation_file is not None else None
        chosen = _folder(str(folder)) if folder is not None else None
        new = not config.key_path.exists()
        async with AsyncExitStack() as stack:
            before = {} if new else await _state(config, app := await opened())
            if before:
                note(f"the store in {config.home} is kept, with {before['documents']} documents")
            if before.get("identity"):
                note(f"this device has joined as {before['identity']}")
                if invitation is not None and before["identity"] == str(invitation.id):
                    invitation = None  # perhaps the same, which is used up
                    note("its invitation is not needed again; `edge join` would use it")
            elif invitation_file is None:
                invitation = _ask("--invitation-file", *_INVITATION, _invitation, needed=True, yes=yes, hide=True)
            if chosen is None:
                chosen = _ask("--folder", *_FOLDER, _folder, needed=not before.get("documents"), yes=yes)
            if unlock is None and before.get("unlock") in (None, Unlock.PASSPHRASE):
                wanted = _ask("--unlock", *_UNLOCK, _unlock, needed=new, yes=yes)
            else:
                wanted = unlock
            ways = await find_ways(config, invitation, hop) if invitation is not None else ([], [])
            if new:
                app = await opened()
                note(f"made an encrypted store in {config.home}")

            async def step(what: Awaitable[None]) -> None:
                """One that fails is told, and takes no other along."""
                try:
                    await what
                except Exception as error:
                    failures.append(tell(error))

            async def join() -> None:
                assert invitation is not None
                identity, through = await redeem(app, invitation, *ways, in_tpm=in_tpm)
                note(f"joined as {identity.id} through {through}")

            async def ingest() -> None:
                nonlocal ingested
                assert chosen is not None
                ingested = await take_in(app, [chosen])
                note(f"{chosen}: {ingested}")

            try:
                if wanted not in (None, Unlock.PASSPHRASE) and before.get("unlock") != wanted:
                    await step(_also(wanted, config, secrets[-1] if secrets else None))
                if invitation is not None:
                    await step(join())
                if None in models_there(config).values():
                    await step(_no_models())
                elif chosen is not None:
                    await step(ingest())
            except CancelledError:
                note("what is done stays; `edge setup` goes on from there")
                raise
            state = await _state(config, app)
        if as_json:
            show(state | {
                "store": "created" if new else "kept", "ingested": ingested.object() if ingested else None,
                "failures": failures, "next": [command for command, _ in _next(state)],
            })
        else:
            _print(state, failed=bool(failures))
        if failures:
            raise Exit(exit_code(failures[0]["fault"]))
        if ingested is not None and ingested.failed:
            raise Exit(3)

    run(work, as_json=as_json)


def _ask(
    option: str, words: str, prompt: str, parse: Callable[[str], _Parsed], *, needed: bool, yes: bool,
    hide: bool = False,
) -> _Parsed | None:
    """The answer to a question, asked until it can be used. None where nobody is to be asked.

    Raises BadUse where a `needed` answer cannot be asked for.
    """
    from edge_client.errors import BadUse
    from edge_client.passphrase import hidden, line
    from transport.errors import BadInput

    if yes or not (sys.stdin.isatty() or needed):
        return None
    if not sys.stdin.isatty():
        raise BadUse(
            f"{option} is missing, and there is no terminal to ask on", hint=f"give {option}, or --yes to go without"
        )
    print("\n" + textwrap.fill(words, min(80, shutil.get_terminal_size().columns - 1)), file=sys.stderr)
    while True:
        try:
            return parse((hidden if hide else line)(prompt).strip())
        except EOFError:
            raise KeyboardInterrupt from None
        except (BadUse, BadInput) as error:
            tell(error)


def _invitation(text: str) -> "Invitation | None":
    """Raises BadInput."""
    from transport.identity.join import Invitation

    return Invitation.parse(text) if text else None


def _folder(text: str) -> Path | None:
    """As a person types it, or a file manager drops it, in quotes. Raises BadUse."""
    from edge_client.errors import BadUse

    path = Path(text.strip("'\"")).expanduser()
    if text and not path.exists():
        raise BadUse(f"there is no {path}", hint="name a folder or a file that is there")
    return path if text else None


def _unlock(text: str) -> Unlock:
    """Raises BadUse."""
    from edge_client.errors import BadUse

    for way in Unlock:
        if way.startswith(text.lower()):
            return way
    raise BadUse("that is neither", hint="answer passphrase, keyring or tpm")


async def _also(way: Unlock, config: "Config", secret: "Passphrase | None") -> None:
    from edge_client import login_keyring
    from edge_client.passphrase import passphrase
    from store.keys import add_held, add_tpm, unlock_key
    from store.tpm import Tpm

    key = unlock_key(config.key_path, secret or passphrase(new=False))
    if way is Unlock.TPM:
        device = Tpm(config.tpm.tcti)
        add_tpm(config.key_path, key, lambda held: device.seal(held).encode())
    else:
        add_held(config.key_path, key, login_keyring.put)
    note(f"the {'TPM' if way is Unlock.TPM else 'login keyring'} unlocks the store")


async def _no_models() -> None:
    """Nothing is fetched here: that is a command of its own, so that whoever pays for the link decides."""
    from edge_client.errors import ModelMissing

    raise ModelMissing("the local models are missing (190 MB)", hint="`edge models install`, then `edge setup` again")


async def _state(config: "Config", app: "App") -> dict[str, Any]:
    from store.keys import ways_in
    from transport.errors import AgentLost, IdentityRefused

    ways = ways_in(config.key_path)
    try:
        identity = await app.identities.load()
    except (AgentLost, IdentityRefused) as error:  # a SPIRE agent may come later
        note(str(error))
        identity = None
    documents, chunks = await app.documents.count()
    return {
        "home": str(config.home), "identity": str(identity.id) if identity is not None else None,
        "documents": documents, "chunks": chunks,
        "unlock": str(Unlock.TPM if "tpm" in ways else Unlock.KEYRING if "held" in ways else Unlock.PASSPHRASE),
    }


def _print(state: dict[str, Any], *, failed: bool) -> None:
    print(f"store      {state['home']}, unlocked by the {'TPM' if state['unlock'] == Unlock.TPM else state['unlock']}")
    print(f"gateway    {'joined as ' + state['identity'] if state['identity'] else 'none: nothing leaves this device'}")
    print(f"documents  {state['documents']}, {state['chunks']} passages")
    if failed:
        print("next       `edge setup` once more, when what failed is mended; what is done stays")
    for command, does in _next(state):
        print(f"next       {command:<18} {does}")


def _next(state: dict[str, Any]) -> tuple[tuple[str, str], ...]:
    return _NEXT if state["documents"] else (_INGEST, *_NEXT)

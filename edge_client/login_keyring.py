"""The store's key in the login session's keyring: Secret Service or KWallet, macOS Keychain, Windows Credential Locker.

What is kept is no key of the database but one that wraps it (store.keys, kind 2). It opens the store for every program
of this user while the session is unlocked: that is the trade for not typing a passphrase.
"""

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

from edge_client.errors import NoKeyring
from store.keys import HeldKey

if TYPE_CHECKING:
    from keyring.backend import KeyringBackend

__all__ = ["drop", "get", "put"]

_SERVICE: Final = "causeway store"
_INSTEAD: Final = "or set CAUSEWAY_PASSPHRASE_FILE: the passphrase opens the store as before"
# By module: other back ends, which configuration or the environment may name, could keep the key in a plain file.
_TRUSTED: Final = ("SecretService", "libsecret", "kwallet", "macOS", "Windows")


def get(store_id: bytes) -> HeldKey:
    """Raises NoKeyring if it is locked, not there or has no such key; WrongKey."""
    with _errors():
        value = _backend().get_password(_SERVICE, store_id.hex())
    if value is None:
        raise NoKeyring("the login keyring has no key for this store", hint=f"`edge store keyring on`, {_INSTEAD}")
    try:
        return HeldKey(bytes.fromhex(value))
    except ValueError:
        return HeldKey(b"")


def put(store_id: bytes, held: HeldKey) -> None:
    """Raises NoKeyring, also if the keyring does not give back what it was given."""
    with _errors():
        backend, value = _backend(), held.expose().hex()
        backend.set_password(_SERVICE, store_id.hex(), value)
        kept = backend.get_password(_SERVICE, store_id.hex())
    if kept != value:
        raise NoKeyring("the login keyring did not keep the key", hint="nothing was changed")


def drop(store_id: bytes) -> None:
    """Does nothing if there is none. Raises NoKeyring."""
    with _errors():
        backend = _backend()
        if backend.get_password(_SERVICE, store_id.hex()) is not None:
            backend.delete_password(_SERVICE, store_id.hex())


def _backend() -> "KeyringBackend":
    import keyring
    from keyring.errors import NoKeyringError

    backend = keyring.get_keyring()
    for one in getattr(backend, "backends", [backend]):  # of a chain, each
        package, _, module = type(one).__module__.rpartition(".")
        if package != "keyring.backends" or module not in _TRUSTED:
            raise NoKeyringError
    return backend


@contextlib.contextmanager
def _errors() -> Iterator[None]:
    """The library's errors as ours; their texts may hold what other programs wrote, and are not repeated."""
    try:
        from keyring.errors import InitError, KeyringError, KeyringLocked, NoKeyringError
    except ImportError:
        raise NoKeyring("the library `keyring` is not installed", hint=_INSTEAD.removeprefix("or ")) from None
    kinds: tuple[type[Exception], ...] = (KeyringError, OSError)
    with contextlib.suppress(ImportError):  # only Linux has it
        from secretstorage.exceptions import SecretStorageException

        kinds = (*kinds, SecretStorageException)
    try:
        yield
    except KeyringLocked:
        raise NoKeyring("the login keyring is locked", hint=f"unlock it in your desktop session, {_INSTEAD}") from None
    except (NoKeyringError, InitError):
        raise NoKeyring(
            "there is no login keyring in this session", hint=f"log in to a desktop that has one, {_INSTEAD}"
        ) from None
    except kinds as error:
        name = type(error).__name__
        raise NoKeyring(f"the login keyring failed ({name})", hint=_INSTEAD.removeprefix("or ")) from None

"""Keys that others hold: their names, what is kept of them, and the key that opens a gateway's folder without a person.

A *holder*, such as a token or a cloud service, makes keys under names, signs, and wraps 32 bytes; it never gives a key
away. What is kept of such a key is its name and its public half, and every signature that comes back is checked with
the latter: whatever is put under the name later, the gateway issues nothing by another key than the one it made.
"""

from collections.abc import Callable
from pathlib import Path
from typing import ClassVar, Final, Literal, Protocol

import msgspec

from relay.gateway.errors import KeysUnavailable
from relay.gateway.identity.custody import SOFTWARE
from store.errors import StoreCorrupt
from store.files import read_bounded, write_private
from store.keys import DatabaseKey, HeldKey, add_held, held_for
from transport.errors import IdentityRefused
from transport.primitives import Signer, VerifyKey, random_bytes

HELD_FILE: Final = "unlock.held"
_MAGIC: Final = b"causeway key\x00"
_FILE_MAX: Final = 16 * 1024
_OTHER_HINT: Final = "the section [keys] of gateway.toml says where keys are; put back what it said"


class Holder(Protocol):
    """One token or account. Every method may take long and raises KeysUnavailable; they may be called by threads."""

    source: str

    def make(self, name: str) -> VerifyKey:
        """A new P-256 key for signing, that cannot be extracted."""

    def find(self, name: str) -> None:
        """Raises KeysUnavailable unless there is such a key, and it may be used."""

    def sign(self, name: str, message: bytes) -> bytes:
        """64 bytes r || s over SHA-256 of the message."""

    def destroy(self, name: str) -> None:
        """For keys that sign; done as well if there is none of that name."""

    def make_wrapping(self, name: str) -> None:
        """A new AES-256 key, that cannot be extracted."""

    def wrap(self, name: str, secret: bytes, context: str) -> bytes: ...

    def unwrap(self, name: str, wrapped: bytes, context: str) -> bytes: ...


class _Kept(msgspec.Struct, array_like=True, forbid_unknown_fields=True):
    source: str
    role: str
    name: str
    spki: bytes


class HeldSigner:
    """A signer whose key is with a holder."""

    slow: ClassVar[bool] = True

    def __init__(self, holder: Holder, name: str, public: VerifyKey) -> None:
        self._holder, self.name, self.public = holder, name, public

    def sign(self, message: bytes) -> bytes:
        """Raises KeysUnavailable, also if it was another key that signed."""
        signature = self._holder.sign(self.name, message)
        try:
            self.public.verify(signature, message)
        except IdentityRefused:
            raise KeysUnavailable(
                f"what is called {self.name} is no longer the key that the gateway made", hint=_OTHER_HINT
            ) from None
        return signature


class Held:
    """A Custody by configuration: new keys are made by `main`, roots by `root`; None stands for software.

    Keys that were made elsewhere before still open, if they are in software: so a gateway moves by rotating its keys.
    """

    def __init__(self, main: Holder | None, root: Holder | None, prefix: str) -> None:
        self._main, self._root, self._prefix = main, root, prefix

    @property
    def holds(self) -> bool:
        """Whether there is a holder, which then opens the folder, too."""
        return self._main is not None

    def make(self, role: str) -> tuple[Signer, bytes]:
        holder = self._holder(role)
        if holder is None:
            return SOFTWARE.make(role)
        name = new_name(self._prefix, role)
        public = holder.make(name)
        kept = _MAGIC + msgspec.msgpack.encode(_Kept(holder.source, role, name, public.spki))
        return HeldSigner(holder, name, public), kept

    def open(self, kept: bytes) -> Signer:
        named = _named(kept)
        if named is None:
            return SOFTWARE.open(kept)
        holder = self._holder(named.role)
        if holder is None or holder.source != named.source:
            raise KeysUnavailable(f"the key {named.name} is held by {named.source}, which this configuration does not "
                                  "name", hint=_OTHER_HINT)
        holder.find(named.name)
        return HeldSigner(holder, named.name, VerifyKey.from_spki(named.spki))

    def forget(self, kept: bytes) -> None:
        named = _named(kept)
        holder = None if named is None else self._holder(named.role)
        if named is not None and holder is not None and holder.source == named.source:
            holder.destroy(named.name)

    def _holder(self, role: str) -> Holder | None:
        return self._root if role == "root" else self._main

    # --- the key-encryption key -------------------------------------------------------------------------------------

    def hold(
        self, directory: Path, key_file: Path, key: DatabaseKey, *, first: Callable[[HeldKey], None] | None = None
    ) -> HeldKey:
        """Lets the holder open this folder, too; the key that it is given to wrap. `first` is done with that before it
        counts. Raises KeysUnavailable, StoreError.
        """
        assert self._main is not None
        holder, name = self._main, new_name(self._prefix, "unlock")
        holder.make_wrapping(name)
        made: list[HeldKey] = []

        def keep(store_id: bytes, held: HeldKey) -> None:
            wrapped = holder.wrap(name, held.expose(), store_id.hex())
            write_private(
                directory / HELD_FILE, [msgspec.json.encode(_Wrapped(1, holder.source, name, wrapped))], replace=True
            )
            if first is not None:
                first(held)
            made.append(held)

        add_held(key_file, key, keep)
        return made[0]

    def unlock(self, directory: Path, key_file: Path) -> HeldKey | None:
        """The key that opens this folder, unwrapped; None if a passphrase does. Raises KeysUnavailable, StoreError."""
        store_id = held_for(key_file)
        if store_id is None:
            return None
        try:
            wrapped = msgspec.json.decode(read_bounded(directory / HELD_FILE, _FILE_MAX), type=_Wrapped)
        except msgspec.MsgspecError:
            raise StoreCorrupt(f"{HELD_FILE} is of an unknown form", hint="restore it from a backup") from None
        if self._main is None or self._main.source != wrapped.source:
            raise KeysUnavailable(f"this gateway's state is opened by {wrapped.source}, which its configuration does "
                                  "not name", hint=_OTHER_HINT)
        return HeldKey(self._main.unwrap(wrapped.name, wrapped.wrapped, store_id.hex()))


class _Wrapped(msgspec.Struct, forbid_unknown_fields=True):
    """What HELD_FILE says: by which key of which holder the held key is wrapped."""

    version: Literal[1]
    source: str
    name: str
    wrapped: bytes


def new_name(prefix: str, role: str) -> str:
    """One that is not in use: a name stays with its key for good."""
    return f"{prefix}-{role}-{random_bytes(4).hex()}"


def name_of(kept: bytes) -> str | None:
    """What the holder calls a key; None if it is in software."""
    named = _named(kept)
    return None if named is None else named.name


def _named(kept: bytes) -> _Kept | None:
    if not kept.startswith(_MAGIC):
        return None
    try:
        return msgspec.msgpack.decode(kept[len(_MAGIC) :], type=_Kept)
    except msgspec.MsgspecError:
        raise StoreCorrupt("what is kept of a key is of an unknown form", hint="restore it from a backup") from None

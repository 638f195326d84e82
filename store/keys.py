"""The database key: random, and wrapped in a small file beside the database, whose form is that of store.key_file.

Each wrapping holds the same 48 bytes (32-byte SQLCipher key, 16-byte SQLCipher salt), so several ways to unlock can
live side by side; a reader skips kinds it does not know. Body of kind 1, a passphrase:

    memory KiB (4) || passes (1) || lanes (1) || salt (16) || nonce (12) || AES-256-GCM ciphertext and tag (64)

under Argon2id (RFC 9106) of the passphrase, with associated data
`"causeway store key" || 0 || store id || format (1) || kind (1) || memory .. salt`. Body of kind 2, a random key of 32
bytes that something else holds, such as the login keyring:

    nonce (12) || AES-256-GCM ciphertext and tag (64)

with the same associated data, which then ends with the kind. Body of kind 3, a random key of 32 bytes that a TPM has
sealed (store.tpm.Blob, encoded):

    length (2) || sealed key || nonce (12) || AES-256-GCM ciphertext and tag (64)

where the associated data goes on with length and sealed key. Since the file is read before
anything is authenticated, cost parameters outside [`KdfCost.MINIMUM`, `KdfCost.MAXIMUM`] are refused: a planted file
can neither make guessing cheap nor exhaust the machine.
"""

import os
import struct
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Final, NoReturn, Self, TypeAlias

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.argon2 import Argon2id

from store import key_file
from store.errors import PassphraseRefused, StoreBusy, StoreCorrupt, StoreMisuse, WrongKey
from store.files import read_bounded
from store.key_file import DAMAGED_HINT, MAX_WRAPPINGS, SALT_LEN, STORE_ID_LEN, Wrapping

__all__ = [
    "SALT_LEN", "DatabaseKey", "HeldKey", "KdfCost", "Passphrase", "Unlock", "Way", "add_held", "add_passphrase",
    "add_tpm", "by_held", "by_passphrase", "by_tpm", "create_key", "held_for", "remove_held", "remove_passphrase",
    "remove_tpm", "stretch", "unlock", "unlock_by_tpm", "unlock_held", "unlock_key", "ways_in",
]

_KEY_LEN: Final = 32
_NONCE_LEN: Final = 12
_FORMAT: Final = 1
_KIND_PASSPHRASE: Final = 1
_KIND_HELD: Final = 2
_KIND_TPM: Final = 3
_NAMES: Final = {_KIND_PASSPHRASE: "passphrase", _KIND_HELD: "held", _KIND_TPM: "tpm"}
_MAX_PASSPHRASE: Final = 1024
_MAX_SEALED: Final = 1024
_DOMAIN: Final = b"causeway store key\x00"


class _Redacted:
    """Refuses every accidental way for a secret to leave: printing, comparing, hashing, copying, pickling."""

    __slots__ = ("_value",)

    def __init__(self, value: bytes) -> None:
        self._value = value

    def expose(self) -> bytes:
        """The secret bytes: the one way out, so that every use can be found by searching for it."""
        return self._value

    def __repr__(self) -> str:
        return f"<{type(self).__name__}>"

    __str__ = __repr__

    def __format__(self, spec: str) -> str:
        return repr(self)

    def __eq__(self, other: object) -> NoReturn:
        raise TypeError("secrets are not compared")

    __hash__ = None  # type: ignore[assignment]

    def __reduce__(self) -> NoReturn:
        raise TypeError("secrets are not pickled or copied")


class Passphrase(_Redacted):
    """A passphrase of 1 to 1,024 bytes. Text becomes Unicode form NFC, so that every keyboard means the same bytes."""

    __slots__ = ()

    def __init__(self, text: str) -> None:
        """Raises PassphraseRefused if it is empty or too long."""
        try:
            value = unicodedata.normalize("NFC", text).encode("utf-8", "surrogateescape")
        except UnicodeEncodeError:
            raise PassphraseRefused("the passphrase is not valid text") from None
        if not value:
            raise PassphraseRefused("the passphrase is empty")
        if len(value) > _MAX_PASSPHRASE:
            raise PassphraseRefused("the passphrase is longer than 1,024 bytes")
        super().__init__(value)

    @classmethod
    def from_file(cls, path: Path) -> Self:
        """The file's content without one trailing newline; bytes that are no UTF-8 serve as they are.

        Raises StoreMissing, StoreUnwritable, PassphraseRefused.
        """
        data = read_bounded(path, 64 * 1024)
        data = data.removesuffix(b"\n").removesuffix(b"\r")
        return cls(data.decode("utf-8", "surrogateescape"))


class HeldKey(_Redacted):
    """32 random bytes that wrap a database key and are kept outside of the key file."""

    __slots__ = ()

    def __init__(self, value: bytes) -> None:
        """Raises WrongKey for any other length: it comes from elsewhere."""
        if len(value) != _KEY_LEN:
            raise WrongKey("what is kept for this store is no key of it")
        super().__init__(bytes(value))

    @classmethod
    def generate(cls) -> Self:
        return cls(os.urandom(_KEY_LEN))


Unlock: TypeAlias = Passphrase | HeldKey


class DatabaseKey(_Redacted):
    """What opens a database: 32 bytes of key and the 16 bytes of salt that are the database file's first. 48 in all."""

    __slots__ = ()

    def __init__(self, value: bytes) -> None:
        if len(value) != _KEY_LEN + SALT_LEN:
            raise StoreMisuse("a database key has 48 bytes")
        super().__init__(bytes(value))

    @classmethod
    def generate(cls) -> Self:
        return cls(os.urandom(_KEY_LEN + SALT_LEN))

    @property
    def salt(self) -> bytes:
        """Not secret: it opens every SQLCipher file in the clear."""
        return self._value[_KEY_LEN:]


Way: TypeAlias = Callable[[DatabaseKey, bytes], Wrapping]  # from key and store id what opens the key in one way


@dataclass(frozen=True)
class KdfCost:
    """Argon2id parameters (RFC 9106 section 3.1): memory in KiB, passes over it, lanes."""

    memory_kib: int
    passes: int
    lanes: int

    LENGTH: ClassVar[int] = 6
    DEFAULT: ClassVar["KdfCost"]
    MINIMUM: ClassVar["KdfCost"]
    MAXIMUM: ClassVar["KdfCost"]

    def encode(self) -> bytes:
        return struct.pack(">IBB", self.memory_kib, self.passes, self.lanes)

    @classmethod
    def decode(cls, data: bytes) -> "KdfCost":
        """From 6 bytes nobody vouches for. Raises StoreCorrupt outside [MINIMUM, MAXIMUM] in any parameter."""
        cost = cls(*struct.unpack(">IBB", data))
        low, high = cls.MINIMUM, cls.MAXIMUM
        if not (
            low.memory_kib <= cost.memory_kib <= high.memory_kib
            and low.passes <= cost.passes <= high.passes
            and low.lanes <= cost.lanes <= high.lanes
        ):
            raise StoreCorrupt("key derivation parameters are out of bounds", hint=DAMAGED_HINT)
        return cost


KdfCost.DEFAULT = KdfCost(memory_kib=64 * 1024, passes=3, lanes=1)  # about 0.2 s; RFC 9106's second choice, one lane
KdfCost.MINIMUM = KdfCost.DEFAULT
KdfCost.MAXIMUM = KdfCost(memory_kib=256 * 1024, passes=10, lanes=4)  # a few seconds at most


def stretch(passphrase: Passphrase, cost: KdfCost, salt: bytes) -> bytes:
    """32 bytes by Argon2id (RFC 9106) with a 16-byte salt."""
    derivation = Argon2id(
        salt=salt, length=_KEY_LEN, iterations=cost.passes, lanes=cost.lanes, memory_cost=cost.memory_kib
    )
    return derivation.derive(passphrase.expose())


def create_key(path: Path, passphrase: Passphrase) -> DatabaseKey:
    """A new random key, wrapped by the passphrase into a new key file (mode 0600, atomic). Takes about 0.2 s.

    Raises StoreExists rather than overwrite, since that would lose a database; StoreMissing, DiskFull, StoreUnwritable.
    """
    key = DatabaseKey.generate()
    store_id = os.urandom(STORE_ID_LEN)
    key_file.write(path, store_id, [by_passphrase(passphrase)(key, store_id)], replace=False)
    return key


def by_passphrase(passphrase: Passphrase) -> Way:
    """Opened by this passphrase. Made in about 0.2 s."""

    def way(key: DatabaseKey, store_id: bytes) -> Wrapping:
        cost, salt = KdfCost.DEFAULT, os.urandom(SALT_LEN)
        kek = stretch(passphrase, cost, salt)
        return _KIND_PASSPHRASE, _wrap(key, kek, cost.encode() + salt, store_id, _KIND_PASSPHRASE)

    return way


def by_held(held: HeldKey) -> Way:
    """Opened by this held key."""
    return lambda key, store_id: (_KIND_HELD, _wrap(key, held.expose(), b"", store_id, _KIND_HELD))


def by_tpm(seal: Callable[[bytes], bytes]) -> Way:
    """Opened by the TPM that `seal` has seal a new held key. Raises what `seal` raises when it is made."""

    def way(key: DatabaseKey, store_id: bytes) -> Wrapping:
        held = HeldKey.generate()
        sealed = seal(held.expose())
        if len(sealed) > _MAX_SEALED:
            raise StoreMisuse("what the TPM has sealed is too long")
        settings = len(sealed).to_bytes(2, "big") + sealed
        return _KIND_TPM, _wrap(key, held.expose(), settings, store_id, _KIND_TPM)

    return way


def unlock_key(path: Path, passphrase: Passphrase) -> DatabaseKey:
    """The key in a key file. Takes about 0.2 s. Raises StoreMissing, WrongKey, StoreCorrupt."""
    store_id, bodies = _bodies(path, _KIND_PASSPHRASE)
    if not bodies:
        raise WrongKey("this store is not unlocked by a passphrase", hint="unset CAUSEWAY_PASSPHRASE_FILE")

    def kek(settings: bytes) -> bytes:
        return stretch(passphrase, KdfCost.decode(settings[: KdfCost.LENGTH]), settings[KdfCost.LENGTH :])

    for body in bodies:
        key = _unwrap(body, KdfCost.LENGTH + SALT_LEN, kek, store_id, _KIND_PASSPHRASE)
        if key is not None:
            return key
    raise WrongKey("the passphrase is wrong", hint="check the keyboard layout and which store this is")


def unlock(path: Path, by: Unlock) -> DatabaseKey:
    """The key in a key file, by whichever is at hand. Raises StoreMissing, WrongKey, StoreCorrupt."""
    return unlock_held(path, by) if isinstance(by, HeldKey) else unlock_key(path, by)


def held_for(path: Path) -> bytes | None:
    """The store id if a held key opens this key file too; else None. Raises StoreMissing, StoreCorrupt."""
    store_id, bodies = _bodies(path, _KIND_HELD)
    return store_id if bodies else None


def unlock_held(path: Path, held: HeldKey) -> DatabaseKey:
    """The key in a key file. Raises StoreMissing, WrongKey, StoreCorrupt."""
    store_id, bodies = _bodies(path, _KIND_HELD)
    for body in bodies:
        key = _unwrap(body, 0, lambda _: held.expose(), store_id, _KIND_HELD)
        if key is not None:
            return key
    raise WrongKey("the key that is kept for this store does not open it", hint="the passphrase still does")


def add_held(path: Path, key: DatabaseKey, keep: Callable[[bytes, HeldKey], None]) -> None:
    """Lets a new held key open the file, in place of one before; every other way stays.

    `keep` is given the store id and the key, and has it when it returns. What it may write over opens nothing else, so
    the former wrapping stays until then: whatever fails or is killed, what is held opens the file. Raises what `keep`
    raises, StoreMissing, StoreCorrupt, StoreMisuse for a ninth way, DiskFull, StoreUnwritable.
    """
    held, added, replaced = HeldKey.generate(), list[Wrapping](), list[Wrapping]()

    def beside(store_id: bytes, wrappings: list[Wrapping]) -> list[Wrapping]:
        replaced[:] = [wrapping for wrapping in wrappings if wrapping[0] == _KIND_HELD]
        added[:] = [by_held(held)(key, store_id)]
        if not replaced:  # nothing to lose
            keep(store_id, held)
        others = [wrapping for wrapping in wrappings if wrapping[0] != _KIND_HELD]
        return [*others, *replaced[:1], *replaced[1:][-2:], *added]  # failures before leave one each: not without end

    def alone(store_id: bytes, wrappings: list[Wrapping]) -> list[Wrapping]:
        if added[0] not in wrappings:
            raise StoreBusy("the key of the store is being changed", hint="try again")
        keep(store_id, held)
        return [one for one in wrappings if one[0] != _KIND_HELD or one in added]

    key_file.update(path, key.salt, beside)
    if replaced:
        key_file.update(path, key.salt, alone)


def remove_held(path: Path) -> bytes:
    """No held key opens the file any more; the store id. Raises StoreMisuse if nothing else would, else as `add_held`.
    """
    return _remove(path, _KIND_HELD)


def ways_in(path: Path) -> list[str]:
    """What opens this key file: of "passphrase", "held" and "tpm". Raises StoreMissing, StoreCorrupt."""
    kinds = {kind for kind, _ in key_file.read(path)[1]}
    return [name for kind, name in _NAMES.items() if kind in kinds]


def unlock_by_tpm(path: Path, unseal: Callable[[bytes], bytes]) -> DatabaseKey:
    """The key in a key file, by the TPM that has sealed it. Raises what `unseal` raises, else as `unlock_held`."""
    store_id, bodies = _bodies(path, _KIND_TPM)
    if not bodies:
        raise WrongKey("this store is not unlocked by a TPM", hint="`edge store tpm on`")
    length = 2 + int.from_bytes(bodies[0][:2], "big")
    key = _unwrap(bodies[0], length, lambda sealed: HeldKey(unseal(sealed[2:])).expose(), store_id, _KIND_TPM)
    if key is None:
        raise WrongKey("what the TPM has sealed does not open this store", hint="the passphrase still does")
    return key


def add_tpm(path: Path, key: DatabaseKey, seal: Callable[[bytes], bytes]) -> None:
    """Lets the TPM open the file, in place of one before; every other way stays. Atomic. Raises as `add_held`."""
    _add(path, key, _KIND_TPM, by_tpm(seal))


def remove_tpm(path: Path) -> None:
    """Raises as `remove_held`."""
    _remove(path, _KIND_TPM)


def add_passphrase(path: Path, key: DatabaseKey, passphrase: Passphrase) -> None:
    """Lets this passphrase open the file, in place of one before. Takes about 0.2 s. Raises as `add_held`."""
    _add(path, key, _KIND_PASSPHRASE, by_passphrase(passphrase))


def remove_passphrase(path: Path) -> None:
    """Raises as `remove_held`."""
    _remove(path, _KIND_PASSPHRASE)


def _add(path: Path, key: DatabaseKey, kind: int, way: Way) -> None:
    def add(store_id: bytes, wrappings: list[Wrapping]) -> list[Wrapping]:
        others = [wrapping for wrapping in wrappings if wrapping[0] != kind]
        if len(others) >= MAX_WRAPPINGS:
            raise StoreMisuse("a key file holds at most eight ways to unlock")
        return [*others, way(key, store_id)]

    key_file.update(path, key.salt, add)


def _remove(path: Path, kind: int) -> bytes:
    def remove(store_id: bytes, wrappings: list[Wrapping]) -> list[Wrapping]:
        others = [wrapping for wrapping in wrappings if wrapping[0] != kind]
        if not others:
            raise StoreMisuse("this is the only way to unlock the store")
        return others

    return key_file.update(path, None, remove)


def _wrap(key: DatabaseKey, kek: bytes, settings: bytes, store_id: bytes, kind: int) -> bytes:
    nonce = os.urandom(_NONCE_LEN)
    return settings + nonce + AESGCM(kek).encrypt(nonce, key.expose(), _associated(store_id, settings, kind))


def _unwrap(
    body: bytes, length: int, kek: Callable[[bytes], bytes], store_id: bytes, kind: int
) -> DatabaseKey | None:
    """The key in a wrapping that begins with `length` bytes of settings, of which `kek` makes what opens it."""
    settings, rest = body[:length], body[length:]
    if len(body) != length + _NONCE_LEN + _KEY_LEN + SALT_LEN + 16:
        raise StoreCorrupt("the key file is damaged", hint=DAMAGED_HINT)
    aead = AESGCM(kek(settings))
    try:
        return DatabaseKey(aead.decrypt(rest[:_NONCE_LEN], rest[_NONCE_LEN:], _associated(store_id, settings, kind)))
    except InvalidTag:
        return None


def _associated(store_id: bytes, settings: bytes, kind: int) -> bytes:
    return _DOMAIN + store_id + bytes([_FORMAT, kind]) + settings


def _bodies(path: Path, kind: int) -> tuple[bytes, list[bytes]]:
    """The store id, and the wrappings of that kind."""
    store_id, wrappings = key_file.read(path)
    return store_id, [body for one, body in wrappings if one == kind]

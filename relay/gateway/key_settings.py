"""The section [keys] of gateway.toml: where the gateway's own private keys are."""

import tomllib
from pathlib import Path
from typing import Annotated, Final, TypeAlias

import msgspec
from msgspec import Meta, Struct

from relay.gateway.errors import ConfigError

_EXAMPLES: Final = "docs/KEYS.md has examples"
Name = Annotated[str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,31}\Z")]


class _Section(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, tag_field="source"):
    pass


class SoftwarePlace(_Section, frozen=True, kw_only=True, tag="file"):
    """In this process, from files that are sealed under a passphrase."""


class Pkcs11Place(_Section, frozen=True, kw_only=True, tag="pkcs11"):
    """In a token. `pin_file`: left out, the PIN is a systemd credential."""

    module: str
    token: Annotated[str, Meta(min_length=1, max_length=32)]
    pin_file: str | None = None


class KmsPlace(_Section, frozen=True, kw_only=True, tag="kms"):
    """In AWS KMS. `profile` of the AWS configuration, for credentials of their own; `endpoint` for a stand-in."""

    region: Annotated[str, Meta(pattern=r"^[a-z0-9-]{1,32}\Z")]
    profile: str | None = None
    endpoint: str | None = None


KeyPlace: TypeAlias = SoftwarePlace | Pkcs11Place | KmsPlace


class SoftwareKeys(SoftwarePlace, frozen=True, kw_only=True, tag="file"):
    """The default, for the root as well."""


class Pkcs11Keys(Pkcs11Place, frozen=True, kw_only=True, tag="pkcs11"):
    """`name` begins the label of each key. `root`: where roots are, if elsewhere."""

    name: Name = "causeway"
    root: KeyPlace | None = None


class KmsKeys(KmsPlace, frozen=True, kw_only=True, tag="kms"):
    """`name` begins the alias of each key. `root`: where roots are, if elsewhere."""

    name: Name = "causeway"
    root: KeyPlace | None = None


Keys: TypeAlias = SoftwareKeys | Pkcs11Keys | KmsKeys
SOFTWARE_KEYS: Final = SoftwareKeys()


def checked_keys(keys: Keys) -> Keys:
    """Raises ConfigError for paths that are not absolute."""
    places: list[tuple[str, KeyPlace]] = [("keys", keys)]
    if not isinstance(keys, SoftwareKeys) and keys.root is not None:
        places.append(("keys.root", keys.root))
    for where, place in places:
        if isinstance(place, Pkcs11Place) and not all(
            Path(one).is_absolute() for one in (place.module, place.pin_file or "/")
        ):
            raise ConfigError(f"{where}: `module` and `pin_file` are absolute paths",
                              hint="the PIN stays out of the gateway's folder, of which there are backups")
    return keys


def root_is_sealed(keys: Keys) -> bool:
    """Whether a new root's file is for a passphrase of its own, since its key is in it."""
    return isinstance(keys, SoftwareKeys) or isinstance(keys.root, SoftwarePlace)


def keys_section(data: bytes) -> str:
    """The text of a file that holds [keys] and nothing else, to be added to a configuration. Raises ConfigError."""
    try:
        text = data.decode("utf-8")
        found = set(tomllib.loads(text))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError):
        raise ConfigError("the file with [keys] is not TOML", hint=_EXAMPLES) from None
    if found != {"keys"}:
        raise ConfigError("the file for --keys holds the section [keys] and nothing else", hint=_EXAMPLES)
    return text


def keys_of(config: bytes) -> Keys:
    """Of a configuration that was checked once, and of which the rest may not be right here. Raises ConfigError."""
    try:
        return checked_keys(msgspec.convert(tomllib.loads(config.decode()).get("keys", {"source": "file"}), Keys))
    except (msgspec.ValidationError, tomllib.TOMLDecodeError, UnicodeDecodeError):
        raise ConfigError("keys: this section is not valid", hint=_EXAMPLES) from None

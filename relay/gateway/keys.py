"""From [keys] of the configuration to whoever holds the gateway's keys. What a kind needs is loaded when it is named.
"""

import logging
from collections.abc import Callable
from pathlib import Path

from relay.asking import credential
from relay.gateway.errors import ConfigError, KeysUnavailable
from relay.gateway.identity.held import Held, Holder
from relay.gateway.key_settings import KeyPlace, Keys, KmsPlace, Pkcs11Place, SoftwareKeys
from store.errors import StoreError
from store.keys import Passphrase

_log = logging.getLogger(__name__)


def custody_of(keys: Keys) -> Held:
    """Nothing is opened yet. Raises KeysUnavailable if what the kind needs is not installed."""
    if isinstance(keys, SoftwareKeys):
        return Held(None, None, "")
    main = _holder(keys, "gateway")
    return Held(main, main if keys.root is None else _holder(keys.root, "root"), keys.name)


def _holder(place: KeyPlace, whose: str) -> Holder | None:
    try:
        if isinstance(place, Pkcs11Place):
            from relay.gateway.identity.hsm import Hsm

            return Hsm(Path(place.module), place.token, _pin(place.pin_file, f"{whose}-token-pin"))
        if isinstance(place, KmsPlace):
            from relay.gateway.identity.kms import Kms

            return Kms(place.region, endpoint=place.endpoint, profile=place.profile)
    except ImportError as error:
        raise KeysUnavailable(
            f"keys.source: {error.name} is not installed", hint="pip install 'causeway[pkcs11]' or 'causeway[kms]'"
        ) from None
    return None


def _pin(file: str | None, name: str) -> Callable[[], str]:
    def read() -> str:
        path = credential(name) if file is None else Path(file)
        if path is None:
            raise ConfigError("keys.pin_file: there is no PIN for the token",
                              hint=f"name a file, or give {name} as a systemd credential")
        try:
            if path.stat().st_mode & 0o077 and file is not None:  # what systemd gives is its own affair
                _log.warning("others may read or write %s, the token's PIN; chmod 600 it", path)
        except OSError:
            pass  # reading it says what is wrong
        try:
            return Passphrase.from_file(path).expose().decode()
        except (StoreError, UnicodeDecodeError) as error:
            raise ConfigError(f"keys.pin_file: the PIN in {path} cannot be read",
                              hint=getattr(error, "hint", None)) from None

    return read

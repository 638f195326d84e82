"""Where a provider's key comes from, and how another takes its place: a file, an environment variable; `aws_secrets`
has the third way. A call under way keeps the key that it began with.
"""

import logging
import os
from pathlib import Path
from typing import Annotated

from msgspec import Meta, Struct

from relay.gateway.errors import ConfigError
from transport.primitives import Secret, same_bytes

_MAX = 4_096
_log = logging.getLogger(__name__)


class SecretPlace(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A secret in AWS Secrets Manager: the key alone, or `field` of a JSON object. `endpoint` is for a stand-in."""

    id: Annotated[str, Meta(min_length=1, max_length=2_048)]  # name or ARN
    region: Annotated[str, Meta(pattern=r"^[a-z0-9-]{1,32}\Z")]
    field: str | None = None
    every_min: Annotated[float, Meta(ge=1, le=1_440)] = 10
    profile: str | None = None
    endpoint: str | None = None


class ProviderKey:
    """One that stays as it is."""

    def __init__(self, key: Secret) -> None:
        self._key = key

    def current(self) -> Secret:
        """For a call that begins now. Raises nothing: a key that was good once stays until there is a better one."""
        return self._key

    def latest(self) -> Secret:
        """What `current` gave last, without looking for another."""
        return self._key

    def refused(self, key: Secret) -> None:
        """The provider did not take `key`."""

    async def another(self, key: Secret) -> Secret | None:
        """What has taken the place of `key`, which the provider refused; None if nothing has."""
        self.refused(key)
        return None if (current := self.current()) is key else current

    def look(self) -> None:
        """Has it read at once, where that is not done for each call anyway."""

    def _take(self, key: Secret) -> None:
        if not same_bytes(key.expose(), self._key.expose()):
            self._key = key
            _log.warning("the provider's key has changed; calls that begin from now on take the new one")


class KeyFile(ProviderKey):
    """A file, looked at for each call (one `stat`) and read when it is another: moved into place, or written to."""

    def __init__(self, path: Path) -> None:
        """Raises ConfigError."""
        self._path = path
        self._seen = _version(path)  # before it is read: a change meanwhile is seen at the next call
        super().__init__(key_from_file(path))

    def current(self) -> Secret:
        if (version := _version(self._path)) != self._seen:
            self._seen = version
            try:
                self._take(key_from_file(self._path))
            except ConfigError as error:
                _log.error("the key file has changed and is not used, the key of before is: %s", error)
        return self._key


def _version(path: Path) -> tuple[int, ...] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


def key_from_file(path: Path, what: str = "the provider's key") -> Secret:
    """The file's content without surrounding white space. Raises ConfigError."""
    try:
        with path.open("rb") as file:
            data = file.read(_MAX + 1)
            open_to_all = os.fstat(file.fileno()).st_mode & 0o004
    except OSError as error:
        raise ConfigError(
            f"the file of {what} cannot be read: {(error.strerror or '').lower()}",
            hint=f"write it to {path}, readable by the gateway's user only",
        ) from None
    if open_to_all:
        _log.warning("the file of %s can be read by every user of this machine", what)
    return checked_key(data, what)


def key_from_environment(name: str) -> Secret:
    """The variable's value; it is taken out of the environment, so that no child process has it. ConfigError."""
    value = os.environ.pop(name, None)
    if value is None:
        raise ConfigError(f"the environment variable {name} that should hold the provider's key is not set",
                          hint="set it where the gateway is started, or name a file by key_file")
    return checked_key(value.encode("utf-8", "surrogateescape"))


def checked_key(data: bytes, what: str = "the provider's key") -> Secret:
    """Without surrounding white space. Raises ConfigError unless it is one word of ASCII, of at most 4,096."""
    key = data.strip()
    if not key or len(key) > _MAX or any(byte <= 0x20 or byte >= 0x7F for byte in key):
        raise ConfigError(f"{what} is empty, too long, or not one word of ASCII",
                          hint="write it anew, as you were given it, alone in one line")
    return Secret(key)

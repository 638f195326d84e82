"""Where a provider's key comes from: a file or an environment variable."""

import logging
import os
from pathlib import Path

from relay.gateway.errors import ConfigError
from transport.primitives import Secret

_MAX = 4_096
_log = logging.getLogger(__name__)


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
    return _checked(data, what)


def key_from_environment(name: str) -> Secret:
    """The variable's value; it is taken out of the environment, so that no child process has it. ConfigError."""
    value = os.environ.pop(name, None)
    if value is None:
        raise ConfigError(f"the environment variable {name} that should hold the provider's key is not set",
                          hint="set it where the gateway is started, or name a file by key_file")
    return _checked(value.encode("utf-8", "surrogateescape"), "the provider's key")


def _checked(data: bytes, what: str) -> Secret:
    key = data.strip()
    if not key or len(key) > _MAX or any(byte <= 0x20 or byte >= 0x7F for byte in key):
        raise ConfigError(f"{what} is empty, too long, or not one word of ASCII",
                          hint="write it anew, as you were given it, alone in one line")
    return Secret(key)

"""Who may use the loopback API. Loopback is not authentication: any web page can make a browser call 127.0.0.1.

So three things are checked: a token that only this user can read, the `Host` (a page of a name that was rebound to
127.0.0.1 sends its own name), and the `Origin` (a page of another site sends its own).
"""

import hmac
import os
import secrets
import stat
from collections.abc import Collection
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from edge_client.api.errors import error_response
from edge_client.errors import BadUse

__all__ = ["guard", "load_token"]

_HOSTS: Final = frozenset({"127.0.0.1", "localhost", "::1"})
_MIN_TOKEN: Final = 32


def load_token(path: Path) -> str:
    """The token in `path`, made (256 random bits, mode 0600) if there is none. Raises BadUse if it is not private."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        return _existing(path)
    except OSError as error:
        raise BadUse(f"cannot write {path}: {error.strerror}") from None
    token = secrets.token_urlsafe(32)
    with os.fdopen(descriptor, "w") as stream:
        stream.write(token + "\n")
    return token


def _existing(path: Path) -> str:
    hint = f"remove {path}; a new one is made at the next start"
    try:
        with path.open("rb") as stream:
            mode = stat.S_IMODE(os.fstat(stream.fileno()).st_mode)
            token = stream.read(4096).decode("ascii", "replace").strip()
    except OSError as error:
        raise BadUse(f"cannot read {path}: {error.strerror}") from None
    if mode & 0o077:
        raise BadUse(f"other users can read {path}", hint=hint)
    if len(token) < _MIN_TOKEN or not token.isascii():
        raise BadUse(f"{path} holds no token", hint=hint)
    return token


def guard(token: str, open_paths: Collection[str] = ()) -> Middleware:
    """A middleware that answers 403 to a foreign Host or Origin, and 401 without the token.

    But for /healthz and `open_paths`, which need no token.
    """
    expected = token.encode()
    free = frozenset({"/healthz", *open_paths})

    @web.middleware
    async def check(request: web.Request, handler: Handler) -> web.StreamResponse:
        if not _is_here(f"//{request.headers.get('Host', '')}"):
            return error_response(403, "foreign_host", "this address is for programs on this machine")
        origin = request.headers.get("Origin")
        if origin is not None and not (origin.startswith("http://") and _is_here(origin)):
            return error_response(403, "foreign_origin", "pages of other sites may not use this address")
        if request.path not in free:
            scheme, _, given = request.headers.get("Authorization", "").partition(" ")
            same = hmac.compare_digest(given.strip().encode("utf-8", "replace"), expected)
            if scheme.lower() != "bearer" or not same:
                return error_response(401, "invalid_api_key", "the token is missing or wrong; it is in api-token")
        return await handler(request)

    return check


def _is_here(address: str) -> bool:
    try:
        return urlsplit(address).hostname in _HOSTS
    except ValueError:
        return False

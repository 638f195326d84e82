"""Further chat models by name, as `edge models add` puts them into `models.json` in the home: name, path and hash.

The file itself stays where it is. It is looked at when it is added (whole, of the wanted hash) and when it is loaded.
"""

import hashlib
import os
import re
import tempfile
from pathlib import Path
from typing import Final

import msgspec

from edge_client.engine.gguf_file import read_gguf
from edge_client.errors import BadUse, ModelMissing, ModelUnusable

__all__ = ["RegisteredModel", "add_model", "registered_models", "remove_model"]

_FILE: Final = "models.json"
_NAME: Final = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}", re.ASCII)
_OURS: Final = frozenset({"local", "auto"})


class RegisteredModel(msgspec.Struct, frozen=True):
    name: str
    path: str
    sha256: str
    architecture: str


def registered_models(home: Path) -> list[RegisteredModel]:
    """In the order they were added. Raises BadUse for a file that does not decode."""
    path = home / _FILE
    try:
        return msgspec.json.decode(path.read_bytes(), type=list[RegisteredModel])
    except FileNotFoundError:
        return []
    except (OSError, msgspec.MsgspecError):
        raise BadUse(f"{path} cannot be read", hint="remove it, then `edge models add` anew") from None


def add_model(home: Path, path: Path, *, name: str | None = None, sha256: str | None = None) -> RegisteredModel:
    """Takes a GGUF in under `name`, or its file's; one of the same name is replaced.

    Raises BadUse (name, hash), ModelMissing or ModelUnusable.
    """
    named = name or re.sub(r"[^a-z0-9._-]+", "-", path.stem.lower()).strip("-._")
    if not _NAME.fullmatch(named) or named in _OURS:
        raise BadUse("a model's name is of a to z, 0 to 9, `.`, `_` and `-`, and not `local` or `auto`", hint="--name")
    if not path.is_file():
        raise ModelMissing(f"there is no file {path}", hint="name a GGUF file")
    file = read_gguf(path)
    if file.cut_short and file.whole is not None:
        raise ModelUnusable(
            f"{path.name} is cut short: it has {file.size >> 20} of {file.whole >> 20} MiB", hint="fetch it again"
        )
    with path.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    if sha256 is not None and sha256.lower() != digest:
        raise BadUse(f"{path.name} has another SHA-256 than the wanted one", hint="fetch it again, from its maker")
    model = RegisteredModel(named, str(path.absolute()), digest, file.architecture)
    _write(home, [*(other for other in registered_models(home) if other.name != named), model])
    return model


def remove_model(home: Path, name: str) -> None:
    """Forgets the name; the file stays. Raises BadUse for an unknown one."""
    models = registered_models(home)
    kept = [model for model in models if model.name != name]
    if len(kept) == len(models):
        raise BadUse("there is no model of this name", hint="`edge models list`")
    _write(home, kept)


def _write(home: Path, models: list[RegisteredModel]) -> None:
    home.mkdir(parents=True, exist_ok=True, mode=0o700)
    descriptor, part = tempfile.mkstemp(dir=home, prefix=_FILE)
    with os.fdopen(descriptor, "wb") as stream:
        stream.write(msgspec.json.format(msgspec.json.encode(models)))
        stream.flush()
        os.fsync(stream.fileno())
    Path(part).replace(home / _FILE)

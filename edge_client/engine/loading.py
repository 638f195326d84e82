"""Loading a GGUF into llama.cpp: quietly, within the memory there is, and with errors that say what is wrong.

The library is imported when a model loads, not before. It prints to stderr from C; a log callback that does nothing
ends that, and what it prints while loading is swallowed by the library's own `verbose=False`.
"""

import ctypes
import os
import threading
from pathlib import Path
from typing import Any, Final

from edge_client.engine.gguf_file import GgufFile, read_gguf
from edge_client.errors import MemoryShort, ModelMissing, ModelUnusable

__all__ = ["Brake", "free_memory", "load"]

# Loading swaps the process's stdout and stderr (inside the library) and installs the callback: one at a time.
_load_lock = threading.Lock()
_silence: Any = None  # the C side keeps a pointer to it

_ROOM: Final = "close other programs, lower [model] context in config.toml, or take a smaller model"
_WORKING_BYTES: Final = 64 << 20  # buffers of a computation, beside weights and context


def load(path: Path, *, n_ctx: int, **options: Any) -> Any:
    """A `llama_cpp.Llama`. Raises ModelMissing, ModelUnusable or MemoryShort."""
    global _silence
    if not path.is_file():
        raise ModelMissing(f"there is no model file {path}", hint="`edge models install`, or mend config.toml")
    with _load_lock:
        try:
            import llama_cpp
        except (ImportError, OSError, RuntimeError):
            raise ModelMissing("llama-cpp-python is not installed", hint="pip install 'causeway[edge]'") from None
        if _silence is None:
            _silence = llama_cpp.llama_log_callback(lambda level, text, user: None)
            llama_cpp.llama_log_set(_silence, ctypes.c_void_p(0))
        try:
            file = read_gguf(path)
        except OSError as error:
            raise ModelUnusable(f"cannot read {path.name}: {error.strerror}") from None
        _check(path, file, n_ctx)
        try:
            return llama_cpp.Llama(str(path), verbose=False, n_ctx=n_ctx, **options)
        except (ValueError, RuntimeError, OSError, AssertionError, MemoryError) as error:
            if isinstance(error, MemoryError) or str(error).startswith("Failed to create"):  # a context, a batch
                raise MemoryShort(f"{path.name} has no room for its context of {n_ctx} tokens", hint=_ROOM) from None
            known = f"architecture {file.architecture}" if file.architecture.isalnum() else "unknown architecture"
            raise ModelUnusable(
                f"{path.name} ({known}) is not a model this engine can load",
                hint="llama.cpp does not know this architecture, or not this form of it; name another file",
            ) from None


def _check(path: Path, file: GgufFile, n_ctx: int) -> None:
    if file.cut_short and file.whole is not None:
        raise ModelUnusable(
            f"{path.name} is cut short: it has {file.size >> 20} of {file.whole >> 20} MiB", hint="fetch it again"
        )
    needed, free = file.size + file.context_bytes(n_ctx) + _WORKING_BYTES, free_memory()
    if free is not None and needed > free:
        raise MemoryShort(
            f"{path.name} needs about {needed >> 20} MiB of memory, {free >> 20} MiB are free",
            hint=_ROOM,
        )


def free_memory(proc: Path = Path("/proc/meminfo"), group: Path = Path("/sys/fs/cgroup")) -> int | None:
    """Bytes that can be had without swapping, also within a control group; None where the system does not say."""
    found = []
    try:
        lines = proc.read_text().splitlines()
        found += [int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable:")]
        limit = (group / "memory.max").read_text().strip()
        if limit != "max":
            # What the group's files hold in the cache counts as used there, but is given up when memory is wanted.
            figures = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
            cache = int(figures.get("inactive_file", 0)) + int(figures.get("active_file", 0))
            found.append(int(limit) - int((group / "memory.current").read_text()) + cache)
    except (OSError, ValueError, IndexError):
        pass  # another system, or no group with a limit: what was found counts
    return min(found, default=None)


class Brake:
    """Stops a computation of llama.cpp between two nodes of its graph, for reading a long prompt takes seconds.

    llama.cpp asks a C function of ours at every node. One in Python would need the interpreter a thousand times a
    token; so it is given `strlen`, and a string to measure: empty it lets go on, with a character in it stops.
    """

    def __init__(self, llama: Any) -> None:
        """Holds for the life of `llama`, whose context keeps pointers to this object's memory."""
        import llama_cpp

        library = ctypes.CDLL(None) if os.name == "posix" else ctypes.CDLL("msvcrt")
        strlen = ctypes.cast(library.strlen, ctypes.c_void_p).value or 0
        self._string = ctypes.create_string_buffer(2)
        self._function = llama_cpp.ggml_abort_callback(strlen)
        llama_cpp.llama_set_abort_callback(llama.ctx, self._function, ctypes.cast(self._string, ctypes.c_void_p))

    def pull(self) -> None:
        self._string[0] = b"\x01"

    def release(self) -> None:
        self._string[0] = b"\x00"

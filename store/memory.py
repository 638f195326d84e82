"""What a process can do so that its memory stays its own. Keys and text lie in it, and Python wipes neither."""

import ctypes
import sys

if sys.platform != "win32":
    import resource

__all__ = ["keep_private"]

_PR_SET_DUMPABLE = 4  # linux/prctl.h


def keep_private() -> None:
    """No core dump of this process from now on, nor of programs that it starts; on Linux nobody but root may look into
    its memory either (prctl(2), PR_SET_DUMPABLE).

    For whoever opens a database, before the key is there: the library changes no process by itself. Swap and the image
    that a sleeping machine writes are the system's.
    """
    if sys.platform != "win32":
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)  # fails for no reason that is ours

"""Ends a process by SIGKILL at its n-th system call that changes a file, or after a time.

By ptrace(2): the process is stopped at each call, before it is made, in whichever thread; what it had on disk stays.
To be used by a process without threads of its own, since it forks; one process at a time. Linux alone.
"""

import ctypes
import os
import platform
import signal
import time
from collections.abc import Callable
from typing import Final

_TRACEME, _SYSCALL, _SETOPTIONS, _GET_SYSCALL_INFO = 0, 24, 0x4200, 0x420E
_TRACESYSGOOD, _TRACECLONE, _EXITKILL = 1, 8, 0x100000
_WALL: Final = 0x40000000
_ENTRY: Final = 1
_WRITES: Final = {  # write, pwrite64, writev, pwritev, ftruncate, fallocate, fsync, fdatasync, rename*, unlink*, link*
    "x86_64": {1, 18, 20, 296, 77, 285, 74, 75, 82, 264, 316, 87, 263, 86, 265},
    "aarch64": {64, 68, 66, 70, 46, 47, 82, 83, 38, 276, 35, 37},
}
_OPENAT: Final = {"x86_64": 257, "aarch64": 56}


class _Info(ctypes.Structure):
    _fields_ = (
        ("op", ctypes.c_uint8), ("pad", ctypes.c_uint8 * 3), ("arch", ctypes.c_uint32), ("ip", ctypes.c_uint64),
        ("sp", ctypes.c_uint64), ("number", ctypes.c_uint64), ("arguments", ctypes.c_uint64 * 6),
    )


class Ended:
    """What became of it: how many calls it made, whether it came to its end, and what it had said by then."""

    def __init__(self, calls: int, finished: bool, said: bytes) -> None:
        self.calls, self.finished, self.said = calls, finished, said


Work = Callable[[Callable[[], None]], None]  # given what says "so much is done", a byte each


def killed_at_call(work: Work, number: int | None) -> Ended:
    """Killed before its `number`-th call is made, from 1; None lets it finish. Its last words are read in any case."""
    pid, words = _fork(work, traced=True)
    calls = 0
    _, status = os.waitpid(pid, 0)
    assert os.WIFSTOPPED(status), "it did not wait for us"
    _ptrace(_SETOPTIONS, pid, _TRACESYSGOOD | _TRACECLONE | _EXITKILL)
    _ptrace(_SYSCALL, pid, 0)
    while True:
        thread, status = os.waitpid(-1, _WALL)
        if os.WIFSTOPPED(status):
            stop = os.WSTOPSIG(status)
            if stop == signal.SIGTRAP | 0x80 and _changes_a_file(thread):
                calls += 1
                if calls == number:
                    os.kill(pid, signal.SIGKILL)
                    continue
            ours = stop in (signal.SIGTRAP, signal.SIGTRAP | 0x80, signal.SIGSTOP)
            _ptrace(_SYSCALL, thread, 0 if ours else stop, gone=True)
        elif thread == pid:
            return Ended(calls, _finished(status), _read(words))


def killed_after(work: Work, seconds: float) -> Ended:
    """Killed from outside at a moment that means nothing to it, perhaps after it has come to its end."""
    pid, words = _fork(work, traced=False)
    time.sleep(seconds)
    os.kill(pid, signal.SIGKILL)
    return Ended(0, _finished(os.waitpid(pid, 0)[1]), _read(words))


def _finished(status: int) -> bool:
    code = os.waitstatus_to_exitcode(status)
    assert code in (0, -signal.SIGKILL), f"it failed by itself: {code}"
    return code == 0


def _fork(work: Work, *, traced: bool) -> tuple[int, int]:
    reading, writing = os.pipe()
    pid = os.fork()
    if pid:
        os.close(writing)
        return pid, reading
    code = 1
    try:
        if traced:
            _ptrace(_TRACEME, 0, 0)
            os.kill(os.getpid(), signal.SIGSTOP)
        work(lambda: (os.write(writing, b".") and None))
        code = 0
    finally:
        os._exit(code)


def _read(words: int) -> bytes:
    with open(words, "rb") as file:
        return file.read()


def _changes_a_file(thread: int) -> bool:
    info = _Info()
    got = _libc.ptrace(_GET_SYSCALL_INFO, thread, ctypes.c_void_p(ctypes.sizeof(info)), ctypes.byref(info))
    if got <= 0 or info.op != _ENTRY:
        return False
    machine = platform.machine()
    if info.number == _OPENAT[machine]:
        return bool(info.arguments[2] & os.O_CREAT)
    return info.number in _WRITES[machine]


def _ptrace(request: int, pid: int, data: int, *, gone: bool = False) -> None:
    """`gone`: it may have been killed meanwhile."""
    if _libc.ptrace(request, pid, None, ctypes.c_void_p(data)) < 0:
        number = ctypes.get_errno()
        if not (gone and number == 3):  # ESRCH
            raise OSError(number, os.strerror(number), f"ptrace {request}")


_libc = ctypes.CDLL(None, use_errno=True)
_libc.ptrace.restype = ctypes.c_long
_libc.ptrace.argtypes = (ctypes.c_long, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)

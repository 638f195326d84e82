"""Who calls on a Unix socket: user, process and the very file that the process runs, as the kernel has them.

Whoever connected counts, wherever the connection has gone since: the kernel keeps its user and process from then. The
process is held by a descriptor of it and by its folder in /proc, which never come to mean another process, so a number
that is used again is no way in. What it runs is opened once, through the process and not by a path, and path and digest
are both taken from that descriptor.

A program that runs as the same user as another can make the other do its will (ptrace, LD_PRELOAD), so it is the user
that keeps workloads apart; path and digest narrow down which of a user's programs is meant.
"""

import errno
import hashlib
import os
import select
import socket
import stat
import struct
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Protocol, Self

from relay.gateway.identity.workloads.entries import Seen

SO_PEERPIDFD: Final = 77  # Linux 6.5; Python has no name for it yet
EXECUTABLE_MAX: Final = 256 << 20  # bytes of a file that is hashed
HASHES_KEPT: Final = 256
_CHUNK: Final = 1 << 20
_SETTLED_S: Final = 2.0  # file systems count time coarsely: a file changed that short a while ago may change unseen
_PERMISSION: Final = "the gateway may not look at the caller's executable"


class NotAttested(Exception):
    """`reason` is one of a fixed set, for the audit."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class PeerSocket(Protocol):
    """What is needed of a connected Unix socket."""

    def getsockopt(self, level: int, name: int, size: int = ..., /) -> bytes: ...


@dataclass(frozen=True)
class FileId:
    """A file as it is at a moment: another content under the same name, or the same inode changed, is another."""

    device: int
    inode: int
    size: int
    modified_ns: int
    changed_ns: int

    @classmethod
    def of(cls, found: os.stat_result) -> Self:
        return cls(found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)


class Digests:
    """SHA-256 of files, kept for as long as a file has not changed. For several threads."""

    def __init__(self, *, size_max: int = EXECUTABLE_MAX, clock: Callable[[], float] = time.time) -> None:
        """`clock` is the file system's: unix seconds."""
        self._size_max, self._clock = size_max, clock
        self._kept: OrderedDict[FileId, str] = OrderedDict()
        self._lock = threading.Lock()
        self.reckoned = 0

    def of(self, descriptor: int) -> str:
        """Of an open file, in hexadecimal. Raises NotAttested if it is too large or changes meanwhile, OSError."""
        before = FileId.of(os.fstat(descriptor))
        with self._lock:
            if before in self._kept:
                self._kept.move_to_end(before)
                return self._kept[before]
        if before.size > self._size_max:
            raise NotAttested("executable too large")
        digest, offset = hashlib.sha256(), 0
        while offset < before.size:
            chunk = os.pread(descriptor, min(_CHUNK, before.size - offset), offset)
            if not chunk:
                break
            digest.update(chunk)
            offset += len(chunk)
        if FileId.of(os.fstat(descriptor)) != before or offset != before.size:
            raise NotAttested("executable changes")
        with self._lock:
            self.reckoned += 1
            if before.changed_ns / 1e9 < self._clock() - _SETTLED_S:
                self._kept[before] = digest.hexdigest()
                while len(self._kept) > HASHES_KEPT:
                    self._kept.popitem(last=False)
        return digest.hexdigest()


class Caller:
    """The process at the other end of a connection, held until `close`."""

    def __init__(self, pid: int, uid: int, pidfd: int, folder: int) -> None:
        """Use `of`. Takes both descriptors."""
        self.pid, self.uid = pid, uid
        self._pidfd, self._folder = pidfd, folder
        self._descriptors: tuple[int, ...] = (pidfd, folder)
        self._closed = False
        self._busy = 0
        self._lock = threading.Lock()
        self._started = 0
        self._runs: tuple[int, int] | None = None

    @classmethod
    def of(cls, connection: PeerSocket) -> Self:
        """To be called as a connection is accepted. Raises NotAttested."""
        pid, uid, _ = struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
        if pid <= 0:
            raise NotAttested("caller is outside of this process namespace")
        pidfd = _pidfd(connection, pid)
        try:
            folder = os.open(f"/proc/{pid}", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError:
            os.close(pidfd)
            raise NotAttested("caller is gone") from None
        caller = cls(pid, uid & 0xFFFFFFFF, pidfd, folder)
        try:
            caller._started = caller._start_time()
            caller._alive()  # so the folder is of the process that the descriptor holds, and no successor's
            try:
                caller._runs = caller._executable()
            except OSError as error:
                if error.errno not in (errno.EACCES, errno.EPERM):  # then entries that name no file are left
                    raise
        except OSError:
            caller.close()
            raise NotAttested("caller is gone") from None
        except NotAttested:
            caller.close()
            raise
        return caller

    def attest(self, digests: Digests, *, path: bool, digest: bool) -> Seen:
        """What there is to know now; of the file that runs only what is asked for. Reads files: not for an event loop.

        Raises NotAttested: the process is gone, has another user by now, or runs another file than it did when it
        connected.
        """
        with self._lock:
            if self._closed:
                raise NotAttested("caller is gone")
            self._busy += 1
        try:
            return self._attest(digests, path, digest)
        finally:
            with self._lock:
                self._busy -= 1
                self._release()

    def close(self) -> None:
        """Gives the descriptors back, at once or when the attestation under way is over."""
        with self._lock:
            self._closed = True
            self._release()

    # --- inside -----------------------------------------------------------------------------------------------------

    def _attest(self, digests: Digests, path: bool, digest: bool) -> Seen:
        try:
            self._same()
            if not path and not digest:
                return Seen(self.pid, self.uid, None, None)
            try:
                descriptor = os.open("exe", os.O_RDONLY | os.O_CLOEXEC, dir_fd=self._folder)
            except PermissionError:
                return Seen(self.pid, self.uid, None, None, _PERMISSION)
            try:
                found = os.fstat(descriptor)
                if not stat.S_ISREG(found.st_mode) or (found.st_dev, found.st_ino) != self._runs:
                    raise NotAttested("caller runs another executable than when it connected")
                seen = Seen(
                    self.pid, self.uid, _path_of(descriptor) if path else None,
                    digests.of(descriptor) if digest else None,
                )
            finally:
                os.close(descriptor)
            self._same()  # all of that was of the process that connected, which runs it still
            return seen
        except OSError:
            raise NotAttested("caller is gone") from None

    def _same(self) -> None:
        """Raises NotAttested, OSError unless it is the process that connected, with the same user and executable."""
        if self._start_time() != self._started:
            raise NotAttested("caller is gone")
        if self._user() != self.uid:
            raise NotAttested("caller has another user than when it connected")
        if self._runs is not None and self._executable() != self._runs:
            raise NotAttested("caller runs another executable than when it connected")
        self._alive()

    def _alive(self) -> None:
        waiting = select.poll()
        waiting.register(self._pidfd, select.POLLIN)  # readable once the process has ended (pidfd_open(2))
        if waiting.poll(0):
            raise NotAttested("caller is gone")

    def _start_time(self) -> int:
        """In clock ticks since boot: field 22 of proc_pid_stat(5); the name before it may hold anything."""
        fields = self._read("stat").rpartition(b")")[2].split()
        return int(fields[19])

    def _user(self) -> int:
        """The effective one now."""
        line = next(line for line in self._read("status").splitlines() if line.startswith(b"Uid:"))
        return int(line.split()[2])

    def _executable(self) -> tuple[int, int]:
        found = os.stat("exe", dir_fd=self._folder)  # a link that leads to the file and not to a name
        return found.st_dev, found.st_ino

    def _read(self, name: str) -> bytes:
        descriptor = os.open(name, os.O_RDONLY | os.O_CLOEXEC, dir_fd=self._folder)
        try:
            return os.read(descriptor, 65_536)
        finally:
            os.close(descriptor)

    def _release(self) -> None:
        if self._closed and not self._busy:
            for descriptor in self._descriptors:
                os.close(descriptor)
            self._descriptors = ()


def _pidfd(connection: PeerSocket, pid: int) -> int:
    """A descriptor of the process: of the kernel that keeps it since the connection was made, or by its number."""
    try:
        return int(struct.unpack("i", connection.getsockopt(socket.SOL_SOCKET, SO_PEERPIDFD, 4))[0])
    except OSError as error:
        if error.errno != errno.ENOPROTOOPT:
            raise NotAttested("caller is gone") from None
    try:
        return os.pidfd_open(pid)
    except OSError:
        raise NotAttested("caller is gone") from None


def _path_of(descriptor: int) -> str | None:
    """Where an open file is, if a path leads to it: not if it was deleted or replaced, nor if the path that the kernel
    knows is another mount namespace's and means something else here; nor if it is no text, which no entry could name
    and no record hold.
    """
    path = os.readlink(f"/proc/self/fd/{descriptor}")  # noqa: PTH115 - " (deleted)" and the like are no paths
    try:
        path.encode()
        there = os.lstat(path)
    except (OSError, ValueError):
        return None
    return path if os.path.samestat(there, os.fstat(descriptor)) else None

"""The audit: a file of JSON lines, each with the SHA-256 of the line before it.

A record is in the file before `append` returns: a gateway that is killed has lost none. Changing, removing or
reordering a line breaks the chain from there on; cutting lines off the end is seen only by whoever knows a later hash:
tamper-evident, not immutable. Records hold identities, codes, sizes and counts, never text of a prompt or an answer.

What a loss of power takes is the operator's choice (ADR 0029). With "each", `append` returns when the record is on
stable storage, one fsync for all that came together. With "group", so it does but for what is written of every request
that goes through: there the fsync follows at once in the background, for all that was written since the last; so up to
some ten milliseconds of those may be lost with the machine, from the end, where the chain does not show it. Where an
fsync fails, nobody knows what the disk holds: no work is done any more.
"""

import asyncio
import concurrent.futures
import hashlib
import logging
import os
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Final, Literal

import msgspec

from relay.gateway.errors import AuditUnavailable

Value = str | int | float | bool | None

AUDIT_FILE: Final = "audit.jsonl"
START: Final = "0" * 64
_MAX_TEXT: Final = 512  # characters of one value
_MAX_LINE: Final = 65_536
_PAUSE_S: Final = 0.01  # between fsyncs that nobody waits for
_IN_PASSING: Final = frozenset(("request.intent", "request.attempt", "request.outcome"))  # with "group"
_encode: Final = msgspec.json.Encoder().encode
_log = logging.getLogger(__name__)


class AuditLog:
    """Appends to one file. A thread of its own waits for the disk; waking it costs more than writing, so it is woken
    once for all that came together.
    """

    def __init__(
        self, path: Path, *, sync: Literal["group", "each"] = "each", clock: Callable[[], float] = time.time
    ) -> None:
        """Opens or creates the file (mode 0600). Raises AuditUnavailable if its end cannot be read."""
        self._path = path
        self._clock = clock
        self._each = sync == "each"
        self._waiting: list[asyncio.Future[None]] = []  # for the disk
        self._unsynced = self._syncing = False
        self._idle: asyncio.Future[None] | None = None
        self._thread = concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="audit")
        self.broken = False  # nothing is written any more
        self._head, self._sequence, self._size = START, 0, 0
        try:
            self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
            self._resume()
        except (OSError, ValueError, msgspec.MsgspecError, KeyError, TypeError):
            raise AuditUnavailable(
                f"the audit log {path.name} cannot be opened or its last record is damaged",
                hint="move it away for examination; the gateway then begins a new one",
            ) from None

    async def append(self, event: str, shared: bytes = b"", /, **fields: Value) -> None:
        """Writes one record; returns when it is kept as promised. Raises AuditUnavailable: then do not go on.

        `shared`: more of its fields, as `members` gives them, where several records have the same.
        """
        try:
            record = b'"time":%.6f,"event":"%b"' % (self._clock(), event.encode())
            for more in (shared, members(fields)):
                if more:
                    record += b"," + more
            self._write(record)
        except (OSError, AuditUnavailable) as cause:
            _log.error("the audit log cannot be written: %s", getattr(cause, "strerror", None) or cause)
            raise AuditUnavailable("the audit log cannot be written") from None
        except Exception as cause:  # a defect of ours
            _log.error("the audit log cannot be written: %s", type(cause).__name__)
            raise AuditUnavailable("the audit log cannot be written") from None
        self._unsynced = True
        if not self._syncing:
            self._syncing = True
            loop = asyncio.get_running_loop()
            loop.call_soon(self._sync, loop)  # behind all else that is ready now and may have a record, too
        if self._each or event not in _IN_PASSING:
            future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiting.append(future)
            await future  # a caller that is cancelled does not take its record with it

    @property
    def end(self) -> tuple[int, str]:
        """Number and hash of the last record."""
        return self._sequence, self._head

    async def close(self) -> None:
        """Waits until all is on stable storage."""
        while self._syncing:
            self._idle = self._idle or asyncio.get_running_loop().create_future()
            await self._idle
        self._thread.shutdown()
        os.close(self._descriptor)
        self.broken = True

    def _write(self, record: bytes) -> None:
        """`record` is an object's members."""
        if self.broken:
            raise AuditUnavailable("the audit log is closed")
        line = b'{"seq":%d,%b,"prev":"%b"}' % (self._sequence + 1, record, self._head.encode())
        data = line + b"\n"
        try:
            if os.write(self._descriptor, data) != len(data):
                raise OSError("short write")
        except OSError:
            # What the file holds now is unknown: nobody may chain to it. Cut back, or give up for good.
            try:
                os.ftruncate(self._descriptor, self._size)
                os.fsync(self._descriptor)
            except OSError:
                self.broken = True
            raise
        self._head, self._sequence = hashlib.sha256(line).hexdigest(), self._sequence + 1
        self._size += len(data)

    # --- and to the disk --------------------------------------------------------------------------------------------

    def _sync(self, loop: asyncio.AbstractEventLoop) -> None:
        if not self._unsynced:
            self._syncing = False
            if self._idle is not None:
                idle, self._idle = self._idle, None
                idle.set_result(None)
            return
        self._unsynced = False
        waiting, self._waiting = self._waiting, []
        done = loop.run_in_executor(self._thread, self._to_disk, not waiting)
        done.add_done_callback(partial(self._synced, loop, waiting))

    def _to_disk(self, pause: bool) -> None:
        """The thread's."""
        try:
            os.fsync(self._descriptor)
        except OSError as error:
            self.broken = True
            _log.error("the audit log cannot be written: %s", error.strerror)
        if pause:
            time.sleep(_PAUSE_S)

    def _synced(
        self, loop: asyncio.AbstractEventLoop, waiting: list[asyncio.Future[None]], _: asyncio.Future[None]
    ) -> None:
        for future in waiting:
            if future.done():
                continue
            if self.broken:
                future.set_exception(AuditUnavailable("the audit log cannot be written"))
            else:
                future.set_result(None)
        loop.call_soon(self._sync, loop)  # behind those who have just been told

    def _resume(self) -> None:
        self._size = os.fstat(self._descriptor).st_size
        if not self._size:
            return
        tail = os.pread(self._descriptor, _MAX_LINE, max(0, self._size - _MAX_LINE))
        whole, _, torn = tail.rpartition(b"\n")
        if torn:  # a crash in the middle of a write; nobody was told that this record exists
            _log.warning("the audit log ended in a record cut short by a crash; it was dropped")
            self._size -= len(torn)
            os.ftruncate(self._descriptor, self._size)
        line = whole.rpartition(b"\n")[2]
        if line:
            self._sequence = int(msgspec.json.decode(line)["seq"])
            self._head = hashlib.sha256(line).hexdigest()


def members(fields: dict[str, Value]) -> bytes:
    """Fields as a record has them."""
    for name, value in fields.items():
        if type(value) is str and (len(value) > _MAX_TEXT or not value.isascii()):
            fields[name] = _text(value)
    return _encode(fields)[1:-1]


def _text(value: str) -> str:
    """As much of it as a record has room for; what is no text (names of files may be any bytes) is escaped."""
    return value[:_MAX_TEXT].encode("utf-8", "backslashreplace").decode()


def verify(path: Path) -> tuple[int, str]:
    """(records, hash of the last line) of an intact log. Raises ValueError with the number of the first bad line."""
    head, number = START, 0
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            record: Any
            try:
                record = msgspec.json.decode(line)
            except msgspec.DecodeError:
                record = None
            if (
                not line.endswith(b"\n") or not isinstance(record, dict)
                or record.get("prev") != head or record.get("seq") != number
            ):
                raise ValueError(f"the audit chain breaks at line {number}")
            head = hashlib.sha256(line[:-1]).hexdigest()
    return number, head

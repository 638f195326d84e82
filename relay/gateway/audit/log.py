"""The audit: a file of JSON lines, each with the SHA-256 of the line before it.

A record is on stable storage before `append` returns. Changing, removing or reordering a line breaks the chain from
there on; cutting lines off the end is seen only by whoever knows a later hash: tamper-evident, not immutable. Records
hold identities, codes, sizes and counts, never text of a prompt or an answer.
"""

import asyncio
import contextlib
import hashlib
import logging
import os
import queue
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import msgspec

from relay.gateway.errors import AuditUnavailable

Value = str | int | float | bool | None

AUDIT_FILE: Final = "audit.jsonl"
START: Final = "0" * 64
_MAX_TEXT: Final = 512  # characters of one value
_MAX_LINE: Final = 65_536
_encode: Final = msgspec.json.Encoder().encode
_log = logging.getLogger(__name__)


class _Batch:
    """Records that share one write: their lines, but for number and hash, and who waits for each."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.lines: list[bytes] = []
        self.waiting: list[asyncio.Future[None]] = []


class AuditLog:
    """Appends to one file. Records that arrive together share one write and one fsync, done by a thread of its own: one
    that is woken once for each write, as waking costs more than writing.
    """

    def __init__(self, path: Path, *, clock: Callable[[], float] = time.time) -> None:
        """Opens or creates the file (mode 0600). Raises AuditUnavailable if its end cannot be read."""
        self._path = path
        self._clock = clock
        self._next: _Batch | None = None  # gathers while another is being written
        self._writing = False
        self._idle: asyncio.Future[None] | None = None
        self._batches: queue.SimpleQueue[_Batch | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()
        self._broken = False
        self._head, self._sequence, self._size = START, 0, 0
        try:
            self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
            self._resume()
        except (OSError, ValueError, msgspec.MsgspecError, KeyError, TypeError):
            raise AuditUnavailable(
                f"the audit log {path.name} cannot be opened or its last record is damaged",
                hint="move it away for examination; the gateway then begins a new one",
            ) from None

    async def append(self, event: str, **fields: Value) -> None:
        """Writes one record; returns when it is on stable storage. Raises AuditUnavailable: then do not go on."""
        record: dict[str, Value] = {"time": round(self._clock(), 6), "event": event}
        for name, value in fields.items():
            record[name] = _text(value) if isinstance(value, str) else value
        try:
            line = _encode(record)[1:-1]
        except Exception as cause:  # a defect of ours
            _log.error("the audit log cannot be written: %s", type(cause).__name__)
            raise AuditUnavailable("the audit log cannot be written") from None
        loop = asyncio.get_running_loop()
        batch = self._next
        if batch is None:
            batch = self._next = _Batch(loop)
            if not self._writing:
                self._writing = True
                loop.call_soon(self._hand_over)  # behind all else that is ready now and may have a record, too
        future: asyncio.Future[None] = loop.create_future()
        batch.lines.append(line)
        batch.waiting.append(future)
        await future  # a caller that is cancelled does not take its record with it

    @property
    def end(self) -> tuple[int, str]:
        """Number and hash of the last record that is on stable storage."""
        return self._sequence, self._head

    async def close(self) -> None:
        """Waits for records under way."""
        while self._writing:
            self._idle = self._idle or asyncio.get_running_loop().create_future()
            await self._idle
        if self._thread is not None:
            self._batches.put(None)
            self._thread.join()
            self._thread = None
        os.close(self._descriptor)
        self._broken = True

    def _hand_over(self) -> None:
        batch, self._next = self._next, None
        if batch is None:
            self._writing = False
            if self._idle is not None:
                idle, self._idle = self._idle, None
                idle.set_result(None)
            return
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="audit", daemon=True)
            self._thread.start()
        self._batches.put(batch)

    def _work(self) -> None:
        """The thread's."""
        while (batch := self._batches.get()) is not None:
            failed = ""
            try:
                self._write(batch.lines)
            except (OSError, AuditUnavailable) as cause:
                failed = getattr(cause, "strerror", None) or str(cause)
            except Exception as cause:  # a defect of ours; whoever waits must not wait for ever, nor all after them
                failed = type(cause).__name__
            if failed:
                _log.error("the audit log cannot be written: %s", failed)
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits
                batch.loop.call_soon_threadsafe(self._written, batch, bool(failed))

    def _written(self, batch: _Batch, failed: bool) -> None:
        for future in batch.waiting:
            if future.done():
                continue
            if failed:
                future.set_exception(AuditUnavailable("the audit log cannot be written"))
            else:
                future.set_result(None)
        batch.loop.call_soon(self._hand_over)  # behind those who have just been told

    def _write(self, records: list[bytes]) -> None:
        with self._lock:
            if self._broken:
                raise AuditUnavailable("the audit log is closed")
            head, sequence, lines = self._head, self._sequence, []
            for record in records:
                sequence += 1
                line = b'{"seq":%d,%b,"prev":"%b"}' % (sequence, record, head.encode())
                head = hashlib.sha256(line).hexdigest()
                lines.append(line + b"\n")
            data = b"".join(lines)
            try:
                if os.write(self._descriptor, data) != len(data):
                    raise OSError("short write")
                os.fsync(self._descriptor)
            except OSError:
                # What the disk holds now is unknown: nobody may chain to it. Cut back, or give up for good.
                try:
                    os.ftruncate(self._descriptor, self._size)
                    os.fsync(self._descriptor)
                except OSError:
                    self._broken = True
                raise
            self._head, self._sequence, self._size = head, sequence, self._size + len(data)

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


def _text(value: str) -> str:
    """As much of it as a record has room for; what is no text (names of files may be any bytes) is escaped."""
    if len(value) <= _MAX_TEXT and value.isascii():
        return value
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

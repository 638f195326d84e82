"""The audit: a file of JSON lines, each with the SHA-256 of the line before it.

A record is on stable storage before `append` returns. Changing, removing or reordering a line breaks the chain from
there on; cutting lines off the end is seen only by whoever knows a later hash: tamper-evident, not immutable. Records
hold identities, codes, sizes and counts, never text of a prompt or an answer.
"""

import asyncio
import hashlib
import logging
import os
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
_log = logging.getLogger(__name__)


class AuditLog:
    """Appends to one file. Records that arrive together share one write and one fsync."""

    def __init__(self, path: Path, *, clock: Callable[[], float] = time.time) -> None:
        """Opens or creates the file (mode 0600). Raises AuditUnavailable if its end cannot be read."""
        self._path = path
        self._clock = clock
        self._waiting: list[tuple[dict[str, Value], asyncio.Future[None]]] = []
        self._flusher: asyncio.Task[None] | None = None
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
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        record: dict[str, Value] = {"time": round(self._clock(), 6), "event": event}
        record.update((name, _text(value) if isinstance(value, str) else value) for name, value in fields.items())
        self._waiting.append((record, future))
        if self._flusher is None:
            self._flusher = asyncio.create_task(self._flush())
        await asyncio.shield(future)  # a caller that is cancelled does not take the others' record with it

    @property
    def end(self) -> tuple[int, str]:
        """Number and hash of the last record that is on stable storage."""
        return self._sequence, self._head

    async def close(self) -> None:
        """Waits for records under way."""
        while self._flusher is not None:
            await asyncio.wait([self._flusher])
        os.close(self._descriptor)
        self._broken = True

    async def _flush(self) -> None:
        while self._waiting:
            batch, self._waiting = self._waiting, []
            error: AuditUnavailable | None = None
            try:
                await asyncio.to_thread(self._write, [record for record, _ in batch])
            except (OSError, AuditUnavailable) as cause:
                _log.error("the audit log cannot be written: %s", getattr(cause, "strerror", None) or cause)
                error = AuditUnavailable("the audit log cannot be written")
            except Exception as cause:  # a defect of ours; whoever waits must not wait for ever, nor all after them
                _log.error("the audit log cannot be written: %s", type(cause).__name__)
                error = AuditUnavailable("the audit log cannot be written")
            for _, future in batch:
                if not future.done():
                    if error is None:
                        future.set_result(None)
                    else:
                        future.set_exception(error)
                        future.exception()  # whoever waited may be gone; then nobody else will look
        self._flusher = None

    def _write(self, records: list[dict[str, Value]]) -> None:
        with self._lock:
            if self._broken:
                raise AuditUnavailable("the audit log is closed")
            head, sequence, lines = self._head, self._sequence, []
            for record in records:
                sequence += 1
                line = msgspec.json.encode({"seq": sequence, **record, "prev": head})
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

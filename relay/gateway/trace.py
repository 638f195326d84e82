"""Spans of one trace from every role: the gateway's own, those an edge sends, and those that hops' notes amount to.

Spans from outside are claims of whoever sent them, and are kept apart by sender. A device may add spans only to a trace
that a request of its own used, and a hop's note counts only for the very tunnel it came over.

A trace is no record, the audit is: spans are written in the background, many at a time and so many a second; whoever
asks for a trace gets what waits as well. Under a load that makes more, the oldest of what waits give way.
"""

import asyncio
import logging
import math
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Annotated, Final, NamedTuple

import msgspec
from msgspec import Meta, Struct

from store.database import Connection, Database
from store.errors import StoreError
from transport import telemetry as names
from transport.messages import SpanRecord
from transport.primitives import sha256
from transport.telemetry import permitted

KEPT_MS: Final = 7 * 86_400_000
SPANS_MAX: Final = 200_000  # rows; the oldest go first
PER_TRACE_MAX: Final = 64  # spans that one sender may add to one trace
WAITING_MAX: Final = 1_024  # requests whose spans wait to be written
_EVERY_S: Final = 0.25  # they are written so often,
_BUSY_S: Final = 1.0  # or so often where most give way in any case, as all that runs waits for some milliseconds
_AT_ONCE: Final = 25  # so many at a time
_PRUNE_EVERY: Final = 4_096  # requests
_log = logging.getLogger(__name__)
Spans = Sequence[SpanRecord] | Callable[[], Sequence[SpanRecord]]

_Time = Annotated[float, Meta(ge=0, le=1e15)]
_Count = Annotated[int, Meta(ge=0, le=1 << 50)]


class HopNote(Struct, frozen=True):
    """What a hop says about a tunnel, in a text frame: link id, Unix milliseconds, bytes from and to the edge."""

    link: Annotated[str, Meta(pattern=r"^[0-9a-f]{16}\Z")]
    start_ms: _Time
    end_ms: _Time
    up: _Count
    down: _Count


_note = msgspec.json.Decoder(HopNote)
_pack = msgspec.msgpack.Encoder()
_span = msgspec.msgpack.Decoder(SpanRecord)
_kept_note = msgspec.msgpack.Decoder(HopNote)


def parse_note(text: str) -> HopNote | None:
    """A hop's note, None for anything else; a hop cannot break anything by it."""
    try:
        note = _note.decode(text)
    except (msgspec.DecodeError, RecursionError, UnicodeError):
        return None
    return note if math.isfinite(note.start_ms) and math.isfinite(note.end_ms) else None


class TraceStore:
    """Owns the tables of 0002_traces.sql."""

    def __init__(self, database: Database, *, clock: Callable[[], float] = time.time) -> None:
        self._database = database
        self._clock = clock
        self._waiting: deque[_Entry] = deque(maxlen=WAITING_MAX)
        self._timer: asyncio.TimerHandle | None = None
        self._writing: asyncio.Task[None] | None = None
        self._saves = 0
        self.dropped = self._dropped = 0  # requests whose spans gave way to later ones; and when it was looked at last

    async def save(self, trace_id: str, device: str, link_id: str, spans: Spans) -> None:
        """Keeps the gateway's own spans of a request by `device` over that link, which may be asked for later."""
        self._put(_Entry("", trace_id, device, link_id, spans, int(self._clock() * 1000)))

    async def add_from_edge(self, device: str, spans: Sequence[SpanRecord]) -> int:
        """Keeps an edge's spans of traces that it used itself; returns how many were kept."""
        kept = 0
        spans = [span for span in spans if _finite(span)]
        for trace_id in {span.trace_id for span in spans}:
            waits = any(one.trace_id == trace_id and one.device == device for one in self._waiting)
            used = waits or await self._database.run(
                lambda connection, trace_id=trace_id: connection.execute(  # type: ignore[misc]
                    "SELECT 1 FROM traces WHERE trace_id = ? AND device = ?", (trace_id, device)
                ).fetchone(), read_only=True,
            )
            if not used:
                continue
            mine = [_claimed(span, device) for span in spans if span.trace_id == trace_id]
            self._put(_Entry(device, trace_id, "", "", mine, int(self._clock() * 1000)))
            kept += len(mine)
        return kept

    async def close(self) -> None:
        """Writes what waits, before the database is closed."""
        await self._flush(WAITING_MAX)

    async def note(self, hop: str, note: HopNote) -> None:
        """Keeps the latest note about a tunnel of `hop`. The caller has checked that the link id is that tunnel's."""
        now = int(self._clock() * 1000)
        await self._database.run(lambda connection: connection.execute(
            "INSERT INTO tunnels VALUES (?, ?, ?, ?) ON CONFLICT (link_id) DO UPDATE"
            " SET record = excluded.record, seen_ms = excluded.seen_ms WHERE hop = excluded.hop",
            (note.link, hop, _pack.encode(note), now),
        ) and None)

    async def find(self, trace_id: str) -> list[SpanRecord]:
        """All spans of a trace, by time; empty if nothing is known of it."""

        def work(connection: Connection) -> list[SpanRecord]:
            spans = [
                _span.decode(row[0])
                for row in connection.execute("SELECT record FROM spans WHERE trace_id = ?", (trace_id,))
            ]
            for link_id, hop, record in connection.execute(
                "SELECT DISTINCT tunnels.link_id, hop, record FROM tunnels JOIN traces USING (link_id)"
                " WHERE trace_id = ?", (trace_id,),
            ).fetchall():
                spans.append(_hop_span(trace_id, str(link_id), str(hop), _kept_note.decode(record), spans))
            return sorted(spans, key=lambda span: (span.start_ms, span.role))

        await self._flush(WAITING_MAX)
        return await self._database.run(work, read_only=True)

    def _put(self, entry: "_Entry") -> None:
        self.dropped += len(self._waiting) == WAITING_MAX  # the oldest gives way
        self._waiting.append(entry)
        if self._timer is None:
            self._later()

    def _later(self) -> None:
        if self._timer is None and self._waiting:
            lost, self._dropped = self.dropped - self._dropped, self.dropped
            every = _BUSY_S if lost > 3 * _AT_ONCE else _EVERY_S  # up to 100 a second, none gives way for that
            self._timer = asyncio.get_running_loop().call_later(every, self._due)

    def _due(self) -> None:
        self._writing = asyncio.get_running_loop().create_task(self._flush(_AT_ONCE))

    async def _flush(self, count: int) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if not self._waiting:
            return
        entries = [self._waiting.popleft() for _ in range(min(count, len(self._waiting)))]
        prune = self._saves // _PRUNE_EVERY != (self._saves + len(entries)) // _PRUNE_EVERY
        self._saves += len(entries)

        def work(connection: Connection) -> None:
            for entry in entries:
                _insert(connection, entry)
            if prune:
                _prune(connection, entries[-1].now)

        try:
            await self._database.run(work)
        except StoreError as error:
            _log.warning("spans are not kept: %s", error)
        self._later()


class _Entry(NamedTuple):
    """Spans of one request. `sender` "" for our own, else `device` and `link_id` are ""; `now`: Unix milliseconds."""

    sender: str
    trace_id: str
    device: str
    link_id: str
    spans: Spans
    now: int


def _insert(connection: Connection, entry: _Entry) -> None:
    spans = entry.spans() if callable(entry.spans) else entry.spans
    if entry.device:
        connection.execute(
            "INSERT INTO traces VALUES (?, ?, ?, ?) ON CONFLICT DO NOTHING",
            (entry.trace_id, entry.device, entry.link_id, entry.now),
        )
    room = len(spans)  # our own are bounded by telemetry, which keeps 64 spans of a trace at a time
    if entry.sender:
        row = connection.execute(
            "SELECT count(*) FROM spans WHERE trace_id = ? AND sender = ?", (entry.trace_id, entry.sender)
        ).fetchone()
        assert row is not None
        room = max(0, PER_TRACE_MAX - int(row[0]))
    connection.executemany(
        "INSERT INTO spans VALUES (?, ?, ?, ?, ?) ON CONFLICT DO NOTHING",
        [(entry.trace_id, span.span_id, entry.sender, _pack.encode(span), entry.now) for span in spans[:room]],
    )


def _prune(connection: Connection, now: int) -> None:
    row = connection.execute(
        "SELECT seen_ms FROM spans ORDER BY seen_ms DESC LIMIT 1 OFFSET ?", (SPANS_MAX,)
    ).fetchone()
    before = max(now - KEPT_MS, int(row[0]) if row else 0)
    for table in ("spans", "traces", "tunnels"):
        connection.execute(f"DELETE FROM {table} WHERE seen_ms < ?", (before,))  # noqa: S608 - names of our own


def _finite(span: SpanRecord) -> bool:
    """Bounds alone let NaN through, which has no place in an order and none in JSON."""
    values = (span.start_ms, span.end_ms, *span.attributes.values())
    return all(math.isfinite(value) for value in values if isinstance(value, float))


def _claimed(span: SpanRecord, device: str) -> SpanRecord:
    """An edge's span as it is kept: whatever it says, it is this device's."""
    attributes = permitted(span.attributes)
    attributes.pop(names.ROLE, None)
    attributes[names.NODE] = device[:128]
    return msgspec.structs.replace(span, role="edge", attributes=dict(list(attributes.items())[-16:]))


def _hop_span(trace_id: str, link_id: str, hop: str, note: HopNote, others: Sequence[SpanRecord]) -> SpanRecord:
    """A tunnel's span. Its parent is what the gateway's request span hangs from: the edge's, as a hop has no trace."""
    parent = next((
        span.parent_id for span in others
        if span.role == "gateway" and span.attributes.get(names.LINK_ID) == link_id
    ), "")
    attributes: dict[str, str | int | float] = {
        names.NODE: hop[:128], names.LINK_ID: link_id, names.BYTES_IN: note.up, names.BYTES_OUT: note.down,
    }
    span_id = sha256(b"causeway hop span", trace_id.encode(), link_id.encode())[:8].hex()
    end = max(note.start_ms, note.end_ms)
    return SpanRecord(trace_id, span_id, parent, "tunnel", "hop", note.start_ms, end, attributes)

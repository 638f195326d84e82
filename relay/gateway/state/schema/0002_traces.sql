-- Spans of every role by trace id, and which devices used a trace id in a request of their own.

CREATE TABLE traces (
    trace_id TEXT NOT NULL,
    device   TEXT NOT NULL,  -- SPIFFE ID
    link_id  TEXT NOT NULL,  -- 16 hex digits
    seen_ms  INTEGER NOT NULL,
    PRIMARY KEY (trace_id, device, link_id)
) STRICT, WITHOUT ROWID;

CREATE INDEX traces_by_age ON traces (seen_ms);

CREATE TABLE spans (
    trace_id TEXT NOT NULL,
    span_id  TEXT NOT NULL,
    sender   TEXT NOT NULL,  -- SPIFFE ID of the device, or empty for the gateway's own
    record   BLOB NOT NULL,  -- MessagePack of transport.messages.SpanRecord
    seen_ms  INTEGER NOT NULL,
    PRIMARY KEY (trace_id, sender, span_id)
) STRICT, WITHOUT ROWID;

CREATE INDEX spans_by_age ON spans (seen_ms);

CREATE TABLE tunnels (
    link_id  TEXT PRIMARY KEY,
    hop      TEXT NOT NULL,  -- SPIFFE ID of the hop
    record   BLOB NOT NULL,  -- MessagePack of {start_ms, end_ms, bytes_up, bytes_down}
    seen_ms  INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

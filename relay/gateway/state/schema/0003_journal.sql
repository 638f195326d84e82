-- Which requests were accepted, what became of each, and the answers that no device has acknowledged yet.

CREATE TABLE journal (
    only  INTEGER PRIMARY KEY CHECK (only = 1),
    epoch BLOB NOT NULL CHECK (length(epoch) = 16)  -- new whenever this memory is
) STRICT;

INSERT INTO journal VALUES (1, randomblob(16));

CREATE TABLE calls (
    number       INTEGER PRIMARY KEY,
    spiffe_id    TEXT NOT NULL,
    enrolment    INTEGER NOT NULL,
    request_id   BLOB NOT NULL CHECK (length(request_id) = 16),
    digest       BLOB NOT NULL CHECK (length(digest) = 32),  -- of header and body; fixed by the first acceptance
    expires      INTEGER NOT NULL,  -- unix seconds
    generation   INTEGER NOT NULL,  -- tells the answer of this row from any other
    state        TEXT NOT NULL DEFAULT 'running' CHECK (state IN ('running', 'answered', 'refused')),
    status       INTEGER NOT NULL DEFAULT 0,   -- of the answer or of the refusal
    content_type TEXT NOT NULL DEFAULT '',
    streamed     INTEGER NOT NULL DEFAULT 0,
    length       INTEGER NOT NULL DEFAULT 0,   -- of the whole answer, or of what was released before the refusal
    sha256       BLOB NOT NULL DEFAULT x'',
    kept         INTEGER NOT NULL DEFAULT 0,   -- bytes in answer_parts once the call is over
    code         TEXT NOT NULL DEFAULT '',     -- of a refusal
    message      TEXT NOT NULL DEFAULT '',
    UNIQUE (spiffe_id, enrolment, request_id)
) STRICT;

CREATE INDEX calls_by_expiry ON calls (expires);

CREATE TABLE answer_parts (
    call  INTEGER NOT NULL REFERENCES calls (number) ON DELETE CASCADE,
    start INTEGER NOT NULL,  -- offset of the first byte in the answer
    data  BLOB NOT NULL,
    PRIMARY KEY (call, start)
) STRICT;

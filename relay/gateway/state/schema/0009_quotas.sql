-- What has been spent within the windows of [[quota]], and what calls under way have reserved. Written behind the calls,
-- about once a second: what is missing here after a crash is in the audit behind `audit_sequence`.

CREATE TABLE quota_counts (
    rule   TEXT NOT NULL,     -- by its name: limits may change
    who    TEXT NOT NULL,     -- path of a SPIFFE ID; '' where all share a count
    counts BLOB NOT NULL,     -- MessagePack of {kind: [[second, amount], ...]}
    gone   INTEGER NOT NULL,  -- second from which on nothing of it counts
    PRIMARY KEY (rule, who)
) STRICT, WITHOUT ROWID;

CREATE TABLE quota_reserved (
    who     TEXT NOT NULL,
    request TEXT NOT NULL,  -- id, in hexadecimal
    model   TEXT NOT NULL,
    tokens  INTEGER NOT NULL,
    money   INTEGER NOT NULL,  -- micro-units
    PRIMARY KEY (who, request)
) STRICT, WITHOUT ROWID;

CREATE TABLE quota_state (
    only           INTEGER PRIMARY KEY CHECK (only = 1),
    clock          INTEGER NOT NULL,  -- of the quotas: never goes back
    audit_sequence INTEGER NOT NULL   -- up to where the audit is in the tables above
) STRICT;

INSERT INTO quota_state VALUES (1, 0, 0);

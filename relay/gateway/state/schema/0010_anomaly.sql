-- What devices usually do and under what suspicion they are, and alerts on their way. No text of anybody's is in here.

CREATE TABLE profiles (
    enrolment INTEGER PRIMARY KEY,
    level     INTEGER NOT NULL,  -- 0: nothing is the matter
    kept      BLOB NOT NULL      -- relay.gateway.anomaly.profile.Kept as MessagePack
) STRICT;

CREATE INDEX profiles_that_matter ON profiles (level) WHERE level > 0;

CREATE TABLE alerts_to_send (
    number INTEGER PRIMARY KEY,  -- in the order in which they were raised
    id     TEXT NOT NULL,        -- the same for each attempt and each receiver
    target TEXT NOT NULL,        -- webhook, syslog
    body   TEXT NOT NULL,
    raised INTEGER NOT NULL      -- unix seconds
) STRICT;

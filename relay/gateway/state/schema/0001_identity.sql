-- Who may join, who has joined, and what certificates were given to them. Times are unix seconds.

CREATE TABLE invitations (
    token_id      BLOB PRIMARY KEY CHECK (length(token_id) = 8),
    secret_sha256 BLOB NOT NULL CHECK (length(secret_sha256) = 32),  -- the secret itself is not kept
    spiffe_id     TEXT NOT NULL,
    created       INTEGER NOT NULL,
    expires       INTEGER NOT NULL,
    device_id     BLOB,     -- bound by first use
    enrolment     INTEGER REFERENCES registrations (enrolment)
) STRICT;

CREATE TABLE registrations (
    enrolment   INTEGER PRIMARY KEY AUTOINCREMENT,  -- never used twice: a new holder of a name is someone else
    spiffe_id   TEXT NOT NULL,
    device_id   BLOB NOT NULL CHECK (length(device_id) = 32),  -- SHA-256 of device_spki
    device_spki BLOB NOT NULL,
    status      TEXT NOT NULL CHECK (status IN ('active', 'replaced', 'revoked')),
    created     INTEGER NOT NULL,
    last_seen   INTEGER NOT NULL
) STRICT;

CREATE UNIQUE INDEX one_holder_of_an_id ON registrations (spiffe_id) WHERE status = 'active';
CREATE UNIQUE INDEX one_id_of_a_device ON registrations (device_id) WHERE status = 'active';

CREATE TABLE serials (
    serial    TEXT PRIMARY KEY,  -- hexadecimal: certificate serials exceed 64 bits
    enrolment INTEGER NOT NULL REFERENCES registrations (enrolment),
    not_after INTEGER NOT NULL
) STRICT;

CREATE INDEX serials_by_end ON serials (not_after);

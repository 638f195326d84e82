-- When and why a registration ended, which invitations ended with it, and what the signed list of them needs to go on.

ALTER TABLE registrations ADD COLUMN ended INTEGER NOT NULL DEFAULT 0;  -- unix seconds; 0 while it is active
ALTER TABLE registrations ADD COLUMN reason TEXT NOT NULL DEFAULT '';   -- an administrator's words
ALTER TABLE invitations ADD COLUMN voided INTEGER NOT NULL DEFAULT 0;   -- 1: its ID was revoked after it was made

UPDATE registrations SET ended = unixepoch() WHERE status <> 'active';

CREATE TABLE revoked_certificates (  -- those that others than this gateway must refuse: of gateways and intermediates
    serial    TEXT PRIMARY KEY,  -- hexadecimal
    not_after INTEGER NOT NULL
) STRICT;

CREATE TABLE revocation_list (
    only     INTEGER PRIMARY KEY CHECK (only = 1),
    sequence INTEGER NOT NULL  -- of the latest that was signed; never falls
) STRICT;

INSERT INTO revocation_list VALUES (1, 0);

-- What an administrator was alerted to, so that it is done once for each enrolment and kind.

CREATE TABLE alerts (
    enrolment INTEGER NOT NULL REFERENCES registrations (enrolment),
    kind      TEXT NOT NULL,
    raised    INTEGER NOT NULL,  -- unix seconds
    PRIMARY KEY (enrolment, kind)
) STRICT;

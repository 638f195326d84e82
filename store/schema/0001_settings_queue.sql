-- Named values of a program part: identity, configuration, floors under the clock.
CREATE TABLE settings (
  namespace TEXT NOT NULL,
  key       TEXT NOT NULL,
  value     BLOB NOT NULL,
  PRIMARY KEY (namespace, key)
) STRICT, WITHOUT ROWID;

-- Durable rows in order of arrival (store/queue.py). Times are unix seconds.
CREATE TABLE queue (
  sequence   INTEGER PRIMARY KEY AUTOINCREMENT,
  name       TEXT NOT NULL,
  id         BLOB NOT NULL,
  payload    BLOB,                       -- NULL once erased
  digest     BLOB NOT NULL,              -- SHA-256 of the payload, outlives it
  state      TEXT NOT NULL DEFAULT 'waiting'
             CHECK (state IN ('waiting', 'sent', 'done', 'failed', 'interrupted', 'expired')),
  attempts   INTEGER NOT NULL DEFAULT 0,
  note       TEXT NOT NULL DEFAULT '',
  created_at INTEGER NOT NULL,
  expires_at INTEGER NOT NULL,
  settled_at INTEGER,
  UNIQUE (name, id)
) STRICT;
CREATE INDEX queue_by_state ON queue (name, state, sequence);

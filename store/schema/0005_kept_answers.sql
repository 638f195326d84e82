-- SHA-256 of answers made from local-only documents: a conversation that holds one stays on this device.
CREATE TABLE kept_answers (
  digest BLOB PRIMARY KEY CHECK (length(digest) = 32)
) STRICT, WITHOUT ROWID;

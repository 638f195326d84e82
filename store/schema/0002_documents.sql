-- A collection has one embedder. `added` and `removed` count changes, so that a search in any process notices them.
CREATE TABLE collections (
  id        INTEGER PRIMARY KEY,
  name      TEXT NOT NULL UNIQUE,
  model_id  TEXT NOT NULL,
  dimension INTEGER NOT NULL,
  added     INTEGER NOT NULL DEFAULT 0,
  removed   INTEGER NOT NULL DEFAULT 0
) STRICT;

CREATE TABLE documents (
  id            INTEGER PRIMARY KEY AUTOINCREMENT,
  collection_id INTEGER NOT NULL REFERENCES collections (id),
  source        TEXT NOT NULL,
  title         TEXT NOT NULL,
  sha256        BLOB NOT NULL CHECK (length(sha256) = 32),
  label         TEXT NOT NULL CHECK (label IN ('public', 'internal', 'local-only')),
  chunks        INTEGER NOT NULL,
  UNIQUE (collection_id, sha256),
  UNIQUE (collection_id, source)
) STRICT;

-- AUTOINCREMENT: a chunk id is never used twice, so "greater than the last one seen" means "new".
CREATE TABLE chunks (
  id          INTEGER PRIMARY KEY AUTOINCREMENT,
  document_id INTEGER NOT NULL REFERENCES documents (id) ON DELETE CASCADE,
  text        TEXT NOT NULL,
  page        INTEGER,
  line        INTEGER
) STRICT;
CREATE INDEX chunks_by_document ON chunks (document_id);

-- Sign bits, apart from the vectors, so that loading them reads few pages.
CREATE TABLE codes (
  collection_id INTEGER NOT NULL REFERENCES collections (id),
  chunk_id      INTEGER NOT NULL REFERENCES chunks (id) ON DELETE CASCADE,
  code          BLOB NOT NULL,
  PRIMARY KEY (collection_id, chunk_id)
) STRICT, WITHOUT ROWID;
CREATE INDEX codes_by_chunk ON codes (chunk_id);

-- Little-endian float16 rows for rescoring.
CREATE TABLE vectors (
  chunk_id INTEGER PRIMARY KEY REFERENCES chunks (id) ON DELETE CASCADE,
  value    BLOB NOT NULL
) STRICT;

-- The texts themselves are in chunks; this holds the inverted index alone.
CREATE VIRTUAL TABLE words USING fts5 (title, text, content='', contentless_delete=1, tokenize='porter unicode61');

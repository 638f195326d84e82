-- A collection on its way to another embedder. `up_to` is the last passage that has a new vector, `document` where it
-- stands. Documents and their passages are never changed, and new ones of both have higher ids.
CREATE TABLE reembeddings (
  collection_id INTEGER PRIMARY KEY REFERENCES collections (id) ON DELETE CASCADE,
  model_id      TEXT NOT NULL,
  dimension     INTEGER,                 -- NULL until the first vectors are there
  document      INTEGER NOT NULL DEFAULT 0,
  up_to         INTEGER NOT NULL DEFAULT 0
) STRICT;

-- Its new vectors, little-endian float16, which nothing searches until all are there. Who is deleted takes them along.
CREATE TABLE new_vectors (
  chunk_id INTEGER PRIMARY KEY REFERENCES chunks (id) ON DELETE CASCADE,
  value    BLOB NOT NULL
) STRICT;

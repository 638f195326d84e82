-- Vectors of documents that are not in the store yet: their embedding takes minutes, and goes on here when it is cut
-- short. Not searched. `document` is the SHA-256 of the content, `passage` that of embedder and text.
CREATE TABLE drafts (
  id       INTEGER PRIMARY KEY,
  document BLOB NOT NULL CHECK (length(document) = 32),
  passage  BLOB NOT NULL CHECK (length(passage) = 32),
  value    BLOB NOT NULL,                -- little-endian float32
  UNIQUE (document, passage)
) STRICT;

-- What a filter asks about, and what tells a search in another process that it has to look again.
ALTER TABLE documents ADD COLUMN dated_at INTEGER;  -- unix seconds, as the caller gives it
ALTER TABLE collections ADD COLUMN altered INTEGER NOT NULL DEFAULT 0;

-- The last documents that left each collection, with its count of removals then: codes in memory drop just these.
CREATE TABLE removals (
  collection_id INTEGER NOT NULL REFERENCES collections (id) ON DELETE CASCADE,
  removed       INTEGER NOT NULL,
  document_id   INTEGER NOT NULL,
  PRIMARY KEY (collection_id, removed)
) STRICT, WITHOUT ROWID;

-- Codes by document: all of its passages' one after the other, whose ids have no gaps. They were one bit for each
-- component, a row a passage. Where `coded` is 0 a search first makes those that are missing, from the vectors.
ALTER TABLE collections ADD COLUMN coded INTEGER NOT NULL DEFAULT 1;
UPDATE collections SET coded = 0;
DROP TABLE codes;
CREATE TABLE codes (
  document_id   INTEGER PRIMARY KEY REFERENCES documents (id) ON DELETE CASCADE,
  collection_id INTEGER NOT NULL REFERENCES collections (id),
  first_chunk   INTEGER NOT NULL,
  code          BLOB NOT NULL
) STRICT;

-- Whoever changes a document: nothing has to remember to count.
CREATE TRIGGER document_added AFTER INSERT ON documents BEGIN
  UPDATE collections SET added = added + 1 WHERE id = NEW.collection_id;
END;
CREATE TRIGGER document_altered AFTER UPDATE OF label, source, dated_at ON documents
WHEN OLD.label IS NOT NEW.label OR OLD.source IS NOT NEW.source OR OLD.dated_at IS NOT NEW.dated_at BEGIN
  UPDATE collections SET altered = altered + 1 WHERE id = NEW.collection_id;
END;
CREATE TRIGGER document_removed AFTER DELETE ON documents BEGIN
  UPDATE collections SET removed = removed + 1 WHERE id = OLD.collection_id;
  INSERT INTO removals SELECT id, removed, OLD.id FROM collections WHERE id = OLD.collection_id;
  DELETE FROM removals WHERE collection_id = OLD.collection_id
    AND removed <= (SELECT removed - 1000 FROM collections WHERE id = OLD.collection_id);
END;

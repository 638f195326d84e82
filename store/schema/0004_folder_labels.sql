-- Labels of folders, so that a file that appears in one later has its label, too.
CREATE TABLE folder_labels (
  folder TEXT PRIMARY KEY,
  label  TEXT NOT NULL CHECK (label IN ('public', 'internal', 'local-only'))
) STRICT, WITHOUT ROWID;

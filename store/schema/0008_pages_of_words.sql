-- FTS5 makes its pieces for pages of 4,096 bytes; SQLCipher leaves 4,016 of them, so each piece took a second page.
INSERT INTO words (words, rank) VALUES ('pgsz', 3970);

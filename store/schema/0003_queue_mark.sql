-- What the queue's owner wants to remember of a row's last sending (the edge's outbox: the gateway's journal epoch).
ALTER TABLE queue ADD COLUMN mark BLOB;

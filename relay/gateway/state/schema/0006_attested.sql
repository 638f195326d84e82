-- Registrations without a device key: of IDs whose holders prove themselves elsewhere. `source` says where; it is empty
-- for a device that has joined. Without a key, device_spki is empty and device_id stands for the ID alone.

ALTER TABLE registrations ADD COLUMN source TEXT NOT NULL DEFAULT '';

-- Devices whose key was shown to lie in a TPM. `tpm` of an invitation: no other device may use it. Of a registration:
-- empty if nothing was shown, 'any', or 'certified' where the TPM's own key had a maker's certificate; and SHA-256 of
-- that key's SubjectPublicKeyInfo, in hexadecimal.

ALTER TABLE invitations ADD COLUMN tpm INTEGER NOT NULL DEFAULT 0 CHECK (tpm IN (0, 1));
ALTER TABLE registrations ADD COLUMN tpm TEXT NOT NULL DEFAULT '' CHECK (tpm IN ('', 'any', 'certified'));
ALTER TABLE registrations ADD COLUMN ek_sha256 TEXT NOT NULL DEFAULT '';

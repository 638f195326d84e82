"""Errors of encrypted storage. Each says whose fault it is, carries a stable code, and never echoes keys or contents.

    StoreError
     +-- StoreMisuse           fault local   our own code passed something out of order or out of bounds
     +-- PassphraseRefused     fault user    a passphrase that is empty, too long, or a file that cannot be read as one
     +-- StoreLocked           fault store   nobody has given a passphrase yet
     +-- WrongKey              fault store   the passphrase or key does not open this file
     +-- StoreMissing          fault store   the file or its folder does not exist
     +-- StoreExists           fault store   refuses to overwrite a key
     +-- StoreCorrupt          fault store   the file is damaged, altered or of an unknown form
     +-- StoreTooNew           fault store   a later version wrote this database
     +-- StoreConflict         fault store   a row with that id exists with other content
     +-- StoreBusy             fault store   another process holds the write lock for too long
     +-- TpmError              fault store   the TPM did not do what it was asked for
     |    +-- NoTpm            fault store   there is none, or none that may be used, or no library for it
     |    +-- ForeignTpm       fault store   what is kept here was made by another TPM, or before this one was cleared
     +-- ModelMismatch         fault store   vectors of one embedder meet a collection of another
     +-- StoreUnwritable       fault store   the file system refused (permissions, read-only, I/O)
          +-- DiskFull         fault store   no space left; what was stored stays intact

Retrying helps after StoreBusy, and after DiskFull once there is space.
"""

from typing import ClassVar


class StoreError(Exception):
    """Root of everything `store` raises. The message is lower case, without a final period."""

    code: ClassVar[str] = "store_error"
    fault: ClassVar[str] = "store"
    retryable: ClassVar[bool] = False

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.hint = hint


class StoreMisuse(StoreError):
    code = "store_misuse"
    fault = "local"


class PassphraseRefused(StoreError):
    code = "passphrase_refused"
    fault = "user"


class StoreLocked(StoreError):
    code = "store_locked"


class WrongKey(StoreError):
    code = "wrong_key"


class StoreMissing(StoreError):
    code = "store_missing"


class StoreExists(StoreError):
    code = "store_exists"


class StoreCorrupt(StoreError):
    code = "store_corrupt"


class StoreTooNew(StoreError):
    code = "store_too_new"


class StoreConflict(StoreError):
    code = "store_conflict"


class StoreBusy(StoreError):
    code = "store_busy"
    retryable = True


class TpmError(StoreError):
    code = "tpm_failed"


class NoTpm(TpmError):
    code = "no_tpm"


class ForeignTpm(TpmError):
    code = "foreign_tpm"


class ModelMismatch(StoreError):
    code = "model_mismatch"


class StoreUnwritable(StoreError):
    code = "store_unwritable"


class DiskFull(StoreUnwritable):
    code = "disk_full"
    retryable = True

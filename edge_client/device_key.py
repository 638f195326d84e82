"""The device key, by which this device joins and renews: in the encrypted store, or in the machine's TPM.

Of a key in the TPM the store has what only that TPM can load: whoever copies the disk, and opens the store, has no
device key. What is kept tells by its first byte which of the two it is: PKCS#8 begins with 0x30.
"""

from typing import ClassVar, Final

from store.errors import StoreCorrupt, StoreError
from store.tpm import Blob, Tpm
from transport.errors import SignerFailed, TransportError
from transport.messages import Attest, Challenge
from transport.primitives import Secret, SigningKey, VerifyKey, sha256

__all__ = ["DeviceKey", "TpmKey", "restored", "stored"]

_IN_TPM: Final = b"cwtpm\x01"  # and SubjectPublicKeyInfo, 91 bytes, and Blob
_SPKI: Final = bytes.fromhex("3059301306072a8648ce3d020106082a8648ce3d030107034200")  # P-256, up to the point
_SPKI_LEN: Final = len(_SPKI) + 65


class TpmKey:
    """A signer that asks the TPM, which takes up to half a second."""

    slow: ClassVar[bool] = True

    def __init__(self, blob: Blob, spki: bytes, tpm: Tpm | None) -> None:
        """`tpm` None: known by its public part alone. Raises StoreCorrupt."""
        try:
            self.public = VerifyKey.from_spki(spki)
        except TransportError:
            raise StoreCorrupt("the device key that is kept here is damaged") from None
        self.blob, self._tpm = blob, tpm

    @classmethod
    def make(cls, tpm: Tpm) -> "TpmKey":
        """Blocks. Raises TpmError."""
        blob, point = tpm.create_key()
        return cls(blob, _SPKI + point, tpm)

    def sign(self, message: bytes) -> bytes:
        """Blocks. Raises SignerFailed."""
        try:
            return self._held_by().sign(self.blob, sha256(message))
        except StoreError as error:
            raise SignerFailed(str(error), hint=error.hint) from None

    def evidence(self) -> Attest:
        """What the gateway is told of the TPM. Blocks. Raises TpmError."""
        endorsement = self._held_by().endorsement()
        return Attest(endorsement.certificate, endorsement.public, self.blob.public)

    def activate(self, challenge: Challenge) -> bytes:
        """The answer to the gateway's challenge. Blocks. Raises SignerFailed."""
        try:
            return self._held_by().activate(self.blob, challenge.credential, challenge.secret)
        except StoreError as error:
            raise SignerFailed(str(error), hint=error.hint) from None

    def _held_by(self) -> Tpm:
        if self._tpm is None:
            raise StoreError("no TPM was named for this key")
        return self._tpm


DeviceKey = SigningKey | TpmKey


def stored(key: DeviceKey) -> bytes:
    """For the encrypted store alone."""
    if isinstance(key, TpmKey):
        return _IN_TPM + key.public.spki + key.blob.encode()
    return key.to_pkcs8().expose()


def restored(data: bytes, tpm: Tpm | None) -> DeviceKey:
    """Asks no TPM yet. Raises StoreCorrupt, BadInput."""
    if not data.startswith(_IN_TPM):
        return SigningKey.from_pkcs8(Secret(data))
    rest = data.removeprefix(_IN_TPM)
    return TpmKey(Blob.decode(rest[_SPKI_LEN:]), rest[:_SPKI_LEN], tpm)

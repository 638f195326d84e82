"""Who holds the gateway's private keys, and how something is signed with them.

A `Signer` (transport.primitives) is a key that can be used and need not be seen: one of this process, of a token behind
PKCS#11, or of a service. A `Custody` makes such keys and finds them again by what was *kept* of them, some bytes that
belong into a sealed file: the key itself where software holds it, else its name.
"""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final, NoReturn, Protocol, TypeVar

from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, utils

from transport.errors import LocalMisuse
from transport.primitives import Secret, Signer, SigningKey

Result = TypeVar("Result")


class Custody(Protocol):
    """Makes signers and opens them again."""

    def make(self, role: str) -> tuple[Signer, bytes]:
        """A new key and what is to be kept of it, which is secret. `role` (as in "intermediate") is for its name.

        Raises KeysUnavailable.
        """

    def open(self, kept: bytes) -> Signer:
        """Raises KeysUnavailable, BadInput for what was kept of no key."""

    def forget(self, kept: bytes) -> None:
        """Destroys a key that nobody will ever use again, where somebody else holds it. Raises KeysUnavailable."""


class Software:
    """Keys in this process, kept whole: unencrypted PKCS#8 (RFC 5958), for a sealed file."""

    def make(self, role: str) -> tuple[Signer, bytes]:
        key = SigningKey.generate()
        return key, key.to_pkcs8().expose()

    def open(self, kept: bytes) -> Signer:
        return SigningKey.from_pkcs8(Secret(kept))

    def forget(self, kept: bytes) -> None:
        """It is gone with what was kept of it."""


SOFTWARE: Final = Software()
# Of their own: a service that does not answer must not keep the loop's threads, which look up the provider's address.
_threads: Final = ThreadPoolExecutor(8, thread_name_prefix="signing")


async def aside(signer: Signer, work: Callable[[], Result]) -> Result:
    """What `work` returns, which signs: in a thread if that is slow, so that nobody else on the event loop waits."""
    if not signer.slow:
        return work()
    return await asyncio.get_running_loop().run_in_executor(_threads, work)


def certificate_key(signer: Signer) -> ec.EllipticCurvePrivateKey:
    """For builders of certificates, with SHA-256 alone."""
    return signer.private_key if isinstance(signer, SigningKey) else _Delegating(signer)


class _Delegating(ec.EllipticCurvePrivateKey):
    """Signs by a Signer and can do nothing else."""

    def __init__(self, signer: Signer) -> None:
        self._signer = signer

    def sign(self, data: Any, signature_algorithm: ec.EllipticCurveSignatureAlgorithm) -> bytes:
        if not isinstance(signature_algorithm.algorithm, hashes.SHA256):
            raise LocalMisuse("the gateway's keys sign with SHA-256")
        signature = self._signer.sign(bytes(data))
        return utils.encode_dss_signature(int.from_bytes(signature[:32], "big"), int.from_bytes(signature[32:], "big"))

    def public_key(self) -> ec.EllipticCurvePublicKey:
        key = serialization.load_der_public_key(self._signer.public.spki)
        assert isinstance(key, ec.EllipticCurvePublicKey)
        return key

    @property
    def curve(self) -> ec.EllipticCurve:
        return ec.SECP256R1()

    @property
    def key_size(self) -> int:
        return 256

    def exchange(self, algorithm: ec.ECDH, peer_public_key: ec.EllipticCurvePublicKey) -> NoReturn:
        raise LocalMisuse("the gateway's keys sign and do nothing else")

    def private_numbers(self) -> NoReturn:
        raise LocalMisuse("this key does not leave its holder")

    def private_bytes(
        self, encoding: serialization.Encoding, format: serialization.PrivateFormat,
        encryption_algorithm: serialization.KeySerializationEncryption,
    ) -> NoReturn:
        raise LocalMisuse("this key does not leave its holder")

    def __copy__(self) -> "_Delegating":
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> "_Delegating":
        return self

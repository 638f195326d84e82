"""Proofs of possession (RFC 9449), and tokens that are worth nothing without one.

A proof is a JWT that says for which request it was made, by a key that it names. It is accepted once, for about a
minute, and only with a nonce of ours, so that none can be made beforehand. A token is a MAC over an end and the key it
was given to: who issues it is who verifies it, and with another key it is another token. Pure but for the nonces.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Final, Literal

import msgspec
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
from jwt import PyJWTError
from jwt.algorithms import ECAlgorithm
from jwt.utils import base64url_decode, base64url_encode
from msgspec import Meta, Struct

from relay.gateway.identity.jose import TokenRefused, Unverified
from relay.gateway.identity.nonces import NONCE_S, Nonces
from relay.gateway.identity.once import UsedOnce
from transport.primitives import VerifyKey, hmac_sha256, random_bytes, same_bytes, sha256

PROOF_MAX: Final = 2_048  # characters
AROUND_S: Final = 60  # how far a device's clock may be off
TOKEN_S: Final = 600
USED_MAX: Final = 16_384  # proofs remembered in all and of one key, none for longer than its nonce is good
USED_BY_KEY_MAX: Final = 64
_KEPT_S: Final = NONCE_S + 2


class ProofRefused(TokenRefused):
    """"nonce" and "time" are rules that a page can do something about."""


class _Strict(Struct, frozen=True, forbid_unknown_fields=True):
    pass


class _Jwk(_Strict, frozen=True):
    """Exactly these members, so that no private one is among them."""

    kty: Literal["EC"]
    crv: Literal["P-256"]
    x: str
    y: str


class _Header(_Strict, frozen=True):
    typ: Literal["dpop+jwt"]
    alg: Literal["ES256"]
    jwk: _Jwk


class _Claims(_Strict, frozen=True):
    jti: Annotated[str, Meta(pattern=r"^[A-Za-z0-9_-]{16,64}\Z")]
    htm: str
    htu: str
    iat: Annotated[int, Meta(ge=0, le=1 << 40)]
    nonce: str = ""
    ath: str | None = None


@dataclass(frozen=True)
class Proof:
    """An accepted proof: the key that made it, and what makes it this one."""

    key: VerifyKey
    device_id: bytes  # SHA-256 of the key's SPKI
    jti: str


class Proofs:
    """Checks the proofs that one origin is shown. `clock`: unix seconds."""

    def __init__(
        self, origin: str, nonces: Nonces, clock: Callable[[], float], *, used_max: int | None = None,
        used_by_key_max: int | None = None,
    ) -> None:
        """`used_max`, `used_by_key_max`: proofs in a minute, of all keys and of one; else those of a page."""
        self._origin, self._nonces, self._clock = origin, nonces, clock
        self._used = UsedOnce(
            clock, kept_s=_KEPT_S, total=used_max or USED_MAX, by_holder=used_by_key_max or USED_BY_KEY_MAX
        )

    def nonce(self) -> str:
        """A fresh one, base64url."""
        return base64url_encode(self._nonces.give()).decode()

    def check(self, text: str, *, method: str, path: str, token: str | None = None) -> Proof:
        """All of RFC 9449 section 4.3, and that it has not been used; `token` is what it was shown with.

        To be used up by `use` once it is known that the key may do what it asks for. Raises ProofRefused.
        """
        key, claims = _verified(text)
        if claims.htm != method:
            raise ProofRefused("method")
        if claims.htu != self._origin + path:
            raise ProofRefused("address")
        try:
            fresh = self._nonces.fresh(base64url_decode(claims.nonce))
        except ValueError:
            fresh = False
        if not fresh:
            raise ProofRefused("nonce")
        if abs(self._clock() - claims.iat) > AROUND_S:
            raise ProofRefused("time")
        if claims.ath != (None if token is None else hash_of(token)):
            raise ProofRefused("token hash")
        proof = Proof(key, sha256(key.spki), claims.jti)
        if self._used.used(proof.device_id.hex(), proof.jti):
            raise ProofRefused("replayed")
        return proof

    def use(self, proof: Proof) -> None:
        """Nobody can show it again. Only those whose key is known get this far, so strangers fill no memory.

        Raises ProofRefused("replayed") if it was used since `check`, ProofRefused("overloaded") for too many by one key
        or by all.
        """
        if refused := self._used.use(proof.device_id.hex(), proof.jti):
            raise ProofRefused(refused)


class Tokens:
    """Tokens of this process, since its key dies with it: a page whose token is refused gets another by its key."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._key, self._clock = random_bytes(32), clock

    def give(self, device_id: bytes, enrolment: int) -> str:
        """One for TOKEN_S seconds, for that device under that enrolment."""
        return self._text(int(self._clock()) + TOKEN_S, device_id, enrolment)

    def good(self, text: str, device_id: bytes, enrolment: int) -> bool:
        """Whether it is ours, of this device and enrolment, and has not ended."""
        end = text.partition(".")[0]
        if not (text.isascii() and end.isdigit() and len(end) <= 12):
            return False
        return same_bytes(text.encode(), self._text(int(end), device_id, enrolment).encode()) and (
            self._clock() < int(end)
        )

    def _text(self, end: int, device_id: bytes, enrolment: int) -> str:
        said = f"{end} {enrolment} {device_id.hex()}".encode()
        return f"{end}.{base64url_encode(hmac_sha256(self._key, said)).decode()}"


def hash_of(token: str) -> str:
    """A token's `ath` (RFC 9449 section 4.2): base64url of its SHA-256."""
    return base64url_encode(sha256(token.encode())).decode()


def _verified(text: str) -> tuple[VerifyKey, _Claims]:
    """The key that a proof names and was made by, and what it claims. Raises ProofRefused."""
    try:
        unverified = Unverified(text, longest=PROOF_MAX)
        key = ECAlgorithm.from_jwk(msgspec.to_builtins(unverified.header(_Header).jwk))
        assert isinstance(key, EllipticCurvePublicKey)
        return VerifyKey(key), unverified.verified(VerifyKey(key), _Claims)
    except (TokenRefused, PyJWTError, ValueError):
        raise ProofRefused("form") from None

"""Signed tokens (RFC 7515, compact form): ES256 alone, and none that two readers could read differently.

The library verifies. What it is lenient about is refused before: base64url that is not canonical, JSON that names a
member twice, headers that change what a signature means. No key is ever taken from a token, nor fetched for one.
"""

import base64
import json
import re
from collections.abc import Mapping
from typing import Any, Final, NoReturn, TypeVar

import msgspec
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
from cryptography.hazmat.primitives.serialization import load_der_public_key
from jwt import PyJWS, PyJWTError
from jwt.utils import base64url_decode, base64url_encode

from transport.primitives import Signer, VerifyKey, sha256

ALGORITHM: Final = "ES256"
TOKEN_MAX: Final = 4_096  # characters
_COMPACT: Final = re.compile(r"([A-Za-z0-9_-]+)\.([A-Za-z0-9_-]+)\.([A-Za-z0-9_-]{86})", re.ASCII)
_jws = PyJWS(algorithms=[ALGORITHM])
T = TypeVar("T")


class TokenRefused(Exception):
    """`rule` says what is wrong, in a word or two of a fixed set. For the audit: whoever shows a token learns less."""

    def __init__(self, rule: str) -> None:
        super().__init__(rule)
        self.rule = rule


class Unverified:
    """What claims to be a token: nothing of it is believed until `verified`."""

    def __init__(self, text: str, *, longest: int = TOKEN_MAX) -> None:
        """Raises TokenRefused: "size", "form", "duplicate member", "algorithm", "header"."""
        if len(text) > longest:
            raise TokenRefused("size")
        match = _COMPACT.fullmatch(text)
        if match is None:
            raise TokenRefused("form")
        self._text = text
        header, self._payload, _ = (_decoded(part) for part in match.groups())
        self._header = _object(header)
        if self._header.get("alg") != ALGORITHM:
            raise TokenRefused("algorithm")
        if not {"crit", "b64"}.isdisjoint(self._header):
            raise TokenRefused("header")

    def of(self, *types: str | None) -> "Unverified":
        """Itself, if it says that it is of one of these types (RFC 8725 3.11). Raises TokenRefused("type")."""
        if self._header.get("typ") not in types:
            raise TokenRefused("type")
        return self

    @property
    def kid(self) -> str:
        """The key that it names, "" if none. A name, to be looked up among those that are known."""
        kid = self._header.get("kid", "")
        return kid if isinstance(kid, str) else ""

    def header(self, kind: type[T]) -> T:
        """All of it. Raises TokenRefused("header")."""
        try:
            return msgspec.convert(self._header, kind)
        except msgspec.ValidationError:
            raise TokenRefused("header") from None

    def chain(self) -> list[bytes]:
        """The certificates that it shows (RFC 7515 4.1.6), DER, to be verified before anything; empty if it has none.

        Raises TokenRefused("chain").
        """
        shown = self._header.get("x5c", [])
        try:
            return [base64.b64decode(one, validate=True) for one in msgspec.convert(shown, list[str])]
        except (msgspec.ValidationError, ValueError):
            raise TokenRefused("chain") from None

    def unproven(self, claims: type[T]) -> T:
        """What it claims, to find out whose key must have signed it.

        Raises TokenRefused: "form", "duplicate member", "claims".
        """
        _object(self._payload)
        try:
            return msgspec.json.decode(self._payload, type=claims)
        except msgspec.MsgspecError:
            raise TokenRefused("claims") from None

    def verified(self, key: VerifyKey, claims: type[T]) -> T:
        """What it claims, signed by `key`. Times and names are the caller's to compare.

        Raises TokenRefused: "signature", "form", "duplicate member", "claims".
        """
        public = load_der_public_key(key.spki)
        assert isinstance(public, EllipticCurvePublicKey)
        try:
            said = _jws.decode_complete(self._text, public, algorithms=[ALGORITHM])
        except PyJWTError:
            raise TokenRefused("signature") from None
        assert said["payload"] == self._payload
        return self.unproven(claims)


def signed(key: Signer, header: Mapping[str, Any], claims: Mapping[str, Any]) -> str:
    """A token; `alg` is added to its header."""
    stem = ".".join(
        base64url_encode(msgspec.json.encode(part)).decode() for part in ({"alg": ALGORITHM, **header}, claims)
    )
    return f"{stem}.{base64url_encode(key.sign(stem.encode())).decode()}"


def jwk_of(key: VerifyKey) -> dict[str, str]:
    """The members that RFC 7517 requires, and no others."""
    point = key.spki[-64:]  # uncompressed, so x and y come last
    x, y = (base64url_encode(half).decode() for half in (point[:32], point[32:]))
    return {"crv": "P-256", "kty": "EC", "x": x, "y": y}


def thumbprint(key: VerifyKey) -> str:
    """RFC 7638: base64url of SHA-256 of the JWK, its members sorted and without spaces."""
    return base64url_encode(sha256(json.dumps(jwk_of(key), separators=(",", ":")).encode())).decode()


def _decoded(part: str) -> bytes:
    try:
        data = base64url_decode(part)
    except ValueError:
        raise TokenRefused("form") from None
    if base64url_encode(data).decode() != part:  # else one token would have several texts
        raise TokenRefused("form")
    return data


def _object(data: bytes) -> dict[str, Any]:
    try:
        found = json.loads(data.decode("utf-8"), object_pairs_hook=_unique, parse_constant=_no_constant)
    except (ValueError, RecursionError):  # also what is no JSON or no UTF-8, and integers that are too long
        raise TokenRefused("form") from None
    if not isinstance(found, dict):
        raise TokenRefused("form")
    return found


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise TokenRefused("duplicate member")
    return found


def _no_constant(_: str) -> NoReturn:
    raise ValueError("not a JSON number")

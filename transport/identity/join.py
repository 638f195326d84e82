"""Joining a trust domain: the invitation, what a device key signs, and the first bundle.

An invitation travels out of band (prompt, file, QR code). Its root hash is what makes joining safe through a hop nobody
trusts: whoever answers has to show a root with that hash before the secret is sent.
"""

import base64
import binascii
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Final, NoReturn, Self

import msgspec

from transport.errors import BadInput, IdentityRefused
from transport.identity.svid import SpiffeId, TrustBundle, load_certificate
from transport.primitives import Secret, sha256

LINE_MAX: Final = 2048  # characters of an encoded invitation
HINTS_MAX: Final = 8
HINT_MAX: Final = 256  # bytes of UTF-8
TOKEN_ID_LEN: Final = 8
SECRET_LEN: Final = 16
HASH_LEN: Final = 32

GATEWAY_LABEL: Final = b"Causeway 1 gateway signature"
EDGE_LABEL: Final = b"Causeway 1 edge signature"
DEVICE_LABEL: Final = b"Causeway 1 device signature"

_PREFIX: Final = "cw1"
_BLANK: Final = " \t\n\v\f\r"
_VERSION: Final = 1
_FIXED: Final = 1 + HASH_LEN + TOKEN_ID_LEN + SECRET_LEN
_HINTS = msgspec.msgpack.Decoder(list[str])
_UNSEEN: Final = frozenset({"Cc", "Cf", "Cs", "Co", "Zl", "Zp", "Zs"})  # not Cn, which differs by Unicode's version
_AGAIN: Final = "copy the whole line that `relay gateway invite` printed; it starts with cw1"


def signed_input(label: bytes, h: bytes, subject_sha256: bytes) -> bytes:
    """What an identity or device key signs: 64 spaces, label, 0, transcript hash, SHA-256 of leaf or device SPKI.

    The spaces and the zero keep a key that also signs TLS, requests or tokens from being tricked (RFC 8446 4.4.3).
    """
    return b" " * 64 + label + b"\0" + h + subject_sha256


class HttpsOperation(IntEnum):
    """What a device key agrees to by HTTPS."""

    JOIN = 1
    RENEW = 2


def https_transcript(operation: HttpsOperation, nonce: bytes, csr: bytes, subject: bytes, leaf_sha256: bytes) -> bytes:
    """The `h` of `signed_input` where there is no handshake: /v1/join and /v1/renew.

    The server's 32-byte nonce makes it fresh, `csr` (DER) and `subject` (token id, 8 bytes, or device id, 32) say what
    for, and SHA-256 of the server's leaf certificate says on whose connection: nobody can pass it on for another
    purpose or to another server. Raises BadInput for fields of another size.
    """
    sizes = (len(nonce), len(subject), len(leaf_sha256))
    if sizes != (HASH_LEN, TOKEN_ID_LEN if operation is HttpsOperation.JOIN else HASH_LEN, HASH_LEN):
        raise BadInput("a field of the joining request has the wrong size")
    return sha256(b"causeway https", bytes([operation]), nonce, sha256(csr), subject, leaf_sha256)


@dataclass(frozen=True, eq=False)
class Invitation:
    """One device's way in: whom to trust, under which name, where to ask, and the secret that proves the invitation."""

    root_sha256: bytes
    token_id: bytes
    secret: Secret
    trust_domain: str
    role_path: str
    hints: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if (len(self.root_sha256), len(self.token_id)) != (HASH_LEN, TOKEN_ID_LEN):
            raise BadInput("invitation has fields of the wrong size")
        if len(self.secret.expose()) != SECRET_LEN:
            raise BadInput("invitation has fields of the wrong size")
        name = SpiffeId(self.trust_domain, "/" + self.role_path)
        if not name.name or len(self.role_path) > 255:
            raise BadInput("invitation needs an ID of the form role/name, at most 255 bytes")
        if len(self.hints) > HINTS_MAX or not all(_hint_fits(hint) for hint in self.hints):
            raise BadInput(f"invitation takes at most {HINTS_MAX} hints of {HINT_MAX} printable bytes each")
        if len(self._line()) > LINE_MAX:
            raise BadInput(f"invitation is longer than {LINE_MAX} characters", hint="use fewer or shorter hints")

    @property
    def id(self) -> SpiffeId:
        """The SPIFFE ID the device will get."""
        return SpiffeId(self.trust_domain, "/" + self.role_path)

    def encode(self) -> str:
        """The one line, secret included, to be handed over out of band; the only way to see it."""
        return self._line()

    @classmethod
    def parse(cls, text: str) -> Self:
        """From one line in any case, ASCII white space around it. Raises BadInput, which never repeats the input."""
        text = text.strip(_BLANK)
        line = text.lower()  # of ASCII alone: other alphabets have letters that fold to it
        if not text.isascii() or not line.startswith(_PREFIX):
            raise BadInput("this is not an invitation", hint=_AGAIN)
        if len(line) > LINE_MAX:
            raise BadInput("the invitation is too long", hint=_AGAIN)
        body = line.removeprefix(_PREFIX)
        try:
            raw = base64.b32decode(body.upper() + "=" * (-len(body) % 8))
        except (binascii.Error, ValueError):
            _refuse_text()
        if not raw or len(raw) < _FIXED + 2:
            _refuse_text()
        if raw[0] != _VERSION:
            raise BadInput("the invitation is of a version this program does not know", hint="update this program")
        cut = (1, 1 + HASH_LEN, 1 + HASH_LEN + TOKEN_ID_LEN, _FIXED)
        try:
            domain, rest = _take(raw[_FIXED:])
            path, packed = _take(rest)
            hints = tuple(_HINTS.decode(packed))
            invitation = cls(
                raw[cut[0]:cut[1]], raw[cut[1]:cut[2]], Secret(raw[cut[2]:cut[3]]),
                domain.decode("ascii"), path.decode("ascii"), hints,
            )
        except (BadInput, msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            _refuse_text()
        if invitation.encode() != line:  # one invitation, one text
            _refuse_text()
        return invitation

    def _line(self) -> str:
        domain, path = self.trust_domain.encode(), self.role_path.encode()
        raw = b"".join((
            bytes([_VERSION]), self.root_sha256, self.token_id, self.secret.expose(),
            bytes([len(domain)]), domain, bytes([len(path)]), path, msgspec.msgpack.encode(self.hints),
        ))
        return _PREFIX + base64.b32encode(raw).decode("ascii").rstrip("=").lower()


def bundle_from_joined_root(invitation: Invitation, chain: Sequence[bytes]) -> TrustBundle:
    """The first bundle, from a chain (DER) that ends in the root the invitation names.

    Sequence 0: every bundle the gateway publishes is newer. Raises IdentityRefused(rule="root hash").
    """
    if not chain or sha256(chain[-1]) != invitation.root_sha256:
        raise IdentityRefused(
            "the gateway's root certificate is not the one the invitation names", rule="root hash",
            hint="a hop may be lying, or the invitation is for another trust domain or mistyped",
        )
    load_certificate(chain[-1])
    return TrustBundle(invitation.trust_domain, (bytes(chain[-1]),), 0)


def _take(data: bytes) -> tuple[bytes, bytes]:
    """(field, rest) of a field with one length byte before it."""
    if not data or len(data) < 1 + data[0]:
        raise BadInput("invitation is cut short")
    return data[1:1 + data[0]], data[1 + data[0]:]


def _hint_fits(hint: str) -> bool:
    shown = all(char == " " or unicodedata.category(char) not in _UNSEEN for char in hint)
    return 0 < len(hint.encode()) <= HINT_MAX and shown


def _refuse_text() -> NoReturn:
    raise BadInput("the invitation is cut short or mistyped", hint=_AGAIN) from None

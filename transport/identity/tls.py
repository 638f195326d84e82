"""TLS 1.3 contexts with SVIDs at both ends, for the tunnel and the HTTPS joining of hops and gateways.

The peer's SPIFFE ID is checked inside the handshake (`SSLContext.sslobject_class`), so that a refused peer never
reaches a handler and a refused server never gets a request. Tickets are off: TLS resumption would skip the check.
OpenSSL verifies path and validity; the SVID's own rules come from `transport.identity.verify`.
"""

import base64
import os
import ssl
from collections.abc import Callable, Collection
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Final

from transport.errors import IdentityRefused, LocalMisuse
from transport.identity.revocation import RevocationList
from transport.identity.svid import Svid, TrustBundle, load_certificate
from transport.identity.verify import VerifiedPeer, check_leaf, clock_error
from transport.primitives import sha256

NOTHING_REVOKED: Final = RevocationList()
_PEM_LINE: Final = 64
_EXPIRED, _NOT_YET_VALID = 10, 9
_DER: Final = 2  # X509_FILETYPE_ASN1, as the library's certificates want to be asked
_RULES: Final = {  # of OpenSSL's verification errors, as docs/SPIFFE.md has them
    2: "root", 7: "certificate signature", 18: "root", 19: "root", 20: "root", 21: "root", 24: "authority cA",
    25: "path length", 26: "purpose", 32: "authority keyCertSign", 34: "critical extension", 51: "name constraints",
}


class SvidRefused(ssl.SSLCertVerificationError):
    """Ends a handshake; `refusal` says which rule the peer broke."""

    refusal: IdentityRefused | None = None


class SvidObject(ssl.SSLObject):
    """A TLS connection whose `peer` is the SVID at the other end once the handshake is over; None: no certificate."""

    peer: VerifiedPeer | None = None
    own_leaf_sha256: bytes | None = None  # of the certificate shown on this very connection
    loaded_leaf_sha256: ClassVar[bytes | None] = None  # of the one that the context shows on new connections
    bundle: ClassVar[TrustBundle]
    revoked: ClassVar["staticmethod[[], RevocationList]"]
    roles: ClassVar[frozenset[str]]
    required: ClassVar[bool]

    def do_handshake(self) -> None:
        # OpenSSL took the context's certificate when it made this object, which was just before the first call.
        if self.own_leaf_sha256 is None:
            self.own_leaf_sha256 = self.loaded_leaf_sha256
        super().do_handshake()
        leaf = self.getpeercert(binary_form=True)
        if leaf is None and not self.required:
            return
        try:
            if leaf is None:
                raise IdentityRefused("the peer showed no certificate", rule="certificate")
            peer = check_leaf(leaf, self.bundle.trust_domain, self.roles)
            peer = replace(peer, issuers=tuple(load_certificate(der).serial_number for der in self._path()[1:]))
            self.revoked().check(peer)
            self.peer = peer
        except IdentityRefused as refusal:
            error = SvidRefused(str(refusal))
            error.refusal = refusal
            raise error from refusal


    def _path(self) -> list[bytes]:
        """What OpenSSL has verified, in DER, leaf first. A method of `SSLObject`'s own from Python 3.13 on."""
        path = self._sslobj.get_verified_chain()  # type: ignore[attr-defined]
        return [one if isinstance(one, bytes) else one.public_bytes(_DER) for one in path]


def server_context(
    svid: Svid, bundle: TrustBundle, peer_roles: Collection[str], *, require_client: bool,
    revoked: Callable[[], RevocationList] = lambda: NOTHING_REVOKED,
) -> ssl.SSLContext:
    """For a listener. With `require_client=False` a client may come without certificate (joining has none yet).

    A certificate that is shown must be an SVID of `bundle` in one of `peer_roles`, with nothing in its path that
    `revoked` has at that moment, or the handshake fails.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.verify_mode = ssl.CERT_REQUIRED if require_client else ssl.CERT_OPTIONAL
    context.num_tickets = 0
    return _prepare(context, svid, bundle, peer_roles, required=require_client, revoked=revoked)


def client_context(
    bundle: TrustBundle, svid: Svid | None = None, *, server_role: str = "gateway",
    revoked: RevocationList = NOTHING_REVOKED,
) -> ssl.SSLContext:
    """For a client that speaks only to an SVID of `server_role` with nothing of the list in its path; host names play
    no part.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_REQUIRED
    return _prepare(context, svid, bundle, (server_role,), required=True, revoked=lambda: revoked)


def unverified_context() -> ssl.SSLContext:
    """For fetching public data that is checked by other means (a root against an invitation's hash), and only that."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def load_svid(context: ssl.SSLContext, svid: Svid) -> None:
    """Gives a context its SVID; on a live one, new handshakes use the new SVID and running connections stay.

    `ssl` reads keys from files only: the file is a memfd, which no other user sees and no disk holds (Linux).
    Raises LocalMisuse if key and certificate do not fit.
    """
    pem = b"".join(_pem("CERTIFICATE", der) for der in svid.chain)
    descriptor = os.memfd_create("svid", os.MFD_CLOEXEC)
    try:
        with os.fdopen(descriptor, "wb", closefd=False) as file:
            file.write(pem + _pem("PRIVATE KEY", svid.key.to_pkcs8().expose()))
        context.load_cert_chain(Path("/proc/self/fd") / str(descriptor))
    except ssl.SSLError:
        raise LocalMisuse("the SVID's key and certificate do not fit each other") from None
    finally:
        os.close(descriptor)
    if issubclass(context.sslobject_class, SvidObject):
        context.sslobject_class.loaded_leaf_sha256 = sha256(svid.chain[0])


def own_leaf_of(transport: Any) -> bytes | None:
    """SHA-256 of the leaf certificate that this side showed on a connection, whatever its context shows by now."""
    connection = transport.get_extra_info("ssl_object") if transport is not None else None
    return connection.own_leaf_sha256 if isinstance(connection, SvidObject) else None


def peer_of(transport: Any) -> VerifiedPeer | None:
    """The verified peer of an asyncio (or aiohttp request's) transport; None without TLS or without a certificate."""
    connection = transport.get_extra_info("ssl_object") if transport is not None else None
    return connection.peer if isinstance(connection, SvidObject) else None


def refusal_in(error: BaseException) -> IdentityRefused | None:
    """Which identity was refused, if that is why a connection failed; looks through the causes of `error`."""
    seen: set[int] = set()
    todo: list[object] = [error]
    while todo:
        one = todo.pop()
        if not isinstance(one, BaseException) or id(one) in seen:
            continue
        seen.add(id(one))
        if isinstance(one, SvidRefused) and one.refusal is not None:
            return one.refusal
        if (refusal := _of_openssl(one, "gateway")) is not None:
            return refusal
        if isinstance(one, ssl.SSLError) and "ALERT" in (getattr(one, "reason", None) or ""):
            return IdentityRefused(
                "the server refused this side's certificate", rule="own certificate",
                hint="it has expired, a clock is wrong, or this device was revoked",
            )
        # The HTTP client hides the cause in attributes of its own as well.
        hidden = (getattr(one, name, None) for name in ("os_error", "certificate_error"))
        todo += [one.__cause__, one.__context__, *hidden]
    return None


def client_refusal(error: BaseException) -> IdentityRefused | None:
    """Why a listener's handshake ended, if the client broke a rule; None for what is no such thing: garbage, a hang-up.
    """
    if isinstance(error, SvidRefused) and error.refusal is not None:
        return error.refusal
    if getattr(error, "reason", None) == "UNSUPPORTED_PROTOCOL":
        return IdentityRefused("the client does not speak TLS 1.3", rule="TLS version")
    return _of_openssl(error, "client")


def _of_openssl(error: BaseException, role: str) -> IdentityRefused | None:
    """What OpenSSL found wrong with the path of a peer of `role`."""
    code = getattr(error, "verify_code", None)  # the HTTP client's own subclasses lack the attributes
    if not isinstance(error, ssl.SSLCertVerificationError) or not code:
        return None
    if code in (_EXPIRED, _NOT_YET_VALID):
        return clock_error(role, late=code == _EXPIRED)
    return IdentityRefused(
        "the peer's certificate is not acceptable", rule=_RULES.get(code, "path"),
        hint="the peer is of another trust domain, or the trust bundle here is old",
    )


def _prepare(
    context: ssl.SSLContext, svid: Svid | None, bundle: TrustBundle, roles: Collection[str], *, required: bool,
    revoked: Callable[[], RevocationList],
) -> ssl.SSLContext:
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.load_verify_locations(cadata=b"".join(bundle.roots))
    rules = {"bundle": bundle, "roles": frozenset(roles), "required": required, "revoked": staticmethod(revoked)}
    context.sslobject_class = type("SvidObject", (SvidObject,), rules)
    if svid is not None:
        load_svid(context, svid)
    return context


def _pem(kind: str, der: bytes) -> bytes:
    text = base64.b64encode(der).decode("ascii")
    lines = [text[start:start + _PEM_LINE] for start in range(0, len(text), _PEM_LINE)]
    return "\n".join([f"-----BEGIN {kind}-----", *lines, f"-----END {kind}-----", ""]).encode("ascii")

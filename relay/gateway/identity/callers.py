"""Whose HTTPS request it is: by the SVID of its connection, or by a token and what that is bound to."""

from dataclasses import dataclass
from typing import Final

from aiohttp import web
from jwt.utils import base64url_encode

from relay.gateway.identity.access import Access, AccessTokens
from relay.gateway.identity.denials import CERTIFICATE, PROOF, TOKEN, Denied
from relay.gateway.identity.dpop import ProofRefused, Proofs
from relay.gateway.identity.enrolment import Enrolment
from relay.gateway.identity.jose import TokenRefused, thumbprint
from transport.errors import IdentityRefused
from transport.identity.svid import SpiffeId
from transport.identity.tls import peer_of
from transport.identity.verify import VerifiedPeer

ROLES: Final = ("edge", "workload")
BY_SVID: Final = "Bearer svid"  # for clients that cannot leave the header out: no token at all


@dataclass(frozen=True)
class Caller:
    """Who asks, under which enrolment; `token` by which one (its `jti`), signed by which key, "" for the SVID alone."""

    peer: VerifiedPeer
    enrolment: int
    token: str = ""
    kid: str = ""


class Callers:
    """One for a gateway."""

    def __init__(self, enrolment: Enrolment, tokens: AccessTokens | None = None, proofs: Proofs | None = None) -> None:
        """Without `tokens` and `proofs`, no token is taken."""
        self._enrolment, self._tokens, self.proofs = enrolment, tokens, proofs

    async def of(self, request: web.Request) -> Caller:
        """Raises Denied, AuditUnavailable, StoreError."""
        if "Authorization" in request.headers and only(request, "Authorization") != BY_SVID:
            return await self._by_token(request)
        peer = svid_of(request)
        return Caller(peer, await self.enrolment_of(peer))

    async def enrolment_of(self, peer: VerifiedPeer) -> int:
        """Raises Denied, AuditUnavailable, StoreError."""
        try:
            await self._enrolment.meet(peer)
            return self._enrolment.enrolment_of(peer)
        except IdentityRefused as refusal:
            raise Denied(CERTIFICATE, refusal.rule, str(peer.id)) from None

    def stands(self, caller: Caller) -> bool:
        """Whether what signed the caller's token is believed still."""
        return not caller.kid or (self._tokens is not None and self._tokens.keys.believes(caller.kid))

    async def _by_token(self, request: web.Request) -> Caller:
        scheme, _, text = only(request, "Authorization").partition(" ")
        if self._tokens is None or self.proofs is None:
            raise Denied(TOKEN, "none are taken")
        if scheme.lower() not in ("bearer", "dpop") or not text:
            raise Denied(TOKEN, "scheme")
        try:
            access = self._tokens.check(text)
        except TokenRefused as refused:
            raise Denied(TOKEN, refused.rule) from None
        peer = await self._by_certificate(request, access) if scheme.lower() == "bearer" else (
            self._by_proof(request, access, text, self.proofs)
        )
        return Caller(peer, access.claims.enrolment, access.claims.jti, access.kid)

    async def _by_certificate(self, request: web.Request, access: Access) -> VerifiedPeer:
        """RFC 8705 section 3: the very certificate that the token was given for. A renewed one has other tokens."""
        claims = access.claims
        peer = peer_of(request.transport)
        if peer is None or not claims.cnf.certificate or hash_of_certificate(peer) != claims.cnf.certificate:
            raise Denied(TOKEN, "binding", claims.sub)
        if await self.enrolment_of(peer) != claims.enrolment:
            raise Denied(TOKEN, "enrolment", claims.sub)
        return peer

    def _by_proof(self, request: web.Request, access: Access, text: str, proofs: Proofs) -> VerifiedPeer:
        """RFC 9449 section 7: a proof for this request and this token, by the key that the token is bound to."""
        claims = access.claims
        try:
            proof = proofs.check(only(request, "DPoP"), method=request.method, path=request.path, token=text)
            if thumbprint(proof.key) != claims.cnf.key:
                raise Denied(TOKEN, "binding", claims.sub)
            proofs.use(proof)
        except ProofRefused as refused:
            raise Denied(PROOF, refused.rule, claims.sub) from None
        return VerifiedPeer(SpiffeId.parse(claims.sub), proof.key, b"", 0, float(claims.iat), float(claims.exp))


def svid_of(request: web.Request) -> VerifiedPeer:
    """The SVID of a connection, of a role that may ask. Raises Denied."""
    peer = peer_of(request.transport)
    if peer is None:
        raise Denied(CERTIFICATE, "none")
    if peer.id.role not in ROLES:
        raise Denied(CERTIFICATE, "role", str(peer.id))
    return peer


def hash_of_certificate(peer: VerifiedPeer) -> str:
    """`x5t#S256` of RFC 8705 section 3.1."""
    return base64url_encode(peer.leaf_sha256).decode()


def only(request: web.Request, header: str) -> str:
    """A header that comes once, else ""."""
    values = request.headers.getall(header, [])
    return values[0] if len(values) == 1 else ""

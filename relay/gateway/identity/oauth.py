"""The token endpoint: `client_credentials` for whoever shows an SVID, or signs an assertion and proves the same key.

Metadata is RFC 8414's, the key set RFC 7517's. A token is bound to what its client has shown: to the certificate of the
connection (RFC 8705), or to the key of its proof (RFC 9449).
"""

import asyncio
import logging
import time
import urllib.parse
from collections.abc import Callable
from typing import Any, Final

from aiohttp import web

from relay.gateway.answers import json_answer
from relay.gateway.audit.log import AuditLog
from relay.gateway.audit.refusals import Refusals
from relay.gateway.errors import AuditUnavailable
from relay.gateway.identity.access import AccessTokens, Bound
from relay.gateway.identity.assertions import ASSERTION_TYPE, Assertions
from relay.gateway.identity.ca import Authority
from relay.gateway.identity.callers import ROLES, Callers, hash_of_certificate, only, svid_of
from relay.gateway.identity.denials import ASSERTION, CERTIFICATE, PROOF, REQUEST, Denied
from relay.gateway.identity.dpop import ProofRefused, Proofs
from relay.gateway.identity.enrolment import Enrolment
from relay.gateway.identity.jose import ALGORITHM, TokenRefused, thumbprint
from relay.gateway.identity.nonces import Nonces
from relay.gateway.identity.registrations import Registration
from relay.gateway.identity.token_keys import TokenKeys
from relay.rates import Rate, SourceBuckets
from store.errors import StoreError
from transport.errors import IdentityRefused
from transport.identity.revocation import RevocationList

TOKEN_PATH: Final = "/oauth/token"
JWKS_PATH: Final = "/oauth/jwks"
METADATA_PATH: Final = "/.well-known/oauth-authorization-server"
GRANT: Final = "client_credentials"
FIELDS_MAX: Final = 16
PROOFS_MAX: Final = 131_072  # in a minute, each for one request; some 250 bytes
PROOFS_BY_KEY_MAX: Final = 8_192
TOKENS: Final = Rate(2.0, 120)  # of one enrolment: each is on record, and signed, perhaps where that has its price
KEY_SET_S: Final = 300  # for which a key set may be kept; a key is published for a day before it signs
_FORM: Final = "application/x-www-form-urlencoded"
_STATUS: Final = {"overloaded": 503, "unavailable": 503, "invalid_client": 401}  # all others: 400
_log = logging.getLogger(__name__)


def make_oauth(
    issuer: str, *, keys: TokenKeys, enrolment: Enrolment, authority: Authority,
    revocations: Callable[[], RevocationList], audit: AuditLog, refusals: Refusals, body_s: float,
    clock: Callable[[], float] = time.time,
) -> tuple["OAuth", Callers]:
    """The routes, and who knows callers by the tokens that these give out."""
    if urllib.parse.urlsplit(issuer).hostname in ("0.0.0.0", "::"):  # noqa: S104 - nothing is bound here
        _log.warning("tokens would name %s, which no client can call us by: set oauth.issuer", issuer)
    tokens = AccessTokens(issuer, keys, enrolment, clock=clock)
    proofs = Proofs(issuer, Nonces(clock), clock, used_max=PROOFS_MAX, used_by_key_max=PROOFS_BY_KEY_MAX)
    callers = Callers(enrolment, tokens, proofs)
    assertions = Assertions((issuer, issuer + TOKEN_PATH), ROLES, enrolment, authority, revocations, clock=clock)
    return OAuth(
        issuer, tokens=tokens, assertions=assertions, callers=callers, proofs=proofs, enrolment=enrolment, audit=audit,
        refusals=refusals, body_s=body_s,
    ), callers


class OAuth:
    """The routes of a gateway whose clients know it as `issuer`."""

    def __init__(
        self, issuer: str, *, tokens: AccessTokens, assertions: Assertions, callers: Callers, proofs: Proofs,
        enrolment: Enrolment, audit: AuditLog, refusals: Refusals, body_s: float,
    ) -> None:
        self._issuer, self._tokens, self._assertions, self._callers = issuer, tokens, assertions, callers
        self._proofs, self._enrolment, self._audit, self._refusals = proofs, enrolment, audit, refusals
        self._body_s = body_s
        self._rates = SourceBuckets(TOKENS, tokens.clock())

    def offer(self, app: web.Application) -> None:
        """Adds the routes; and a nonce to each answer to a proof."""
        app.on_response_prepare.append(self._prepared)
        app.router.add_post(TOKEN_PATH, self._token)
        app.router.add_get(JWKS_PATH, self._jwks, allow_head=False)
        app.router.add_get(METADATA_PATH, self._metadata, allow_head=False)

    async def _prepared(self, request: web.Request, response: web.StreamResponse) -> None:
        if "DPoP" in request.headers:
            response.headers["DPoP-Nonce"] = self._proofs.nonce()

    async def _metadata(self, _: web.Request) -> web.Response:
        return _public({
            "issuer": self._issuer, "token_endpoint": self._issuer + TOKEN_PATH, "jwks_uri": self._issuer + JWKS_PATH,
            "grant_types_supported": [GRANT], "response_types_supported": [],
            "token_endpoint_auth_methods_supported": ["tls_client_auth", "private_key_jwt"],
            "token_endpoint_auth_signing_alg_values_supported": [ALGORITHM],
            "tls_client_certificate_bound_access_tokens": True, "dpop_signing_alg_values_supported": [ALGORITHM],
        })

    async def _jwks(self, _: web.Request) -> web.Response:
        return _public({"keys": self._tokens.keys.jwks()})

    async def _token(self, request: web.Request) -> web.Response:
        try:
            answer = await self._given(request)
        except Denied as denied:
            answer = await self._denied(request, denied)
        except (AuditUnavailable, StoreError) as error:
            _log.error("no token was given: %s", error)
            answer = _error("unavailable")
        answer.headers["Cache-Control"] = "no-store"
        return answer

    async def _given(self, request: web.Request) -> web.Response:
        form = await self._form(request)
        if not form.get("grant_type"):
            raise Denied(REQUEST, "form")
        if form["grant_type"] != GRANT:
            raise Denied(REQUEST, "grant")
        if form.get("scope"):
            raise Denied(REQUEST, "scope")
        asserts = "client_assertion" in form or "client_assertion_type" in form
        shown = ASSERTION if asserts else CERTIFICATE
        prove = self._by_assertion(request, form) if asserts else self._by_svid(request)
        registration, bound, until = await prove
        if form.get("client_id", registration.id) != registration.id:
            raise Denied(shown, "client_id", registration.id)
        now = self._tokens.clock()
        if until <= now:  # on a connection that stands
            raise Denied(shown, "expired", registration.id)
        if not self._rates.of(str(registration.enrolment), now).take(now):
            raise Denied(shown, "overloaded", registration.id)
        await self._enrolment.seen(registration.enrolment)
        token, claims = await self._tokens.give(registration, bound, until=until)
        await self._audit.append(
            "token.issued", id=registration.id, enrolment=registration.enrolment, token=claims.jti,
            bound="key" if bound.key else "certificate", not_after=claims.exp,
        )
        return json_answer(200, {
            "access_token": token, "token_type": "DPoP" if bound.key else "Bearer",
            "expires_in": claims.exp - claims.iat,
        })

    async def _by_svid(self, request: web.Request) -> tuple[Registration, Bound, float]:
        """RFC 8705 section 2.1, by the URI in the certificate."""
        if "DPoP" in request.headers:  # a token has one binding, and who asks shall not be mistaken about which
            raise Denied(REQUEST, "two bindings")
        try:
            peer = svid_of(request)
            registration = self._enrolment.current(await self._callers.enrolment_of(peer), str(peer.id))
        except IdentityRefused as refusal:
            raise Denied(CERTIFICATE, refusal.rule) from None
        return registration, Bound(certificate=hash_of_certificate(peer)), peer.not_after

    async def _by_assertion(self, request: web.Request, form: dict[str, str]) -> tuple[Registration, Bound, float]:
        """RFC 7521 section 4.2, RFC 9449 section 5."""
        if form.get("client_assertion_type") != ASSERTION_TYPE:
            raise Denied(REQUEST, "assertion type")
        try:
            proof = self._proofs.check(only(request, "DPoP"), method=request.method, path=request.path)
            asserted = await self._assertions.check(form.get("client_assertion", ""), proof)
            self._proofs.use(proof)
            self._assertions.use(asserted)
        except ProofRefused as refused:
            raise Denied(PROOF, refused.rule) from None
        except (TokenRefused, IdentityRefused) as refused:
            raise Denied(ASSERTION, refused.rule) from None
        return asserted.registration, Bound(key=thumbprint(proof.key)), asserted.until

    async def _form(self, request: web.Request) -> dict[str, str]:
        """Each field once (RFC 6749 section 3.2). Raises Denied."""
        if request.content_type != _FORM:
            raise Denied(REQUEST, "content type")
        try:
            async with asyncio.timeout(self._body_s):
                data = await request.read()
            pairs = urllib.parse.parse_qsl(
                data.decode("ascii"), keep_blank_values=True, strict_parsing=True, max_num_fields=FIELDS_MAX,
                errors="strict",
            )
        except TimeoutError:
            raise Denied(REQUEST, "slow") from None
        except ValueError:
            raise Denied(REQUEST, "form") from None
        form = dict(pairs)
        if len(form) != len(pairs):
            raise Denied(REQUEST, "duplicate field")
        return form

    async def _denied(self, request: web.Request, denied: Denied) -> web.Response:
        """A nonce that is missing or old leaves no record: so every client begins."""
        error = denied.error
        if error != "use_dpop_nonce":
            await self._refusals.append("oauth.refused", reason=denied.reason, id=denied.id, peer=request.remote)
        return _error("invalid_client" if denied.shown == CERTIFICATE and error != "overloaded" else error)


def _error(error: str) -> web.Response:
    """RFC 6749 section 5.2."""
    return json_answer(_STATUS.get(error, 400), {"error": error})


def _public(value: dict[str, Any]) -> web.Response:
    answer = json_answer(200, value)
    answer.headers["Cache-Control"] = f"public, max-age={KEY_SET_S}"
    return answer

"""Why somebody is refused, for the audit, and what they get to hear: one table for tokens, proofs and certificates.

The wire tells what a client can do something about, and no more: that it needs a nonce, that a proof was wrong, that a
token is not good. Whether a token was forged, stolen, late or of a revoked device, and which claim was at fault, is the
audit's.
"""

from typing import Final


class Denied(Exception):
    """`reason` is for the audit: what was shown, and the rule that it broke. `id` is whose it said it was."""

    def __init__(self, shown: str, rule: str, identity: str = "") -> None:
        super().__init__(f"{shown}: {rule}")
        self.shown, self.rule, self.id = shown, rule, identity

    @property
    def reason(self) -> str:
        return f"{self.shown}: {self.rule}"

    @property
    def error(self) -> str:
        """On the wire: of RFC 6749 section 5.2, RFC 6750 section 3.1, RFC 9449 section 7.1."""
        return _WIRE.get(self.reason) or _WIRE[self.shown]


CERTIFICATE: Final = "certificate"  # of a TLS connection
TOKEN: Final = "token"
PROOF: Final = "proof"
ASSERTION: Final = "assertion"
REQUEST: Final = "request"
_WIRE: Final = {
    "certificate: none": "identity_unknown",
    "certificate: overloaded": "overloaded",
    "certificate": "identity_refused",
    "token": "invalid_token",
    "proof: nonce": "use_dpop_nonce",
    "proof: overloaded": "overloaded",
    "proof": "invalid_dpop_proof",
    "assertion: overloaded": "overloaded",
    "assertion": "invalid_client",
    "request: grant": "unsupported_grant_type",
    "request: scope": "invalid_scope",
    "request": "invalid_request",
}

"""The trust bundle in SPIFFE's own form, for whoever is no part of Causeway: a JWK Set with an entry for each root, and
one for each key that signs JWT-SVIDs.

Source: SPIFFE Trust Domain and Bundle section 4, X509-SVID section 6.1, JWT-SVID section 4, RFC 7517.
"""

import base64
from typing import Any, Final

from relay.gateway.identity.jose import jwk_of
from relay.gateway.identity.token_keys import TokenKeys
from transport.identity.svid import TrustBundle, key_of, load_certificate

REFRESH_S: Final = 3_600  # as often as a device renews, or less; a new root is published for 90 days


def spiffe_bundle(bundle: TrustBundle, keys: TokenKeys | None = None) -> dict[str, Any]:
    """A JSON object. Roots made here are P-256; raises IdentityRefused for one of another kind.

    `keys` sign JWT-SVIDs. With them the sequence number grows with each new one, too: it is the bundle's, and in its
    lower 32 bits when the newest was made.
    """
    return {
        "keys": [*(_jwk(der) for der in bundle.roots), *(jwt_entries(keys) if keys else [])],
        "spiffe_sequence": bundle.sequence << 32 | keys.newest & 0xFFFFFFFF if keys else bundle.sequence,
        "spiffe_refresh_hint": REFRESH_S,
    }


def jwt_entries(keys: TokenKeys) -> list[dict[str, str]]:
    """Those keys as entries of a bundle."""
    return [
        {**{name: one[name] for name in ("kty", "crv", "x", "y", "kid")}, "use": "jwt-svid"} for one in keys.jwks()
    ]


def _jwk(der: bytes) -> dict[str, Any]:
    certificate = base64.b64encode(der).decode("ascii")  # x5c is not base64url
    return {**jwk_of(key_of(load_certificate(der))), "use": "x509-svid", "x5c": [certificate]}

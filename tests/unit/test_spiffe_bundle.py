"""The bundle in SPIFFE's form, as somebody else's code reads it."""

import base64
import json
from dataclasses import replace

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from jwt.algorithms import ECAlgorithm

from relay.gateway.identity.spiffe_bundle import spiffe_bundle
from tests.support.ca import Ca
from tests.support.vector_chains import ROOT, make
from transport.errors import IdentityRefused
from transport.identity.svid import TrustBundle

BUNDLE = Ca().bundle(sequence=7, also=[Ca().root_der])


def test_each_root_is_a_key_of_use_x509_svid() -> None:
    told = json.loads(json.dumps(spiffe_bundle(BUNDLE)))
    assert (told["spiffe_sequence"], len(told["keys"])) == (7, 2)
    assert isinstance(told["spiffe_refresh_hint"], int) and told["spiffe_refresh_hint"] > 0
    for entry, root in zip(told["keys"], BUNDLE.roots, strict=True):
        assert entry["use"] == "x509-svid" and "kid" not in entry
        (shown,) = entry["x5c"]
        assert base64.b64decode(shown, validate=True) == root
        key = ECAlgorithm.from_jwk(entry)
        assert isinstance(key, ec.EllipticCurvePublicKey)
        assert key == x509.load_der_x509_certificate(root).public_key()


def test_a_root_of_another_kind_is_not_told_wrongly() -> None:
    other = make(replace(ROOT, key=lambda: ec.generate_private_key(ec.SECP384R1())), None, 1_800_000_000)
    with pytest.raises(IdentityRefused):
        spiffe_bundle(TrustBundle("field.example", (other.der,), 1))

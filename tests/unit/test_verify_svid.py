"""Each rule of an SVID, broken alone, is refused by its name."""

import time
from dataclasses import replace

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from tests.support.ca import DAY, Ca, key_usage
from transport.errors import IdentityExpired, IdentityRefused
from transport.identity.svid import TrustBundle
from transport.identity.verify import CACHE_ENTRIES, SvidVerifier, verify_svid
from transport.primitives import sha256

NOW = time.time()
CA = Ca(now=NOW)
HOUR = 3600.0


def rule(chain: tuple[bytes, ...], bundle: TrustBundle | None = None, *, role: str = "edge", now: float = NOW) -> str:
    with pytest.raises(IdentityRefused) as caught:
        verify_svid(chain, bundle or CA.bundle(), role=role, now=now)
    assert str(caught.value).islower() or "CA" not in str(caught.value)
    return caught.value.rule


@pytest.mark.parametrize("intermediate", [True, False])
def test_a_good_chain_says_who_it_is(intermediate: bool) -> None:
    ca = Ca(now=NOW, intermediate=intermediate)
    svid = ca.issue("edge/lap-1")
    for chain in (svid.chain, (*svid.chain, ca.root_der)):
        peer = verify_svid(chain, ca.bundle(), role="edge", now=NOW)
        assert peer.id == svid.id and peer.key.spki == svid.key.public.spki
        assert peer.leaf_sha256 == sha256(svid.chain[0])
        assert (peer.not_before, peer.not_after) == (svid.not_before, svid.not_after)


def test_a_leaf_without_extended_usage_is_enough() -> None:
    assert verify_svid(CA.issue(extended=False).chain, CA.bundle(), role="edge", now=NOW).id.role == "edge"


@pytest.mark.parametrize("path", ["gateway/g", "hop/h", "edgeling/x", "workload/edge"])
def test_every_wrong_role_is_refused(path: str) -> None:
    assert rule(CA.issue(path).chain) == "role"


def test_an_edge_cannot_be_the_gateway() -> None:
    assert rule(CA.issue("edge/lap-1").chain, role="gateway") == "role"


def test_rules_of_the_leaf() -> None:
    td = "spiffe://field.example"
    assert rule(CA.issue(uris=[]).chain) == "exactly one URI SAN"
    assert rule(CA.issue(uris=[f"{td}/edge/a", f"{td}/edge/b"]).chain) == "exactly one URI SAN"
    assert rule(CA.issue(uris=["https://field.example/edge/a"]).chain) == "ID scheme"
    assert rule(CA.issue(uris=[td]).chain) == "workload path"
    assert rule(CA.issue(uris=["spiffe://other.example/edge/a"]).chain) == "trust domain"
    assert rule(CA.issue(ca=True).chain) == "CA as leaf"
    assert rule(CA.issue(with_usage=False).chain) == "key usage missing"
    assert rule(CA.issue(usage=key_usage("key_encipherment")).chain) == "key usage digitalSignature"
    assert rule(CA.issue(usage=key_usage("digital_signature", "key_cert_sign")).chain) == "key usage keyCertSign"
    assert rule(CA.issue(usage=key_usage("digital_signature", "crl_sign")).chain) == "key usage cRLSign"
    assert rule(CA.issue(foreign_key=ec.generate_private_key(ec.SECP384R1()).public_key()).chain) == "key type"
    assert rule(CA.issue(foreign_key=rsa.generate_private_key(65537, 2048).public_key()).chain) == "key type"
    assert rule(CA.issue(padding=2048).chain) == "certificate size"


def test_a_certificate_has_one_form() -> None:
    """Where a signature's last bit is 0, the library takes a BIT STRING that says it has one bit fewer, too."""
    leaf, *rest = next(chain for chain in iter(lambda: CA.issue().chain, ()) if chain[0][-1] % 2 == 0)
    start = len(leaf) - len(x509.load_der_x509_certificate(leaf).signature)
    shorter = leaf[:start - 1] + b"\1" + leaf[start:]
    assert x509.load_der_x509_certificate(shorter).signature == leaf[start:]
    assert rule((shorter, *rest)) == "encoding"


def test_rules_of_the_chain() -> None:
    svid, root = CA.issue(), CA.root_der
    leaf, intermediate = svid.chain
    other = Ca(now=NOW)  # the same names, other keys
    assert rule(()) == "chain length"
    assert rule((leaf, intermediate, intermediate, root)) == "chain length"
    assert rule((b"",)) == "certificate size"
    assert rule((b"\x30\x03\x02\x01\x01",)) == "encoding"
    assert rule((leaf + b"\0", intermediate)) == "encoding"
    assert rule((leaf,)) == "root"
    assert rule((leaf, root)) == "root"  # the intermediate is missing, though a root came along
    assert rule((leaf, root, intermediate)) == "chain order"
    assert rule((leaf, other.intermediates[0])) == "certificate signature"
    assert rule(other.issue().chain) == "certificate signature"
    assert rule(Ca("other.example", now=NOW).issue(uris=["spiffe://field.example/edge/a"]).chain) == "root"
    assert rule((root,)) in ("exactly one URI SAN", "CA as leaf")
    assert rule(svid.chain, TrustBundle("field.example", (), 1)) == "root"
    assert rule(svid.chain, TrustBundle("other.example", (root,), 1)) == "trust domain"


def test_a_foreign_root_at_the_end_gains_nothing() -> None:
    other = Ca(now=NOW, name="foreign root")
    assert rule((*other.issue().chain, other.root_der)) == "root"


def test_H14_validity_has_a_minute_of_leeway_and_no_more() -> None:
    svid = CA.issue(start=-HOUR, lifetime=2 * HOUR)
    for now in (svid.not_before - 59, svid.not_after + 59):
        assert verify_svid(svid.chain, CA.bundle(), role="edge", now=now).id == svid.id
    for now, name in ((svid.not_before - 61, "not yet valid"), (svid.not_after + 61, "expired")):
        with pytest.raises(IdentityExpired) as caught:
            verify_svid(svid.chain, CA.bundle(), role="edge", now=now)
        assert caught.value.rule == name and "clock" in (caught.value.hint or "")


def test_the_intermediate_and_the_root_expire_too() -> None:
    ca = Ca(now=NOW, intermediate_start=-DAY, intermediate_lifetime=DAY + HOUR, root_lifetime=2 * DAY + 2 * HOUR)
    svid = ca.issue(lifetime=5 * HOUR)
    assert verify_svid(svid.chain, ca.bundle(), role="edge", now=NOW).not_after == pytest.approx(NOW + HOUR, abs=1)
    assert rule(svid.chain, ca.bundle(), now=NOW + HOUR + 61) == "expired"
    direct = Ca(now=NOW, intermediate=False, root_lifetime=2 * DAY + 2 * HOUR)
    leaf = direct.issue(lifetime=5 * HOUR)
    assert verify_svid(leaf.chain, direct.bundle(), role="edge", now=NOW).not_after == pytest.approx(NOW + 7200, abs=1)
    assert rule(leaf.chain, direct.bundle(), now=NOW + 7261) == "root expired"


def test_certificates_that_are_never_valid_together() -> None:
    ca = Ca(now=NOW, intermediate_start=-DAY, intermediate_lifetime=HOUR)
    assert rule(ca.issue().chain, ca.bundle()) == "validity"


def test_H2_a_removed_root_refuses_though_the_path_is_cached() -> None:
    verifier, new = SvidVerifier(), Ca(now=NOW, name="new root")
    svid = CA.issue()
    both = CA.bundle(sequence=1, also=[new.root_der])
    verifier.verify(svid.chain, both, role="edge", now=NOW)
    for without in (TrustBundle("field.example", (new.root_der,), 2), TrustBundle("field.example", (new.root_der,), 1)):
        with pytest.raises(IdentityRefused):
            verifier.verify(svid.chain, without, role="edge", now=NOW)


def test_a_cached_path_still_expires_and_keeps_its_role() -> None:
    verifier, svid = SvidVerifier(), CA.issue()
    verifier.verify(svid.chain, CA.bundle(), role="edge", now=NOW)
    with pytest.raises(IdentityExpired):
        verifier.verify(svid.chain, CA.bundle(), role="edge", now=svid.not_after + 61)
    with pytest.raises(IdentityRefused, match="role gateway"):
        verifier.verify(svid.chain, CA.bundle(), role="gateway", now=NOW)


def test_the_cache_is_bounded_and_saves_the_path(monkeypatch: pytest.MonkeyPatch) -> None:
    verifier, svid = SvidVerifier(), CA.issue()
    bundle = CA.bundle()
    first = verifier.verify(svid.chain, bundle, role="edge", now=NOW)
    assert verifier.verify(svid.chain, bundle, role="edge", now=NOW) is first
    for sequence in range(2, CACHE_ENTRIES + 3):
        verifier.verify(svid.chain, replace(bundle, sequence=sequence), role="edge", now=NOW)
    assert len(verifier._paths) == CACHE_ENTRIES
    assert verifier.verify(svid.chain, bundle, role="edge", now=NOW) is not first

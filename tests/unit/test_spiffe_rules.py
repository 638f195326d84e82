"""Each rule of SPIFFE-ID section 2 and of X509-SVID, kept alone and broken alone; docs/SPIFFE.md lists the same."""

import re
import time
from dataclasses import replace
from pathlib import Path

import pytest
from cryptography import x509

from tests.support.ca import DAY
from tests.support.vector_chains import CLIENT, CODE, DOMAIN, GATEWAY, INTERMEDIATE, LEAF, ROOT, SERVER, Spec, make, uri
from transport.errors import BadInput, IdentityRefused, NotSpiffeId
from transport.identity.svid import SpiffeId, TrustBundle, check_trust_domain
from transport.identity.verify import SvidVerifier

NOW = time.time()
TABLE = (Path(__file__).parents[2] / "docs" / "SPIFFE.md").read_text()
LONG = "spiffe://a/" + "b" * 2037
OWN = uri(f"spiffe://{DOMAIN}")

IDS: list[tuple[str, str, list[str], list[str]]] = [
    # section, rule, IDs that keep it, texts that break it and nothing before it
    ("2", "ID scheme", ["spiffe://a"], ["", "https://a/b", "spiffe:/a/b", "spiffe", "SPIFFE://a/b", "Spiffe://a"]),
    ("2", "ID query", ["spiffe://a/b"], ["spiffe://a/b?", "spiffe://a?x=1", "spiffe://a/b?x=1"]),
    ("2", "ID fragment", ["spiffe://a/b"], ["spiffe://a/b#", "spiffe://a#f", "spiffe://a/b?x#f"]),
    ("2.1", "trust domain empty", ["spiffe://a"], ["spiffe://", "spiffe:///a"]),
    ("2.1", "ID user info", ["spiffe://a/b"], ["spiffe://me@a/b", "spiffe://@a/b", "spiffe://me:pw@a/b"]),
    ("2.1", "ID port", ["spiffe://a/b"], ["spiffe://a:443/b", "spiffe://a:/b"]),
    ("2.1", "trust domain case", ["spiffe://a.b/c"], ["spiffe://A.b/c", "spiffe://a.B"]),
    ("2.1", "trust domain characters", ["spiffe://a_b-c.9/d", "spiffe://10.0.0.1/d", "spiffe://..", "spiffe://-"],
     ["spiffe://a b/c", "spiffe://[::1]/c", "spiffe://fi\u00e9ld/c", "spiffe://a\n", "spiffe://a~b", "spiffe://\u212a"]),
    ("2.1", "trust domain percent-encoding", ["spiffe://a/b"], ["spiffe://%61/b", "spiffe://a%2eb"]),
    ("2.2", "path percent-encoding", ["spiffe://a/b"], ["spiffe://a/%62", "spiffe://a/b%2Fc"]),
    ("2.2", "path empty segment", ["spiffe://a/b/c"], ["spiffe://a//b", "spiffe://a/b//c"]),
    ("2.2", "path relative segment", ["spiffe://a/.../.b/b."], ["spiffe://a/./b", "spiffe://a/b/..", "spiffe://a/."]),
    ("2.2", "path trailing slash", ["spiffe://a", "spiffe://a/b"], ["spiffe://a/", "spiffe://a/b/", "spiffe://a//"]),
    ("2.2", "path characters", ["spiffe://a/aZ09._-/b"],
     ["spiffe://a/b c", "spiffe://a/b:c", "spiffe://a/b@c", "spiffe://a/\u00e4", "spiffe://a/b\n", "spiffe://a/\u0661"]),
    ("2.3", "ID length", [LONG], [LONG + "b"]),
    ("2.3", "trust domain length", ["spiffe://" + "a" * 255 + "/b"], ["spiffe://" + "a" * 256 + "/b"]),
]


@pytest.mark.parametrize(("section", "rule", "kept", "broken"), IDS, ids=[row[1] for row in IDS])
def test_a_rule_of_an_id(section: str, rule: str, kept: list[str], broken: list[str]) -> None:
    assert f"| SPIFFE-ID {section} | {rule} |" in TABLE
    for text in kept:
        assert str(SpiffeId.parse(text)) == text
    for text in broken:
        with pytest.raises(NotSpiffeId) as caught:
            SpiffeId.parse(text)
        assert caught.value.rule == rule, text
        assert len(text) < 12 or text not in str(caught.value)
        if text.startswith("spiffe://") and rule.startswith("path"):
            with pytest.raises(NotSpiffeId) as caught:
                SpiffeId("a", text.removeprefix("spiffe://a"))
            assert caught.value.rule == rule
        if rule.startswith("trust domain"):
            with pytest.raises(BadInput):
                check_trust_domain(text.removeprefix("spiffe://").partition("/")[0])


def test_parts_make_no_id_that_is_too_long() -> None:
    assert SpiffeId("a", "/" + "b" * 2037)
    with pytest.raises(NotSpiffeId) as caught:
        SpiffeId("a", "/" + "b" * 2038)
    assert caught.value.rule == "ID length"


def test_the_path_keeps_its_case_and_the_trust_domain_has_but_one() -> None:
    """SPIFFE-ID 2.4: case means nothing in scheme and trust domain, and something in the path."""
    assert SpiffeId.parse("spiffe://a/B") != SpiffeId.parse("spiffe://a/b")
    for text in ("SPIFFE://a/b", "spiffe://A/b"):
        with pytest.raises(NotSpiffeId):
            SpiffeId.parse(text)


Chain = tuple[Spec, Spec, Spec]
GOOD: Chain = (LEAF, INTERMEDIATE, ROOT)


def leaf(**changes: object) -> Chain:
    return replace(LEAF, **changes), INTERMEDIATE, ROOT  # type: ignore[arg-type]


def middle(**changes: object) -> Chain:
    return LEAF, replace(INTERMEDIATE, **changes), ROOT  # type: ignore[arg-type]


def root(**changes: object) -> Chain:
    return LEAF, INTERMEDIATE, replace(ROOT, **changes)  # type: ignore[arg-type]


SIGNS = "digital_signature"
DNS = x509.DNSName("a.example")
CERTIFICATES: list[tuple[str, str, Chain, Chain]] = [
    # section, rule, a chain that keeps it at its edge, a chain that breaks it
    ("2", "exactly one URI SAN", leaf(san=(*uri(GATEWAY), DNS, DNS)), leaf(san=uri(GATEWAY) + uri(GATEWAY + "2"))),
    ("2", "exactly one URI SAN", GOOD, leaf(san=(DNS,))),
    ("2", "exactly one URI SAN", GOOD, leaf(san=None, name="x")),
    ("3.1", "workload path", GOOD, leaf(san=OWN)),
    ("3.1", "SAN critical", leaf(name="x", san_critical=False), leaf(san_critical=False)),
    ("3.1", "SAN critical", GOOD, leaf(name="x")),
    ("3.2", "authority path", middle(san=OWN), middle(san=uri(GATEWAY))),
    ("3.2", "authority path", root(san=uri(f"spiffe://{DOMAIN}/")), root(san=uri(f"spiffe://{DOMAIN}/a"))),
    ("3.2", "trust domain case", root(san=OWN), root(san=uri("spiffe://Field.example"))),
    ("4.1", "CA as leaf", leaf(ca=None), leaf(ca=True, usage=("key_cert_sign",))),
    ("4.1", "authority cA", GOOD, middle(ca=False, depth=None)),
    ("4.1", "authority cA", GOOD, middle(ca=None)),
    ("4.1", "path length", root(depth=None), root(depth=0)),
    ("4.2", "name constraints", middle(constraints=x509.NameConstraints([x509.DNSName("b.example")], None)),
     middle(constraints=x509.NameConstraints([x509.UniformResourceIdentifier(DOMAIN)], None))),
    ("4.3", "key usage missing", GOOD, leaf(usage=None)),
    ("4.3", "key usage missing", GOOD, middle(usage=None)),
    ("4.3", "key usage critical", GOOD, leaf(usage_critical=False)),
    ("4.3", "key usage critical", middle(usage_critical=False), middle(usage_critical=False, san=OWN)),
    ("4.3", "key usage digitalSignature", leaf(usage=(SIGNS, "key_agreement", "key_encipherment")),
     leaf(usage=("key_agreement", "key_encipherment"))),
    ("4.3", "key usage keyCertSign", GOOD, leaf(usage=(SIGNS, "key_cert_sign"))),
    ("4.3", "key usage cRLSign", GOOD, leaf(usage=(SIGNS, "crl_sign"))),
    ("4.3", "authority keyCertSign", middle(usage=("key_cert_sign",)), middle(usage=("crl_sign", SIGNS))),
    ("4.4", "extended key usage", leaf(eku=None), leaf(eku=(CLIENT,))),
    ("4.4", "extended key usage", leaf(eku=(CODE, SERVER, CLIENT)), leaf(eku=(SERVER,))),
    ("4.4", "extended key usage", middle(eku=(CLIENT,)), middle(eku=(CODE,))),
    ("5.1", "critical extension", GOOD, leaf(unknown_critical=True)),
    ("5.1", "authority key identifier", GOOD, leaf(aki=False)),
    ("5.1", "expired", leaf(end=-59.0), leaf(end=-61.0)),
    ("5.1", "not yet valid", leaf(start=59.0), leaf(start=61.0)),
    ("5.1", "validity", GOOD, middle(start=-2 * DAY, end=-DAY)),
    ("5.1", "root expired", GOOD, root(end=-61.0)),
    ("5.2", "CA as leaf", GOOD, leaf(ca=True)),
    ("5.2", "ID scheme", GOOD, leaf(san=uri(f"https://{DOMAIN}/gateway/main"))),
]


def verify(chain: Chain, trust_domain: str = DOMAIN) -> None:
    top = make(chain[2], None, NOW)
    between = make(chain[1], top, NOW)
    shown = [make(chain[0], between, NOW).der, between.der]
    SvidVerifier().verify(shown, TrustBundle(trust_domain, (top.der,), 1), role="gateway", now=NOW)


@pytest.mark.parametrize(("section", "rule", "kept", "broken"), CERTIFICATES,
                         ids=[f"{number} {row[1]}" for number, row in enumerate(CERTIFICATES)])
def test_a_rule_of_a_certificate(section: str, rule: str, kept: Chain, broken: Chain) -> None:
    assert rule.startswith("trust domain case") or f"| X509-SVID {section} | {rule} |" in TABLE
    verify(kept)
    with pytest.raises(IdentityRefused) as caught:
        verify(broken)
    assert caught.value.rule == rule


def test_a_root_of_the_right_name_that_did_not_sign() -> None:
    first, second = (make(ROOT, None, NOW) for _ in range(2))
    between = make(INTERMEDIATE, first, NOW)
    chain = [make(LEAF, between, NOW).der, between.der]
    bundle = TrustBundle(DOMAIN, (second.der,), 1)
    with pytest.raises(IdentityRefused) as caught:
        SvidVerifier().verify(chain, bundle, role="gateway", now=NOW)
    assert caught.value.rule == "certificate signature"
    both = replace(bundle, roots=(second.der, first.der))
    assert SvidVerifier().verify(chain, both, role="gateway", now=NOW)
    with pytest.raises(IdentityRefused) as caught:  # what is wrong is looked for on the path to the root that did
        chain[0] = make(replace(LEAF, aki=False), between, NOW).der
        SvidVerifier().verify(chain, both, role="gateway", now=NOW)
    assert caught.value.rule == "authority key identifier"


def test_the_table_names_every_rule_once_and_no_other() -> None:
    rows = re.findall(r"^\| (SPIFFE-ID|X509-SVID|here) ([0-9.]*) ?\| ([^|]+) \|", TABLE, re.M)
    told = [(f"{book} {section}".strip(), rule) for book, section, rule in rows]
    assert len(told) == len(set(told))
    tested = {(f"SPIFFE-ID {row[0]}", row[1]) for row in IDS} | {
        (f"X509-SVID {row[0]}", row[1]) for row in CERTIFICATES if row[1] != "trust domain case"
    }
    assert {row for row in told if row[0] != "here"} == tested | {("X509-SVID 5.1", "root"),
                                                                  ("X509-SVID 5.1", "chain order"),
                                                                  ("X509-SVID 5.1", "certificate signature")}

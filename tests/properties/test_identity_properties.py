"""Hostile certificates and invitations: whatever comes in, one typed refusal comes out."""

import contextlib
import string
import time

from hypothesis import given
from hypothesis import strategies as st

from tests.support.ca import Ca
from transport.errors import BadInput, IdentityRefused, ProtocolViolation
from transport.identity.join import Invitation
from transport.identity.svid import SpiffeId, make_csr, parse_csr
from transport.identity.verify import SvidVerifier, check_leaf
from transport.primitives import Secret, SigningKey, sha256

NOW = time.time()
CA = Ca(now=NOW)
CHAIN = (*CA.issue("edge/lap-1").chain, CA.root_der)
CSR = make_csr(SigningKey.generate())
LINE = Invitation(sha256(b"r"), b"tokentok", Secret(bytes(16)), "field.example", "edge/lap-1", ("tcp:h:1",)).encode()

edits = st.lists(st.tuples(st.integers(0, 4000), st.integers(0, 255), st.sampled_from(["flip", "set", "drop", "add"])),
                 min_size=1, max_size=4)


def edited(data: bytes, changes: list[tuple[int, int, str]]) -> bytes:
    out = bytearray(data)
    for where, value, how in changes:
        at = where % max(1, len(out))
        if how == "add":
            out.insert(at, value)
        elif out and how == "drop":
            del out[at]
        elif out:
            out[at] = value if how == "set" else out[at] ^ (1 << value % 8)
    return bytes(out)


@given(changes=edits, which=st.integers(0, 2))
def test_a_mutated_certificate_is_refused_or_harmless(changes: list[tuple[int, int, str]], which: int) -> None:
    chain = list(CHAIN)
    chain[which] = edited(chain[which], changes)
    verifier = SvidVerifier()
    try:
        peer = verifier.verify(chain, CA.bundle(), role="edge", now=NOW)
    except IdentityRefused as refused:
        assert refused.rule
    else:
        assert tuple(chain) == CHAIN and str(peer.id) == "spiffe://field.example/edge/lap-1"


@given(changes=edits)
def test_a_mutated_leaf_alone(changes: list[tuple[int, int, str]]) -> None:
    with contextlib.suppress(IdentityRefused):
        assert check_leaf(edited(CHAIN[0], changes), "field.example", {"edge"}).id.trust_domain == "field.example"


@given(data=st.binary(max_size=300))
def test_noise_is_no_certificate_and_no_request(data: bytes) -> None:
    for refusal, attempt in ((IdentityRefused, lambda: SvidVerifier().verify((data,), CA.bundle(), role="e", now=NOW)),
                             (ProtocolViolation, lambda: parse_csr(data))):
        try:
            attempt()
        except refusal:
            continue
        raise AssertionError("noise was accepted")


@given(changes=edits)
def test_a_mutated_request_is_refused_or_the_same(changes: list[tuple[int, int, str]]) -> None:
    mutated = edited(CSR, changes)
    with contextlib.suppress(ProtocolViolation):
        parse_csr(mutated)
        assert mutated == CSR


@given(text=st.text(alphabet=string.ascii_lowercase + string.digits + "/.:%?#@-_ A", max_size=60))
def test_an_id_that_parses_prints_the_same(text: str) -> None:
    for candidate in (text, "spiffe://" + text):
        with contextlib.suppress(BadInput):
            parsed = SpiffeId.parse(candidate)
            assert str(parsed) == candidate and SpiffeId.parse(str(parsed)) == parsed


@given(changes=edits)
def test_a_mutated_invitation_is_refused_or_another_whole_one(changes: list[tuple[int, int, str]]) -> None:
    text = edited(LINE.encode(), changes).decode("latin-1")
    with contextlib.suppress(BadInput):
        assert Invitation.parse(text).encode() == text.strip().lower()


names = st.text(alphabet=string.ascii_letters + string.digits + "-_", min_size=1, max_size=40)


@given(root=st.binary(min_size=32, max_size=32), token=st.binary(min_size=8, max_size=8),
       secret=st.binary(min_size=16, max_size=16), name=names,
       hints=st.lists(st.text(alphabet="abcü:/.", min_size=1, max_size=40), max_size=8))
def test_every_invitation_survives_its_line(
    root: bytes, token: bytes, secret: bytes, name: str, hints: list[str]
) -> None:
    read = Invitation.parse(Invitation(root, token, Secret(secret), "t.d", f"hop/{name}", tuple(hints)).encode())
    assert (read.root_sha256, read.token_id, read.secret.expose(), read.role_path, read.hints) == (
        root, token, secret, f"hop/{name}", tuple(hints))

"""Invitations: one line in, the same line out, and no secret anywhere else."""

import base64
import copy
import pickle

import pytest

from tests.support.ca import Ca
from transport.errors import BadInput, IdentityRefused
from transport.identity.join import (
    DEVICE_LABEL,
    LINE_MAX,
    HttpsOperation,
    Invitation,
    bundle_from_joined_root,
    https_transcript,
    signed_input,
)
from transport.primitives import Secret, sha256

SECRET = bytes(range(16))


def invitation(**changes: object) -> Invitation:
    fields: dict[str, object] = {
        "root_sha256": sha256(b"root"), "token_id": b"tokentok", "secret": Secret(SECRET),
        "trust_domain": "field.example", "role_path": "edge/lap-1", "hints": ("unix:/run/hop.sock", "https://gw:8443"),
    }
    return Invitation(**(fields | changes))  # type: ignore[arg-type]


def test_a_line_survives_the_way() -> None:
    line = invitation().encode()
    assert line.startswith("cw1") and line == line.lower() and "=" not in line and len(line.split()) == 1
    for text in (line, line.upper(), f"  {line}\n"):
        read = Invitation.parse(text)
        assert read.encode() == line
        assert read.secret.expose() == SECRET and read.hints == ("unix:/run/hop.sock", "https://gw:8443")
        assert str(read.id) == "spiffe://field.example/edge/lap-1"


def test_the_layout_is_the_documented_one() -> None:
    body = invitation(hints=("a",)).encode().removeprefix("cw1").upper()
    raw = base64.b32decode(body + "=" * (-len(body) % 8))
    assert raw == (b"\x01" + sha256(b"root") + b"tokentok" + SECRET + b"\x0dfield.example" + b"\x0aedge/lap-1"
                   + b"\x91\xa1a")


def test_the_secret_shows_nowhere_else() -> None:
    one = invitation()
    for text in (repr(one), str(one), f"{one}", repr(vars(one))):
        assert SECRET.hex() not in text and repr(SECRET) not in text and one.encode() not in text
    with pytest.raises(TypeError):
        pickle.dumps(one)
    with pytest.raises(TypeError):
        copy.deepcopy(one)


@pytest.mark.parametrize("cut", [1, 3, 10, 50, 90, 140])
def test_a_truncated_line_says_so_and_repeats_nothing(cut: int) -> None:
    line = invitation().encode()
    with pytest.raises(BadInput, match=r"cut short or mistyped|not an invitation") as caught:
        Invitation.parse(line[:-cut])
    assert line[3:20] not in str(caught.value) + (caught.value.hint or "")
    assert "relay gateway invite" in (caught.value.hint or "")


@pytest.mark.parametrize(
    "text", ["", "cw1", "cw", "cw2aaaa", "hello", "cw1!!!!", "cw1" + "a" * LINE_MAX, "cw1\u2028a", "cw1ä"]
)
def test_what_is_no_invitation(text: str) -> None:
    with pytest.raises(BadInput):
        Invitation.parse(text)


def test_a_later_version_is_named() -> None:
    with pytest.raises(BadInput, match="version"):
        Invitation.parse("cw1" + base64.b32encode(b"\x02" + bytes(100)).decode().rstrip("=").lower())


@pytest.mark.parametrize("changes", [
    {"root_sha256": b"x"}, {"token_id": b""}, {"secret": Secret(b"short")}, {"trust_domain": "Field"},
    {"role_path": "edge"}, {"role_path": "/edge/a"}, {"role_path": "edge/.."}, {"role_path": "edge/" + "a" * 251},
    {"hints": ("a",) * 9}, {"hints": ("a" * 257,)}, {"hints": ("",)}, {"hints": ("a\nb",)},
    {"hints": ("a" * 256,) * 8},
])
def test_fields_out_of_bounds(changes: dict[str, object]) -> None:
    with pytest.raises(BadInput):
        invitation(**changes)


def test_the_first_bundle_is_the_root_that_was_named() -> None:
    ca, liar = Ca(), Ca()
    one = invitation(root_sha256=sha256(ca.root_der))
    bundle = bundle_from_joined_root(one, (*ca.issue("gateway/g").chain, ca.root_der))
    assert (bundle.trust_domain, bundle.roots, bundle.sequence) == ("field.example", (ca.root_der,), 0)
    for chain in ((), ca.issue("gateway/g").chain, (*liar.issue("gateway/g").chain, liar.root_der)):
        with pytest.raises(IdentityRefused) as caught:
            bundle_from_joined_root(one, chain)
        assert caught.value.rule == "root hash"


def test_what_a_key_signs() -> None:
    assert signed_input(DEVICE_LABEL, b"h" * 32, b"s" * 32) == (
        b" " * 64 + b"Causeway 1 device signature\0" + b"h" * 32 + b"s" * 32)


def test_what_a_device_key_agrees_to_by_https() -> None:
    nonce, csr, leaf = b"n" * 32, b"a csr", b"l" * 32
    assert https_transcript(HttpsOperation.JOIN, nonce, csr, b"token id", leaf) == sha256(
        b"causeway https\1" + nonce + sha256(csr) + b"token id" + leaf)
    assert https_transcript(HttpsOperation.RENEW, nonce, csr, b"d" * 32, leaf) == sha256(
        b"causeway https\2" + nonce + sha256(csr) + b"d" * 32 + leaf)


@pytest.mark.parametrize(("operation", "nonce", "subject", "leaf"), [
    (HttpsOperation.JOIN, 31, 8, 32), (HttpsOperation.JOIN, 32, 32, 32), (HttpsOperation.JOIN, 32, 8, 0),
    (HttpsOperation.RENEW, 32, 8, 32), (HttpsOperation.RENEW, 33, 32, 32), (HttpsOperation.RENEW, 32, 32, 64),
])
def test_fields_of_other_sizes_are_signed_by_nobody(
    operation: HttpsOperation, nonce: int, subject: int, leaf: int
) -> None:
    with pytest.raises(BadInput):
        https_transcript(operation, bytes(nonce), b"csr", bytes(subject), bytes(leaf))

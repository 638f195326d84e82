"""The signed revocation list: who may sign it, what it names, and that it never goes back. Attack M16 of the review."""

from dataclasses import replace

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.ca import Ca
from transport.errors import IdentityExpired, IdentityRefused
from transport.identity.revocation import (
    ENROLMENTS_MAX,
    FRESH_S,
    LIST_MAX,
    SERIALS_MAX,
    RevocationList,
    read_carried,
    read_list,
    sign_list,
    stored_list,
)
from transport.identity.svid import TrustBundle
from transport.identity.verify import VerifiedPeer, verify_svid
from transport.primitives import SigningKey

CA = Ca()
BUNDLE = CA.bundle()
NOW = CA.now
SIGNER = CA.issue("authority/revocation")
NONE = RevocationList()


def signed(
    sequence: int = 5, now: float = NOW, enrolments: tuple[int, ...] = (3, 9), serials: tuple[int, ...] = ()
) -> bytes:
    return sign_list(SIGNER, sequence, enrolments, serials, now=now).data


def gateway(path: str = "gateway/main") -> tuple[VerifiedPeer, tuple[bytes, ...]]:
    svid = CA.issue(path)
    return verify_svid(svid.chain, BUNDLE, role="gateway", now=NOW), svid.chain


def rule(refused: pytest.ExceptionInfo[IdentityRefused]) -> str:
    return refused.value.rule


def test_a_list_says_what_was_signed_and_is_kept_as_it_came() -> None:
    peer, _ = gateway()
    taken = read_list(signed(serials=(peer.serial,)), BUNDLE, now=NOW, held=NONE)
    assert (taken.sequence, taken.enrolments, taken.serials) == (5, {3, 9}, {peer.serial})
    assert stored_list(taken.data) == taken
    with pytest.raises(IdentityRefused) as refused:
        taken.check(peer)
    assert rule(refused) == "revoked"
    taken.check(gateway()[0])


def test_an_intermediate_on_the_list_refuses_all_that_it_has_signed() -> None:
    peer, _ = gateway()
    assert peer.issuers
    with pytest.raises(IdentityRefused):
        read_list(signed(serials=peer.issuers[:1]), BUNDLE, now=NOW, held=NONE).check(peer)


@pytest.mark.parametrize("later", [
    {"sequence": 4}, {"sequence": 6, "now": NOW - 400}, {"sequence": 1, "now": NOW + 30},
], ids=["an older number", "a newer number of an earlier time", "a number begun anew"])
def test_M16_a_list_never_goes_back(later: dict[str, float]) -> None:
    held = read_list(signed(5), BUNDLE, now=NOW, held=NONE)
    with pytest.raises(IdentityRefused) as refused:
        read_list(signed(**later), BUNDLE, now=NOW, held=held)  # type: ignore[arg-type]
    assert rule(refused) == "revocation list rollback"
    assert read_list(signed(6), BUNDLE, now=NOW, held=held).sequence == 6


def test_M16_the_same_number_changes_nothing() -> None:
    held = read_list(signed(5), BUNDLE, now=NOW, held=NONE)
    assert read_list(signed(5, enrolments=(1,)), BUNDLE, now=NOW, held=held) is held


@pytest.mark.parametrize("path", ["edge/lap-1", "hop/pi-1", "gateway/main", "authority/other"])
def test_M16_nobody_else_signs_a_list(path: str) -> None:
    data = sign_list(CA.issue(path), 5, (1,), (), now=NOW).data
    with pytest.raises(IdentityRefused):
        read_list(data, BUNDLE, now=NOW, held=NONE)


def test_M16_a_signer_of_another_domain_or_a_revoked_one_is_not_believed() -> None:
    foreign = sign_list(Ca().issue("authority/revocation"), 5, (1,), (), now=NOW).data
    with pytest.raises(IdentityRefused) as refused:
        read_list(foreign, BUNDLE, now=NOW, held=NONE)
    assert rule(refused) == "certificate signature"
    issuer = gateway()[0].issuers[0]
    held = replace(NONE, sequence=1, this_update=1, serials=frozenset([issuer]))
    for read in (read_list, read_carried):
        with pytest.raises(IdentityRefused) as refused:
            read(signed(), BUNDLE, now=NOW, held=held)
        assert rule(refused) == "revoked", "a stolen intermediate cannot take itself off the list"


def test_M16_a_stale_list_is_told_and_enforced_all_the_same() -> None:
    peer, _ = gateway()
    taken = read_list(signed(serials=(peer.serial,)), BUNDLE, now=NOW, held=NONE)
    assert not taken.stale(NOW + FRESH_S - 1)
    assert taken.stale(NOW + FRESH_S + 1) and not NONE.stale(NOW)
    with pytest.raises(IdentityRefused):
        taken.check(peer)


def test_times() -> None:
    with pytest.raises(IdentityExpired):
        read_list(signed(now=NOW + 120), BUNDLE, now=NOW, held=NONE)
    late = NOW + 90 * 60  # its signer has run out
    with pytest.raises(IdentityExpired):
        read_list(signed(), BUNDLE, now=late, held=NONE)
    assert read_carried(signed(), BUNDLE, now=late, held=NONE).enrolments == {3, 9}, "as evidence it is good for ever"


def test_every_byte_counts() -> None:
    data = signed()
    for index in range(len(data)):
        changed = bytearray(data)
        changed[index] ^= 1
        with pytest.raises(IdentityRefused):
            read_list(bytes(changed), BUNDLE, now=NOW, held=NONE)
    for wrong in (data + b"\0", data[:-1], b"", b"\xc1", b"\x91" * 2000):
        with pytest.raises(IdentityRefused):
            read_list(wrong, BUNDLE, now=NOW, held=NONE)


@given(st.lists(st.integers(1, 1 << 32), max_size=50).filter(lambda numbers: sorted(set(numbers)) != numbers))
def test_one_list_has_one_form(numbers: list[int]) -> None:
    content, chain, signature = msgspec.msgpack.decode(signed())
    fields = msgspec.msgpack.decode(content)
    fields[5] = numbers
    with pytest.raises(IdentityRefused) as refused:
        read_list(
            msgspec.msgpack.encode([msgspec.msgpack.encode(fields), chain, signature]), BUNDLE, now=NOW, held=NONE
        )
    assert rule(refused) == "revocation list form"


def test_the_largest_list_fits_and_the_oldest_make_room() -> None:
    many = range(1 << 31, (1 << 31) + 3 * ENROLMENTS_MAX)
    serials = [SigningKey.generate().public.spki[-19:] for _ in range(SERIALS_MAX)]
    made = sign_list(SIGNER, 5, many, [int.from_bytes(one, "big") | 1 << 150 for one in serials], now=NOW)
    assert len(made.data) <= LIST_MAX
    assert made.enrolments == set(many[-ENROLMENTS_MAX:])


def test_the_list_names_nobody() -> None:
    assert b"edge" not in signed() and b"lap" not in signed()


def test_another_trust_domain_s_bundle_does_not_fit() -> None:
    with pytest.raises(IdentityRefused):
        read_list(signed(), TrustBundle("other.example", BUNDLE.roots, 1), now=NOW, held=NONE)

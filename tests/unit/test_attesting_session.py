"""The messages of a join that attests, their order and their time-outs; and signers that are slow. Needs no TPM."""

import asyncio
import threading
from typing import Any

import pytest

from tests.support.ca import Ca
from tests.support.connection_pair import Pair, make_pair, verifier
from tests.support.memory_link import memory_links
from transport.connection import (
    STEP_DEADLINE_S,
    ChallengeReceived,
    CredentialReceived,
    EvidenceReceived,
    IssuedReceived,
    Phase,
)
from transport.edge_session import obtain
from transport.errors import HandshakeTimeout, LinkLost, LocalMisuse, ProtocolViolation, SignerFailed, TransportError
from transport.handshake import JoinCredential
from transport.identity.join import Invitation, bundle_from_joined_root
from transport.identity.svid import make_csr
from transport.identity.verify import verify_svid
from transport.initiator import EdgeConnection, Joining, Renewing
from transport.messages import Attest, Challenge, Issued, Message, Ping, Proof, Revocations, decode, encode
from transport.noise import SystemEphemerals
from transport.primitives import Secret, SigningKey, VerifyKey, sha256
from transport.serving import GatewaySession, Responder
from transport.tickets import TicketStore

ATTEST = Attest(b"", b"e" * 122, b"k" * 88)
CHALLENGE = Challenge(b"c" * 68, b"s" * 68)
PROOF = Proof(b"p" * 32)


def joining(ca: Ca, attest: Any = ATTEST) -> tuple[Joining, SigningKey, Any]:
    key = SigningKey.generate()
    invite = Invitation(sha256(ca.root_der), b"t" * 8, Secret(b"s" * 16), ca.trust_domain, "edge/lap-1")

    def verify(chain: Any, now: float) -> Any:
        return verify_svid(chain, bundle_from_joined_root(invite, chain), role="gateway", now=now)

    return Joining(invite, key.public.spki, make_csr(SigningKey.generate()), attest), key, verify


def attesting(attest: Any = ATTEST) -> Pair:
    """Up to what follows record 0."""
    ca = Ca()
    pair = make_pair(ca, admit=False)
    purpose, key, verify = joining(ca, attest)
    pair.edge = EdgeConnection(purpose, verify, SystemEphemerals(), ca.now)
    object.__setattr__(pair.edge_svid, "key", key)
    return pair


def issued(ca: Ca) -> Issued:
    return Issued("spiffe://field.example/edge/lap-1", list(ca.issue().chain), [ca.root_der], 1, 7)


def test_evidence_challenge_proof_issued() -> None:
    pair = attesting()
    pair.pump()
    kinds = [type(event) for event in pair.gateway_events if not isinstance(event, CredentialReceived)]
    assert kinds[-1] is EvidenceReceived and pair.gateway_events[-1] == EvidenceReceived(ATTEST)
    credential = pair.gateway.credential
    assert isinstance(credential, JoinCredential) and credential.attests
    assert len(pair.to_gateway) == 2, "record 0 and the evidence in one flight"
    pair.gateway.challenge(CHALLENGE, pair.now)
    pair.pump()
    assert pair.edge_events[-1] == ChallengeReceived(CHALLENGE)
    pair.edge.prove(b"p" * 32, pair.now)
    pair.pump()
    assert pair.gateway_events[-1] == EvidenceReceived(PROOF)
    answer = issued(Ca())
    pair.gateway.issue(answer, pair.now)
    pair.pump()
    assert pair.edge_events[-1] == IssuedReceived(answer) and pair.edge.phase is Phase.CLOSED


def test_without_evidence_a_join_is_as_it_was() -> None:
    pair = attesting(None)
    pair.pump()
    credential = pair.gateway.credential
    assert isinstance(credential, JoinCredential) and not credential.attests
    with pytest.raises(LocalMisuse):
        pair.edge.prove(b"p" * 32, pair.now)


@pytest.mark.parametrize("first", [PROOF, CHALLENGE, Ping(), issued(Ca()), Revocations(b"x")])
def test_only_evidence_follows_record_0(first: Message) -> None:
    with pytest.raises(ProtocolViolation):
        attesting(first).pump()


@pytest.mark.parametrize("then", [ATTEST, PROOF])
def test_nothing_follows_evidence_before_the_challenge(then: Message) -> None:
    pair = attesting()
    while pair.edge.phase is not Phase.ADMISSION:
        pair.step()
    pair.edge._send_now(then, pair.now)
    with pytest.raises(ProtocolViolation):
        pair.pump()
    assert pair.gateway.phase is Phase.CLOSED


def test_evidence_is_not_taken_twice() -> None:
    pair = attesting()
    pair.pump()
    pair.gateway.challenge(CHALLENGE, pair.now)
    pair.pump()
    pair.edge._send_now(ATTEST, pair.now)
    with pytest.raises(ProtocolViolation):
        pair.pump()


def test_who_does_not_attest_gives_no_evidence() -> None:
    """A message behind record 0 of kind 3 is held, as ever, and nothing comes of it."""
    pair = attesting(None)
    while pair.edge.phase is not Phase.ADMISSION:
        pair.step()
    pair.edge._send_now(ATTEST, pair.now)
    pair.pump()
    assert not any(isinstance(event, EvidenceReceived) for event in pair.gateway_events)


@pytest.mark.parametrize("attest", [None, ATTEST])
def test_a_challenge_out_of_place_is_refused_by_the_edge(attest: Attest | None) -> None:
    pair = attesting(attest)
    pair.pump()
    for _ in range(1 if attest is None else 2):
        pair.gateway._send_now(CHALLENGE, pair.now)
    with pytest.raises(ProtocolViolation):
        pair.pump()


def test_the_gateway_asks_once_for_each() -> None:
    pair = attesting()
    while pair.gateway.phase is not Phase.ADMISSION:
        pair.step()
    pair.pump()
    pair.gateway.challenge(CHALLENGE, pair.now)
    with pytest.raises(LocalMisuse):
        pair.gateway.challenge(CHALLENGE, pair.now)


def test_each_step_has_the_handshakes_time() -> None:
    pair = attesting()
    pair.pump()
    pair.now += STEP_DEADLINE_S - 1
    pair.gateway.challenge(CHALLENGE, pair.now)
    pair.pump()
    pair.now += STEP_DEADLINE_S - 1
    for core in (pair.edge, pair.gateway):
        core.handle_time(pair.now)
    pair.edge.prove(b"p" * 32, pair.now)
    pair.pump()
    pair.now += STEP_DEADLINE_S
    with pytest.raises(HandshakeTimeout):
        pair.gateway.handle_time(pair.now)
    with pytest.raises(HandshakeTimeout):
        pair.edge.handle_time(pair.now)


@pytest.mark.parametrize("bad", [
    Attest(bytes(2049), b"e", b"k"), Attest(b"", b"", b"k"), Attest(b"", b"e", b""), Attest(b"", bytes(257), b"k"),
    Attest(b"", b"e", bytes(257)), Challenge(bytes(67), bytes(68)), Challenge(bytes(68), bytes(69)), Proof(bytes(31)),
    Proof(bytes(33)),
])
def test_sizes_are_strict(bad: Message) -> None:
    with pytest.raises(ProtocolViolation):
        decode(encode(bad))


# --- signers that are slow ------------------------------------------------------------------------------------------


class SlowKey:
    """A key that signs when it is let, in whatever thread asks."""

    slow = True

    def __init__(self, error: TransportError | None = None) -> None:
        self._key, self._error = SigningKey.generate(), error
        self.asked, self.may = threading.Event(), threading.Event()

    @property
    def public(self) -> VerifyKey:
        return self._key.public

    def sign(self, message: bytes) -> bytes:
        self.asked.set()
        assert self.may.wait(60)
        if self._error is not None:
            raise self._error
        return self._key.sign(message)


def responder(ca: Ca) -> Responder:
    svid = ca.issue("gateway/main")
    return Responder(lambda: svid, lambda: ca.root_der, verifier(ca.bundle(), "edge"), TicketStore())


async def test_the_event_loop_goes_on_while_a_key_signs() -> None:
    ca, key = Ca(), SlowKey()
    ours, theirs = memory_links()
    answer = issued(ca)

    async def gateway() -> None:
        session = await GatewaySession.accept(theirs, responder(ca))
        await session.issue(answer)

    serving = asyncio.create_task(gateway())
    purpose = Renewing(key.public.spki, make_csr(SigningKey.generate()))
    renewing = asyncio.create_task(obtain(ours, purpose, key, verifier(ca.bundle(), "gateway")))
    assert await asyncio.to_thread(key.asked.wait, 60)
    for _ in range(100):
        await asyncio.sleep(0)  # other work: it would not come to this line if signing kept the loop
    assert not renewing.done() and not key.may.is_set()
    key.may.set()
    assert await renewing == answer
    await serving


async def test_a_key_that_cannot_sign_is_why_it_ends() -> None:
    ca, key = Ca(), SlowKey(SignerFailed("the TPM refused", hint="ask it nicely"))
    key.may.set()
    ours, theirs = memory_links()
    serving = asyncio.create_task(GatewaySession.accept(theirs, responder(ca)))
    purpose = Renewing(key.public.spki, make_csr(SigningKey.generate()))
    with pytest.raises(SignerFailed, match="the TPM refused"):
        await obtain(ours, purpose, key, verifier(ca.bundle(), "gateway"))
    with pytest.raises(TransportError):
        await serving


async def test_a_link_that_is_lost_meanwhile_is_what_is_told() -> None:
    ca, key = Ca(), SlowKey()
    ours, theirs = memory_links()
    serving = asyncio.create_task(GatewaySession.accept(theirs, responder(ca)))
    purpose = Renewing(key.public.spki, make_csr(SigningKey.generate()))
    renewing = asyncio.create_task(obtain(ours, purpose, key, verifier(ca.bundle(), "gateway")))
    assert await asyncio.to_thread(key.asked.wait, 60)
    await theirs.close()
    with pytest.raises(LinkLost):
        await renewing
    key.may.set()  # its signature finds nobody
    with pytest.raises(TransportError):
        await serving


async def test_a_device_that_goes_away_while_it_attests_leaves_nobody_waiting() -> None:
    ca = Ca()
    ours, theirs = memory_links()
    purpose, key, verify = joining(ca)

    def activate(challenge: Challenge) -> bytes:
        raise SignerFailed("the TPM has gone")

    async def gateway() -> None:
        session = await GatewaySession.accept(theirs, responder(ca))
        assert await session.evidence() == ATTEST
        session.challenge(CHALLENGE)
        with pytest.raises(LinkLost):
            await session.evidence()
        await session.close()

    serving = asyncio.create_task(gateway())
    with pytest.raises(SignerFailed, match="the TPM has gone"):
        await obtain(ours, purpose, key, verify, None, activate)
    await serving

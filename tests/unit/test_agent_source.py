"""What a SPIFFE agent says is believed only once it has been verified here, and an agent may come and go."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from tests.support.ca import Ca
from tests.support.fake_agent import FakeAgent, offer
from tests.support.gateway_lab import Clock
from transport.errors import AgentLost, BadInput, IdentityRefused
from transport.identity.source import AgentSource, Offer, socket_path
from transport.primitives import Secret, SigningKey

SOCKET = "unix:///nowhere.sock"


@pytest.fixture(scope="module")
def ca() -> Ca:
    return Ca()


def source(**settings: object) -> AgentSource:
    return AgentSource(SOCKET, "hop", **settings)  # type: ignore[arg-type]


def test_an_identity_is_taken_with_its_bundle(ca: Ca) -> None:
    mine, told = source(), []
    mine.on_change.append(lambda: told.append(mine.svid.id.path))
    given = ca.issue("hop/pi-1")
    mine.take(offer(given, bundle=ca.bundle(sequence=77)))
    assert mine.svid.chain == given.chain
    assert mine.svid.not_after == given.not_after
    assert (mine.bundle.roots, mine.bundle.sequence) == ((ca.root_der,), 1)
    mine.take(offer(given, bundle=ca.bundle()))
    assert told == ["/hop/pi-1"]  # the same again is no change
    mine.take(offer(ca.issue("hop/pi-1"), bundle=ca.bundle()))
    assert told == ["/hop/pi-1"] * 2


def test_a_bundle_that_changes_counts_on(ca: Ca) -> None:
    mine, other = source(), Ca(name="another root")
    given = ca.issue("hop/pi-1")
    for roots in ([], [other.root_der], [other.root_der], []):
        mine.take(offer(given, bundle=ca.bundle(also=roots)))
    assert mine.bundle.sequence == 3
    assert mine.bundle.roots == (ca.root_der,)


def _long(ca: Ca) -> Offer:
    return offer(ca.issue("hop/pi-1", lifetime=3_902.0), bundle=ca.bundle())


def _other_key(ca: Ca) -> Offer:
    return Offer([(ca.issue("hop/pi-1").chain, SigningKey.generate().to_pkcs8())], {ca.trust_domain: [ca.root_der]})


def _rsa(ca: Ca) -> Offer:
    key = rsa.generate_private_key(65537, 2048)
    return Offer(
        [(ca.issue("hop/pi-1", foreign_key=key.public_key()).chain, _pkcs8(key))], {ca.trust_domain: [ca.root_der]}
    )


def _rsa_key(ca: Ca) -> Offer:
    key = _pkcs8(rsa.generate_private_key(65537, 2048))
    return Offer([(ca.issue("hop/pi-1").chain, key)], {ca.trust_domain: [ca.root_der]})


def _pkcs8(key: rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey) -> Secret:
    return Secret(key.private_bytes(
        serialization.Encoding.DER, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    ))


REFUSED: list[tuple[str, Callable[[Ca], Offer]]] = [
    ("root", lambda ca: offer(ca.issue("hop/pi-1"), bundle=Ca(name="stranger").bundle())),
    ("bundle size", lambda ca: Offer([(ca.issue("hop/pi-1").chain, SigningKey.generate().to_pkcs8())], {})),
    ("bundle size", lambda ca: offer(ca.issue("hop/pi-1"), bundle=ca.bundle(also=[Ca().root_der for _ in "abc"]))),
    ("role", lambda ca: offer(ca.issue("edge/lap-1"), bundle=ca.bundle())),
    ("role", lambda ca: offer(Ca("other.example").issue("hop/pi-1"), bundle=Ca("other.example").bundle())),
    ("expired", lambda ca: offer(ca.issue("hop/pi-1", start=-3_600.0, lifetime=3_590.0), bundle=ca.bundle())),
    ("expired", lambda ca: offer(ca.issue("hop/pi-1", start=-3_700.0, lifetime=3_600.0), bundle=ca.bundle())),
    ("not yet valid", lambda ca: offer(ca.issue("hop/pi-1", start=120.0, lifetime=3_600.0), bundle=ca.bundle())),
    ("lifetime", _long),
    ("key", _other_key),
    ("key type", _rsa),
    ("key type", _rsa_key),
    ("exactly one URI SAN", lambda ca: offer(
        ca.issue("hop/pi-1", uris=["spiffe://field.example/hop/pi-1"] * 2), bundle=ca.bundle()
    )),
    ("CA as leaf", lambda ca: offer(ca.issue("hop/pi-1", ca=True), bundle=ca.bundle())),
    ("SVID count", lambda ca: Offer([], {})),
    ("SVID count", lambda ca: offer(*[ca.issue("hop/pi-1")] * 17, bundle=ca.bundle())),
    ("certificate size", lambda ca: Offer([((), SigningKey.generate().to_pkcs8())], {ca.trust_domain: [ca.root_der]})),
]


@pytest.mark.parametrize(("rule", "bad"), REFUSED, ids=[f"{number}-{rule}" for number, (rule, _) in enumerate(REFUSED)])
def test_what_breaks_a_rule_changes_nothing(ca: Ca, rule: str, bad: Callable[[Ca], Offer]) -> None:
    mine, given = source(trust_domain="field.example"), ca.issue("hop/pi-1")
    mine.take(offer(given, bundle=ca.bundle()))
    with pytest.raises(IdentityRefused) as refused:
        mine.take(bad(ca))
    assert refused.value.rule == rule
    assert mine.svid.chain == given.chain
    assert mine.bundle.roots == (ca.root_der,)


def test_of_several_the_one_that_was_asked_for(ca: Ca) -> None:
    given = [ca.issue(path) for path in ("workload/a", "hop/pi-1", "hop/pi-2")]
    mine = source()
    mine.take(offer(*given, bundle=ca.bundle()))
    assert mine.svid.id.path == "/hop/pi-1"
    exact = source(path="/hop/pi-2")
    exact.take(offer(*given, bundle=ca.bundle()))
    assert exact.svid.id.path == "/hop/pi-2"
    with pytest.raises(IdentityRefused, match="not /hop/pi-3"):
        source(path="/hop/pi-3").take(offer(*given, bundle=ca.bundle()))


def test_a_clock_that_was_set_back_is_named(ca: Ca) -> None:
    clock = Clock()
    mine = source(clock=clock)
    mine.take(offer(ca.issue("hop/pi-1"), bundle=ca.bundle()))
    clock.now -= 7_200
    with pytest.raises(IdentityRefused) as refused:
        mine.take(offer(ca.issue("hop/pi-1", start=-7_500), bundle=ca.bundle()))
    assert refused.value.rule == "clock"


def test_before_the_first_identity_there_is_none() -> None:
    for ask in (lambda: source().svid, lambda: source().bundle):
        with pytest.raises(AgentLost):
            ask()


@pytest.mark.parametrize("text", ["tcp://127.0.0.1:8081", "run/agent.sock", "", "unix:agent.sock", "unix:///a?b"])
def test_only_a_socket_of_this_machine_is_an_agents_address(text: str) -> None:
    with pytest.raises(BadInput):
        socket_path(text)


def test_an_absolute_path_is_an_agents_address() -> None:
    assert socket_path("/run/agent.sock") == socket_path("unix:///run/agent.sock") == "unix:///run/agent.sock"


async def test_without_the_library_it_is_said_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("transport.identity.source.find_spec", lambda name: None)
    with pytest.raises(BadInput, match="not installed"):
        await source().start(60)


async def test_a_fault_in_the_library_is_not_waited_out() -> None:
    def broken(*_: object) -> Callable[[], None]:
        raise ZeroDivisionError

    mine = source(connect=broken)
    with pytest.raises(ZeroDivisionError):
        await mine.start(60)


# --- by the stock client --------------------------------------------------------------------------------------------


@pytest.fixture
async def agent(tmp_path: Path) -> AsyncIterator[FakeAgent]:
    async with FakeAgent(tmp_path / "agent.sock") as running:
        yield running


class Listening:
    """A source with its lines, and a way to wait for its next change."""

    def __init__(self, agent: FakeAgent) -> None:
        self.lines: list[str] = []
        self.news = asyncio.Event()
        self.source = AgentSource(agent.socket, "hop", report=self._line)
        self.source.on_change.append(self.news.set)

    def _line(self, line: str) -> None:
        self.lines.append(line)
        self.news.set()

    async def next(self) -> None:
        await asyncio.wait_for(self.news.wait(), 60)
        self.news.clear()


async def test_the_stock_client_fetches_and_takes_what_is_pushed(agent: FakeAgent, ca: Ca) -> None:
    first, second = ca.issue("hop/pi-1"), ca.issue("hop/pi-1")
    agent.give(first, bundle=ca.bundle())
    listening = Listening(agent)
    await listening.source.start(60)
    try:
        await listening.next()
        assert listening.source.svid.chain == first.chain
        assert listening.source.svid.key.public.spki == first.key.public.spki
        agent.give(second, bundle=ca.bundle())
        await listening.next()
        assert listening.source.svid.chain == second.chain
        assert agent.calls == 1  # pushed, not asked for
    finally:
        await listening.source.close()


async def test_an_agent_that_is_lost_leaves_the_last_identity_and_is_found_again(agent: FakeAgent, ca: Ca) -> None:
    first, second = ca.issue("hop/pi-1"), ca.issue("hop/pi-1")
    agent.give(first, bundle=ca.bundle())
    listening = Listening(agent)
    await listening.source.start(60)
    try:
        await listening.next()
        await agent.stop()
        await listening.next()
        until = time.strftime("%H:%M:%S UTC", time.gmtime(first.not_after))
        assert "does not answer" in listening.lines[0]
        assert f"good until {until}" in listening.lines[0]
        assert isinstance(listening.source.failure, AgentLost)
        assert listening.source.svid.chain == first.chain
        agent.give(second, bundle=ca.bundle())
        await agent.__aenter__()
        while listening.source.svid.chain != second.chain:
            await listening.next()
        assert listening.source.failure is None
    finally:
        await listening.source.close()


async def test_an_identity_that_is_refused_is_said_with_its_rule_and_asked_for_again(agent: FakeAgent, ca: Ca) -> None:
    good = ca.issue("hop/pi-1")
    agent.give(good, bundle=ca.bundle())
    listening = Listening(agent)
    await listening.source.start(60)
    try:
        await listening.next()
        agent.give(ca.issue("edge/lap-1"), bundle=ca.bundle())
        await listening.next()
        assert "(role)" in listening.lines[0]
        assert listening.source.svid.chain == good.chain
        better = ca.issue("hop/pi-1")
        agent.give(better, bundle=ca.bundle())
        while listening.source.svid.chain != better.chain:
            await listening.next()
    finally:
        await listening.source.close()


@pytest.mark.parametrize(("there", "reason"), [(True, "no identity"), (False, "unreachable")])
async def test_whoever_gets_none_in_time_is_told_why(tmp_path: Path, there: bool, reason: str) -> None:
    agent = FakeAgent(tmp_path / "agent.sock")
    if there:
        await agent.__aenter__()
    listening = Listening(agent)
    started = asyncio.create_task(listening.source.start(60))
    await listening.next()  # it has been said
    started.cancel()
    await asyncio.gather(started, return_exceptions=True)
    with pytest.raises(AgentLost) as lost:
        await listening.source.start(0)
    assert lost.value.reason == reason
    await listening.source.close()
    await agent.stop()

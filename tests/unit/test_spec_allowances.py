"""What docs/SPEC.md allows at the beginning of a session, where a strict reader might expect a refusal; and one that it
refuses, where a lenient one might not.
"""

import pytest

from tests.support.recorded import Side
from tests.support.scripted_sessions import NOW, RECORDED, Talk, derived, login
from transport.connection import Phase
from transport.errors import ProtocolViolation
from transport.initiator import EdgeConnection, Resumption
from transport.messages import Message, Pace, Padding, Ping, Pong, Welcome, encode
from transport.responder import GatewayConnection


def opened() -> Talk:
    talk = login()
    talk.settle()
    assert talk.edge.phase is talk.gateway.phase is Phase.OPEN
    return talk


def say(talk: Talk, *messages: bytes) -> None:
    assert talk.edge._sealer is not None
    talk.gateway.receive_data(talk.edge._sealer.seal_burst(messages, talk.now), talk.now)


def test_pace_bucket_may_be_said() -> None:
    talk = opened()
    say(talk, encode(Pace(Padding.BUCKET)))
    assert talk.gateway.phase is Phase.OPEN and talk.gateway.streams.padding is Padding.BUCKET


def test_ping_may_come_before_pace() -> None:
    talk = opened()
    say(talk, encode(Ping()))
    say(talk, encode(Pace(Padding.OFF)))
    assert talk.gateway.phase is Phase.OPEN and talk.gateway.streams.padding is Padding.OFF

@pytest.mark.parametrize("early", [Ping(), Pong()])
def test_no_heartbeat_comes_before_welcome(monkeypatch: pytest.MonkeyPatch, early: Message) -> None:
    send = GatewayConnection._send_now

    def send_rudely(gateway: GatewayConnection, message: Message, now: float) -> None:
        if isinstance(message, Welcome):
            send(gateway, early, now)
        send(gateway, message, now)

    monkeypatch.setattr(GatewayConnection, "_send_now", send_rudely)
    talk = login()
    with pytest.raises(ProtocolViolation):
        talk.settle()
    assert talk.edge.phase is Phase.CLOSED


def test_early_data_may_be_padding_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """No edge of ours sends that."""
    first = opened()
    sides = Side(RECORDED, derived("padded edge")), Side(RECORDED, derived("padded gateway"))
    talk = Talk(Resumption(first.edge.tickets[0]), first.store, sides, now=NOW + 1)
    monkeypatch.setattr(EdgeConnection, "_early_data", lambda _: bytes(512))
    talk.settle()
    assert len(talk.flights[0]["bytes"]) == 2 * (3 + 97 + 512)
    assert talk.edge.phase is talk.gateway.phase is Phase.OPEN


def test_pace_may_follow_early_data() -> None:
    first = opened()
    sides = Side(RECORDED, derived("paced edge")), Side(RECORDED, derived("paced gateway"))
    talk = Talk(Resumption(first.edge.tickets[0]), first.store, sides, now=NOW + 1, padding=Padding.OFF)
    talk.request(2, b"prompt")
    talk.settle()
    assert talk.gateway.phase is Phase.OPEN and talk.gateway.streams.padding is Padding.OFF
    assert len(talk.flights[0]["bytes"]) // 2 < 3 + 97 + 512  # in `off` early data is not padded

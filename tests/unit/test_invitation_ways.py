"""Which hints of an invitation an edge goes by."""

from edge_client.commands.device import _hints
from transport.identity.join import Invitation
from transport.primitives import Secret


def test_a_hint_of_another_form_is_skipped() -> None:
    hints = ("https://gateway.field.example", "carrier pigeon: 7", "tcp:no port", "tcp:a:1", "ble:")
    invitation = Invitation(bytes(32), bytes(8), Secret(bytes(16)), "field.example", "edge/lap-1", hints)
    assert [str(way) for way in _hints(invitation)] == ["tcp:a:1", "ble:"]

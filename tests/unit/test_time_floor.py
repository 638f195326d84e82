"""H14: a clock that was set back makes no stolen key good again."""

import time
from pathlib import Path

import pytest

from edge_client.identity import DeviceIdentity
from relay.hop.identity import HopHome, HopIdentity, renew
from store.keys import Passphrase
from tests.support.ca import DAY, Ca
from transport.errors import IdentityExpired
from transport.primitives import SigningKey

NOW = time.time()
CA = Ca(now=NOW, intermediate_start=-9 * DAY)


def device() -> DeviceIdentity:
    svid = CA.issue("edge/lap-1")
    return DeviceIdentity(svid.id, 1, SigningKey.generate(), svid, CA.bundle(), ())


def test_H14_below_the_latest_signed_time_no_gateway_is_believed() -> None:
    stolen = CA.issue("gateway/main", start=-DAY, lifetime=3600)
    with pytest.raises(IdentityExpired) as caught:
        device().verify_gateway(stolen.chain, NOW - DAY + 600)
    assert caught.value.rule == "clock"
    assert "this device is behind" in str(caught.value) and "set the clock" in (caught.value.hint or "")


def test_H14_a_clock_that_is_a_little_behind_is_none_to_refuse() -> None:
    """An SVID begins five minutes before it is issued; to that comes a minute of leeway."""
    known = device()
    gateway = CA.issue("gateway/main")
    assert known.verify_gateway(gateway.chain, known.svid.not_before - 59).id.role == "gateway"
    with pytest.raises(IdentityExpired):
        known.verify_gateway(gateway.chain, known.svid.not_before - 61)


async def test_H14_a_hop_s_clock_has_the_same_floor(tmp_path: Path) -> None:
    svid = CA.issue("hop/pi")
    identity = HopIdentity(SigningKey.generate(), svid, CA.bundle(), 1, "https://192.0.2.1:1")
    with pytest.raises(IdentityExpired) as caught:
        await renew(HopHome(tmp_path, Passphrase("x")), identity, identity.gateway, clock=lambda: NOW - DAY)
    assert caught.value.rule == "clock"

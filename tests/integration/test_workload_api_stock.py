"""The stock `spiffe` client, unchanged, as a process of its own, at our Workload API."""

import asyncio
import base64
import os
import signal
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from relay.gateway.identity.workloads.documents import JWT_LIFETIME_S
from tests.support.gateway_lab import DOMAIN
from tests.support.workload_lab import PYTHON, handed_on, spiffe_id, stock_client, workload, workload_lab
from transport.errors import IdentityRefused
from transport.identity.svid import Svid
from transport.primitives import Secret, SigningKey

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells who calls")
def chain(svid: dict[str, object]) -> list[bytes]:
    shown = svid["chain"]
    assert isinstance(shown, list)
    return [base64.b64decode(one) for one in shown]


async def test_it_fetches_an_x509_svid_that_is_ours_and_on_record(made: Path, tmp_path: Path) -> None:
    async with workload_lab(made, tmp_path) as lab, stock_client(lab.socket) as client:
        told = await client.ask("x509")
        assert "svids" in told, told
        (svid,) = told["svids"]
        peer = lab.verified(chain(svid))
        key = SigningKey.from_pkcs8(Secret(base64.b64decode(svid["key"])))
        Svid.from_chain(chain(svid), key)  # raises unless the key is the certificate's
        assert str(peer.id) == svid["id"] == spiffe_id("me")
        (registration,) = lab.enrolment.registrations()
        assert lab.enrolment.enrolment_of(peer) == registration.enrolment
        assert registration.source == "workload"
        again = await client.ask("x509")
        assert again["svids"][0]["serial"] == svid["serial"]  # nobody makes the authority sign at will
        served = lab.events("workload.served")
        assert [(one["kind"], one["pid"], one["uid"]) for one in served] == [("x509", client.pid, os.getuid())] * 2
        await lab.revocation.revoke("workload/me", "test")
        with pytest.raises(IdentityRefused):
            lab.enrolment.enrolment_of(peer)
        assert "PERMISSION_DENIED" in (await client.ask("x509"))["error"]


async def test_it_fetches_bundles_and_jwt_svids_and_has_them_validated(made: Path, tmp_path: Path) -> None:
    async with workload_lab(made, tmp_path) as lab, stock_client(lab.socket) as client:
        bundles = await client.ask("bundles")
        assert bundles["x509"] == {DOMAIN: [base64.b64encode(root).decode() for root in lab.authority.bundle.roots]}
        assert bundles["jwt"] == {DOMAIN: sorted(one["kid"] for one in lab.keys.jwks())}
        (svid,) = (await client.ask("jwt", ["reports"]))["svids"]
        assert (svid["id"], svid["audience"]) == (spiffe_id("me"), ["reports"])
        assert svid["expiry"] - int(lab.clock()) == JWT_LIFETIME_S
        assert (await client.ask("validate", svid["token"], "reports"))["id"] == spiffe_id("me")
        assert "INVALID_ARGUMENT" in (await client.ask("validate", svid["token"], "others"))["error"]
        by_name = await client.ask("jwt", ["reports"], spiffe_id("me"))
        assert [one["id"] for one in by_name["svids"]] == [spiffe_id("me")]
        assert "PERMISSION_DENIED" in (await client.ask("jwt", ["reports"], spiffe_id("other")))["error"]


async def test_it_is_told_of_each_rotation_and_of_the_end(made: Path, tmp_path: Path) -> None:
    async with workload_lab(made, tmp_path) as lab, stock_client(lab.socket) as client:
        await client.say("watch", False)
        serials = []
        for _ in range(3):
            (svid,) = (await client.hear())["pushed"]
            lab.enrolment.admit(lab.verified(chain(svid)))
            serials.append(svid["serial"])
            await lab.later(1_000)  # not yet half of 55 minutes
            await lab.later(700)
        assert len(set(serials)) == 3
        await client.hear()
        assert len(lab.events("attested.issued")) == 4
        await lab.revocation.revoke("workload/me", "test")
        assert "PERMISSION_DENIED" in (await client.hear())["error"]


async def test_it_gets_all_that_it_fits_and_the_first_is_its_default(made: Path, tmp_path: Path) -> None:
    entries = [
        workload("other-path", path="/bin/sleep"), workload("first", path=str(PYTHON)),
        workload("other-user", uid=os.getuid() + 1), workload("second"),
    ]
    async with workload_lab(made, tmp_path, entries) as lab, stock_client(lab.socket) as client:
        svids = (await client.ask("x509"))["svids"]
        assert [one["id"] for one in svids] == [spiffe_id("first"), spiffe_id("second")]
        await lab.revocation.revoke("workload/first", "test")  # the others stay
        assert [one["id"] for one in (await client.ask("x509"))["svids"]] == [spiffe_id("second")]
        assert [one["id"] for one in (await client.ask("jwt", ["a"]))["svids"]] == [spiffe_id("second")]


async def test_whom_no_entry_fits_gets_nothing(made: Path, tmp_path: Path) -> None:
    async with workload_lab(made, tmp_path, [workload("sleep", path="/bin/sleep")]) as lab:
        async with stock_client(lab.socket) as client:
            for call in (["x509"], ["jwt", ["a"]], ["bundles"], ["validate", "a.b.c", "d"]):
                assert "PERMISSION_DENIED" in (await client.ask(*call))["error"], call
        refused = lab.events("workload.refused")
        assert {(one["reason"], one["pid"], one["path"]) for one in refused} == {
            ("no entry fits", client.pid, str(PYTHON))
        }
        assert lab.enrolment.registrations() == []


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """One that other users may look into."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


async def test_another_users_program_is_another_workload(made: Path, tmp_path: Path, open_folder: Path) -> None:
    """Its connection was handed on to a process of ours: who made it counts, as long as that process is there."""
    theirs = 12_345 if os.getuid() == 0 else os.getuid()  # nobody but root has other users' programs
    entries = [workload("theirs", uid=theirs), workload("ours", uid=os.getuid() + 1)]
    async with (
        workload_lab(made, tmp_path, entries, at=open_folder / "w.sock") as lab,
        handed_on(lab.socket, tmp_path / "on.sock", theirs) as maker, stock_client(tmp_path / "on.sock") as client,
    ):
        assert [one["id"] for one in (await client.ask("x509"))["svids"]] == [spiffe_id("theirs")]
        assert {(one["pid"], one["uid"]) for one in lab.events("workload.served")} == {(maker, theirs)}
        os.kill(maker, signal.SIGKILL)
        await asyncio.to_thread(os.waitid, os.P_PID, maker, os.WEXITED | os.WNOWAIT)
        assert "PERMISSION_DENIED" in (await client.ask("x509"))["error"]
        assert lab.events("workload.refused")[0]["reason"] == "caller is gone"

"""Edges whose device key lies in a TPM, against a whole gateway: joining, renewal, lies, and copied disks."""

import asyncio
import contextlib
import json
import os
import shutil
import sys
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from edge_client.app import App
from edge_client.config import Config
from edge_client.device_key import TpmKey, restored
from edge_client.identity import NAMESPACE, DeviceIdentity, join, renew
from relay.gateway import app
from relay.gateway.config import parse
from relay.gateway.control import call
from store.errors import StoreCorrupt
from store.keys import Passphrase
from store.settings import Settings
from store.tpm import Blob, Tpm
from tests.support.ek_authority import EkAuthority, ek_point
from tests.support.gateway_lab import PASSPHRASE, audit_lines
from tests.support.software_tpm import MakeTpm, SoftwareTpm, software_tpms
from tests.support.stores import open_store
from transport.edge_session import EdgeSession, obtain
from transport.errors import LinkLost, PeerRefused, RequestRefused, SignerFailed
from transport.identity.join import Invitation, bundle_from_joined_root
from transport.identity.svid import make_csr
from transport.identity.verify import verify_svid
from transport.initiator import Joining, SvidLogin
from transport.links.base import Endpoint, connect
from transport.messages import Attest, RequestHeader, encode_header
from transport.primitives import SigningKey, random_bytes

ROOT = Path(__file__).parents[2]
CONFIG = """
trust_domain = "field.example"
[listen]
session = "tcp:127.0.0.1:0"
[provider]
base_url = "http://127.0.0.1:9/v1"
key_file = "provider.key"
[[allow]]
id = "/edge/*"
models = ["small"]
"""
CERTIFIED = CONFIG + """
[attestation]
ek_roots = ["makers.pem"]
"""


@pytest.fixture(scope="module")
def make() -> Iterator[MakeTpm]:
    with software_tpms() as make:
        yield make


@pytest.fixture(scope="module")
def machine(make: MakeTpm) -> SoftwareTpm:
    return make()


@dataclass
class Gateway:
    folder: Path
    endpoint: Endpoint

    async def invite(self, path: str = "edge/lap-1", *, tpm: bool = False) -> Invitation:
        answer = await call(self.folder, "invite", {"path": path, "tpm": tpm})
        return Invitation.parse(answer["invitation"])

    async def devices(self) -> list[dict[str, Any]]:
        return list((await call(self.folder, "devices", {}))["devices"])

    def refusals(self) -> list[str]:
        return [one["reason"] for one in audit_lines(self.folder / app.AUDIT_FILE) if one["event"] == "join.refused"]


@contextlib.asynccontextmanager
async def serving(folder: Path, text: str = CONFIG) -> AsyncIterator[Gateway]:
    (folder / "provider.key").write_text("key")
    (folder / "provider.key").chmod(0o600)
    (folder / "gateway.toml").write_text(text)
    stop, told = asyncio.Event(), asyncio.get_running_loop().create_future()
    config = parse(text.encode(), folder)
    task = asyncio.create_task(app.serve(config, PASSPHRASE, ready=told.set_result, stop=stop))
    await asyncio.wait({task, told}, return_when=asyncio.FIRST_COMPLETED)
    if task.done():
        await task
    try:
        yield Gateway(folder, Endpoint.parse((await told).session))
    finally:
        stop.set()
        await task


@pytest.fixture
async def gateway(made: Path, tmp_path: Path) -> AsyncIterator[Gateway]:
    folder = tmp_path / "gateway"
    shutil.copytree(made, folder)
    async with serving(folder) as running:
        yield running


@pytest.fixture
def settings(tmp_path: Path) -> Iterator[Settings]:
    with contextlib.closing(open_store(tmp_path / "store.db")) as database:
        yield Settings(database, NAMESPACE)


async def joined(gateway: Gateway, settings: Settings, invitation: Invitation, tpm: Tpm | None) -> DeviceIdentity:
    return await join(settings, invitation, await connect(gateway.endpoint), (), tpm=tpm)


async def renewed(gateway: Gateway, settings: Settings, tpm: Tpm | None) -> DeviceIdentity:
    identity = await DeviceIdentity.load(settings, tpm)
    assert identity is not None
    return await renew(settings, identity, await connect(gateway.endpoint))


async def test_the_device_key_is_made_in_the_tpm_and_renews_from_there(
    gateway: Gateway, settings: Settings, machine: SoftwareTpm
) -> None:
    identity = await joined(gateway, settings, await gateway.invite(), machine.tpm)
    again = await renewed(gateway, settings, machine.tpm)
    assert (again.id, again.enrolment) == (identity.id, identity.enrolment)
    assert again.svid.chain != identity.svid.chain
    assert isinstance(again.device_key, TpmKey) and again.device_key.public.spki == identity.device_key.public.spki
    [device] = await gateway.devices()
    assert device["tpm"] == "any" and len(device["ek_sha256"]) == 64
    assert machine.loaded() == 0


async def test_without_tpm_nothing_has_changed(gateway: Gateway, settings: Settings) -> None:
    identity = await joined(gateway, settings, await gateway.invite(), None)
    assert isinstance(identity.device_key, SigningKey)
    [device] = await gateway.devices()
    assert (device["tpm"], device["ek_sha256"]) == ("", "")


async def test_a_bound_invitation_is_for_a_tpm_alone_and_outlives_a_refusal(
    gateway: Gateway, settings: Settings, machine: SoftwareTpm
) -> None:
    invitation = await gateway.invite(tpm=True)
    with pytest.raises(PeerRefused) as refusal:
        await joined(gateway, settings, invitation, None)
    assert refusal.value.reason == "refused", "neutral on the wire"
    assert gateway.refusals() == ["invitation is for a device whose key lies in a TPM"]
    assert await gateway.devices() == []
    identity = await joined(gateway, settings, invitation, machine.tpm)
    assert str(identity.id) == "spiffe://field.example/edge/lap-1"


async def test_only_edges_are_invited_so(gateway: Gateway) -> None:
    with pytest.raises(Exception, match="only an edge"):
        await gateway.invite("hop/pi-1", tpm=True)


async def test_an_answer_that_got_lost_is_fetched_with_the_same_key(
    gateway: Gateway, settings: Settings, machine: SoftwareTpm
) -> None:
    """The first attempt ends behind the proof, as the gateway has bound the invitation and says so."""
    invitation = await gateway.invite(tpm=True)
    link = await connect(gateway.endpoint)
    send, receive, sent = link.send, link.receive, list[bytes]()

    async def sending(data: bytes) -> None:
        sent.append(data)
        await send(data)

    async def receiving() -> bytes:
        data = await receive()
        if len(sent) > 2:  # frame 1; record 0 and attest; proof
            raise LinkLost("cut")
        return data

    link.send, link.receive = sending, receiving  # type: ignore[method-assign]
    with pytest.raises(LinkLost):
        await join(settings, invitation, link, (), tpm=machine.tpm)
    [bound] = await gateway.devices()
    identity = await joined(gateway, settings, invitation, machine.tpm)
    assert identity.enrolment == bound["enrolment"]


async def lying(gateway: Gateway, invitation: Invitation, key: Any, attest: Attest, secret: bytes | None) -> None:
    def verify(chain: Any, now: float) -> Any:
        return verify_svid(chain, bundle_from_joined_root(invitation, chain), role="gateway", now=now)

    purpose = Joining(invitation, key.public.spki, make_csr(SigningKey.generate()), attest)
    activate = key.activate if secret is None else lambda challenge: secret
    with pytest.raises(PeerRefused) as refusal:
        await obtain(await connect(gateway.endpoint), purpose, key, verify, None, activate)
    assert refusal.value.reason == "refused"


async def test_lies_are_refused_and_leave_the_invitation(
    gateway: Gateway, settings: Settings, machine: SoftwareTpm, make: MakeTpm
) -> None:
    invitation = await gateway.invite(tpm=True)
    real, software = TpmKey.make(machine.tpm), SigningKey.generate()
    evidence, other = real.evidence(), TpmKey.make(make().tpm)
    # A software key, with the areas of a key that is in a TPM.
    await lying(gateway, invitation, software, evidence, bytes(32))
    # A software key in an area of the right form: no TPM has it loaded, so nobody can answer.
    point = software.public.spki[-64:]
    forged = evidence.key_public[:20] + b"\0\x20" + point[:32] + b"\0\x20" + point[32:]
    await lying(gateway, invitation, software, Attest(b"", evidence.ek_public, forged), bytes(32))
    # A key of this TPM, beside the endorsement key of another.
    await lying(gateway, invitation, real, Attest(b"", other.evidence().ek_public, evidence.key_public), bytes(32))
    assert [rule.removeprefix("attestation: ") for rule in gateway.refusals()] == [
        "area of another key", "wrong secret", "wrong secret",
    ]
    assert await gateway.devices() == []
    await joined(gateway, settings, invitation, machine.tpm)


async def test_a_wrong_invitation_is_refused_before_any_challenge(gateway: Gateway, machine: SoftwareTpm) -> None:
    good, key = await gateway.invite(), TpmKey.make(machine.tpm)
    unknown = Invitation(good.root_sha256, b"unknown!", good.secret, good.trust_domain, good.role_path)

    def activate(challenge: object) -> bytes:
        raise AssertionError("a challenge")

    key.activate = activate  # type: ignore[method-assign,assignment]
    await lying(gateway, unknown, key, key.evidence(), None)
    assert gateway.refusals() == ["unknown invitation or wrong secret"]


async def test_only_tpms_of_trusted_makers(
    made: Path, tmp_path: Path, settings: Settings, machine: SoftwareTpm, make: MakeTpm
) -> None:
    maker, folder, certified = EkAuthority("maker"), tmp_path / "gateway", make()
    certified.write_certificate(maker.issue(ek_point(certified.tpm.endorsement().public)))
    shutil.copytree(made, folder)
    (folder / "makers.pem").write_bytes(maker.pem)
    async with serving(folder, CERTIFIED) as gateway:
        invitation = await gateway.invite(tpm=True)
        with pytest.raises(PeerRefused):
            await joined(gateway, settings, invitation, machine.tpm)
        assert gateway.refusals() == ["attestation: no EK certificate"]
        await joined(gateway, settings, invitation, certified.tpm)
        [device] = await gateway.devices()
        assert device["tpm"] == "certified"


async def models(gateway: Gateway, identity: DeviceIdentity) -> list[str]:
    login = SvidLogin(identity.svid.chain, identity.svid.not_after)
    session = EdgeSession(await connect(gateway.endpoint), login, identity.svid.key, identity.verify_gateway)
    await session.open()
    try:
        header = RequestHeader("GET", "/v1/models", "", "", 0, int(time.time()) + 60)
        answer = await session.request(random_bytes(16), encode_header(header), b"").started()
        return [one["id"] for one in json.loads(b"".join([part async for part in answer]))["data"]]
    finally:
        await session.close()


async def test_policy_knows_what_was_shown(
    made: Path, tmp_path: Path, settings: Settings, machine: SoftwareTpm
) -> None:
    folder, text = tmp_path / "gateway", CONFIG.partition("[[allow]]")[0]
    shutil.copytree(made, folder)
    (folder / "p.cedar").write_text("permit (principal, action, resource) when { principal.attested_tpm == \"any\" };")
    text = text.replace("key_file", 'models = ["small"]\nkey_file') + '[policy]\ncedar = ["p.cedar"]\n'
    async with serving(folder, text) as gateway:
        shown = await joined(gateway, settings, await gateway.invite("edge/a"), machine.tpm)
        assert await models(gateway, shown) == ["small"]
        software = await joined(gateway, settings, await gateway.invite("edge/b"), None)
        with pytest.raises(RequestRefused) as refusal:
            await models(gateway, software)
        assert refusal.value.reason == "not_allowed"
    async with serving(folder, text) as gateway:
        assert await models(gateway, shown) == ["small"], "after a restart"


async def test_a_copied_disk_neither_renews_nor_joins(
    gateway: Gateway, settings: Settings, machine: SoftwareTpm, make: MakeTpm, tmp_path: Path
) -> None:
    """The whole home, opened store included, beside another TPM, or none."""
    invitation = await gateway.invite(tpm=True)
    await joined(gateway, settings, invitation, machine.tpm)
    copy, other = tmp_path / "copy", make()
    copy.mkdir()
    for name in ("store.db", "store.db-wal"):
        with contextlib.suppress(FileNotFoundError):
            shutil.copy(tmp_path / name, copy)
    with contextlib.closing(open_store(copy / "store.db")) as database:
        stolen = Settings(database, NAMESPACE)
        for tpm, told in ((other.tpm, "another TPM"), (Tpm("device:/dev/no-tpm"), "no TPM can be used")):
            with pytest.raises(SignerFailed, match=told) as failure:
                await renewed(gateway, stolen, tpm)
            assert failure.value.hint is not None and failure.value.fault == "store"
        with pytest.raises(PeerRefused):
            await joined(gateway, stolen, invitation, other.tpm)
        assert gateway.refusals()[-1] == "invitation used with another device key"
    await renewed(gateway, settings, machine.tpm)


async def run(*arguments: str, given: str = "", **environment: str) -> tuple[int, str, str]:
    process = await asyncio.create_subprocess_exec(
        sys.executable, *arguments, cwd=ROOT, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE, env=os.environ | environment,
    )
    out, err = await process.communicate(given.encode())
    return process.returncode or 0, out.decode(), err.decode()


async def edge(home: Path, tpm: str, *arguments: str, given: str = "") -> tuple[int, str, str]:
    (home / "pass").write_text("words")
    (home / "pass").chmod(0o600)
    return await run(
        "-m", "edge_client.cli", *arguments, given=given, CAUSEWAY_HOME=str(home), CAUSEWAY_TPM=tpm,
        CAUSEWAY_PASSPHRASE_FILE=str(home / "pass"),
    )


async def relay(gateway: Gateway, verb: str, *arguments: str) -> str:
    code, out, told = await run(
        "-c", "from relay.cli import main; main()", "gateway", verb, *arguments, "--config",
        str(gateway.folder / "gateway.toml"),
    )
    assert code == 0, told
    return out


async def test_the_commands_join_and_tell(gateway: Gateway, tmp_path: Path, machine: SoftwareTpm) -> None:
    home = tmp_path / "home"
    home.mkdir(mode=0o700)
    line = (await relay(gateway, "invite", "edge/lap-1", "--tpm")).strip()
    join = ("join", "--invitation-file", "-", "--hop", str(gateway.endpoint))
    code, _, told = await edge(home, "device:/dev/no-tpm", *join, "--tpm", given=line)
    assert code == 8 and "no TPM can be used at device:/dev/no-tpm" in told and "hint: " in told
    code, _, told = await edge(home, machine.name, *join, given=line)
    assert code == 6 and "did not accept this identity" in told
    code, out, told = await edge(home, machine.name, *join, "--tpm", "--json", given=line)
    assert code == 0 and json.loads(out)["tpm"] is True, told
    _, out, _ = await edge(home, machine.name, "status", "--json")
    assert json.loads(out)["identity"]["key"] == "tpm"
    assert "TSS" not in told and "WARNING" not in told, "the library is quiet"
    _, out, _ = await edge(home, machine.name, "status")
    assert "device key in the TPM" in out
    assert "key in a TPM" in await relay(gateway, "devices")
    config = Config.load({"CAUSEWAY_HOME": str(home), "CAUSEWAY_TPM": machine.name})
    async with App.open(config, store="if present", ask=lambda new: Passphrase("words")) as opened:
        identity = await opened.identities.load()  # as a session does that has to renew
        assert identity is not None
        renewed = await renew(opened.settings, identity, await connect(gateway.endpoint))
        assert renewed.svid.chain != identity.svid.chain


async def test_a_link_that_is_not_used_since_the_tpm_fails_is_closed(gateway: Gateway, settings: Settings) -> None:
    link = await connect(gateway.endpoint)
    with pytest.raises(Exception, match="no TPM can be used"):
        await join(settings, await gateway.invite(), link, (), tpm=Tpm("device:/dev/no-tpm"))
    with pytest.raises(Exception, match="link"):
        await link.send(b"x")


def test_what_is_kept_tells_its_kind_and_damage() -> None:
    for data in (b"cwtpm\x01", b"cwtpm\x01" + bytes(91), b"cwtpm\x01" + bytes(91) + Blob(b"a", b"b").encode()):
        with pytest.raises(StoreCorrupt):
            restored(data, None)
    with pytest.raises(SignerFailed, match="no TPM was named"):
        TpmKey(Blob(b"a", b"b"), SigningKey.generate().public.spki, None).sign(b"x")

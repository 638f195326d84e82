"""What holds of the gateway's keys whoever has them: this process, a token behind PKCS#11, or AWS KMS."""

import asyncio
import contextlib
import json
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from relay.gateway import folder
from relay.gateway.backup import restore, write_backup
from relay.gateway.config import Config, load
from relay.gateway.doctor import Doctor, Stage
from relay.gateway.errors import GatewayError, KeysUnavailable
from relay.gateway.identity.ca import (
    DAY_S,
    INTERMEDIATE_FILE,
    INTERMEDIATE_PURPOSE,
    ROOT_FILE,
    ROOT_PURPOSE,
    Authority,
    OwnIdentity,
    sealed_path,
    unseal,
)
from relay.gateway.identity.held import HELD_FILE, Held, name_of
from relay.gateway.identity.jose import TokenRefused
from relay.gateway.identity.rotation import Rotated
from relay.gateway.identity.token_keys import ACCESS, TokenKeys
from relay.gateway.keys import custody_of
from relay.gateway.state.sqlcipher import KEY_FILE, open_state
from relay.hop.identity import HopHome
from relay.hop.identity import join as join_hop
from store.errors import StoreError, WrongKey
from store.keys import HeldKey, Passphrase, Unlock, unlock_key
from tests.integration.test_gateway_serve import CONFIG, Device, Running, ask, joined, serving
from tests.support.custodies import KINDS, Kind, keys, kind_of
from tests.support.gateway_lab import DOMAIN, PASSPHRASE, ROOT_PASSPHRASE, Clock, chat
from tests.support.mock_provider import WHOLE, MockProvider
from transport.errors import IdentityRefused, PeerRefused, TransportError
from transport.identity.revocation import RevocationList, read_list
from transport.identity.svid import SpiffeId
from transport.identity.verify import verify_svid
from transport.links.base import Endpoint
from transport.primitives import SigningKey

DEVICE = SigningKey.generate()
EDGE = SpiffeId(DOMAIN, "/edge/lap-1")
PKCS8_HEAD = bytes.fromhex("308187020100301306072a8648ce3d020106082a8648ce3d030107046d306b0201010420")


class Lab:
    """A gateway's folder whose keys are of one kind."""

    def __init__(self, kind: Kind, directory: Path) -> None:
        self.kind, self.directory = kind, directory
        self.sealed = not kind.section
        folder.create(
            directory, DOMAIN, passphrase=PASSPHRASE, root_passphrase=ROOT_PASSPHRASE if self.sealed else None,
            now=time.time(), keys="\n" + kind.section,
        )

    @property
    def config(self) -> Config:
        return load(self.directory / "gateway.toml")

    @property
    def custody(self) -> Held:
        """Opened anew each time, as by another process."""
        return custody_of(self.config.keys)

    @property
    def by(self) -> Unlock:
        return self.custody.unlock(self.directory, self.directory / KEY_FILE) or PASSPHRASE

    @property
    def root_by(self) -> Unlock:
        return ROOT_PASSPHRASE if self.sealed else self.by

    def authority(self) -> Authority:
        return Authority.open(self.directory, self.by, custody=self.custody)

    def kept(self) -> tuple[bytes, bytes]:
        """What is kept of the root's key and of the intermediate's."""
        root = unseal(self.directory / ROOT_FILE, self.root_by, ROOT_PURPOSE)
        return root.key, unseal(self.directory / INTERMEDIATE_FILE, self.by, INTERMEDIATE_PURPOSE).key

    def change(self, section: str) -> None:
        config = self.directory / "gateway.toml"
        config.write_text(config.read_text().replace(self.kind.section, section))

    def serving(self, provider: MockProvider) -> "contextlib.AbstractAsyncContextManager[Running]":
        return serving(self.directory, provider, CONFIG + self.kind.section, by=self.by)


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Kind]:
    with kind_of(request.param, tmp_path, monkeypatch) as kind:
        yield kind


@pytest.fixture
def lab(kind: Kind, tmp_path: Path) -> Lab:
    return Lab(kind, tmp_path / "gateway")


@pytest.fixture(params=KINDS[1:])
def holder(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Kind]:
    """Those that are not this process."""
    with kind_of(request.param, tmp_path, monkeypatch) as kind:
        yield kind


@pytest.fixture
def held(holder: Kind, tmp_path: Path) -> Lab:
    return Lab(holder, tmp_path / "gateway")


# --- keys -----------------------------------------------------------------------------------------------------------


def test_a_key_signs_and_is_the_same_when_it_is_opened_again(kind: Kind) -> None:
    settings = keys(kind.section)
    signer, kept = custody_of(settings).make("token")
    for message in (b"\0", b"message", b"m" * 4_096):
        signer.public.verify(signer.sign(message), message)
        with pytest.raises(IdentityRefused):
            signer.public.verify(signer.sign(message), message + b".")
    again = custody_of(settings).open(kept)
    assert again.public.spki == signer.public.spki
    signer.public.verify(again.sign(b"message"), b"message")
    other, _ = custody_of(settings).make("token")
    assert other.public.spki != signer.public.spki


def test_a_key_that_is_gone_is_named(held: Lab) -> None:
    _, kept = held.kept()
    name = name_of(kept)
    assert name is not None and name in held.kind.names()
    by = held.by
    held.kind.delete(name)
    with pytest.raises(KeysUnavailable) as gone:
        Authority.open(held.directory, by, custody=held.custody)
    assert name in str(gone.value) and gone.value.hint is not None and not gone.value.again


def test_who_is_not_let_in_is_told_so_with_a_hint(lab: Lab) -> None:
    if lab.sealed:
        with pytest.raises(WrongKey):
            Authority.open(lab.directory, Passphrase("another"), custody=lab.custody)
        return
    lab.change(lab.kind.wrong())
    with pytest.raises(KeysUnavailable, match=lab.kind.refusal) as refused:
        _ = lab.by
    assert refused.value.hint is not None and not refused.value.again


def test_the_folder_is_opened_by_the_holder_and_its_state_by_the_passphrase_still(lab: Lab) -> None:
    assert isinstance(lab.by, Passphrase if lab.sealed else HeldKey)
    unlock_key(lab.directory / KEY_FILE, PASSPHRASE)
    with open_state(lab.directory, lab.by):
        pass
    if not lab.sealed:
        with pytest.raises(StoreError):  # by which nobody issues anything
            Authority.open(lab.directory, PASSPHRASE, custody=lab.custody)


def test_what_was_wrapped_for_one_gateway_opens_no_other(held: Lab, tmp_path: Path) -> None:
    other = Lab(held.kind, tmp_path / "other")
    shutil.copy(held.directory / HELD_FILE, other.directory / HELD_FILE)
    with pytest.raises(KeysUnavailable):
        _ = other.by
    assert isinstance(held.by, HeldKey)


def test_no_private_key_is_in_a_file_of_the_folder(lab: Lab) -> None:
    by, root_by = lab.by, lab.root_by
    texts = {path.name: path.read_bytes() for path in lab.directory.iterdir() if path.is_file()}
    for name, unlocks, purpose in (
        (ROOT_FILE, root_by, ROOT_PURPOSE), (INTERMEDIATE_FILE, by, INTERMEDIATE_PURPOSE)
    ):
        path = sealed_path(lab.directory / name, unlocks)
        texts[path.name] = unseal(lab.directory / name, unlocks, purpose).key
    assert len(texts) >= 6 and "gateway.toml" in texts
    found = {name for name, data in texts.items() if PKCS8_HEAD in data}
    assert found == ({"root.sealed", "intermediate.sealed"} if lab.sealed else set())


# --- the authority --------------------------------------------------------------------------------------------------


def test_an_svid_of_it_verifies(lab: Lab) -> None:
    authority = lab.authority()
    issued = authority.issue(EDGE, DEVICE.public, now=time.time())
    peer = verify_svid(issued.chain, authority.bundle, role="edge", now=time.time())
    assert peer.id == EDGE and peer.key.spki == DEVICE.public.spki


async def test_the_gateways_own_identity_is_renewed_when_it_is_due(lab: Lab) -> None:
    now = time.time()
    own = OwnIdentity(lab.authority(), "main", clock=lambda: now)
    first = own.svid()
    await own.tend()
    assert own.svid() is first
    now += own.renew_in + 1
    if not lab.sealed:
        assert own.svid() is first, "nobody who wants to see it waits for a signature"
        await own.tend()
    assert own.svid() is not first and own.svid().not_after > first.not_after


async def test_the_gateways_own_identity_stays_while_its_holder_fails(
    held: Lab, caplog: pytest.LogCaptureFixture
) -> None:
    now = time.time()
    own = OwnIdentity(held.authority(), "main", clock=lambda: now)
    first, name = own.svid(), name_of(held.kept()[1])
    assert name is not None
    held.kind.delete(name)
    now += own.renew_in + 1
    await own.tend()
    assert own.svid() is first and 1 < own.renew_in <= 60 and name in caplog.text


async def test_a_new_intermediate_has_a_new_key_and_the_old_one_stays_where_it_is(lab: Lab) -> None:
    old = lab.authority()
    issued = old.issue(EDGE, DEVICE.public, now=time.time())
    _, before = lab.kept()
    renewed = await folder.renew_ca(lab.config, passphrase=lab.by, root_passphrase=lab.root_by, now=time.time())
    authority, (_, after) = lab.authority(), lab.kept()
    assert authority.serial != old.serial and before != after
    assert renewed.unused == name_of(before)
    if not lab.sealed:
        assert {name_of(before), name_of(after)} <= lab.kind.names()
    new = authority.issue(EDGE, DEVICE.public, now=time.time())
    for one in (issued, new):
        verify_svid(one.chain, authority.bundle, role="edge", now=time.time())


async def test_a_new_root_in_three_steps(lab: Lab) -> None:
    now, first = time.time(), lab.authority()

    async def step() -> Rotated:
        return await folder.rotate_root(lab.config, passphrase=lab.by, root_passphrase=lab.root_by, now=now)

    root, intermediate = lab.kept()
    published = await step()
    assert published.step == "published" and published.unused == () and published.next_at is not None
    now = published.next_at + 60
    await folder.renew_ca(lab.config, passphrase=lab.by, root_passphrase=lab.root_by, now=now)
    used = await step()
    assert used.step == "used" and used.next_at is not None
    if not lab.sealed:
        assert name_of(root) in used.unused and {*used.unused, name_of(intermediate)} <= lab.kind.names()
    now = used.next_at + 60
    assert (await step()).step == "retired"
    authority = lab.authority()
    assert authority.bundle.roots == (authority.root,) and authority.root != first.root
    issued = authority.issue(EDGE, DEVICE.public, now=now)
    verify_svid(issued.chain, authority.bundle, role="edge", now=now)
    assert now < time.time() + 100 * DAY_S


# --- keys that sign tokens ------------------------------------------------------------------------------------------


async def test_keys_of_tokens_are_where_the_others_are_and_do_not_pile_up(lab: Lab) -> None:
    clock = Clock()
    with open_state(lab.directory, lab.by) as database:
        tokens = TokenKeys(database, ACCESS, longest_s=600, clock=clock, custody=lab.custody)
        await tokens.load()
        text = await tokens.sign({"exp": int(clock()) + 600}, "at+jwt")
        tokens = TokenKeys(database, ACCESS, longest_s=600, clock=clock, custody=lab.custody)
        await tokens.load()  # as after a restart
        assert tokens.verify(text, "at+jwt", dict) == {"exp": int(clock()) + 600}
        rows = await database.run(lambda connection: connection.execute("SELECT private FROM token_keys").fetchall())
        assert [PKCS8_HEAD in bytes(row[0]) for row in rows] == [lab.sealed] * 2
        first = {name_of(bytes(row[0])) for row in rows}
        for _ in range(3):
            await tokens.rotate()
            clock.now += 3_600
            await tokens.tend()
        assert len(tokens.jwks()) == 2
        if not lab.sealed:
            assert first.isdisjoint(lab.kind.names())
            assert len([name for name in lab.kind.names() if "-token-access-" in name]) == 2


async def test_tokens_of_a_key_that_is_gone_are_over_and_new_ones_are_signed(held: Lab) -> None:
    clock = Clock()
    with open_state(held.directory, held.by) as database:
        tokens = TokenKeys(database, ACCESS, longest_s=600, clock=clock, custody=held.custody)
        await tokens.load()
        old = await tokens.sign({"exp": int(clock()) + 600}, "at+jwt")
        for name in held.kind.names():
            if "-token-" in name:
                held.kind.delete(name)
        tokens = TokenKeys(database, ACCESS, longest_s=600, clock=clock, custody=held.custody)
        await tokens.load()
        with pytest.raises(TokenRefused):
            tokens.verify(old, "at+jwt", dict)
        new = await tokens.sign({"exp": int(clock()) + 600}, "at+jwt")
        assert tokens.verify(new, "at+jwt", dict)


# --- the whole gateway ----------------------------------------------------------------------------------------------


async def test_a_whole_gateway_and_its_backup(lab: Lab, tmp_path: Path) -> None:
    async with MockProvider() as provider:
        async with lab.serving(provider) as gateway:
            device = await joined(gateway)
            session = await device.session()
            assert json.loads(await ask(session, chat())) == WHOLE
            await session.close()
            home = HopHome(tmp_path / "hop", Passphrase("p"))
            await join_hop(home, await gateway.invite("hop/pi"), gateway.https)
            await gateway.ask_admin("revoke", who="hop/pi", reason="a list has to be signed")
            answer = await gateway.ask_admin("snapshot")
            copy = lab.directory / answer.pop("copy")
            with pytest.raises(WrongKey):
                write_backup(lab.directory, copy, tmp_path / "no", Passphrase("x"), **answer, now=time.time())
            write_backup(lab.directory, copy, tmp_path / "backup", PASSPHRASE, **answer, now=time.time())
            copy.unlink()
        again = tmp_path / "again"
        await restore(tmp_path / "backup", again, PASSPHRASE, revocations=None, now=time.time())
        lab.directory = again
        async with lab.serving(provider) as gateway:
            device.endpoint = Endpoint.parse(gateway.ready.session)
            await device.renew()
            session = await device.session()
            assert json.loads(await ask(session, chat())) == WHOLE
            await session.close()


async def test_H13_what_a_compromised_intermediate_has_signed_is_over(lab: Lab) -> None:
    async with MockProvider() as provider:
        async with lab.serving(provider) as gateway:
            device = await joined(gateway)
        stolen = lab.authority()
        await folder.renew_ca(
            lab.config, passphrase=lab.by, root_passphrase=lab.root_by, now=time.time(), compromised=True
        )
        assert device.bundle is not None
        told = read_list(
            (lab.directory / "revocations.list").read_bytes(), device.bundle, now=time.time(), held=RevocationList()
        )
        assert told.serials == {stolen.serial}
        async with lab.serving(provider) as gateway:
            device.endpoint = Endpoint.parse(gateway.ready.session)
            with pytest.raises(PeerRefused):
                await device.session()
            await device.renew()
            await (await device.session()).close()


async def test_while_the_holder_fails_nobody_joins_and_everything_else_goes_on(held: Lab) -> None:
    async with MockProvider() as provider, held.serving(provider) as gateway:
        device = await joined(gateway)
        invitation = await gateway.invite("edge/other")
        _, kept = held.kept()
        name = name_of(kept)
        assert name is not None
        held.kind.delete(name)
        with pytest.raises((TransportError, GatewayError)):
            await Device(device.endpoint, invitation).join()
        session = await device.session()
        assert json.loads(await ask(session, chat())) == WHOLE
        await session.close()


async def test_the_doctor_names_the_key_that_does_not_sign(held: Lab) -> None:
    async def source() -> Stage:
        doctor = Doctor(held.directory / "gateway.toml", passphrase=None, timeout_s=20)
        async with contextlib.aclosing(doctor.stages()) as stages:
            return await anext(stages)

    _, kept = held.kept()
    name = name_of(kept)
    assert name is not None
    alone = await source()
    assert alone.status == "failed" and "no gateway runs here; the embedded authority issues" in alone.finding
    async with MockProvider() as provider, held.serving(provider):
        assert (await source()).status == "ok"
        held.kind.delete(name)
        running = await source()
    for stage in (running, await source()):
        assert stage.status == "failed" and name in stage.finding and stage.hint


async def test_a_gateway_that_was_made_without_moves_by_rotating_its_key(holder: Kind, tmp_path: Path) -> None:
    directory = tmp_path / "gateway"
    folder.create(directory, DOMAIN, passphrase=PASSPHRASE, root_passphrase=ROOT_PASSPHRASE, now=time.time())
    config = directory / "gateway.toml"
    config.write_text(config.read_text() + "\n" + holder.section)
    settings = load(config)
    old = Authority.open(directory, PASSPHRASE, custody=custody_of(settings.keys))
    await folder.renew_ca(settings, passphrase=PASSPHRASE, root_passphrase=ROOT_PASSPHRASE, now=time.time())
    by = custody_of(settings.keys).unlock(directory, directory / KEY_FILE)
    assert by is not None and not (directory / INTERMEDIATE_FILE).exists()
    authority = Authority.open(directory, by, custody=custody_of(settings.keys))
    assert authority.bundle == old.bundle and authority.serial != old.serial and authority.is_slow
    later = await folder.renew_ca(settings, passphrase=by, root_passphrase=ROOT_PASSPHRASE, now=time.time())
    assert later.unused in holder.names()


async def test_the_loops_own_threads_are_free_while_a_holder_does_not_answer(held: Lab) -> None:
    authority, answer = held.authority(), threading.Event()
    signer = authority._key
    waiting = [asyncio.create_task(authority.aside(answer.wait)) for _ in range(200)]
    try:
        await asyncio.sleep(0)  # they have all begun
        async with asyncio.timeout(60):
            assert await asyncio.to_thread(lambda: signer.slow)
        assert not any(one.done() for one in waiting)
    finally:
        answer.set()
        await asyncio.gather(*waiting)


async def test_others_are_served_while_a_slow_holder_signs(held: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """The signature comes only once something else on the event loop has run."""
    authority, loop = held.authority(), asyncio.get_running_loop()
    signer = authority._key
    sign = signer.sign

    def late(message: bytes) -> bytes:
        asyncio.run_coroutine_threadsafe(asyncio.sleep(0), loop).result(30)
        return sign(message)

    monkeypatch.setattr(signer, "sign", late)
    issued = await authority.issue_aside(EDGE, DEVICE.public, now=time.time())
    verify_svid(issued.chain, authority.bundle, role="edge", now=time.time())

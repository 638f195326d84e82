"""Backups that are older than a revocation, and the hops that remember: nobody who was revoked comes back."""

import asyncio
import contextlib
import json
import shutil
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from relay.gateway import folder
from relay.gateway.backup import ENROLMENT_STEP, restore, write_backup
from relay.gateway.errors import SetupRefused
from relay.gateway.identity.ca import Authority
from relay.hop.app import Hop, HopLimits
from relay.hop.errors import JoinRefused
from relay.hop.identity import HopHome, HopIdentity, exchange_list
from relay.hop.identity import join as join_hop
from store.errors import StoreCorrupt, WrongKey
from store.keys import Passphrase
from tests.integration.test_gateway_serve import Device, Running, ask, joined, serving, until
from tests.support.gateway_lab import DOMAIN, PASSPHRASE, ROOT_PASSPHRASE, chat
from tests.support.mock_provider import KEY, WHOLE, MockProvider
from transport.errors import IdentityRefused, PeerRefused, TransportError
from transport.identity.revocation import RevocationList, read_list
from transport.links.base import Endpoint


@pytest.fixture
async def provider() -> AsyncIterator[MockProvider]:
    async with MockProvider() as provider:
        yield provider


@contextlib.asynccontextmanager
async def original(made: Path, tmp_path: Path, provider: MockProvider) -> AsyncIterator[Running]:
    directory = tmp_path / "gateway"
    shutil.copytree(made, directory)
    async with serving(directory, provider) as running:
        (directory / "gateway.toml").write_text(
            'trust_domain = "field.example"\n[listen]\nhttps = "127.0.0.1:0"\n[provider]\nbase_url = "http://127.0.0.1:9"\n'
            'key_file = "provider.key"\n'
        )
        yield running


async def back_up(gateway: Running, target: Path) -> None:
    answer = await gateway.ask_admin("snapshot")
    copy = gateway.config.directory / answer.pop("copy")
    write_backup(gateway.config.directory, copy, target, PASSPHRASE, **answer, now=time.time())
    copy.unlink()


async def hop_of(gateway: Running, tmp_path: Path) -> tuple[HopHome, HopIdentity]:
    home = HopHome(tmp_path / "hop", Passphrase("p"))
    return home, await join_hop(home, await gateway.invite("hop/pi"), gateway.https)


async def comes_in(device: Device, gateway: Running) -> bool:
    device.endpoint = Endpoint.parse(gateway.ready.session)
    try:
        session = await device.session()
    except PeerRefused:
        return False
    await session.close()
    return True


async def test_a_restored_gateway_does_not_let_in_who_was_revoked_after_the_backup(
    made: Path, tmp_path: Path, provider: MockProvider
) -> None:
    async with original(made, tmp_path, provider) as gateway:
        lost, replaced, kept = [await joined(gateway, f"edge/{name}") for name in ("lost", "replaced", "kept")]
        unused = await gateway.invite("edge/later")
        epoch = (await kept.session()).welcome.epoch
        await back_up(gateway, tmp_path / "backup")
        await gateway.ask_admin("revoke", who="edge/lost", reason="lost")
        newer = await joined(gateway, "edge/replaced")
        assert newer.svid is not None
    # The newest list names the replaced one, too: it is signed again when the gateway next looks, or starts.
    async with serving(tmp_path / "gateway", provider):
        latest = (tmp_path / "gateway" / "revocations.list").read_bytes()

    ended = await restore(tmp_path / "backup", tmp_path / "again", PASSPHRASE, revocations=latest, now=time.time())
    assert sorted(ended) == [f"spiffe://{DOMAIN}/edge/{name}" for name in ("lost", "replaced")]
    async with serving(tmp_path / "again", provider) as gateway:
        assert not await comes_in(lost, gateway) and not await comes_in(replaced, gateway)
        for device in (lost, replaced):
            with pytest.raises(PeerRefused):
                await device.renew()
        assert not await comes_in(newer, gateway), "what happened after the backup is not known"
        assert await comes_in(kept, gateway)
        session = await kept.session()
        assert session.welcome.epoch != epoch, "what was sent to the lost journal is not sent again"
        assert json.loads(await ask(session, chat())) == WHOLE
        await session.close()
        with pytest.raises(PeerRefused):  # an invitation of before may have been used since
            await Device(lost.endpoint, unused).join()
        await joined(gateway, "edge/new")
        numbers = [one["enrolment"] for one in (await gateway.ask_admin("devices"))["devices"]]
        assert numbers[-1] == ENROLMENT_STEP + 1, "no number is given out twice"
        (told,) = [line for line in gateway.audit() if line["event"] == "gateway.restored"]
        assert told["revocations"] == "given" and told["audit_sequence"] > 0
        assert read_list(
            (tmp_path / "again" / "revocations.list").read_bytes(), kept.bundle, now=time.time(),  # type: ignore[arg-type]
            held=read_list(latest, kept.bundle, now=time.time(), held=RevocationList()),  # type: ignore[arg-type]
        ).enrolments == {1, 2}, "who has seen the old gateway's list takes the restored one's"


async def test_H11_hops_tell_a_restored_gateway_what_its_administrator_had_forgotten(
    made: Path, tmp_path: Path, provider: MockProvider
) -> None:
    async with original(made, tmp_path, provider) as gateway:
        _, identity = await hop_of(gateway, tmp_path)
        lost = await joined(gateway, "edge/lost")
        await back_up(gateway, tmp_path / "backup")
        await gateway.ask_admin("revoke", who="edge/lost", reason="lost")
        data = await exchange_list(identity, gateway.https, RevocationList())
        carried = read_list(data, identity.bundle, now=time.time(), held=RevocationList())
        assert carried.enrolments == {2}
    assert await restore(tmp_path / "backup", tmp_path / "again", PASSPHRASE, revocations=None, now=time.time()) == []
    async with serving(tmp_path / "again", provider) as gateway:
        lost.endpoint = Endpoint.parse(gateway.ready.session)
        session = await lost.session()  # the word that nobody was revoked was wrong
        data = await exchange_list(identity, gateway.https, carried)
        await until(lambda: not session.alive)
        assert isinstance(session.failure, PeerRefused) and session.failure.reason == "revoked"
        assert not await comes_in(lost, gateway)
        (told,) = [line for line in gateway.audit() if line["event"] == "device.revoked"]
        assert told["via"] == f"spiffe://{DOMAIN}/hop/pi"
        now_held = read_list(data, identity.bundle, now=time.time(), held=carried)
        assert now_held.enrolments == {2} and now_held.sequence > carried.sequence


async def test_H11_a_running_hop_takes_the_list_along_and_keeps_it(
    made: Path, tmp_path: Path, provider: MockProvider
) -> None:
    async with original(made, tmp_path, provider) as gateway:
        home, identity = await hop_of(gateway, tmp_path)
        await joined(gateway, "edge/lost")
        await gateway.ask_admin("revoke", who="edge/lost", reason="lost")
        stop = asyncio.Event()
        hop = Hop(home, identity, [gateway.https], limits=HopLimits(), report=lambda line: None)
        running = asyncio.create_task(hop.run([Endpoint.parse("tcp:127.0.0.1:0")], stop))
        await until(lambda: home.carried().sequence > 0)
        stop.set()
        await running
        assert home.carried().enrolments == {2}


async def test_H11_a_hop_does_not_speak_to_a_revoked_gateway(
    made: Path, tmp_path: Path, provider: MockProvider
) -> None:
    from relay.hop.identity import _talking
    from transport.identity.tls import client_context

    async with original(made, tmp_path, provider) as gateway:
        _, identity = await hop_of(gateway, tmp_path)
        async with _talking(client_context(identity.bundle), gateway.https) as server:
            with contextlib.suppress(Exception):
                await server.call("GET", "/v1/bundle", None, dict)
            assert server.seen is not None
            serial = server.seen.serial
        with pytest.raises(IdentityRefused) as refused:
            await exchange_list(identity, gateway.https, RevocationList(1, serials=frozenset([serial])))
        assert refused.value.rule == "revoked"


async def test_nothing_that_a_stolen_intermediate_has_signed_is_believed_any_more(
    made: Path, tmp_path: Path, provider: MockProvider
) -> None:
    directory = tmp_path / "gateway"
    async with original(made, tmp_path, provider) as gateway:
        device = await joined(gateway, "edge/lap-1")
        await joined(gateway, "edge/lost")
        await gateway.ask_admin("revoke", who="edge/lost", reason="lost")
        before = (directory / "revocations.list").read_bytes()
    stolen = Authority.open(directory, PASSPHRASE)
    await folder.renew_ca(
        gateway.config, passphrase=PASSPHRASE, root_passphrase=ROOT_PASSPHRASE, now=time.time(), compromised=True
    )
    assert device.bundle is not None
    told = read_list(
        (directory / "revocations.list").read_bytes(), device.bundle, now=time.time(), held=RevocationList()
    )
    assert told.serials == {stolen.serial} and told.enrolments == {2}
    with pytest.raises(IdentityRefused) as refused:  # nor can the thief take it off the list again
        read_list(before, device.bundle, now=time.time(), held=told)
    assert refused.value.rule == "revoked"
    async with serving(directory, provider) as gateway:
        assert not await comes_in(device, gateway)
        await device.renew()
        assert await comes_in(device, gateway)


async def test_what_is_no_list_of_ours_teaches_a_gateway_nothing(
    made: Path, tmp_path: Path, provider: MockProvider
) -> None:
    async with original(made, tmp_path, provider) as gateway:
        _, identity = await hop_of(gateway, tmp_path)
        device = await joined(gateway, "edge/lap-1")
        forged = RevocationList(9, data=b"\x93\xc4\x01a\x90\xc4\x01b")
        assert await exchange_list(identity, gateway.https, forged) == b""
        assert await comes_in(device, gateway)
        assert [line["event"] for line in gateway.audit() if "revo" in line["event"]] == ["revocations.refused"]


async def test_only_hops_exchange_lists(made: Path, tmp_path: Path, provider: MockProvider) -> None:
    from dataclasses import replace

    from relay.hop.identity import _List, _talking
    from transport.identity.tls import client_context

    async with original(made, tmp_path, provider) as gateway:
        _, identity = await hop_of(gateway, tmp_path)
        async with _talking(client_context(identity.bundle), gateway.https) as server:
            with pytest.raises(JoinRefused):
                await server.call("POST", "/v1/revocations", {"list": ""}, _List)
        edge = await joined(gateway, "edge/lap-1")
        assert edge.svid is not None
        with pytest.raises((TransportError, JoinRefused)):
            await exchange_list(replace(identity, svid=edge.svid), gateway.https, RevocationList())


async def test_a_backup_is_sealed_whole_and_without_what_must_not_be_in_it(
    made: Path, tmp_path: Path, provider: MockProvider
) -> None:
    async with original(made, tmp_path, provider) as gateway:
        await joined(gateway, "edge/lap-1")
        directory = gateway.config.directory
        with (directory / "gateway.toml").open("a") as config:
            config.write('[policy]\ncedar = ["rules/site.cedar", "/etc/hostname", "../gone.cedar"]\n')
        (directory / "rules").mkdir()
        (directory / "rules" / "site.cedar").write_text("// ours\n")
        with pytest.raises(WrongKey):  # a typing error would make a backup that nobody can open
            write_backup(directory, directory / "state.db", tmp_path / "no", Passphrase("x"), audit_sequence=1,
                         audit_head="", now=time.time())
        await back_up(gateway, tmp_path / "backup")
        with pytest.raises(SetupRefused):
            await back_up(gateway, tmp_path / "backup")
        for copy in directory.glob(".snapshot-*"):
            copy.unlink()
    data = (tmp_path / "backup").read_bytes()
    assert (tmp_path / "backup").stat().st_mode & 0o077 == 0
    for plain in (b"trust_domain", b"lap-1", KEY.encode(), b"CERTIFICATE"):
        assert plain not in data
    for wrong, error in ((Passphrase("x"), WrongKey), (PASSPHRASE, SetupRefused)):
        (tmp_path / "there").mkdir(exist_ok=True)
        (tmp_path / "there" / "file").write_text("x")
        with pytest.raises(error):
            await restore(
                tmp_path / "backup", tmp_path / ("free" if error is WrongKey else "there"), wrong, revocations=None,
                now=time.time(),
            )
    (tmp_path / "damaged").write_bytes(data[:-1])
    with pytest.raises(StoreCorrupt):
        await restore(tmp_path / "damaged", tmp_path / "free", PASSPHRASE, revocations=None, now=time.time())
    left = [file.name for file in await asyncio.to_thread(lambda: list(tmp_path.iterdir()))]
    assert not [name for name in left if "free" in name], "whole or not at all"
    await restore(tmp_path / "backup", tmp_path / "free", PASSPHRASE, revocations=None, now=time.time())
    assert {file.name for file in (tmp_path / "free").iterdir()} >= {"root.sealed", "intermediate.sealed", "state.db"}
    assert not (tmp_path / "free" / "provider.key").exists()
    assert (tmp_path / "free" / "rules" / "site.cedar").read_text() == "// ours\n"


async def test_M16_a_list_older_than_the_backup_says_nothing_of_what_came_after(
    made: Path, tmp_path: Path, provider: MockProvider
) -> None:
    async with original(made, tmp_path, provider) as gateway:
        await joined(gateway, "edge/lap-1")
        await gateway.ask_admin("revoke", who="edge/lap-1", reason="x")
        data = (gateway.config.directory / "revocations.list").read_bytes()
        answer = await gateway.ask_admin("snapshot")
        copy = gateway.config.directory / answer.pop("copy")
        write_backup(gateway.config.directory, copy, tmp_path / "backup", PASSPHRASE, **answer, now=time.time() + 7200)
    with pytest.raises(SetupRefused):
        await restore(tmp_path / "backup", tmp_path / "again", PASSPHRASE, revocations=data, now=time.time() + 7200)

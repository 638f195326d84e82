"""The phone's page between an edge that tells its secrets and a real gateway: no key of a session is in its memory.

Its strings are searched in a heap snapshot; buffers, which a snapshot does not show and DevTools does not list, in the
memory of its process.
"""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Collection
from pathlib import Path
from typing import Any

import pytest

from edge_client.identity import NAMESPACE, join
from scripts import canaries
from store.database import STORE_SCHEMA, Database
from store.keys import DatabaseKey
from store.settings import Settings
from tests.support.browser import CHROMIUM, Tab
from tests.support.connection_pair import header
from tests.support.gateway_lab import chat
from tests.support.mock_provider import WORDS
from tests.support.phone_centrals import StandInLaptop
from tests.support.phone_lab import PhoneLab, phone_lab
from tests.support.process_memory import written_in
from transport.edge_session import EdgeSession, RemoteAnswer
from transport.initiator import Resumption, SvidLogin
from transport.messages import Padding
from transport.noise import CipherState, SymmetricState
from transport.primitives import SigningKey

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")

PLANT = """((secrets) => {  // they come masked: what is evaluated is in memory as well
  const [tail, encoded, letters, short, long] = secrets.map((one) => one.map((byte) => byte ^ 0x55));
  const inside = new Uint8Array(9000);
  inside.set(long, 7000);
  const hex = tail.map((byte) => byte.toString(16).padStart(2, "0")).join("");
  window.planted = [
    ["x".repeat(5000), hex].join(""), btoa(String.fromCharCode(...encoded)), String.fromCharCode(...letters),
    new Uint8Array(short), inside.buffer,
  ];
})(%s); 0"""
OWN_KEY = """new Promise((done) => { const opening = indexedDB.open("causeway-hop"); opening.onsuccess = () => {
  const asking = opening.result.transaction("keys").objectStore("keys").getAll();
  asking.onsuccess = () => done(Promise.all(asking.result.map(async ({ privateKey, publicKey }) => [
    privateKey.type, privateKey.extractable, (await crypto.subtle.exportKey("jwk", publicKey)).crv,
    ...await Promise.all(["jwk", "pkcs8"].map((form) => crypto.subtle.exportKey(form, privateKey).then(
      () => "exported", (error) => error.name))),
  ]))); }; })"""


@pytest.fixture
async def lab(tmp_path: Path) -> AsyncIterator[PhoneLab]:
    async with asyncio.timeout(200), phone_lab(tmp_path, "--no-sandbox") as made:
        yield made


@pytest.fixture
def derived(monkeypatch: pytest.MonkeyPatch) -> set[bytes]:
    """Every secret that goes into this process's handshakes, and every key that comes of them."""
    found: set[bytes] = set()
    hkdf, init, rekey = SymmetricState._hkdf, CipherState.__init__, CipherState.rekey

    def telling_hkdf(self: SymmetricState, material: bytes, outputs: int) -> list[bytes]:
        out = hkdf(self, material, outputs)
        found.update(one for one in (material, *out) if len(one) == 32)  # a public point is longer
        return out

    def telling_init(self: CipherState, suite: Any, key: bytes) -> None:
        init(self, suite, key)
        found.add(self._key)

    def telling_rekey(self: CipherState) -> None:
        rekey(self)
        found.add(self._key)

    monkeypatch.setattr(SymmetricState, "_hkdf", telling_hkdf)
    monkeypatch.setattr(CipherState, "__init__", telling_init)
    monkeypatch.setattr(CipherState, "rekey", telling_rekey)
    return found


def scalar(key: SigningKey) -> bytes:
    return key.private_key.private_numbers().private_value.to_bytes(32, "big")


async def written(page: Tab) -> bytes:
    """The memory of its process."""
    return b"".join([await asyncio.to_thread(written_in, pid) for pid in await page.renderers()])


def found_in(memory: bytes, needles: Collection[bytes]) -> set[bytes]:
    def forms(needle: bytes) -> set[bytes]:
        letters = needle.decode("latin-1").encode()  # a string with a character for each byte, in a snapshot
        return canaries.byte_forms(needle) | {letters, letters.replace(b"\0", b" ")}

    return {needle for needle in needles if any(form in memory for form in forms(needle))}


async def words(answer: RemoteAnswer, last: str) -> None:
    came = b""
    async for part in await answer.started():
        came += part
        if last.encode() in came:
            return
    raise AssertionError("the answer ended early")


async def test_no_key_of_a_session_is_in_its_memory(lab: PhoneLab, derived: set[bytes], tmp_path: Path) -> None:
    laptop, body, until = StandInLaptop(), chat(stream=True), int(time.time()) + 600
    database = Database.open(tmp_path / "store.db", DatabaseKey.generate(), schema=STORE_SCHEMA)
    await lab.radio.add("lap-1", laptop)
    await lab.radio.visit(await lab.gateway.page_url("phone-1"))
    await lab.page.click("#choose")
    invitation = await lab.gateway.invite("edge/lap-1")
    identity = await join(Settings(database, NAMESPACE), invitation, await laptop.links.get(), ("phone:",))
    database.close()

    async def session(purpose: SvidLogin | Resumption) -> EdgeSession:
        link = await laptop.links.get()
        return await EdgeSession(link, purpose, identity.svid.key, identity.verify_gateway, Padding.OFF).open()

    first = await session(SvidLogin(identity.svid.chain, identity.svid.not_after))
    await words(first.request(b"1" * 16, header(body, expires_at=until), body), WORDS[-1])
    await first.close()
    lab.provider.mode = "stream_stall"  # the session stands, and is quiet
    second = await session(Resumption(first.tickets[0]))
    answer = second.request(b"2" * 16, header(body, expires_at=until), body)
    await words(answer, WORDS[1])

    tickets = [ticket.psk.expose() for one in (first, second) for ticket in one.tickets]
    own = [scalar(identity.device_key), scalar(identity.svid.key), invitation.secret.expose()]
    secrets = {*derived, *tickets, *own}
    assert len(tickets) == 8 and len(derived) >= 3 * 8 and tickets[0] in derived, "resumed by the first of them"

    # What it holds, as a snapshot tells it; and all that its process has in memory, bytes of buffers among it.
    carried = [value[1:] for value in laptop.written if value[0] < 0x80 and len(value) > 32]
    strings, process = await lab.page.heap(), await written(lab.page)
    assert lab.gateway.origin.encode() in strings
    assert carried[-1] in process, "what it carries is there, sealed"
    assert found_in(strings, secrets) == found_in(process, secrets) == set()

    planted = sorted(one for one in secrets if len(one) == 32)[:5]
    await lab.page.run(PLANT % json.dumps([[byte ^ 0x55 for byte in one] for one in planted]))
    strings, process = await lab.page.heap(), await written(lab.page)
    assert found_in(strings, secrets) == set(planted[:3])
    assert found_in(process, secrets) == set(planted)
    await lab.page.run("delete window.planted; 0")
    assert found_in(await lab.page.heap(), secrets) == set()
    lab.provider.release.set()
    await second.close()


async def test_its_own_key_can_be_had_by_nobody(lab: PhoneLab) -> None:
    await lab.radio.visit(await lab.gateway.page_url("phone-1"))
    await lab.says("hop/phone-1")
    refused = "InvalidAccessError"
    assert await lab.page.run(OWN_KEY) == [["private", False, "P-256", refused, refused]]

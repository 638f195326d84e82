"""Everything that an edge keeps of its user is in one SQLCipher file: documents, prompts and answers, the chat's
history, what waits, the device key. Whoever has that file and its key has all of it, and the other files hold nothing.
"""

import asyncio
import json
import shutil
import time
from pathlib import Path

import pytest

from edge_client.answering import Question
from edge_client.app import App
from edge_client.config import Config, RelaySettings
from edge_client.device_key import stored
from edge_client.dialing import Dialer
from edge_client.engine.base import Message
from edge_client.history import NAMESPACE as HISTORY
from edge_client.history import History
from edge_client.identity import DeviceIdentity
from edge_client.ingest import Ingest
from edge_client.offline import Queued
from edge_client.outbox import question_of
from scripts.canaries import byte_forms, search_folder, word
from store.keys import Passphrase, create_key
from store.settings import Settings
from tests.support.ca import Ca
from tests.support.edge_lab import join_gateway
from tests.support.fake_engine import FakeChat, FakeEmbedder, sse
from tests.support.fake_gateway import Call, FakeGateway
from transport.links.base import Endpoint, Link

PROMPT, ANSWER, WAITING, TALK, TEXT = (word() for _ in range(5))


async def answer(call: Call) -> None:
    await call.begin(200, "text/event-stream")
    for part in sse("It says ", ANSWER):
        await call.write(part)
    await call.end()


async def ignore(event: object) -> None:
    pass


def question(text: str) -> Question:
    return Question((Message("user", text),), "relay")


async def test_all_that_is_kept_is_in_the_one_database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gateway, embedder = FakeGateway(Ca(), answer), FakeEmbedder()

    async def dial(self: Dialer, endpoint: Endpoint) -> Link:
        return await gateway.dial(endpoint)

    monkeypatch.setattr(Dialer, "__call__", dial)
    monkeypatch.setattr("edge_client.app.given", lambda: True)
    monkeypatch.setattr(App, "chat", lambda self, path=None, name="local": FakeChat())
    monkeypatch.setattr(App, "embedder", lambda self, progress=None: embedder)
    home, passphrase = tmp_path / "home", Passphrase("correct horse")
    home.mkdir()
    create_key(home / "store.key", passphrase)
    (tmp_path / "a.md").write_text(f"The {TEXT} pump.")

    def opened(folder: Path) -> App:
        return App.open(Config(folder, relay=RelaySettings(model="m")), store="if present", ask=lambda new: passphrase)

    async with opened(home) as app:
        device = await join_gateway(app.settings, gateway)
        key = stored(device.device_key)
        await Ingest(app.documents, embedder).file(tmp_path / "a.md", collection="default")
        await (await app.assistant()).answer(question(f"What is {PROMPT}?"), ignore)
        with pytest.raises(Queued):
            await (await app.assistant(later=True)).answer(question(f"What is {WAITING}?"), ignore)
        talk = {"turns": [{"role": "user", "text": f"About {TALK}"}]}
        await History(Settings(app.database, HISTORY)).put("one", json.dumps(talk).encode(), now=int(time.time()))

        names = {path.name for path in home.rglob("*") if path.is_file()}
        assert {"store.db", "store.db-wal", "store.key"} <= names, "it is looked at while it is open"
        assert set(search_folder(home, [PROMPT, ANSWER, WAITING, TALK, TEXT]).values()) == {0}
        secret = key[36:68]  # of PKCS#8, P-256: the private number
        assert len(secret) == 32 and key[34:36] == b"\x04\x20"
        for path in home.rglob("*"):
            assert not path.is_file() or not any(form in path.read_bytes() for form in byte_forms(secret)), path

    moved = tmp_path / "moved"
    moved.mkdir()
    for name in ("store.db", "store.key"):
        shutil.copy(home / name, moved)
    async with opened(moved) as app:
        again = await DeviceIdentity.load(app.settings)
        assert again is not None and stored(again.device_key) == key
        assert TALK.encode() in (await History(Settings(app.database, HISTORY)).get("one") or b"")
        (waiting,) = await app.outbox.entries(("waiting",))
        assert WAITING in question_of(waiting)
        hits = await app.retrieval().passages("pump", within=Question(()).within)
        assert TEXT in hits[0].text
    for task in gateway.tasks:
        task.cancel()
    await asyncio.gather(*gateway.tasks, return_exceptions=True)

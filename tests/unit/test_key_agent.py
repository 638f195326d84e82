"""The socket on which `edge serve` gives the store's key to its user's commands: who is heard, and who is not."""

import asyncio
import contextlib
import math
import os
import re
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from edge_client import key_agent
from edge_client.errors import AlreadyServing, BadUse, NoStore, NotServing
from edge_client.key_agent import (
    Serving,
    StoreState,
    key_from_serve,
    lock_serve,
    pair_serve,
    serve_key,
    state_of_serve,
    unlock_serve,
    unpair_serve,
)
from edge_client.one_serve import claim, run_folder
from store.errors import StoreError, WrongKey
from store.keys import DatabaseKey
from tests.support.edge_lab import until

SECRET = bytes(range(100, 148))


class FakeWish:
    """For a phone."""

    def __init__(self) -> None:
        self.until = 0.0
        self.asked: list[tuple[float | None, str]] = []

    def begin(self, seconds: float | None, name: str) -> None:
        self.asked.append((seconds, name))
        self.until = math.inf if seconds is None else 1000.0 + seconds

    def end(self) -> None:
        self.until = 0.0


class FakeApp:
    """A store that only says whether it is open. `error` is what the next unlocking meets."""

    def __init__(self) -> None:
        self.held: DatabaseKey | None = DatabaseKey(SECRET)
        self.error: Exception | None = None
        self.pairing = FakeWish()
        self.used = 0

    @property
    def store(self) -> StoreState:
        return "locked" if self.held is None else "open"

    @property
    def key(self) -> DatabaseKey | None:
        return self.held

    async def lock(self) -> bool:
        self.held = None
        return True

    async def unlock(self, key: DatabaseKey) -> None:
        if self.error is not None:
            raise self.error
        self.held = key

    def touch(self) -> None:
        self.used += 1


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home"


async def beside(work: Callable[..., Any], *arguments: Any) -> Any:
    """As a process of its own would: `work` blocks."""
    return await asyncio.to_thread(work, *arguments)


async def test_commands_get_the_key_while_it_is_open_and_not_after(home: Path) -> None:
    app = FakeApp()
    async with serve_key(home, app, app.touch) as can:
        assert can and (await beside(state_of_serve, home)).store == "open"
        assert app.used == 0, "to ask for the state is no use"
        key = await beside(key_from_serve, home)
        assert key.expose() == SECRET and app.used == 1
        await beside(lock_serve, home)
        assert (await beside(state_of_serve, home)).store == "locked" and await beside(key_from_serve, home) is None
        await beside(unlock_serve, home, key)
        assert app.held is not None and app.held.expose() == SECRET
        assert (await beside(key_from_serve, home)).expose() == SECRET
    assert not (home / "run" / "key").exists()
    assert await beside(key_from_serve, home) is None
    with pytest.raises(NotServing):
        await beside(state_of_serve, home)


@pytest.mark.parametrize("error", [
    WrongKey("the key does not open this store", hint="look again"), NoStore(), StoreError("é" * 256, hint="é" * 256),
])
async def test_why_it_does_not_open_is_told(home: Path, error: StoreError | NoStore) -> None:
    app = FakeApp()
    app.held, app.error = None, error
    async with serve_key(home, app, app.touch):
        with pytest.raises(StoreError) as caught:
            await beside(unlock_serve, home, DatabaseKey(SECRET))
        assert (str(caught.value), caught.value.hint) == (str(error), error.hint)
        assert (await beside(state_of_serve, home)).store == "locked"


async def test_a_wish_for_a_phone_is_passed_on_and_told(home: Path) -> None:
    app = FakeApp()
    async with serve_key(home, app, app.touch):
        assert await beside(state_of_serve, home) == Serving("open", 0.0)
        assert await beside(pair_serve, home, 60.0, "van 3") == Serving("open", 1060.0)
        assert await beside(pair_serve, home, None, "") == Serving("open", math.inf)
        assert await beside(state_of_serve, home) == Serving("open", math.inf)
        assert app.pairing.asked == [(60.0, "van 3"), (None, "")]
        assert await beside(unpair_serve, home) == Serving("open", 0.0)
        with pytest.raises(NotServing):
            await beside(pair_serve, home, -1.0, "")
        assert len(app.pairing.asked) == 2


async def test_a_long_home_has_a_socket_too(tmp_path: Path) -> None:
    home, app = tmp_path / ("d" * 120) / ("e" * 120), FakeApp()
    async with serve_key(home, app, app.touch):
        assert (home / "run" / "key").is_socket()
        assert (await beside(key_from_serve, home)).expose() == SECRET


async def test_a_dead_ones_socket_is_replaced(home: Path) -> None:
    app = FakeApp()
    with run_folder(home, create=True) as folder, key_agent._socket() as dead:
        dead.bind(f"/proc/self/fd/{folder}/key")
    assert (home / "run" / "key").is_socket() and key_from_serve(home) is None
    async with serve_key(home, app, app.touch):
        assert await beside(key_from_serve, home) is not None


async def test_only_the_user_may_enter(home: Path) -> None:
    app = FakeApp()
    async with serve_key(home, app, app.touch):
        modes = [path.stat().st_mode & 0o777 for path in (home, home / "run", home / "run" / "key")]
        assert modes == [0o700, 0o700, 0o600]
        (home / "run").chmod(0o750)
        assert await beside(key_from_serve, home) is None, "others could have put a socket there"
        with pytest.raises(NotServing, match="others may enter"):
            await beside(lock_serve, home)
        (home / "run").chmod(0o700)
        assert await beside(key_from_serve, home) is not None
    (home / "run").chmod(0o750)
    with pytest.raises(BadUse, match="others may enter"), claim(home):
        pass


async def test_a_folder_elsewhere_is_not_followed(home: Path, tmp_path: Path) -> None:
    app = FakeApp()
    home.mkdir()  # noqa: ASYNC240
    async with serve_key(tmp_path / "other", app, app.touch):
        (home / "run").symlink_to(tmp_path / "other" / "run")
        assert await beside(key_from_serve, home) is None
        with pytest.raises(BadUse), claim(home):
            pass


def test_the_kernel_says_who_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    one, other = socket.socketpair()
    with one, other:
        assert key_agent._is_ours(one)
        monkeypatch.setattr(key_agent.os, "geteuid", lambda: os.getuid() + 1)
        assert not key_agent._is_ours(one)


@pytest.mark.parametrize("refuser", ["serve", "command"])
async def test_another_user_gets_nothing_and_is_given_nothing(
    home: Path, monkeypatch: pytest.MonkeyPatch, refuser: str
) -> None:
    app, asked = FakeApp(), list[str]()
    real = key_agent._is_ours

    def is_ours(connection: Any) -> bool:
        who = "serve" if threading.current_thread() is threading.main_thread() else "command"
        asked.append(who)
        return real(connection) and who != refuser

    async with serve_key(home, app, app.touch):
        assert await beside(key_from_serve, home) is not None, "the control"
        monkeypatch.setattr(key_agent, "_is_ours", is_ours)
        assert await beside(key_from_serve, home) is None
        with pytest.raises(NotServing):
            await beside(unlock_serve, home, DatabaseKey(bytes(48)))
        await until(lambda: asked.count("serve") == 2)  # a command that refuses does not wait for it
        assert app.used == 1 and app.held is not None and app.held.expose() == SECRET


@pytest.mark.parametrize("said", [
    b"", b"\x00", b"\x91", b"\xff" * 1024, bytes(100_000), b"\x91\xa3key" + bytes(9000), b"\xc1", b"\x91\xa3why",
    b"\x92\xa3key\x07", b"\x92\xa4lock\xc4\x00", b"\xa3key", b"\x95\xa3key\xc0\xc0\xa0\xc0", b"\x91\xa3key\x91\xa3key",
])  # fmt: skip
async def test_whoever_says_something_else_hears_nothing(home: Path, said: bytes) -> None:
    app = FakeApp()

    def speak() -> bytes:
        with run_folder(home, create=False) as folder, key_agent._socket() as connection:
            connection.settimeout(60)
            connection.connect(f"/proc/self/fd/{folder}/key")
            with contextlib.suppress(ConnectionError):  # it need not read all of this
                connection.send(said)
                connection.shutdown(socket.SHUT_WR)
                return connection.recv(100)
            return b""

    async with serve_key(home, app, app.touch):
        assert await beside(speak) == b"" and app.used == 0 and app.held is not None
        assert await beside(key_from_serve, home) is not None, "and goes on"


@contextlib.contextmanager
def impostor(home: Path, says: bytes) -> Iterator[None]:
    """Something of this user that lies where the agent should be."""
    with run_folder(home, create=True) as folder, key_agent._socket() as listener:
        listener.bind(f"/proc/self/fd/{folder}/key")
        listener.listen(8)
        listener.settimeout(60)

        def answer() -> None:
            with contextlib.suppress(OSError):
                connection, _ = listener.accept()
                with connection:
                    connection.recv(1024)
                    connection.send(says)

        thread = threading.Thread(target=answer, daemon=True)
        thread.start()
        yield
        thread.join(60)


@pytest.mark.parametrize("says", [
    b"", b"\x00", b"\x91", b"\x91\xa4open" + bytes(9000), b"\xc1", b"\x92\xa4open\xc4\x01\x00", b"\x91\xa4OPEN",
])  # fmt: skip
def test_a_reply_that_is_none_is_as_no_agent(home: Path, says: bytes) -> None:
    with impostor(home, says):
        assert key_from_serve(home) is None


def test_one_that_hangs_is_not_waited_for_long(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(key_agent, "_READ_S", 0.01)
    with run_folder(home, create=True) as folder, key_agent._socket() as listener:
        listener.bind(f"/proc/self/fd/{folder}/key")
        listener.listen(8)
        assert key_from_serve(home) is None
        with pytest.raises(NotServing, match="does not answer"):
            state_of_serve(home)


async def test_one_that_says_nothing_does_not_stay(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(key_agent, "_READ_S", 0.01)
    app = FakeApp()

    def listen() -> bytes:
        with run_folder(home, create=False) as folder, key_agent._socket() as connection:
            connection.settimeout(60)
            connection.connect(f"/proc/self/fd/{folder}/key")
            return connection.recv(100)

    async with serve_key(home, app, app.touch):
        assert await beside(listen) == b""


async def test_a_system_without_such_sockets_goes_without(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(key_agent.socket, "SO_PEERCRED")
    app = FakeApp()
    async with serve_key(home, app, app.touch) as can:
        assert not can and await beside(key_from_serve, home) is None and app.used == 0


def test_messages_do_not_show_the_key() -> None:
    shown = repr(key_agent._Request("unlock", SECRET)) + str(key_agent._Reply("open", SECRET))
    assert shown == "<key agent request><key agent reply>"


def test_one_serve_at_a_time(home: Path) -> None:
    with claim(home) as first:
        with pytest.raises(AlreadyServing, match="is starting") as caught, claim(home):
            pass
        assert caught.value.port is None
        first.listens(8080)
        with pytest.raises(AlreadyServing, match="runs on port 8080") as caught, claim(home):
            pass
        assert caught.value.port == 8080 and "CAUSEWAY_HOME" in (caught.value.hint or "")
        with claim(home.parent / "another"):
            pass
    with claim(home), pytest.raises(AlreadyServing, match="is starting"), claim(home):
        pass  # what the one before has said is forgotten
    assert re.fullmatch("[0-9]*\n?", (home / "run" / "lock").read_text())


def test_a_home_that_cannot_be_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(BadUse, match="file"), claim(tmp_path / "file"):
        pass

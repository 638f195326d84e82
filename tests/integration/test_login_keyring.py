"""The login keyring unlocks the store: a real gnome-keyring in a session of its own, and each way in which it fails."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import keyring
import pytest
from keyring.backends.fail import Keyring as NoneThere
from keyring.errors import KeyringLocked, PasswordSetError
from typer.testing import CliRunner

from edge_client.cli import app
from store import key_file
from store.database import STORE_SCHEMA, Database
from store.errors import StoreMisuse, WrongKey
from store.keys import HeldKey, Passphrase, add_held, create_key, held_for, remove_held, unlock_held, unlock_key
from tests.support.fake_keyring import FakeSecretService

ROOT = Path(__file__).parents[2]
Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    home, secret = tmp_path / "home", tmp_path / "passphrase"
    home.mkdir(mode=0o700)
    secret.write_text("correct horse\n")
    secret.chmod(0o600)
    key = create_key(home / "store.key", Passphrase("correct horse"))
    Database.open(home / "store.db", key, schema=STORE_SCHEMA).close()
    monkeypatch.setenv("CAUSEWAY_HOME", str(home))
    monkeypatch.setenv("CAUSEWAY_PASSPHRASE_FILE", str(secret))
    monkeypatch.delenv("CAUSEWAY_PASSPHRASE", raising=False)
    monkeypatch.setattr("edge_client.passphrase._has_terminal", lambda: False)
    return home


@pytest.fixture
def ring(monkeypatch: pytest.MonkeyPatch) -> FakeSecretService:
    ring = FakeSecretService()
    monkeypatch.setattr(keyring, "get_keyring", lambda: ring)
    return ring


def edge(*arguments: str, code: int = 0) -> tuple[str, str]:
    done = CliRunner().invoke(app, list(arguments))
    assert done.exit_code == code, (done.stdout, done.stderr, done.exception)
    return done.stdout, done.stderr


def test_on_unlocks_without_a_passphrase_and_off_ends_it(
    home: Path, ring: FakeSecretService, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert edge("store", "keyring", "on")[0] == "the login keyring unlocks the store\n"
    (value,) = ring.kept.values()
    assert bytes.fromhex(value) not in (home / "store.key").read_bytes()
    with monkeypatch.context() as patch:
        patch.delenv("CAUSEWAY_PASSPHRASE_FILE")
        assert json.loads(edge("outbox", "--json")[0]) == {"outbox": []}
    assert edge("store", "keyring", "on")[0] and len(ring.kept) == 1, "again replaces it"
    assert (home / "store.key").stat().st_mode & 0o077 == 0
    assert json.loads(edge("store", "keyring", "off", "--json")[0]) == {"keyring": "off"}
    assert ring.kept == {} and held_for(home / "store.key") is None
    assert edge("outbox")[1] == "edge: the outbox is empty\n", "the passphrase opens it as before"
    monkeypatch.delenv("CAUSEWAY_PASSPHRASE_FILE")
    assert "needs a passphrase" in edge("outbox", code=8)[1]


@pytest.mark.parametrize(("error", "says"), [
    (KeyringLocked("SECRET"), "the login keyring is locked"),
    (PasswordSetError("SECRET"), "the login keyring failed (PasswordSetError)"),
])
def test_failures_are_told_with_a_way_out(
    home: Path, ring: FakeSecretService, monkeypatch: pytest.MonkeyPatch, error: Exception, says: str
) -> None:
    edge("store", "keyring", "on")
    ring.error, ring.asked = error, 0
    assert edge("outbox")[1] == "edge: the outbox is empty\n"
    assert ring.asked == 0, "a passphrase that is given comes first"
    monkeypatch.delenv("CAUSEWAY_PASSPHRASE_FILE")
    told = edge("outbox", code=8)[1]
    assert says in told and "hint: " in told and "CAUSEWAY_PASSPHRASE_FILE" in told and "SECRET" not in told
    assert json.loads(edge("status", "--json", code=8)[0])["store"] == "locked"


def test_a_keyring_without_our_key_and_one_with_another(
    home: Path, ring: FakeSecretService, monkeypatch: pytest.MonkeyPatch
) -> None:
    edge("store", "keyring", "on")
    monkeypatch.delenv("CAUSEWAY_PASSPHRASE_FILE")
    (place,) = ring.kept
    for value, says in (("00" * 32, "does not open it"), ("zz", "no key of it"), ("00", "no key of it")):
        ring.kept[place] = value
        assert says in edge("outbox", code=8)[1]
    ring.kept.clear()
    assert "has no key for this store" in edge("outbox", code=8)[1]


def test_no_keyring_and_one_that_is_not_trusted(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = (home / "store.key").read_bytes()

    class Elsewhere(FakeSecretService):
        __module__ = "keyrings.alt.file"

    nobody = NoneThere()  # type: ignore[no-untyped-call]
    for backend in (nobody, Elsewhere()):
        monkeypatch.setattr(keyring, "get_keyring", lambda backend=backend: backend)
        told = edge("store", "keyring", "on", code=8)[1]
        assert "there is no login keyring in this session" in told and "hint: " in told
    assert (home / "store.key").read_bytes() == before


def test_nothing_changes_if_the_keyring_does_not_keep_it(home: Path, ring: FakeSecretService) -> None:
    before, ring.forgetful = (home / "store.key").read_bytes(), True
    assert "did not keep the key" in edge("store", "keyring", "on", code=8)[1]
    assert (home / "store.key").read_bytes() == before


def test_without_a_store(home: Path, ring: FakeSecretService) -> None:
    (home / "store.key").unlink()
    assert "no store yet" in edge("store", "keyring", "on", code=8)[1]


def test_held_keys_in_the_key_file(home: Path) -> None:
    path, kept = home / "store.key", list[HeldKey]()
    key = unlock_key(path, Passphrase("correct horse"))
    with pytest.raises(WrongKey):
        unlock_held(path, HeldKey.generate())
    add_held(path, key, lambda store_id, held: kept.append(held))
    add_held(path, key, lambda store_id, held: kept.append(held))
    assert unlock_held(path, kept[1]).expose() == key.expose()
    with pytest.raises(WrongKey):
        unlock_held(path, kept[0])
    assert unlock_key(path, Passphrase("correct horse")).expose() == key.expose()
    assert held_for(path) == remove_held(path) and held_for(path) is None
    # Of a file that a held key alone opens, that way is not taken.
    add_held(path, key, lambda store_id, held: None)
    store_id, wrappings = key_file.read(path)
    key_file.write(path, store_id, wrappings[1:], replace=True)
    with pytest.raises(StoreMisuse):
        remove_held(path)


@pytest.mark.skipif(
    not (shutil.which("gnome-keyring-daemon") and shutil.which("dbus-run-session")), reason="no gnome-keyring here"
)
def test_gnome_keyring_in_a_session_of_its_own(home: Path, tmp_path: Path) -> None:
    edge_command = f"{sys.executable} -m edge_client.cli"
    script = f"""
    set -e
    printf 'login password' | gnome-keyring-daemon --unlock --components=secrets >/dev/null
    {edge_command} store keyring on
    unset CAUSEWAY_PASSPHRASE_FILE
    {edge_command} outbox --json
    """
    environment = {
        **os.environ, "HOME": str(tmp_path), "XDG_DATA_HOME": str(tmp_path / "data"), "PYTHONPATH": str(ROOT),
        "XDG_RUNTIME_DIR": str(tmp_path / "run"), "XDG_CONFIG_HOME": str(tmp_path / "config"),
    }
    (tmp_path / "run").mkdir(mode=0o700)
    (tmp_path / "data").mkdir()
    done = subprocess.run(
        ["dbus-run-session", "--", "sh", "-c", script], env=environment, capture_output=True, text=True, timeout=60,
        check=False, stdin=subprocess.DEVNULL,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == 'the login keyring unlocks the store\n{"outbox": []}\n'
    bare = subprocess.run(
        [sys.executable, "-m", "edge_client.cli", "outbox"], capture_output=True, text=True, timeout=60, check=False,
        env={k: v for k, v in environment.items() if k not in ("CAUSEWAY_PASSPHRASE_FILE", "DBUS_SESSION_BUS_ADDRESS")},
        stdin=subprocess.DEVNULL, start_new_session=True,
    )
    assert bare.returncode == 8 and "there is no login keyring in this session" in bare.stderr, bare.stderr

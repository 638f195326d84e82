"""`edge store check|backup|restore|rekey|wipe` on a real home, alone and beside a running `edge serve`."""

import json
import re
import subprocess
import sys
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keyring
import pytest
from keyring.errors import KeyringLocked
from typer.testing import CliRunner

from edge_client.app import App
from edge_client.cli import app
from edge_client.identity import NAMESPACE as IDENTITY
from edge_client.promises import PROMISES
from store.database import Connection
from store.errors import WrongKey
from store.keys import Passphrase, unlock_key, ways_in
from tests.support.fake_engine import FakeChat, FakeEmbedder
from tests.support.fake_keyring import FakeSecretService
from tests.support.serve_process import ROOT, ServeProcess
from tests.support.stores import open_store

PASSPHRASE = "correct horse"


@dataclass
class Done:
    code: int
    out: str
    err: str

    @property
    def object(self) -> Any:
        return json.loads(self.out)


Edge = Callable[..., Done]


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    path = tmp_path / "passphrase"
    path.write_text(PASSPHRASE + "\n")
    path.chmod(0o600)
    return path


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CAUSEWAY_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def ring(monkeypatch: pytest.MonkeyPatch) -> FakeSecretService:
    ring = FakeSecretService()
    monkeypatch.setattr(keyring, "get_keyring", lambda: ring)
    return ring


@pytest.fixture
def edge(home: Path, monkeypatch: pytest.MonkeyPatch) -> Edge:
    """A command that nobody can be asked for a passphrase; `secret` is a file that has one."""
    monkeypatch.setattr("edge_client.passphrase._has_terminal", lambda: False)
    monkeypatch.delenv("CAUSEWAY_PASSPHRASE", raising=False)
    embedder = FakeEmbedder()
    monkeypatch.setattr(App, "chat", lambda self, path=None, name="local": FakeChat())
    monkeypatch.setattr(App, "embedder", lambda self, progress=None: embedder)

    def run(*arguments: str, secret: Path | None = None, at: Path | None = None, typed: str | None = None) -> Done:
        given = {"CAUSEWAY_PASSPHRASE_FILE": None if secret is None else str(secret)}
        if at is not None:
            given["CAUSEWAY_HOME"] = str(at)
        done = CliRunner().invoke(app, list(arguments), env=given, input=typed)
        assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
        assert "Traceback" not in done.stderr
        return Done(done.exit_code, done.stdout, done.stderr)

    return run


@pytest.fixture
def manual(tmp_path: Path, edge: Edge, secret: Path) -> Path:
    """In the store already."""
    path = tmp_path / "manual.md"
    path.write_text("# Pumps\n\n## Limits\n\nThe maximum pressure of the pump is 6 bar.\n")
    assert edge("ingest", str(path), secret=secret).code == 0
    return path


def test_check_of_a_whole_store(edge: Edge, manual: Path, home: Path, secret: Path) -> None:
    assert edge("store", "check").code == 8, "the control: it takes the key"
    told = edge("store", "check", "--json", secret=secret)
    assert told.code == 0 and told.object | {"schema": 0, "bytes": 0} == {
        "ok": True, "problems": [], "schema": 0, "documents": 1, "chunks": 1, "bytes": 0, "ways": {"passphrase": None}
    }
    assert "nothing is wrong" in edge("store", "check", secret=secret).out
    with ServeProcess(home, passphrase_file=secret).ready():
        assert edge("store", "check", "--json").object["ok"], "beside it nobody is asked"


def test_check_says_what_is_wrong_and_ends_with_8(edge: Edge, manual: Path, home: Path, secret: Path) -> None:
    database, key = home / "store.db", home / "store.key"
    whole = database.read_bytes(), key.read_bytes()
    (home / "store.key").chmod(0o644)
    told = edge("store", "check", secret=secret)
    assert told.code == 8 and f"others may use {key}\n           chmod 600 {key}\n" in told.out
    key.chmod(0o600)
    database.write_bytes(whole[0][:9000] + b"\0\0\0\0" + whole[0][9004:])
    told = edge("store", "check", "--json", secret=secret)
    assert told.code == 8 and not told.object["ok"] and told.object["problems"][0]["code"] == "pages"
    assert "`edge store restore`" in told.object["problems"][0]["hint"]
    database.write_bytes(whole[0])
    key.write_bytes(whole[1][:-1])
    told = edge("store", "check", "--json", secret=secret)
    assert told.code == 8 and told.object["error"]["code"] == "store_corrupt"
    key.unlink()
    told = edge("store", "check", "--json", secret=secret)
    assert told.code == 8 and told.object["error"]["code"] == "store_missing"
    database.unlink()
    assert edge("store", "check", "--json", secret=secret).object["error"]["code"] == "no_store"


# --- backup and restore


def sources(edge: Edge, **how: Any) -> list[str]:
    return [Path(one["source"]).name for one in edge("documents", "--json", **how).object["documents"]]


def test_a_backup_is_one_file_that_is_restored_elsewhere(
    edge: Edge, manual: Path, home: Path, secret: Path, tmp_path: Path
) -> None:
    elsewhere, target = tmp_path / "elsewhere", tmp_path / "stick" / "store.backup"
    target.parent.mkdir()
    made = edge("store", "backup", str(target), "--json", secret=secret)
    assert made.code == 0 and made.object == {
        "backup": str(target), "bytes": target.stat().st_size, "identity": False
    }
    assert target.stat().st_mode & 0o777 == 0o600 and list(target.parent.iterdir()) == [target]
    assert edge("store", "backup", str(target), secret=secret).code == 8, "nothing is written over"
    assert b"6 bar" not in target.read_bytes()
    with tarfile.open(target) as tar:
        assert tar.getnames() == ["store.key", "store.db"]

    refused = edge("store", "restore", str(target), at=elsewhere)
    assert refused.code == 8 and "needs a passphrase" in refused.err
    done = edge("store", "restore", str(target), "--json", secret=secret, at=elsewhere)
    assert done.code == 0 and done.object["documents"] == 1 and done.object["former"] is None
    assert edge("search", "pressure", "--json", secret=secret, at=elsewhere).object["hits"]
    assert edge("store", "check", secret=secret, at=elsewhere).code == 0
    assert sorted(path.name for path in elsewhere.iterdir()) == ["run", "store.db", "store.key"], "no rest"


def test_what_cannot_be_restored_says_which_thing_is_meant(
    edge: Edge, manual: Path, secret: Path, tmp_path: Path
) -> None:
    target, other = tmp_path / "b", tmp_path / "other"
    other.write_text("another passphrase\n")
    assert edge("store", "backup", str(tmp_path / "no" / "b"), secret=secret).err.startswith("edge: there is no folder")
    assert edge("store", "backup", str(target), secret=secret).code == 0
    none = edge("store", "backup", str(tmp_path / "c"), "--identity", "--json", secret=secret)
    assert not none.object["identity"] and "has not joined" in none.err
    for wrong in (tmp_path / "none", tmp_path):
        refused = edge("store", "restore", str(wrong), secret=secret)
        assert refused.code == 8 and refused.err.startswith(f"edge: there is no backup {wrong}\n"), "before the store"
    refused = edge("store", "restore", str(target), "--replace", secret=other)
    assert refused.code == 8 and "the backup does not open: the passphrase is wrong" in refused.err
    assert "when it was made" in refused.err and edge("documents", secret=secret).out


def test_into_a_folder_it_gets_a_name(edge: Edge, manual: Path, secret: Path, tmp_path: Path) -> None:
    (tmp_path / "stick").mkdir()
    assert edge("store", "backup", str(tmp_path / "stick"), secret=secret).code == 0
    (made,) = (tmp_path / "stick").iterdir()
    assert re.fullmatch(r"store-\d{4}-\d\d-\d\d\.backup", made.name)


def test_beside_a_running_serve(edge: Edge, manual: Path, home: Path, secret: Path, tmp_path: Path) -> None:
    target = tmp_path / "store.backup"
    with ServeProcess(home, passphrase_file=secret).ready() as serve:
        assert edge("store", "backup", str(target)).code == 0, "nobody is asked"
        assert serve.ask("auto")[0] == 200
        refused = edge("store", "restore", str(target), "--replace", "--json", secret=secret)
        assert refused.code == 3 and refused.object["error"]["code"] == "already_serving"
    assert edge("store", "restore", str(target), "--replace", secret=secret).code == 0


def test_the_former_store_is_kept_aside_and_only_if_asked(
    edge: Edge, manual: Path, home: Path, secret: Path, tmp_path: Path
) -> None:
    target, note = tmp_path / "store.backup", tmp_path / "note.md"
    assert edge("store", "backup", str(target), secret=secret).code == 0
    note.write_text("# Tides\n\nTwice a day.\n")
    assert edge("ingest", str(note), secret=secret).code == 0
    before = (home / "store.db").read_bytes(), (home / "store.key").read_bytes()
    refused = edge("store", "restore", str(target), "--json", secret=secret)
    assert refused.code == 8 and refused.object["error"]["code"] == "store_exists"
    assert before == ((home / "store.db").read_bytes(), (home / "store.key").read_bytes())
    assert edge("store", "restore", str(target), "--replace", "--json", secret=secret).code == 0
    assert sources(edge, secret=secret) == ["manual.md"]
    (former,) = home.glob("store.before-*")
    assert sources(edge, secret=secret, at=former) == ["manual.md", "note.md"]


@pytest.mark.parametrize("harm", ["cut", "altered", "key", "nothing", "foreign"])
def test_a_backup_that_is_not_whole_changes_nothing(
    edge: Edge, manual: Path, home: Path, secret: Path, tmp_path: Path, harm: str
) -> None:
    target = tmp_path / "store.backup"
    assert edge("store", "backup", str(target), secret=secret).code == 0
    data = bytearray(target.read_bytes())
    if harm == "cut":
        del data[len(data) // 2:]
    elif harm in ("altered", "key"):
        data[len(data) // 2 if harm == "altered" else 600] ^= 1
    elif harm == "nothing":
        data.clear()
    else:
        data[:] = b"something else\n" * 1000
    target.write_bytes(data)
    before = {path: path.read_bytes() for path in home.rglob("*") if path.is_file() and path.parent == home}
    told = edge("store", "restore", str(target), "--replace", "--json", secret=secret)
    assert told.code == 8 and told.object["error"]["code"] == "store_corrupt" and told.object["error"]["hint"]
    assert before == {path: path.read_bytes() for path in home.rglob("*") if path.is_file() and path.parent == home}


def test_who_has_the_store_open_keeps_it(edge: Edge, manual: Path, home: Path, secret: Path, tmp_path: Path) -> None:
    """A file that is moved away under another process would be written by it, and read by nobody."""
    target = tmp_path / "store.backup"
    assert edge("store", "backup", str(target), secret=secret).code == 0
    key = unlock_key(home / "store.key", Passphrase(PASSPHRASE)).expose().hex()
    program = (
        "import sys; from pathlib import Path; from store.keys import DatabaseKey; from tests.support.stores import *\n"
        "with open_store(Path(sys.argv[1]), DatabaseKey(bytes.fromhex(sys.argv[2]))):\n"
        "    print('open', flush=True); input()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program, str(home / "store.db"), key], cwd=ROOT, stdin=subprocess.PIPE,
        stdout=subprocess.PIPE, text=True,
    ) as other:
        assert other.stdout is not None and other.stdout.readline() == "open\n"
        refused = edge("store", "restore", str(target), "--replace", "--json", secret=secret)
        assert refused.code == 8 and refused.object["error"]["code"] == "store_busy"
        other.communicate("\n", timeout=60)
    assert edge("store", "restore", str(target), "--replace", secret=secret).code == 0


def test_a_backup_has_a_passphrase_of_its_own(
    edge: Edge, manual: Path, home: Path, secret: Path, tmp_path: Path, ring: FakeSecretService
) -> None:
    other, target = tmp_path / "other", tmp_path / "store.backup"
    other.write_text("battery staple")
    other.chmod(0o600)
    with ServeProcess(home, passphrase_file=secret).ready():
        assert edge("store", "backup", str(tmp_path / "beside"), "--passphrase", secret=other).code == 0
    assert edge("store", "restore", str(tmp_path / "beside"), at=tmp_path / "c", secret=secret).code == 8
    assert edge("store", "restore", str(tmp_path / "beside"), at=tmp_path / "c", secret=other).code == 0
    assert edge("store", "check", secret=other).code == 8, "the store's is what it was"
    assert edge("store", "keyring", "on", secret=secret).code == edge("store", "passphrase", "off").code == 0
    alone = edge("store", "backup", str(tmp_path / "alone"))
    assert alone.code == 0 and "lost with this machine" in alone.err
    database = (home / "store.db").read_bytes()
    made = edge("store", "backup", str(target), "--passphrase", secret=other)
    assert made.code == 0 and "lost with" not in made.err
    assert (home / "store.db").read_bytes() == database and ways_in(home / "store.key") == ["held"]
    ring.kept.clear()
    assert edge("store", "restore", str(tmp_path / "alone"), at=tmp_path / "a", secret=other).code == 8
    assert edge("store", "restore", str(target), at=tmp_path / "b", secret=other).code == 0
    assert sources(edge, at=tmp_path / "b", secret=other) == ["manual.md"]


def in_store(home: Path, work: Callable[[Connection], Any]) -> Any:
    with open_store(home / "store.db", unlock_key(home / "store.key", Passphrase(PASSPHRASE))) as database:
        return database.run_sync(work)


@pytest.mark.parametrize("identity", [False, True])
def test_a_restored_store_sends_nothing_by_itself(
    edge: Edge, manual: Path, home: Path, secret: Path, tmp_path: Path, identity: bool
) -> None:
    """Neither what waited when the backup was made, nor what was on its way: both may have been answered since."""
    def fill(connection: Connection) -> None:
        for number, state in enumerate(("waiting", "sent", "done", "failed")):
            connection.execute(
                "INSERT INTO queue (name, id, payload, digest, state, created_at, expires_at) VALUES"
                " ('outbox', ?, x'00', x'00', ?, 1, 9999999999)", (bytes([number]) * 16, state),
            )
        connection.execute("INSERT INTO settings VALUES (?, ?, x'31')", (PROMISES, bytes(16).hex()))
        for name in ("device", "pending-device-key", "journal-epoch"):
            connection.execute("INSERT INTO settings VALUES (?, ?, x'aabbccdd')", (IDENTITY, name))

    def look(connection: Connection) -> Any:
        rows = connection.execute("SELECT state, note, payload FROM queue ORDER BY id").fetchall()
        return rows, connection.execute("SELECT namespace, key FROM settings ORDER BY 1, 2").fetchall()

    in_store(home, fill)
    before = in_store(home, look)
    target = tmp_path / "store.backup"
    extra = ["--identity"] if identity else []
    assert edge("store", "backup", str(target), *extra, secret=secret).code == 0
    assert in_store(home, look) == before, "the store itself is as it was"
    assert edge("store", "restore", str(target), secret=secret, at=tmp_path / "new").code == 0
    rows, settings = in_store(tmp_path / "new", look)
    ended = ("interrupted", "restored", b"\0")
    assert rows == [ended, ended, ("done", "", b"\0"), ("failed", "", b"\0")]
    kept = [(IDENTITY, name) for name in ("device", "journal-epoch", "pending-device-key")] if identity else []
    assert settings == kept, "two devices with one identity would be taken for a copied key"


# --- wipe


def files(home: Path) -> list[str]:
    return sorted(str(path.relative_to(home)) for path in home.rglob("*") if not path.is_dir())


def test_wipe_asks_and_then_nothing_is_left(
    edge: Edge, manual: Path, home: Path, secret: Path, tmp_path: Path
) -> None:
    target = tmp_path / "store.backup"
    assert edge("store", "backup", str(target), secret=secret).code == 0
    assert edge("store", "restore", str(target), "--replace", secret=secret).code == 0
    (home / "traces.jsonl").write_text("{}\n")
    (home / "config.toml").write_text("[model\nbroken")
    (home / "store.kept.backup").write_bytes(target.read_bytes())
    before = files(home)
    for typed in ("", "yes\n", "wip\n"):
        refused = edge("store", "wipe", "--json", typed=typed)
        assert refused.code == 3 and refused.object["error"]["code"] == "bad_use"
    assert files(home) == before
    done = edge("store", "wipe", typed="wipe\n")
    assert done.code == 0 and "destroyed 2 key files, removed 2 other files" in done.out
    assert "backups and other copies open as before" in done.err and "SSD" in done.err
    assert files(home) == ["config.toml", "run/lock", "store.kept.backup"] and target.exists()
    again = edge("store", "wipe", "--yes", "--json")
    assert again.code == 0 and again.object == {"keys": 0, "files": 0, "serve": "none", "not_dropped": None}


def test_the_key_file_is_written_over_before_it_is_removed(edge: Edge, manual: Path, home: Path) -> None:
    (home.parent / "link").hardlink_to(home / "store.key")
    before = (home / "store.key").read_bytes()
    assert edge("store", "wipe", "--yes").code == 0
    left = (home.parent / "link").read_bytes()
    assert len(left) == len(before) and left[:8] != before[:8] and before[40:80] not in left


def test_a_running_serve_forgets_it(edge: Edge, manual: Path, home: Path, secret: Path, tmp_path: Path) -> None:
    with ServeProcess(home, passphrase_file=secret).ready() as serve:
        assert serve.call("/causeway/status")[1]["store"] == "open"
        done = edge("store", "wipe", "--yes", "--json")
        assert done.code == 0 and done.object["serve"] == "locked" and done.object["keys"] == 1
        serve.until("the store is locked")
        assert serve.call("/causeway/status")[1]["store"] == "none"
        assert serve.ask("local")[0] == 200, "the model alone goes on"
        assert "manual" not in str(serve.call("/causeway/documents"))
        assert not [name for name in files(home) if name.startswith("store")]
        manual.write_text("# Another\n\nbeginning\n")
        assert edge("ingest", str(manual), secret=secret).code == 0, "and a new store begins"
        assert serve.call("/causeway/status")[1]["store"] == "open"
    assert serve.process.returncode == 0 and "Traceback" not in "".join(serve.said)


def test_what_the_login_keyring_holds_is_dropped_at_last(
    edge: Edge, manual: Path, home: Path, secret: Path, ring: FakeSecretService
) -> None:
    assert edge("store", "keyring", "on", secret=secret).code == 0 and len(ring.kept) == 1
    ring.error = KeyringLocked()
    done = edge("store", "wipe", "--yes")
    assert done.code == 0 and "the login keyring is locked" in done.err and "again in a desktop session" in done.err
    assert [name for name in files(home) if "store" in name] == ["store.wiping"] and ring.kept
    ring.error = None
    again = edge("store", "wipe", "--yes", "--json")
    assert again.object["not_dropped"] is None and not ring.kept
    assert not [name for name in files(home) if "store" in name]


def test_no_change_of_what_unlocks_it_writes_the_database(
    edge: Edge, manual: Path, home: Path, secret: Path, tmp_path: Path, ring: FakeSecretService
) -> None:
    database, key, seen = (home / "store.db").read_bytes(), home / "store.key", set[bytes]()
    other = tmp_path / "other"
    other.write_text("battery staple")
    other.chmod(0o600)
    for change, by in (
        (("keyring", "on"), secret), (("passphrase", "off"), None), (("passphrase", "on"), other),
        (("keyring", "off"), other),
    ):
        assert edge("store", *change, secret=by).code == 0
        assert (home / "store.db").read_bytes() == database and sources(edge, secret=by) == ["manual.md"]
        seen.add(key.read_bytes())
    assert len(seen) == 4, "the control: the key file was, each time"


def test_check_names_a_way_that_is_lost(
    edge: Edge, manual: Path, home: Path, secret: Path, ring: FakeSecretService
) -> None:
    assert edge("store", "keyring", "on", secret=secret).code == 0
    assert edge("store", "check", "--json", secret=secret).object["ways"] == {"passphrase": None, "keyring": True}
    (name,) = ring.kept
    for lost in ("00" * 32, "nonsense", None):
        if lost is None:
            ring.kept.clear()
        else:
            ring.kept[name] = lost
        told = edge("store", "check", "--json", secret=secret)
        (problem,) = told.object["problems"]
        assert told.code == 8 and problem["code"] == "way" and "`edge store keyring off`" in problem["hint"]
        assert told.object["ways"]["keyring"] is False


# --- rekey


def test_rekey_keeps_every_way_and_ends_the_former_key(
    edge: Edge, manual: Path, home: Path, secret: Path, ring: FakeSecretService
) -> None:
    assert edge("store", "keyring", "on", secret=secret).code == 0
    before = unlock_key(home / "store.key", Passphrase(PASSPHRASE))
    assert edge("store", "rekey").code == 8, "the passphrase is needed, to wrap the new key by it"
    done = edge("store", "rekey", "--json", secret=secret)
    assert done.code == 0 and done.object == {"ways": ["passphrase", "keyring"]}
    assert sources(edge) == sources(edge, secret=secret) == ["manual.md"], "by the keyring, by the passphrase"
    assert edge("store", "check", secret=secret).code == 0
    with pytest.raises(WrongKey):
        open_store(home / "store.db", before)
    ring.kept.clear()
    refused = edge("store", "rekey", "--json", secret=secret)
    assert refused.code == 3 and "`edge store keyring off`" in refused.object["error"]["hint"]


def test_rekey_beside_a_running_serve(edge: Edge, manual: Path, home: Path, secret: Path) -> None:
    with ServeProcess(home, passphrase_file=secret).ready() as serve:
        assert edge("store", "rekey", secret=secret).code == 0
        assert serve.call("/causeway/status")[1]["store"] == "open"
        assert sources(edge) == ["manual.md"], "it gives the new key"
        assert edge("store", "lock").code == edge("store", "rekey", secret=secret).code == 0
        assert serve.call("/causeway/status")[1]["store"] == "locked", "as it was"


def test_a_restore_after_a_killed_rekey_takes_no_journal_along(
    edge: Edge, manual: Path, home: Path, secret: Path, tmp_path: Path
) -> None:
    assert edge("store", "backup", str(tmp_path / "b"), secret=secret).code == 0
    for ending in ("-journal", "-wal", "-shm"):
        (home / f"store.db{ending}").write_bytes(b"\xd9\xd5\x05\xf9\x20\xa1\x63\xd7" * 64)
    assert edge("store", "restore", str(tmp_path / "b"), "--replace", secret=secret).code == 0
    assert edge("store", "check", secret=secret).code == 0
    (former,) = home.glob("store.before-*")
    assert len(list(former.iterdir())) == 5


def test_the_next_command_ends_a_restore_that_was_cut_short(
    edge: Edge, manual: Path, home: Path, secret: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert edge("store", "backup", str(tmp_path / "b"), secret=secret).code == 0
    (tmp_path / "note.md").write_text("# Tides\n")
    assert edge("ingest", str(tmp_path / "note.md"), secret=secret).code == 0

    def cut(path: Path, key_file: Path) -> None:
        if path.with_name("store.new").exists():
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("store.backups._finished", cut)
        assert edge("store", "restore", str(tmp_path / "b"), "--replace", secret=secret).code == 130
    assert (home / "store.new").is_dir(), "it is decided, and not done"
    assert sources(edge, secret=secret) == ["manual.md"] and not (home / "store.new").exists()
    (former,) = home.glob("store.before-*")
    assert sources(edge, at=former, secret=secret) == ["manual.md", "note.md"]

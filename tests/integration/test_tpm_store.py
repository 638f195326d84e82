"""The TPM unlocks the store, by `edge store tpm`, beside or without the passphrase; and not where a disk was copied."""

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

import store.keys
from edge_client.app import App
from edge_client.cli import app
from edge_client.config import Config
from edge_client.errors import NoPassphrase
from store.database import STORE_SCHEMA, Database
from store.errors import ForeignTpm, StoreCorrupt, StoreMisuse, WrongKey
from store.keys import DatabaseKey, Passphrase, add_tpm, create_key, remove_tpm, unlock_by_tpm, unlock_key, ways_in
from tests.support.software_tpm import MakeTpm, SoftwareTpm, software_tpms

WORDS = "correct horse"


@pytest.fixture(scope="module")
def make() -> Iterator[MakeTpm]:
    with software_tpms() as make:
        yield make


@pytest.fixture(scope="module")
def machine(make: MakeTpm) -> SoftwareTpm:
    return make()


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, machine: SoftwareTpm) -> Path:
    home, secret = tmp_path / "home", tmp_path / "passphrase"
    home.mkdir(mode=0o700)
    secret.write_text(WORDS)
    secret.chmod(0o600)
    Database.open(home / "store.db", create_key(home / "store.key", Passphrase(WORDS)), schema=STORE_SCHEMA).close()
    monkeypatch.setenv("CAUSEWAY_HOME", str(home))
    monkeypatch.setenv("CAUSEWAY_TPM", machine.name)
    monkeypatch.setenv("CAUSEWAY_PASSPHRASE_FILE", str(secret))
    monkeypatch.delenv("CAUSEWAY_PASSPHRASE", raising=False)
    monkeypatch.setattr("edge_client.passphrase._has_terminal", lambda: False)
    return home


def edge(*arguments: str, code: int = 0) -> tuple[str, str]:
    done = CliRunner().invoke(app, list(arguments))
    assert done.exit_code == code, (done.stdout, done.stderr, done.exception)
    return done.stdout, done.stderr


def opens() -> None:
    assert json.loads(edge("outbox", "--json")[0]) == {"outbox": []}


def test_on_unlocks_without_a_passphrase_and_off_ends_it(
    home: Path, machine: SoftwareTpm, monkeypatch: pytest.MonkeyPatch
) -> None:
    database = (home / "store.db").read_bytes()
    assert edge("store", "tpm", "on")[0] == "the TPM unlocks the store\n"
    assert (home / "store.db").read_bytes() == database, "the database is not written again"
    assert (home / "store.key").stat().st_mode & 0o077 == 0
    opens()
    with monkeypatch.context() as patch:
        patch.delenv("CAUSEWAY_PASSPHRASE_FILE")
        opens()
    assert edge("store", "tpm", "on")[0] and ways_in(home / "store.key") == ["passphrase", "tpm"], "again replaces it"
    assert json.loads(edge("store", "tpm", "off", "--json")[0]) == {"tpm": "off"}
    opens()
    monkeypatch.delenv("CAUSEWAY_PASSPHRASE_FILE")
    assert "needs a passphrase" in edge("outbox", code=8)[1]
    assert machine.loaded() == 0


def test_a_copied_home_opens_by_no_other_tpm(
    home: Path, machine: SoftwareTpm, make: MakeTpm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    edge("store", "tpm", "on")
    shutil.copytree(home, tmp_path / "copy")
    monkeypatch.setenv("CAUSEWAY_HOME", str(tmp_path / "copy"))
    with monkeypatch.context() as patch:
        patch.delenv("CAUSEWAY_PASSPHRASE_FILE")
        for name, says in ((make().name, "another TPM"), ("device:/dev/no-tpm", "no TPM can be used")):
            patch.setenv("CAUSEWAY_TPM", name)
            told = edge("outbox", code=8)[1]
            assert says in told and "hint: " in told
    opens()  # the passphrase still does
    edge("store", "passphrase", "off")
    monkeypatch.setenv("CAUSEWAY_TPM", "device:/dev/no-tpm")
    assert "not unlocked by a passphrase" in edge("outbox", code=8)[1]
    monkeypatch.delenv("CAUSEWAY_PASSPHRASE_FILE")
    assert "no TPM can be used" in edge("outbox", code=8)[1]


def test_the_passphrase_stays_while_nothing_else_opens_the_store(
    home: Path, machine: SoftwareTpm, make: MakeTpm, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A TPM that was cleared since, or is not there: `passphrase off` would leave nobody who opens it."""
    edge("store", "tpm", "on")
    with monkeypatch.context() as patch:
        for name, says in ((make().name, "another TPM"), ("device:/dev/no-tpm", "no TPM can be used")):
            patch.setenv("CAUSEWAY_TPM", name)
            told = edge("store", "passphrase", "off", code=3)[1]
            assert "nothing else opens the store" in told and says in told and "hint: " in told
        assert ways_in(home / "store.key") == ["passphrase", "tpm"]
        patch.setenv("CAUSEWAY_TPM", machine.name)
        edge("store", "passphrase", "off")
    assert ways_in(home / "store.key") == ["tpm"]


def test_the_passphrase_may_go_and_come_back_but_one_way_stays(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for way in ("passphrase", "tpm"):  # the only way, and one that is not on
        told = edge("store", way, "off", code=3 if way == "passphrase" else 0)[1]
        assert ("only way" in told and "hint: " in told) == (way == "passphrase")
    edge("store", "tpm", "on")
    out, told = edge("store", "passphrase", "off")
    assert out == "only the TPM unlocks the store\n" and "lost" in told
    assert "only way" in edge("store", "tpm", "off", code=3)[1]
    monkeypatch.delenv("CAUSEWAY_PASSPHRASE_FILE")
    opens()
    key = Config.load().key_path
    assert ways_in(key) == ["tpm"]
    with pytest.raises(WrongKey, match="not unlocked by a passphrase"):
        unlock_key(key, Passphrase(WORDS))
    (home.parent / "passphrase").write_text("new words")
    monkeypatch.setenv("CAUSEWAY_PASSPHRASE_FILE", str(home.parent / "passphrase"))
    edge("store", "passphrase", "on")
    assert ways_in(key) == ["passphrase", "tpm"]
    unlock_key(key, Passphrase("new words"))
    edge("store", "tpm", "off")
    assert ways_in(key) == ["passphrase"]


def test_nothing_changes_without_a_tpm(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = (home / "store.key").read_bytes()
    monkeypatch.setenv("CAUSEWAY_TPM", "device:/dev/no-tpm")
    assert "no TPM can be used" in edge("store", "tpm", "on", code=8)[1]
    assert (home / "store.key").read_bytes() == before
    monkeypatch.setenv("CAUSEWAY_TPM", "cmd:sh")
    assert "CAUSEWAY_TPM names no TPM" in edge("store", "tpm", "on", code=3)[1]


def test_config_toml_names_the_tpm_and_the_environment_goes_before(home: Path, machine: SoftwareTpm) -> None:
    (home / "config.toml").write_text('[tpm]\ntcti = "device:/dev/tpm9"\n')
    environ = {"CAUSEWAY_HOME": str(home)}
    assert Config.load(environ).tpm.tcti == "device:/dev/tpm9"
    assert Config.load(environ | {"CAUSEWAY_TPM": machine.name}).tpm.tcti == machine.name
    (home / "config.toml").unlink()
    assert Config.load(environ).tpm.tcti == "device:/dev/tpmrm0"
    (home / "config.toml").write_text('[tpm]\ntcti = "cmd:sh"\n')
    assert "tcti" in edge("status", code=3)[1]


def test_status_says_which_tpm_and_why_the_store_stays_locked(
    home: Path, machine: SoftwareTpm, monkeypatch: pytest.MonkeyPatch
) -> None:
    edge("store", "tpm", "on")
    assert f"; {machine.name} is named in its place" in edge("status")[0]
    edge("store", "passphrase", "off")
    monkeypatch.delenv("CAUSEWAY_PASSPHRASE_FILE")
    assert json.loads(edge("status", "--json")[0])["locked"] is None
    monkeypatch.setenv("CAUSEWAY_TPM", "device:/dev/no-tpm")
    said = edge("status", code=8)[0]
    assert "the store is locked: no TPM can be used at device:/dev/no-tpm: " in said
    assert "CAUSEWAY_PASSPHRASE_FILE" not in said, "no passphrase opens it"
    assert json.loads(edge("status", "--json", code=8)[0])["locked"]["code"] == "no_tpm"


async def test_a_server_whose_tpm_has_gone_stays_locked(
    home: Path, machine: SoftwareTpm, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = home / "store.key"
    add_tpm(path, unlock_key(path, Passphrase(WORDS)), lambda held: machine.tpm.seal(held).encode())
    monkeypatch.setenv("CAUSEWAY_TPM", "device:/dev/no-tpm")
    monkeypatch.delenv("CAUSEWAY_PASSPHRASE_FILE")
    told = list[str]()

    def nobody(*, new: bool) -> Passphrase:
        raise NoPassphrase("nobody is here")

    async with App.open(Config.load(), store="if present", ask=nobody, tell=told.append, serving=True) as served:
        assert served.store == "locked"
    assert "no TPM can be used" in told[0] and "`edge store unlock`" in told[0]


def test_what_the_key_file_says_is_checked(home: Path, machine: SoftwareTpm) -> None:
    path = home / "store.key"
    key = unlock_key(path, Passphrase(WORDS))
    kept: list[bytes] = []

    def seal(held: bytes) -> bytes:
        kept.append(held)
        return b"sealed"

    add_tpm(path, key, seal)
    assert kept[0] not in path.read_bytes()
    assert unlock_by_tpm(path, lambda sealed: kept[0] if sealed == b"sealed" else b"").expose() == key.expose()
    with pytest.raises(WrongKey, match="does not open this store"):
        unlock_by_tpm(path, lambda sealed: os.urandom(32))
    with pytest.raises(WrongKey):
        unlock_by_tpm(path, lambda sealed: b"short")
    before = path.read_bytes()
    with pytest.raises(StoreMisuse):
        add_tpm(path, key, lambda held: bytes(1025))

    def fails(held: bytes) -> bytes:
        raise ForeignTpm("gone")

    with pytest.raises(ForeignTpm):
        add_tpm(path, key, fails)
    assert path.read_bytes() == before
    remove_tpm(path)
    with pytest.raises(WrongKey, match="not unlocked by a TPM"):
        unlock_by_tpm(path, lambda sealed: bytes(32))
    other = home / "other.key"
    create_key(other, Passphrase(WORDS))
    for content in (b"", b"\xff\xff", b"\0\1s" + bytes(75)):
        store.keys._add(other, key, 3, lambda key, store_id, content=content: (3, content))
        with pytest.raises(StoreCorrupt):
            unlock_by_tpm(other, lambda sealed: bytes(32))
    assert isinstance(key, DatabaseKey)


def test_setup_can_switch_it_on(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edge_client.commands.setup.models_there", lambda config: {"model": "x", "embedder": "x"})
    out, told = edge("setup", "--yes", "--unlock", "tpm", "--json")
    assert json.loads(out)["unlock"] == "tpm" and "the TPM unlocks the store" in told
    monkeypatch.delenv("CAUSEWAY_PASSPHRASE_FILE")
    opens()


def test_a_new_key_of_the_database_is_sealed_anew(
    home: Path, machine: SoftwareTpm, monkeypatch: pytest.MonkeyPatch
) -> None:
    edge("store", "tpm", "on")
    before = unlock_key(home / "store.key", Passphrase(WORDS))
    assert json.loads(edge("store", "rekey", "--json")[0]) == {"ways": ["passphrase", "tpm"]}
    opens()
    monkeypatch.delenv("CAUSEWAY_PASSPHRASE_FILE")
    opens()
    told = json.loads(edge("store", "check", "--json")[0])
    assert told["ok"] and told["ways"] == {"passphrase": None, "tpm": True}
    with pytest.raises(WrongKey):
        Database.open(home / "store.db", before, schema=STORE_SCHEMA)
    monkeypatch.setenv("CAUSEWAY_TPM", "device:/dev/no-tpm")
    told = json.loads(edge("store", "check", "--json", code=8)[0])
    assert told["error"]["code"] == "no_tpm"

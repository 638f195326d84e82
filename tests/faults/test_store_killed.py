"""A backup, a restore and a wipe killed before each of their steps: old or new, whole; and nothing comes back."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from store.backups import back_up
from store.documents import Documents
from store.keys import DatabaseKey, Passphrase, add_held, create_key
from tests.support.serve_process import ROOT
from tests.support.stores import add_document, open_store

PASSPHRASE = "correct horse"

# One program for all the kills: each try is a fork of it, which ends itself at the next step. What a try leaves is
# looked at by another fork, so that no thread is there when the next one begins.
PROGRAM = '''
import json, os, shutil, signal, sys
from pathlib import Path
from store.backups import back_up, finish, put_in_place, unpacked
from store.database import STORE_SCHEMA, Database
from store.keys import DatabaseKey
from store.wiping import wipe

what, root = sys.argv[1], Path(sys.argv[2])
keys = {name: DatabaseKey(bytes.fromhex(value)) for name, value in json.loads(sys.argv[3]).items()}
home, files = root / "home", {name: (root / name / "store.key").read_bytes() for name in keys}
database, key_file = home / "store.db", home / "store.key"

def steps():
    for name in ("mkdir", "rename", "unlink", "rmdir", "fsync", "link"):
        def step(*arguments, real=getattr(os, name), **named):
            global left
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*arguments, **named)
        setattr(os, name, step)

def restore():
    with unpacked(root / "backup", database) as work:
        put_in_place(work, database, key_file, replace=True)

def save():
    back_up(database, key_file, keys["old"], root / "saved")

def saved():
    """What the backup holds, if there is one."""
    if not (root / "saved").exists():
        return None
    with unpacked(root / "saved", database) as work:
        return sources(work / "store.db", keys["old"])

def dropped(id):
    (root / "ring").unlink(missing_ok=True)

def destroy():
    wipe(database, key_file, dropped)

def is_whole():
    """Which store is there, by its key file and by what it holds."""
    if not key_file.exists():
        return "none"
    (name,) = {name for name, data in files.items() if data == key_file.read_bytes()}
    return name + ":" + sources(database, keys[name])

def sources(database, key):
    with Database.open(database, key, schema=STORE_SCHEMA) as opened:
        found = opened.run_sync(lambda c: [row[0] for row in c.execute("SELECT source FROM documents")])
        return ",".join(sorted(found))

def forked(work):
    """What it returns, or None if it was killed."""
    reading, writing = os.pipe()
    if not (pid := os.fork()):
        told = json.dumps(work())
        os.write(writing, told.encode())
        os._exit(0)
    os.close(writing)
    with open(reading, "rb") as file:
        told = file.read()
    _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) in (0, -signal.SIGKILL), status
    return json.loads(told) if told else None

def once(count):
    global left
    shutil.rmtree(home, ignore_errors=True)
    shutil.copytree(root / "old", home)
    (root / "ring").touch()
    (root / "saved").unlink(missing_ok=True)
    def killed():
        global left
        left = count
        steps()
        {"restore": restore, "wipe": destroy, "backup": save}[what]()
        return "done"
    return forked(killed)

def look():
    def before():
        return is_whole()
    def after():
        if what == "restore":
            finish(database, key_file)
            return is_whole()
        if what == "backup":
            return [is_whole(), saved()]
        opened = key_file.exists() and key_file.read_bytes() in files.values()
        destroy()
        return [opened, sorted(one.name for one in home.iterdir()), (root / "ring").exists()]
    return [forked(before) if what == "restore" else None, forked(after), sorted(one.name for one in home.iterdir())]

left = 0
count, told = 0, []
while True:
    count += 1
    done = once(count)
    told.append(look())
    if done == "done":
        break
print(json.dumps(told))
'''


def killed(what: str, root: Path, keys: dict[str, DatabaseKey]) -> list[Any]:
    values = json.dumps({name: key.expose().hex() for name, key in keys.items()})
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, what, str(root), values], cwd=ROOT, capture_output=True, text=True, timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    told: list[Any] = json.loads(done.stdout)
    return told


async def made(folder: Path, *sources: str) -> DatabaseKey:
    key = create_key(folder / "store.key", Passphrase(PASSPHRASE))
    with open_store(folder / "store.db", key) as database:
        for source in sources:
            await add_document(Documents(database), [source, "text"], source=source)
    return key


async def unfolded(folder: Path, key: DatabaseKey, source: str) -> None:
    """Adds a document that is in the log alone, as a killed process leaves it."""
    with open_store(folder / "store.db", key) as database:
        await add_document(Documents(database), [source, "text"], source=source)
        shutil.copytree(folder, folder.with_name("copied"))
    shutil.rmtree(folder)
    folder.with_name("copied").rename(folder)
    assert (folder / "store.db-wal").stat().st_size > 0


@pytest.mark.parametrize("same_key", [True, False])
async def test_a_killed_restore_leaves_the_old_store_or_the_new(tmp_path: Path, same_key: bool) -> None:
    for name in ("new", "old"):
        (tmp_path / name).mkdir()
    new = await made(tmp_path / "new", "new.md")
    back_up(tmp_path / "new" / "store.db", tmp_path / "new" / "store.key", new, tmp_path / "backup")
    if same_key:
        shutil.copytree(tmp_path / "new", tmp_path / "old", dirs_exist_ok=True)
        old = new
    else:
        old = await made(tmp_path / "old", "old.md")
    await unfolded(tmp_path / "old", old, "late.md")
    was, comes = ("new:late.md,new.md" if same_key else "old:late.md,old.md"), "new:new.md"

    told = killed("restore", tmp_path, {"new": new} if same_key else {"old": old, "new": new})
    assert len(told) > 20 and {after for _, after, _ in told} == {was, comes}
    assert {before for before, _, _ in told} == {was, comes, "none"}, "also for who knows nothing of restores"
    states = [after for _, after, _ in told]
    assert states == sorted(states, key=[was, comes].index), "once it is the new one it stays that"
    for _, after, names in told:
        formers = [name for name in names if name.startswith("store.before-")]
        assert len(formers) == (after == comes) and "store.new" not in names


async def test_a_killed_backup_is_whole_or_not_there(tmp_path: Path) -> None:
    (tmp_path / "old").mkdir()
    key = await made(tmp_path / "old", "old.md")
    await unfolded(tmp_path / "old", key, "late.md")
    told = killed("backup", tmp_path, {"old": key})
    assert len(told) > 5 and all(store == "old:late.md,old.md" for _, (store, _), _ in told)
    assert {backup for _, (_, backup), _ in told} == {None, "late.md,old.md"}


async def test_a_killed_wipe_goes_on_and_the_key_goes_first(tmp_path: Path) -> None:
    (tmp_path / "old").mkdir()
    key = await made(tmp_path / "old", "old.md")
    await unfolded(tmp_path / "old", key, "late.md")
    add_held(tmp_path / "old" / "store.key", key, lambda id, held: None)
    shutil.copytree(tmp_path / "old", tmp_path / "former")
    shutil.copytree(tmp_path / "former", tmp_path / "old" / "store.before-20260101-000000-abcd")
    (tmp_path / "old" / "config.toml").touch()
    told = killed("wipe", tmp_path, {"old": key})
    assert len(told) > 8
    opened = [after[0] for _, after, _ in told]
    assert opened[0] and opened == sorted(opened, reverse=True), "and never again"
    assert opened.count(True) < len(opened) / 2, "it goes first"
    for _, (_, names, ring), _ in told:
        assert names == ["config.toml"] and not ring

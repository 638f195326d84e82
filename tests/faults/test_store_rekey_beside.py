"""The key is changed again and again while other programs open the store, write to it and close it: nothing is lost."""

import subprocess
import sys
from pathlib import Path

from store.errors import StoreBusy, WrongKey
from store.key_file import write
from store.keys import HeldKey, by_held, unlock_held
from store.rekey import rekey
from store.upkeep import check
from tests.support.outside import ROOT
from tests.support.stores import KEY, open_store

HELD = HeldKey(bytes(range(32)))
CHANGES, WRITERS, WRITES = 8, 2, 25

WRITER = """
import sys
from pathlib import Path
from store.errors import StoreBusy, WrongKey
from store.keys import HeldKey, unlock_held
from tests.support.stores import open_store

home, name = Path(sys.argv[1]), sys.argv[2]
print("ready", flush=True)
sys.stdin.readline()
number, refused = 0, 0
while number < int(sys.argv[3]):
    try:
        with open_store(home / "store.db", unlock_held(home / "store.key", HeldKey(bytes(range(32))))) as database:
            row = (f"{name} {number}", bytes(3000))
            database.run_sync(lambda c: c.execute("INSERT INTO settings VALUES ('n', ?, ?)", row))
            number += 1
    except (StoreBusy, WrongKey):
        refused += 1
print(refused)
"""


def test_writers_beside_changes_of_the_key(tmp_path: Path) -> None:
    write(tmp_path / "store.key", bytes(16), [by_held(HELD)(KEY, bytes(16))], replace=False)
    with open_store(tmp_path / "store.db") as database:
        database.run_sync(lambda c: c.execute("INSERT INTO settings VALUES ('n', 'first', zeroblob(300000))"))
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", WRITER, tmp_path, str(name), str(WRITES)],
            cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )
        for name in range(WRITERS)
    ]
    for writer in writers:
        assert writer.stdout is not None and writer.stdout.readline() == "ready\n"
    for writer in writers:
        assert writer.stdin is not None
        writer.stdin.write("go\n")
        writer.stdin.flush()
    keys = {KEY.expose()}
    while len(keys) <= CHANGES:
        try:
            key = unlock_held(tmp_path / "store.key", HELD)
            keys.add(rekey(tmp_path / "store.db", tmp_path / "store.key", key, [by_held(HELD)]).expose())
        except (StoreBusy, WrongKey):  # one of them has it open, or was about to
            continue
    said = [writer.communicate(timeout=60)[0] for writer in writers]
    assert [writer.returncode for writer in writers] == [0] * WRITERS, said
    key = unlock_held(tmp_path / "store.key", HELD)
    assert check(tmp_path / "store.db", key).problems == ()
    with open_store(tmp_path / "store.db", key) as database:
        found = database.run_sync(lambda c: {row[0] for row in c.execute("SELECT key FROM settings")})
    assert found == {"first"} | {f"{name} {number}" for name in range(WRITERS) for number in range(WRITES)}

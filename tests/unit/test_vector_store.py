"""`store` as a library of its own: the example of the README, run as it is, and what it promises."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import store
from store.errors import ModelMismatch, StoreMissing, StoreMisuse, WrongKey
from store.keys import add_held
from tests.support.stores import KEY, unit_vectors

ROOT = Path(__file__).resolve().parent.parent.parent
EXAMPLE = ROOT / "examples" / "encrypted_store.py"
PASSPHRASE = store.Passphrase("correct horse")

# Runs a program where nothing of the project but `store` can be imported, then tells what was loaded.
ALONE = """
import json, runpy, sys

class Others:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("edge_client", "relay", "transport", "tests"):
            raise ModuleNotFoundError(f"No module named {name!r}")

sys.meta_path.insert(0, Others())
runpy.run_path(sys.argv[1], run_name="__main__")
print("@@" + json.dumps(sorted(sys.modules)))
"""


def alone(program: Path, folder: Path) -> tuple[str, set[str]]:
    """What the program printed, and the modules it loaded."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", ALONE, str(program)], cwd=folder, capture_output=True, text=True,
        timeout=60, check=True, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    text, _, modules = done.stdout.rpartition("@@")
    return text, set(json.loads(modules))


def test_the_readme_shows_the_example_as_it_is() -> None:
    text = EXAMPLE.read_text()
    assert f"```python\n{text}```" in (ROOT / "README.md").read_text()
    assert f"```python\n{text}```" in (ROOT / "docs" / "STORE.md").read_text()
    assert len([line for line in text.splitlines() if line and not line.startswith('"""')]) <= 10


def test_the_example_runs_with_nothing_else_of_the_project(tmp_path: Path) -> None:
    output, modules = alone(EXAMPLE, tmp_path)
    best, second = output.splitlines()
    assert best == "1.00  pumps.md: Its strainer is cleaned weekly." and "pumps.md" in second
    assert alone(EXAMPLE, tmp_path)[0] == output, "a second run finds what the first one stored"
    files = {path.name: path for path in (tmp_path / "notes").iterdir()}
    assert set(files) == {"store.db", "store.key"}
    assert {path.stat().st_mode & 0o777 for path in files.values()} == {0o600}
    assert not any(word in path.read_bytes() for path in files.values() for word in (b"strainer", b"pumps", b"SQLite"))
    assert "store.vector_store" in modules
    assert modules & {"msgspec", "aiohttp", "typer", "opentelemetry", "llama_cpp", "keyring"} == set()


def test_each_program_of_the_manual_runs(tmp_path: Path) -> None:
    """In their order and in one folder, as a reader would try them."""
    programs = re.findall(r"(?ms)^```python\n(.*?)^```$", (ROOT / "docs" / "STORE.md").read_text())
    assert len(programs) >= 2
    said = []
    for number, program in enumerate(programs):
        (tmp_path / f"{number}.py").write_text(program)
        said.append(alone(tmp_path / f"{number}.py", tmp_path)[0])
    assert said[1].endswith("replacing 3 3\n3 passages anew\n")
    assert said[2] == "diary.md local-only\npumps.md internal\n"


def test_what_keeps_the_others_out_can_do_so(tmp_path: Path) -> None:
    (tmp_path / "other.py").write_text("import transport.errors")
    with pytest.raises(subprocess.CalledProcessError) as caught:
        alone(tmp_path / "other.py", tmp_path)
    assert "No module named 'transport" in caught.value.stderr


def test_each_name_is_there_and_loads_only_what_it_needs() -> None:
    assert {name for name in store.__all__ if getattr(store, name) is None} == set()
    assert set(store.__all__) <= set(dir(store))
    with pytest.raises(AttributeError, match="Stroe"):
        _ = store.Stroe  # type: ignore[attr-defined]
    code = "import json, sys, store; from store import {}; print(json.dumps(sorted(sys.modules)))"
    for name, absent in (("StoreError", {"numpy", "sqlcipher3", "asyncio"}), ("Documents", {"numpy"})):
        done = subprocess.run(
            [sys.executable, "-c", code.format(name)], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True
        )
        assert set(json.loads(done.stdout)) & absent == set(), name


def test_a_store_is_opened_again_by_each_kind_of_key(tmp_path: Path) -> None:
    kept: list[store.HeldKey] = []
    with store.VectorStore.open(tmp_path / "deep" / "notes", PASSPHRASE, model_id="m") as notes:
        added = notes.add("a", ["one"], unit_vectors(1), title="A", label="public")
        assert (added.source, added.title, added.label, added.chunks) == ("a", "A", "public", 1)
    notes.close()
    folder = tmp_path / "deep" / "notes"
    key = store_key(folder)
    add_held(folder / "store.key", key, lambda store_id, held: kept.append(held))
    for by in (PASSPHRASE, kept[0], key):
        with store.VectorStore.open(str(folder), by, model_id="m") as notes:
            assert notes.list() == [added]
    with pytest.raises(WrongKey):
        store.VectorStore.open(folder, store.Passphrase("wrong"), model_id="m")


def store_key(folder: Path) -> store.DatabaseKey:
    from store.keys import unlock_key

    return unlock_key(folder / "store.key", PASSPHRASE)


def test_a_database_without_its_key_file_gets_no_new_one(tmp_path: Path) -> None:
    store.VectorStore.open(tmp_path, PASSPHRASE, model_id="m").close()
    (tmp_path / "store.key").rename(tmp_path / "elsewhere")
    with pytest.raises(StoreMissing, match=r"store\.key"):
        store.VectorStore.open(tmp_path, PASSPHRASE, model_id="m")
    assert not (tmp_path / "store.key").exists()


@pytest.fixture
def notes(tmp_path: Path):  # type: ignore[no-untyped-def]
    with store.VectorStore.open(tmp_path, KEY, model_id="m") as notes:
        yield notes


async def test_it_needs_no_event_loop_and_minds_none(notes: store.VectorStore) -> None:
    """As in a notebook, where one runs already."""
    notes.add("a", ["red pump", store.Chunk("blue valve", page=7)], unit_vectors(2))
    notes.add("b", ["green hose"], unit_vectors(1, seed=5), collection="other")
    assert [(hit.text, hit.page) for hit in notes.search("valves", unit_vectors(2)[1], top=1)] == [("blue valve", 7)]
    assert [hit.text for hit in notes.search("", unit_vectors(1)[0])] == ["red pump", "blue valve"]
    assert [document.source for document in notes.list("other")] == ["b"] and len(notes.list()) == 2
    assert not notes.delete("b") and notes.delete("b", collection="other") and not notes.delete("b", collection="other")
    assert [document.source for document in notes.list()] == ["a"]


def test_the_same_passages_are_stored_once_and_new_ones_replace(notes: store.VectorStore) -> None:
    first = notes.add("a", ["one"], [[1, 2]])
    assert notes.add("a", ["one"], [[1, 2]]) == first
    assert notes.add("b", ["one"], [[1, 2]]).id != first.id, "another document may say the same"
    notes.add("a", ["two"], [[1, 2]])
    assert sorted(hit.text for hit in notes.search("", [1, 2])) == ["one", "two"]


def test_only_the_direction_of_a_vector_counts(notes: store.VectorStore) -> None:
    notes.add("a", ["near", "far"], np.array([[300, 400], [-4, 3]], np.float64))
    for length in (1e-30, 1e-3, 1e30):  # float32 has no room for the squares of the first and the last
        assert [round(hit.similarity, 3) for hit in notes.search("", [3 * length, 4 * length])] == [1.0, 0.0]
    nan, inf = float("nan"), float("inf")
    for vectors in ([[0, 0]], [[nan, 1]], [[inf, 1]], [[1, 2], [3]], [1, 2], [[1, 2], [3, 4]], [["x"]]):
        with pytest.raises(StoreMisuse):
            notes.add("b", ["one"], vectors)
    for vector in ([0, 0], [[1, 2]], [], 1.0):
        with pytest.raises(StoreMisuse):
            notes.search("", vector)
    assert len(notes.list()) == 1


def test_vectors_of_another_embedder_are_refused(notes: store.VectorStore, tmp_path: Path) -> None:
    notes.add("a", ["one"], [[1, 2]])
    with pytest.raises(ModelMismatch):
        notes.add("b", ["one"], [[1, 2, 3]])
    with store.VectorStore.open(tmp_path, KEY, model_id="other") as other, pytest.raises(ModelMismatch):
        other.search("", [1, 2])


def test_filters_and_dates(notes: store.VectorStore) -> None:
    notes.add("a/old.md", ["one"], [[1, 2]], dated_at=1000, label="public")
    notes.add("a/new.md", ["two"], [[1, 2]], dated_at=2000)
    assert [document.dated_at for document in notes.list()] == [2000, 1000]
    for filter, texts in (
        (store.Filter(since=1500), ["two"]), (store.Filter(until=2000), ["one"]),
        (store.Filter(labels=frozenset({"public"})), ["one"]), (store.Filter(folder="b"), []),
    ):
        assert [hit.text for hit in notes.search("", [1, 2], filter=filter)] == texts


def test_another_embedder_takes_over(notes: store.VectorStore, tmp_path: Path) -> None:
    notes.add("a", ["red pump", "blue valve"], [[1, 0], [0, 1]])
    told: list[tuple[str, int, int]] = []
    with store.VectorStore.open(tmp_path, KEY, model_id="wide") as wide:
        embed = {"red pump": [2, 0, 0], "blue valve": [0, 0, 3]}
        count = wide.reembed(lambda texts: [embed[text] for text in texts], progress=lambda *how: told.append(how))
        assert count == 2 and told == [("embedding", 0, 2), ("embedding", 2, 2), ("replacing", 2, 2)]
        assert [hit.text for hit in wide.search("", [0, 0, 1], top=1)] == ["blue valve"]
        assert wide.reembed(lambda texts: pytest.fail("nothing is to do")) == 0
    with pytest.raises(ModelMismatch) as caught:
        notes.search("", [1, 0])
    assert "edge documents reembed" in str(caught.value.hint)

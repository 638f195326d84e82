"""Every seed and every kept input of the fuzzers, replayed: documented errors only, and a corpus that stays small."""

from pathlib import Path

import pytest

from tests.fuzz.targets import TARGETS

CORPUS = Path(__file__).resolve().parent / "corpus"


@pytest.mark.parametrize("name", list(TARGETS))
def test_kept_inputs_give_documented_errors_only(name: str) -> None:
    target = TARGETS[name]
    target.run(b"")
    for data in target.seeds():
        assert len(data) <= target.max_len
        target.run(data)
    kept = sorted((CORPUS / name).glob("*"))
    assert kept, "run scripts/fuzz"
    for path in kept:
        target.run(path.read_bytes())


def test_the_corpus_is_small_and_belongs_to_targets() -> None:
    assert {folder.name for folder in CORPUS.iterdir()} == set(TARGETS)
    assert sum(path.stat().st_size for path in CORPUS.rglob("*") if path.is_file()) <= 200_000

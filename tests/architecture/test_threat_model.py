"""docs/THREAT_MODEL.md names tests; a name without a test would be a promise nobody keeps."""

import ast
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
TEXT = (ROOT / "docs" / "THREAT_MODEL.md").read_text()
ROWS = re.findall(r"(?m)^\| (\d+) \| (.+)$", TEXT)
FINDINGS = [
    f"{letter}{number}" for letter, last in (("C", 5), ("H", 17), ("M", 22), ("L", 17)) for number in range(1, last + 1)
]
ATTACKS = re.findall(r"(?m)^\| ([CHML]\d+) \| ([^|]+) \| ([^|]+) \| ([^|]+) \|$", TEXT)
ROADMAP = (
    "links", "real Bluetooth", "the edge people use", "zero trust", "the gateway decides", "the store",
    "a formal model of the handshake",
)
NAMED = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", TEXT)


@cache
def functions(path: Path) -> set[str]:
    tree = ast.parse(path.read_text())
    return {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}


def test_there_is_a_row_for_each_guarantee() -> None:
    assert [int(number) for number, _ in ROWS] == list(range(1, 11))


@pytest.mark.parametrize(("number", "row"), ROWS)
def test_each_guarantee_names_a_test(number: str, row: str) -> None:
    assert re.search(r"`tests/[\w/]+\.py::test_\w+`", row), f"guarantee {number} names no test"


@pytest.mark.parametrize(("file", "name"), NAMED)
def test_each_named_test_exists(file: str, name: str) -> None:
    path = ROOT / file
    assert path.is_file(), file
    assert name.startswith("test_") and name in functions(path)


def test_the_check_can_fail() -> None:
    assert "test_no_such_thing" not in functions(Path(__file__))
    assert len(NAMED) > 30


@pytest.mark.parametrize("letter", "NHEGDQ")
def test_every_attacker_is_described_and_faced(letter: str) -> None:
    assert f"| **{letter}** |" in TEXT
    assert any(letter in row.split("|")[1].split() for _, row in ROWS)


# --- attacks of the protocol review ---------------------------------------------------------------------------------


def named_after_findings() -> dict[str, set[str]]:
    """The finding that a test is named after -> its tests, as `file::name`."""
    found: dict[str, set[str]] = {}
    for path in (ROOT / "tests").rglob("test_*.py"):
        if not re.search(r"def\s+test_[A-Z]\d+_", path.read_text()):
            continue  # most files hold none, and reading a file's tree takes a hundred times as long
        for name in functions(path):
            if match := re.match(r"test_([A-Z]\d+)_", name):
                found.setdefault(match[1], set()).add(f"{path.relative_to(ROOT)}::{name}")
    return found


AFTER = named_after_findings()


def test_every_finding_has_one_row() -> None:
    assert [finding for finding, *_ in ATTACKS] == FINDINGS


@pytest.mark.parametrize(("finding", "attack", "answer", "shown"), ATTACKS, ids=lambda value: value[:4])
def test_each_attack_has_a_test_or_says_what_brings_it(finding: str, attack: str, answer: str, shown: str) -> None:
    named = {f"{file}::{name}" for file, name in NAMED if f"`{file}::{name}`" in shown}
    mine = AFTER.get(finding, set())
    assert 10 < len(attack) <= 120 and 10 < len(answer) <= 160
    assert named <= mine, "a row names tests that are named after it"
    rest = re.sub(r"`[^`]+`", "", shown).strip(" ;")
    if coming := re.fullmatch(r"\*coming:\* (.+)", rest):
        items = re.sub(r" \([^)]*\)", "", coming[1]).split(", ")
        assert set(items) <= set(ROADMAP), items
    else:
        assert rest in ("", "*words*")
    assert bool(named) == bool(mine), "a finding that has tests names some of them"
    assert named or rest


def test_tests_are_named_after_findings_that_there_are() -> None:
    """One spelling, so that a search for a finding finds its tests."""
    assert set(AFTER) <= set(FINDINGS)
    misspelt = re.compile(r"def\s+test_[chml]\d+_")
    assert misspelt.search("    async def test_" "c1_of_a_finding() -> None:")
    files = (ROOT / "tests").rglob("test_*.py")
    assert [str(path.relative_to(ROOT)) for path in files if misspelt.search(path.read_text())] == []

"""docs/THREAT_MODEL.md names tests; a name without a test would be a promise nobody keeps."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
TEXT = (ROOT / "docs" / "THREAT_MODEL.md").read_text()
ROWS = re.findall(r"(?m)^\| (\d+) \| (.+)$", TEXT)
NAMED = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", TEXT)


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

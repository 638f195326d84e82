"""The import contracts of pyproject.toml hold, and there are no fewer of them than layout asks for."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent


def test_contracts_hold() -> None:
    linter = Path(sys.executable).parent / "lint-imports"
    done = subprocess.run([linter, "--no-cache"], capture_output=True, text=True, timeout=60, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    assert "0 broken" in done.stdout


def test_every_contract_has_a_reason_beside_it() -> None:
    lines = (ROOT / "pyproject.toml").read_text().splitlines()
    heads = [number for number, line in enumerate(lines) if line == "[[tool.importlinter.contracts]]"]
    assert len(heads) == len(tomllib.loads("\n".join(lines))["tool"]["importlinter"]["contracts"])
    for number in heads:
        assert lines[number + 1].startswith("# "), f"contract at line {number + 1} has no reason"


def test_each_rule_of_the_layout_has_a_contract() -> None:
    text = (ROOT / "pyproject.toml").read_text()
    config = tomllib.loads(text)["tool"]["importlinter"]
    assert config["include_external_packages"] is True  # else the one-door contracts would check nothing
    doors = {name for c in config["contracts"] if c["type"] == "protected" for name in c["protected_modules"]}
    assert doors >= {"cryptography", "sqlcipher3", "llama_cpp", "gguf", "pypdf"}
    names = " / ".join(contract["name"] for contract in config["contracts"])
    for words in ("arrows point down", "sans-IO", "blind", "nothing imports tests"):
        assert words in names, words


def test_nothing_shipped_imports_tests_or_scripts() -> None:
    forbidden = re.compile(r"(?m)^\s*(?:from|import) (?:tests|scripts|benchmarks)\b")
    assert forbidden.search("    from tests.support import x")
    for package in ("transport", "store", "edge_client", "relay"):
        for path in (ROOT / package).rglob("*.py"):
            assert not forbidden.search(path.read_text()), path

"""The project's own vectors: whole sessions, byte for byte, through the connection that ships."""

import json
from pathlib import Path

import pytest

from tests.support.outside import ROOT
from tests.support.recorded import run_session

FILE = json.loads((Path(__file__).parent / "causeway.json").read_text())


@pytest.mark.parametrize("vector", FILE["vectors"], ids=lambda vector: vector["name"])
def test_session_vectors(vector: dict) -> None:  # type: ignore[type-arg]
    result = run_session(vector, bytes.fromhex(vector["request_body"]))
    assert result == {name: vector[name] for name in result}
    assert len(result["flights"]) >= 4


def test_a_changed_secret_changes_the_session() -> None:
    vector = FILE["vectors"][0]
    changed = {**vector, "edge_scalar": vector["gateway_scalar"]}
    assert run_session(changed, b"prompt")["flights"] != vector["flights"]


def test_the_specification_quotes_the_first_vector() -> None:
    text = (ROOT / "docs" / "SPEC.md").read_text()
    assert FILE["vectors"][0]["session_hash"] in text and FILE["vectors"][0]["link_id"] in text

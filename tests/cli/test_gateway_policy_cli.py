"""`relay gateway policy`: what it says, how it exits, and that it needs no gateway and no passphrase."""

import json
import shutil
from pathlib import Path

import pytest

from relay.cli import main
from tests.support.policy_questions import EXAMPLE

CONFIG = str(EXAMPLE / "gateway.toml")
Told = tuple[int, str, str]


def run(arguments: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Told:
    monkeypatch.setattr("sys.argv", ["relay", "gateway", "policy", *arguments])
    with pytest.raises(SystemExit) as caught:
        main()
    out, err = capsys.readouterr()
    return int(caught.value.code or 0), out, err


@pytest.mark.parametrize(("arguments", "code", "words"), [
    (["edge/factory-floor/cam-1", "model:invoke", "defect-detection"], 0, "allowed by factory.cedar:2 (factory-floor)"),
    (["spiffe://factory.example/edge/factory-floor/cam-1", "model:invoke", "defect-detection"], 0, "factory.cedar:2"),
    (["edge/factory-floorx/cam-1", "model:invoke", "defect-detection"], 6,
     "denied: no rule allows model:invoke on defect-detection to this ID, which is in no group"),
    (["edge/factory-floor/cam-1", "model:invoke", "defect-detection", "--disk", "not encrypted"], 6,
     "denied: factory.cedar:22 (no-open-disks) forbids it"),
    (["edge/office/ann", "data:read", "manuals", "--disk", "encrypted"], 0, "documents-on-encrypted-disks"),
    (["edge/lap-1", "relay:use", "hop/pi-1"], 0, "any-hop"),
    (["workload/admin/ann", "admin:revoke", "main"], 0, "administrators"),
])
def test_explain_says_which_rule(
    arguments: list[str], code: int, words: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    got, out, _ = run(["explain", *arguments, "--config", CONFIG], capsys, monkeypatch)
    assert got == code and words in out


def test_explain_as_json_has_the_input_document(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ["explain", "edge/office/ann", "model:invoke", "gpt-4o-mini", "--via", "hop/pi-1", "--tpm", "present",
                 "--device-version", "0.1.0", "--config", CONFIG, "--json"]
    code, out, _ = run(arguments, capsys, monkeypatch)
    told = json.loads(out)
    assert code == 0 and told["allowed"] and told["rules"] == ["factory.cedar:5"]
    assert told["input"]["principal"]["groups"] == ["office"]
    assert told["input"]["context"]["via"] == "spiffe://factory.example/hop/pi-1"
    assert told["input"]["principal"]["posture"]["version_number"] == 1_000


@pytest.mark.parametrize("arguments", [
    ["edge/a", "model:envoke", "x"], ["edge/a b", "model:invoke", "x"], ["edge/a", "model:invoke", "x", "--disk", "no"],
])
def test_what_cannot_be_asked(
    arguments: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    code, out, err = run(["explain", *arguments, "--config", CONFIG], capsys, monkeypatch)
    assert code == 3 and out == "" and err.startswith("relay: ") and "\nhint: " in err


def test_check_counts_and_names_mistakes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    code, out, _ = run(["check", "--config", CONFIG], capsys, monkeypatch)
    assert code == 0 and out.startswith("8 rules and 3 groups, without a mistake\nversion ")
    for name in ("gateway.toml", "factory.cedar"):
        shutil.copy(EXAMPLE / name, tmp_path)
    rules = tmp_path / "factory.cedar"
    rules.write_text(rules.read_text().replace('Group::"office"', 'Group::"offise"', 1))
    code, _, err = run(["check", "--config", str(tmp_path / "gateway.toml")], capsys, monkeypatch)
    assert code == 3 and "factory.cedar:5: there is no group 'offise'" in err


def test_reload_needs_a_gateway_that_runs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("gateway.toml", "factory.cedar"):
        shutil.copy(EXAMPLE / name, tmp_path)
    code, _, err = run(["reload", "--config", str(tmp_path / "gateway.toml")], capsys, monkeypatch)
    assert code == 3 and "no gateway runs here" in err

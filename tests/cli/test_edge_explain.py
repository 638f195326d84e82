"""`edge explain`: a line out for a line in, and no store, identity, model or passphrase on the way."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent.parent
COUNTED = """
import sys
sys.argv = ["edge", *sys.argv[1:]]
from edge_client.cli import main
try:
    main()
finally:
    loaded = {"numpy", "llama_cpp", "sqlcipher3", "opentelemetry", "cryptography", "aiohttp"} & set(sys.modules)
    print("loaded:", sorted(loaded), file=sys.stderr)
"""


def explain(home: Path, *arguments: str, given: str | bytes = "") -> tuple[int, list[Any], str]:
    done = subprocess.run(
        [sys.executable, "-c", COUNTED, "explain", *arguments], timeout=60, cwd=ROOT, capture_output=True,
        input=given.encode() if isinstance(given, str) else given,
        env={**os.environ, "CAUSEWAY_HOME": str(home), "CAUSEWAY_PASSPHRASE": "", "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    return done.returncode, [json.loads(line) for line in done.stdout.splitlines()], done.stderr.decode()


def test_lines_are_answered_in_their_order(tmp_path: Path) -> None:
    lines = [
        b'{"prompt": "Who are you?", "id": 7}', b"no json", b"", b'{"prompt": 3, "id": "x"}', b'["prompt"]',
        b'{"prompt": " "}', b"\xff\xfe", b"[" * 100_000, '{"prompt": "Explain the tides, für alle"}'.encode(),
        b'{"prompt": "\\ud800"}', b'{"prompt": "write to jane@example.org about it, at some length"}',
    ]  # fmt: skip
    code, answers, errors = explain(tmp_path / "absent", "--jsonl", given=b"\n".join(lines))
    assert code == 0 and len(answers) == len(lines)
    assert answers[0] | {"difficulty": 0} == {
        "id": 7, "difficulty": 0, "route": "local", "rule": "easy", "reasons": ["the prompt is short and simple"],
    }  # fmt: skip
    assert [list(answer) for answer in answers[1:8]] == [
        ["error"], ["error"], ["id", "error"], ["error"], ["error"], ["error"], ["error"],
    ]  # fmt: skip
    assert [answer["rule"] for answer in answers[8:]] == ["beyond-local", "easy", "private"]
    assert all(0 <= answer["difficulty"] <= 1 for answer in answers if "difficulty" in answer)
    assert "loaded: []" in errors, "explaining loads nothing heavy"
    assert not (tmp_path / "absent").exists()


def test_a_file_is_read_as_standard_input_is(tmp_path: Path) -> None:
    file = tmp_path / "prompts.jsonl"
    file.write_text('{"prompt": "Plan a week for eight people"}\n' * 3)
    assert explain(tmp_path, "--jsonl", str(file)) == explain(tmp_path, "--jsonl", given=file.read_text())
    code, answers, errors = explain(tmp_path, "--jsonl", str(tmp_path / "none"))
    assert code == 3 and answers == [] and "cannot read" in errors


def test_a_line_too_long_costs_only_itself(tmp_path: Path) -> None:
    given = b'{"prompt": "' + b"a" * (9 << 20) + b'"}\n{"prompt": "Who are you?"}\n'
    _, answers, _ = explain(tmp_path, "--jsonl", given=given)
    assert answers[0] == {"error": "the line is over 8 MiB"} and answers[1]["rule"] == "easy" and len(answers) == 2
    _, answers, _ = explain(tmp_path, "--jsonl", given=b'{"prompt": "' + b"a" * (2 << 20) + b'"}\n')
    assert answers == [{"error": "the prompt is over 1 MiB"}]


def test_one_prompt_and_the_persons_threshold(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text("[router]\nshare_relayed = 0\n")
    _, answers, _ = explain(tmp_path, "Explain the tides")
    assert [answer["rule"] for answer in answers] == ["below-threshold"]
    _, answers, _ = explain(tmp_path, given="Explain the tides")
    assert [answer["rule"] for answer in answers] == ["below-threshold"]


def test_nothing_to_explain_is_an_error_with_a_code(tmp_path: Path) -> None:
    for arguments in (("",), (), (" ",)):
        code, answers, err = explain(tmp_path, *arguments)
        assert (code, answers) == (3, [{"error": "the prompt is empty"}])
        assert "edge: the prompt is empty\nhint: " in err
    code, answers, err = explain(tmp_path, "--jsonl", str(tmp_path / "none"))
    assert (code, answers) == (3, []) and "no such file" in err and "hint: " in err

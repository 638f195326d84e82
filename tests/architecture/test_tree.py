"""Facts about the tree that are easy to break without noticing."""

import re
import subprocess
from pathlib import Path

from scripts import budget

ROOT = Path(__file__).resolve().parent.parent.parent
MAX_BYTES = 8_000_000


def tracked() -> list[Path]:
    """Files of the repository: what git tracks or would, or every file outside hidden folders where there is no git."""
    command = ["git", "-C", str(ROOT), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, capture_output=True, check=False)
    if listed.returncode == 0 and listed.stdout:
        paths = [ROOT / name for name in listed.stdout.decode().split("\0") if name]
    else:
        paths = [path for path in ROOT.rglob("*") if not any(p.startswith(".") for p in path.relative_to(ROOT).parts)]
    return [path for path in paths if path.is_file()]


FILES = tracked()


def test_the_list_of_files_is_the_real_one() -> None:
    assert ROOT / "pyproject.toml" in FILES
    assert Path(__file__).resolve() in FILES


def test_no_file_names_a_package_registry_host() -> None:
    # Installing must follow whatever index the machine is configured with. The names are spelled apart so that this
    # file passes its own test.
    names = (b"py" b"pi.org", b"py" b"pi.io", b"python" b"hosted.org", b"registry.npm" b"js.org", b"deb.debi" b"an.org")
    hosts = re.compile(b"|".join(map(re.escape, names)), re.IGNORECASE)
    assert hosts.search(b"https://py" b"pi.org/simple"), "the search itself must be able to find one"
    found = [str(path.relative_to(ROOT)) for path in FILES if hosts.search(path.read_bytes())]
    assert found == []


def test_no_file_is_over_8_megabytes() -> None:
    assert [str(path.relative_to(ROOT)) for path in FILES if path.stat().st_size > MAX_BYTES] == []


def test_no_file_holds_a_path_of_somebodys_machine() -> None:
    paths = re.compile(rb"(?<![\w.])/(?:work|root|home/[a-z]\w*)/")
    found = [str(path.relative_to(ROOT)) for path in FILES if paths.search(path.read_bytes())]
    assert [name for name in found if not name.endswith((".pdf", ".gguf"))] == []


def test_locks_are_hashed_and_name_no_index() -> None:
    for name in ("requirements.lock", "requirements-models.lock"):
        text = (ROOT / name).read_text()
        assert not re.search(r"(?m)^\s*(?:-i|--index-url|--extra-index-url|-f|--find-links)\b", text), name
        assert "http://" not in text and "https://" not in text, name
        entries = re.split(r"(?m)^(?=[a-zA-Z0-9])", text)[1:]
        assert entries, name
        for entry in entries:
            assert "==" in entry.splitlines()[0] and "--hash=sha256:" in entry, f"{name}: {entry.splitlines()[0]}"


def test_source_budget() -> None:
    for package, lines in budget.count().items():
        assert lines > 0
        assert lines <= budget.BUDGET[package], f"{package} has {lines} lines; delete, or write an ADR that says why"


def test_code_lines_count_code_and_nothing_else() -> None:
    source = (
        '"""Module.\n\nDoc."""\n\n# comment\nX = """two\nlines"""\n\n\n'
        'def f() -> None:\n    """Doc."""\n    return  # why\n'
    )
    assert budget.code_lines(source) == 4  # the two lines of X, def, return


def test_the_wheel_holds_no_tests_and_no_fakes() -> None:
    shipped = [path for path in FILES if path.relative_to(ROOT).parts[0] in budget.BUDGET]
    assert shipped
    strays = [str(p.relative_to(ROOT)) for p in shipped if re.search(r"(?:^|/)(?:test_|fake|mock)", p.as_posix())]
    assert strays == []


def test_modules_have_no_vague_names() -> None:
    vague = {"utils.py", "common.py", "helpers.py", "misc.py"}
    assert [str(path.relative_to(ROOT)) for path in FILES if path.name in vague] == []

"""`edge search` and `edge ask` of a part of the documents: by collection, label, file and date."""

import json
import os
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from edge_client.app import App
from edge_client.cli import app
from edge_client.errors import BadUse
from edge_client.scope import moment
from tests.support.fake_engine import FakeChat, FakeEmbedder

Edge = Callable[..., Result]
JANUARY, MARCH = datetime(2026, 1, 15, 12), datetime(2026, 3, 15, 12)


@pytest.fixture
def edge(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Edge:
    """A store of three files about one thing, in two folders, of two days and two labels; and one more elsewhere."""
    secret, embedder = tmp_path / "passphrase", FakeEmbedder()
    secret.write_text("correct horse\n")
    secret.chmod(0o600)
    monkeypatch.setenv("CAUSEWAY_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("CAUSEWAY_PASSPHRASE_FILE", str(secret))
    monkeypatch.delenv("CAUSEWAY_PASSPHRASE", raising=False)
    monkeypatch.setattr(App, "embedder", lambda self, progress=None: embedder)
    monkeypatch.setattr(App, "chat", lambda self, path=None, name="local": FakeChat())
    work = tmp_path / "work [old]"  # whose name is a pattern
    for name, day in (("manuals/a.md", JANUARY), ("manuals/deep/b.txt", MARCH), ("notes/c.md", MARCH), ("d.md", MARCH)):
        path = work / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"The pressure of pump {path.stem} is six bar.")
        os.utime(path, (day.timestamp(), day.timestamp()))
    monkeypatch.chdir(work)

    def run(*arguments: str, code: int = 0) -> Result:
        done = CliRunner().invoke(app, list(arguments))
        assert done.exit_code == code, done.output
        return done

    run("ingest", "manuals")
    run("ingest", "notes", "--label", "local-only")
    run("ingest", "d.md", "-c", "other")
    return run


def found(edge: Edge, *arguments: str) -> str:
    hits = json.loads(edge("search", "pressure of the pump", "--json", *arguments).stdout)["hits"]
    return "".join(sorted(Path(hit["source"]).stem for hit in hits))


@pytest.mark.parametrize(
    ("arguments", "wanted"),
    [
        ("", "abc"), ("-c other", "d"), ("-c none", ""),
        ("--label local-only", "c"), ("--label internal", "ab"), ("--label internal --label local-only", "abc"),
        ("--label public", ""),
        ("--file manuals", "ab"), ("--file manuals/deep", "b"), ("--file manuals/deep/", "b"), ("--file .", "abc"),
        ("--file notes/c.md", "c"), ("--file *.md", "ac"), ("--file ?.txt", "b"), ("--file [a-b].*", "ab"),
        ("--file manuals/*", "ab"), ("--file ./manuals/*/b*", "b"), ("--file notes/../*/c.md", "c"),
        ("--since 2026-03-01", "bc"), ("--until 2026-03-01", "a"), ("--until 2026-01-15", "a"),
        ("--since 2026-03-16", ""), ("--until 2026-01-15T11:00", ""), ("--since 2026-01-15 --until 2026-01-15", "a"),
        ("--since 9999w", "abc"),
        ("--file manuals --since 2026-03-01 --label internal", "b"), ("--file manuals --label local-only", ""),
    ],
)
def test_a_search_looks_only_where_it_is_told_to(edge: Edge, arguments: str, wanted: str) -> None:
    assert found(edge, *arguments.split()) == wanted


def test_an_absolute_pattern_and_a_name_from_the_list(edge: Edge) -> None:
    source = str(Path("manuals/a.md").resolve())
    assert found(edge, "--file", source) == "a"
    assert found(edge, "--file", f"{Path('manuals').resolve().parent.parent}/*/c.md") == "c"


def test_lines_of_questions_look_there_too(edge: Edge, tmp_path: Path) -> None:
    (tmp_path / "questions").write_text('{"id": 1, "text": "pressure"}\n')
    done = edge("search", "--jsonl", str(tmp_path / "questions"), "--file", "notes")
    assert [Path(hit["doc"]).name for hit in json.loads(done.stdout)["hits"]] == ["c.md"]


def test_what_is_mistyped_is_no_silence(edge: Edge) -> None:
    for command in (["search", "pump"], ["ask", "--local", "pump"]):
        for arguments, words in (
            (["--file", "manual"], "no document of manual"), (["--since", "yesterday"], "yesterday is no date"),
            (["--file", "d.md"], "collection default has no document"),
        ):
            refused = edge(*command, *arguments, code=3)
            assert words in refused.stderr and "hint: " in refused.stderr
    assert "there are no such documents" in edge("ask", "--local", "pump", "--label", "public", code=3).stderr
    edge("ask", "--no-documents", "--file", "notes", "pump", code=2)
    assert "holds nothing of what was asked for" in edge("search", "pump", "--label", "public").stderr


@pytest.mark.parametrize(
    ("arguments", "cited"), [("--file notes", "c"), ("-c other", "d"), ("--until 2026-02-01 --label internal", "a")]
)
def test_an_answer_is_made_from_these_documents_alone(edge: Edge, arguments: str, cited: str) -> None:
    done = edge("ask", "--local", "--json", "What is the pressure of the pump?", *arguments.split())
    citations = json.loads(done.stdout)["citations"]
    assert [Path(citation["source"]).stem for citation in citations] == [cited]


def test_a_file_that_was_only_touched_has_its_new_date(edge: Edge) -> None:
    os.utime("manuals/a.md", (MARCH.timestamp(), MARCH.timestamp()))
    assert edge("ingest", "manuals").stdout == "0 added (0 passages), 2 unchanged, 0 failed\n"
    assert found(edge, "--since", "2026-03-01") == "abc"


def test_moments() -> None:
    now = 1_800_000_000.5
    assert moment("2026-01-31", now) == int(datetime(2026, 1, 31).timestamp())
    assert moment("2026-01-31", now, end=True) == int(datetime(2026, 2, 1).timestamp())
    assert moment("2026-01-31T08:30", now, end=True) == int(datetime(2026, 1, 31, 8, 30).timestamp())
    assert moment("2026-01-31T08:30Z", now) == moment("2026-01-31T09:30+01:00", now) == 1769848200
    assert [moment(text, now) for text in ("12h", "7d", "3w", "0d")] == [
        int(now - timedelta(**ago).total_seconds()) for ago in ({"hours": 12}, {"days": 7}, {"weeks": 3}, {})
    ]
    for text in ("", "x", "7", "-7d", "99999d", "2026-13-01", "2026-02-30", "9999-12-31x", "1d 2h", "0000-01-01"):
        with pytest.raises(BadUse, match="is no date or time"):
            moment(text, now)

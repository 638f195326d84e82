"""`edge documents reembed`: after a change of the embedder, told by what refuses, and gone on with where it was."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from typer.testing import CliRunner, Result

from edge_client.app import App
from edge_client.chunking import head
from edge_client.cli import app
from edge_client.engine.base import EMBEDDER_TOKENS
from edge_client.reembedding import State, _Pace
from tests.support.fake_engine import FakeEmbedder


class OtherEmbedder(FakeEmbedder):
    """Counts twice as many tokens, so that some passages are too long for it; stops at its call number `fails_at`."""

    model_id = "other-embedder"
    fails_at = 0
    calls = 0

    def count(self, text: str) -> int:
        return 2 * super().count(text)

    async def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        self.calls += 1
        if self.calls == self.fails_at:
            raise KeyboardInterrupt
        rows = await super().embed(texts)
        return np.roll(rows, 7, axis=1)


@pytest.fixture
def edge(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):  # type: ignore[no-untyped-def]
    secret = tmp_path / "passphrase"
    secret.write_text("correct horse\n")
    secret.chmod(0o600)
    monkeypatch.setenv("CAUSEWAY_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("CAUSEWAY_PASSPHRASE_FILE", str(secret))
    monkeypatch.delenv("CAUSEWAY_PASSPHRASE", raising=False)

    def run(*arguments: str, embedder: FakeEmbedder, code: int = 0) -> Result:
        monkeypatch.setattr(App, "embedder", lambda self, progress=None: embedder)
        done = CliRunner().invoke(app, list(arguments))
        assert done.exit_code == code, done.output
        return done

    return run


def test_documents_are_embedded_anew(edge, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    docs, old, new = tmp_path / "docs", FakeEmbedder(), OtherEmbedder()
    docs.mkdir()
    long = " ".join(f"word{n}" for n in range(180))
    (docs / "a.md").write_text("\n\n".join(f"# Part {n}\n\nThe pump of part {n}. {long}" for n in range(70)))
    (docs / "b.md").write_text("The strainer is cleaned weekly.")
    edge("ingest", str(docs), embedder=old)
    refused = edge("search", "strainer", embedder=new, code=8)
    assert "hint: `edge documents reembed`" in refused.stderr
    new.embedded, new.fails_at = 0, new.calls + 2
    edge("documents", "reembed", embedder=new, code=130)
    assert "cleaned weekly" in edge("search", "strainer cleaned", embedder=old).stdout, "by the former embedder as ever"
    done = edge("documents", "reembed", embedder=new)
    assert done.stdout == "default: 71 passages embedded anew\n"
    assert new.embedded == 71, "none of them twice"
    assert edge("search", "strainer cleaned", embedder=new).stdout.splitlines()[0].startswith("1. b, line 1 ")
    again = edge("documents", "reembed", embedder=new)
    assert again.stdout == "" and "all vectors are of the embedder that is in use" in again.stderr
    edge("search", "strainer", embedder=old, code=8)


def test_a_script_is_told_how_far_it_is(edge, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "a.md").write_text("The strainer is cleaned weekly.")
    edge("ingest", str(tmp_path / "a.md"), "--collection", "one", embedder=FakeEmbedder())
    edge("ingest", str(tmp_path / "a.md"), "--collection", "two", embedder=FakeEmbedder())
    done = edge("documents", "reembed", "--collection", "two", "--json", embedder=OtherEmbedder())
    events = [json.loads(line) for line in done.stdout.splitlines()]
    assert events[0] == {
        "event": "progress", "collection": "two", "step": "embedding", "done": 0, "total": 1, "percent": 0,
        "seconds_left": None,
    }
    assert events[-2]["step"] == "replacing" and events[-2]["percent"] == 100
    assert events[-1] == {"event": "done", "collections": [{"name": "two", "passages": 1}]}
    done = edge("documents", "reembed", "--json", embedder=OtherEmbedder())
    assert json.loads(done.stdout.splitlines()[-1])["collections"] == [{"name": "one", "passages": 1}]
    unknown = edge("documents", "reembed", "--collection", "three", "--json", embedder=OtherEmbedder(), code=3)
    assert json.loads(unknown.stdout)["error"]["code"] == "bad_use"


def test_time_left_goes_by_what_was_done_this_time() -> None:
    told: list[State] = []
    times = iter([100.0, 110.0, 130.0])
    pace = _Pace("c", told.append, lambda: next(times))
    for done in (40, 60, 100):
        pace("embedding", done, 100)
    assert [(state.percent, state.seconds_left) for state in told] == [(40, None), (60, 20.0), (100, 0.0)]


def test_of_a_passage_that_is_too_long_its_beginning_counts() -> None:
    embedder = OtherEmbedder()
    text = " ".join(f"word{n}" for n in range(180))
    kept = head(text, embedder.count, EMBEDDER_TOKENS)
    assert text.startswith(kept) and EMBEDDER_TOKENS - 10 < embedder.count(kept) <= EMBEDDER_TOKENS
    assert head("  ", embedder.count, EMBEDDER_TOKENS) == ""

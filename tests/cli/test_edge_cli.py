"""The command `edge`: what it prints where, its exit codes, and that nothing bad ends in a traceback."""

import errno
import io
import json
import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from edge_client.app import App
from edge_client.cli import app
from edge_client.commands import terminal
from edge_client.errors import GaveUp, Unreached
from edge_client.extracts import extract
from store.keys import Passphrase, create_key
from tests.support.fake_engine import FakeChat, FakeEmbedder, FakeRelay

ROOT = Path(__file__).resolve().parent.parent.parent
PASSPHRASE = "correct horse"


@dataclass
class Result:
    code: int
    out: str
    err: str

    @property
    def object(self) -> Any:
        return json.loads(self.out)


Edge = Callable[..., Result]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    home, secret = tmp_path / "home", tmp_path / "passphrase"
    secret.write_text(PASSPHRASE + "\n")
    secret.chmod(0o600)
    monkeypatch.setenv("CAUSEWAY_HOME", str(home))
    monkeypatch.setenv("CAUSEWAY_PASSPHRASE_FILE", str(secret))
    monkeypatch.delenv("CAUSEWAY_PASSPHRASE", raising=False)
    return home


@pytest.fixture
def chat(monkeypatch: pytest.MonkeyPatch) -> FakeChat:
    chat, embedder = FakeChat(), FakeEmbedder()
    monkeypatch.setattr(App, "chat", lambda self, path=None, name="local": chat)
    monkeypatch.setattr(App, "embedder", lambda self, progress=None: embedder)
    return chat


@pytest.fixture
def relay(monkeypatch: pytest.MonkeyPatch) -> FakeRelay:
    relay = FakeRelay()

    async def found(self: App) -> FakeRelay:
        return relay

    monkeypatch.setattr(App, "relay", found)
    return relay


@pytest.fixture
def edge(home: Path, chat: FakeChat) -> Iterator[Edge]:
    def run(*arguments: str, stdin: str = "") -> Result:
        done = CliRunner().invoke(app, list(arguments), input=stdin)
        assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
        return Result(done.exit_code, done.stdout, done.stderr)

    yield run


@pytest.fixture
def manual(tmp_path: Path) -> Path:
    path = tmp_path / "manual.md"
    path.write_text("# Pumps\n\n## Limits\n\nThe maximum pressure of the pump is 6 bar.\n")
    return path


def test_ingest_ask_search_status(edge: Edge, manual: Path, home: Path, chat: FakeChat) -> None:
    added = edge("ingest", str(manual))
    assert (added.code, added.out) == (0, "1 added (1 passages), 0 unchanged, 0 failed\n")
    assert edge("ingest", str(manual), "--json").object["unchanged"] == 1

    asked = edge("ask", "the maximum pressure of the pump is?")
    said = 'From your documents (Pumps, line 3): "The maximum pressure of the pump is 6 bar."\n\nSix bar.'
    assert (asked.code, asked.out) == (0, f"{said}\n"), "stdout is the answer alone"
    assert "edge: local: your documents hold a close passage" in asked.err and "trace " in asked.err
    assert "  [1] Pumps, line 3 (manual.md)\n" in asked.err, "whose words stand above already"
    assert "left out" not in asked.err
    chat.words = ["It is 9 bar."]
    asked = edge("ask", "the maximum pressure of the pump is?")
    assert asked.out == said.partition("\n")[0] + "\n" and "do not stand in the quoted ones" in asked.err
    chat.words = ["Six", " bar."]

    answer = edge("ask", "--json", "the maximum pressure of the pump is?").object
    assert (answer["route"], answer["answer"], answer["via"]) == ("local", said, "")
    assert answer["documents"] == "held"
    assert answer["citations"][0]["source"] == str(manual) and answer["citations"][0]["line"] == 3
    assert answer["label"] == "internal"
    assert len(answer["trace_id"]) == 32 and answer["timings"]["total_ms"] > 0

    hits = edge("search", "pressure", "--json").object["hits"]
    assert [hit["document"] for hit in hits] == ["Pumps"]
    assert "6 bar" in edge("search", "pressure").out

    status = edge("status", "--json").object
    assert (status["store"], status["documents"], status["chunks"], status["identity"]) == ("open", 1, 1, None)
    assert "not joined" in edge("status").out
    assert {path.stat().st_mode & 0o077 for path in [home, *home.iterdir()]} == {0}


def test_a_relayed_answer_says_so(edge: Edge, relay: FakeRelay) -> None:
    asked = edge("ask", "--relay", "--model", "m-1", "hello there")
    assert (asked.code, asked.out) == (0, "It stands.\n")
    assert "edge: relay to m-1: you asked to relay\nedge: relayed to m-1\n" in asked.err
    assert "via spiffe://field.example/hop/pi-1" in asked.err
    assert edge("ask", "--relay", "--json", "hello").object["route"] == "relay"


def test_what_goes_along_is_said_before_it_goes(edge: Edge, relay: FakeRelay, manual: Path) -> None:
    assert edge("ingest", str(manual)).code == 0
    question = "the maximum pressure of the pump is?"
    said = "sent with it: 1 passage of your documents (Pumps)"
    asked = edge("ask", "--relay", question)
    assert asked.err.index(said) < asked.err.index("relayed to")
    answer = edge("ask", "--relay", "--json", question)
    assert answer.object["notes"] == [said] and f"edge: {said}\n" in answer.err
    alone = edge("ask", "--relay", "--no-documents", "--json", question)
    assert alone.object["notes"] == [] and b"6 bar" not in relay.requests[-1][2] and b"6 bar" in relay.requests[0][2]


def test_without_a_link_the_decision_and_a_way_out_are_told(
    edge: Edge, relay: FakeRelay, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def down(self: FakeRelay, method: str, route: str, body: bytes) -> None:
        raise GaveUp("1a2b3c4d", 60, sent=False)

    monkeypatch.setattr(FakeRelay, "request", down)
    failed = edge("ask", "--json", "Explain the tides step by step")
    assert failed.code == 5 and "edge: relay: the prompt asks for more" in failed.err
    hint = failed.object["error"]["hint"]
    assert "`edge outbox retry 1a2b3c4d`" in hint and "`edge ask --local`" in hint


def test_skipped_files_are_counted_by_kind(edge: Edge, manual: Path) -> None:
    for name in ("a.odt", "b.ODT", "notes", ".hidden.png"):
        (manual.parent / "docs").mkdir(exist_ok=True)
        (manual.parent / "docs" / name).touch()
    (manual.parent / "docs" / "manual.md").write_text(manual.read_text())
    done = edge("ingest", str(manual.parent / "docs"))
    assert done.out == "1 added (1 passages), 0 unchanged, 0 failed, 3 skipped (no ending, .odt)\n"
    again = edge("ingest", str(manual.parent / "docs"), "--json").object
    assert (again["skipped"], again["skipped_kinds"]) == (3, {".odt": 2, "": 1})


def test_documents_are_listed_labelled_and_forgotten(edge: Edge, manual: Path, relay: FakeRelay) -> None:
    docs = manual.parent / "docs"
    docs.mkdir()
    (docs / "a.md").write_text(manual.read_text())
    assert edge("documents").err == "edge: there are no documents; `edge ingest FOLDER` adds some\n"
    added = edge("ingest", str(docs), "--label", "local-only", "--json").object
    assert [document["label"] for document in added["documents"]] == ["local-only"]
    (docs / "b.md").write_text("The canary sings in the engine room.")
    assert edge("ingest", str(docs), "--json").object["documents"][1]["label"] == "local-only"

    listed = edge("documents", "--json").object
    assert listed["folders"] == {str(docs): "local-only"}
    assert [(d["source"], d["label"]) for d in listed["documents"]] == [
        (str(docs / name), "local-only") for name in ("a.md", "b.md")
    ]
    assert f"local-only  all in {docs}" in edge("documents").out
    asked = edge("ask", "--relay", "the canary sings in the engine room?")
    assert "1 passage(s) of your documents stay on this device" in asked.err and "canary sings" not in asked.out
    assert not [body for _, _, body in relay.requests if b"The canary" in body]

    refused = edge("documents", "label", str(docs / "a.md"), "public")
    assert refused.code == 3 and "stricter label" in refused.err
    assert edge("documents", "label", str(docs), "public").code == 0
    assert {d["label"] for d in edge("documents", "--json").object["documents"]} == {"public"}
    assert edge("documents", "forget", str(docs / "a.md")).out == f"forgotten: {docs / 'a.md'}\n"
    assert [d["source"] for d in edge("documents", "forget", str(docs), "--json").object["documents"]] == [
        str(docs / "b.md")
    ]
    assert edge("documents", "forget", str(docs)).code == 3
    assert edge("documents", "label", str(docs), "local-only").code == 0
    assert "keep a stricter label" in edge("ingest", str(docs), "--label", "public").err
    assert "keep a stricter label" not in edge("ingest", str(docs), "--label", "local-only").err
    assert edge("ingest", "--label", "secret", str(docs)).code == 2


def test_links_round_in_circles_are_an_error_like_others(edge: Edge, manual: Path) -> None:
    loop = manual.parent / "loop.md"
    loop.symlink_to(loop)
    done = edge("ingest", str(loop), str(manual))
    assert done.code == 3 and "loop.md: there is no such file" in done.err and done.out.startswith("1 added")
    assert edge("documents", "forget", str(loop)).code == 3


def test_names_that_no_file_can_have_and_what_is_no_file(edge: Edge, manual: Path) -> None:
    done = edge("ingest", "x" * 5_000, "/dev/null", str(manual))
    assert done.code == 3 and done.out.startswith("1 added")
    assert "File name too long" in done.err and "/dev/null: it is no file to read" in done.err


def test_what_the_machine_cannot_do_is_told(edge: Edge, capsys: pytest.CaptureFixture[str],
                                            monkeypatch: pytest.MonkeyPatch) -> None:
    assert terminal.tell(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))["code"] == "internal"
    assert "no space left on device" in capsys.readouterr().err
    monkeypatch.setenv("CAUSEWAY_HOME", "x" * 5_000)
    done = edge("status")
    assert done.code == 3 and "file name too long" in done.err and "hint: " in done.err


def test_a_name_in_two_collections_asks_for_one(edge: Edge) -> None:
    for collection in ("a", "b"):
        edge("ingest", "--jsonl", "-c", collection, stdin='{"id": "r1", "text": "one"}')
    asked = edge("documents", "forget", "r1")
    assert asked.code == 3 and "--collection" in asked.err
    assert edge("documents", "forget", "r1", "-c", "a").code == 0
    assert [d["collection"] for d in edge("documents", "--json").object["documents"]] == ["b"]


def test_a_citation_quotes_around_what_matters() -> None:
    filler = "Nothing of interest stands in this sentence at all. " * 12
    text = f"{filler}The maximum pressure is 6 bar. {filler}"
    shown = extract(text, "what is the maximum pressure? 6 bar")
    assert "The maximum pressure is 6 bar." in shown and len(shown) <= 240
    assert shown.startswith("…") and shown.endswith("…")
    assert extract("Short.", "anything") == "Short." and extract("", "x") == ""
    assert len(extract("word " * 100, "x")) == 240


def test_a_model_that_cannot_be_loaded_is_input(home: Path) -> None:
    home.mkdir()
    (home / "config.toml").write_text('[model]\npath = "/nowhere.gguf"\n')
    done = CliRunner().invoke(app, ["ask", "--local", "hello"])
    assert done.exit_code == 3 and "there is no file /nowhere.gguf" in done.stderr


def test_ctrl_c_at_the_passphrase_ends_it(home: Path) -> None:
    """The prompt is answered by a signal alone; nothing else is typed."""
    home.mkdir()
    create_key(home / "store.key", Passphrase("unlocks"))
    environment = {name: value for name, value in os.environ.items() if not name.startswith("CAUSEWAY_PASS")}
    for command in (
        [sys.executable, "-m", "edge_client.cli", "ask", "hello"],
        [sys.executable, "-c", "from relay.cli import main; main()", "gateway", "init", str(home / "gw"),
         "--trust-domain", "x.example"],
        [sys.executable, "-c", "from relay.cli import main; main()", "hop", "serve", "--listen", "tcp:127.0.0.1:0",
         "--home", str(home / "hop")],
    ):  # fmt: skip
        ours, theirs = os.openpty()
        child = subprocess.Popen(
            command, stdin=theirs, stdout=theirs, stderr=theirs, cwd=ROOT, env=environment, start_new_session=True
        )
        os.close(theirs)
        try:
            shown = b""
            while b"assphrase" not in shown or not shown.rstrip().endswith(b":"):
                assert select.select([ours], [], [], 60)[0], shown
                shown += os.read(ours, 4096)
            child.send_signal(signal.SIGINT)
            assert child.wait(30) == 130, command
        finally:
            child.kill()
            child.wait()
            os.close(ours)


def test_what_is_piped_in_follows_the_question(edge: Edge, chat: FakeChat) -> None:
    assert edge("ask", "what failed?", stdin="line one\nline two\n").code == 0
    assert chat.asked[0][-1].content == "what failed?\n\nline one\nline two"
    assert edge("ask", stdin="who are you?").code == 0
    assert chat.asked[1][-1].content == "who are you?"


@pytest.mark.parametrize(("arguments", "code", "error", "says"), [
    (["ask"], 3, "empty_prompt", "the prompt is empty"),
    (["ask", "  "], 3, "empty_prompt", "the prompt is empty"),
    (["ask", "--relay", "x"], 4, "not_joined", "has not joined"),
    (["search", "x"], 8, "no_store", "there is no store yet"),
    (["search"], 3, "empty_prompt", "the prompt is empty"),
    (["ingest"], 3, "bad_use", "nothing to ingest"),
    (["join", "--invitation-file", "/nowhere"], 3, "bad_use", "cannot read /nowhere"),
    (["ingest", "--jsonl", "what is this?"], 3, "bad_use", "cannot read what is this?"),
    (["ingest", "--jsonl", "/"], 3, "bad_use", "cannot read /"),
])  # fmt: skip
def test_what_cannot_be_done_is_two_lines_and_a_code(
    edge: Edge, arguments: list[str], code: int, error: str, says: str
) -> None:
    plain = edge(*arguments)
    assert (plain.code, plain.out) == (code, "")
    assert plain.err.startswith("edge: ") and says in plain.err and "\nhint: " in plain.err
    machine = edge(*arguments, "--json")
    assert machine.code == code and machine.object["error"]["code"] == error


def test_a_secret_is_not_relayed_and_not_shown(edge: Edge, relay: FakeRelay) -> None:
    refused = edge("ask", "--relay", "log in with password: hunter22")
    assert refused.code == 6 and "password" in refused.err
    assert "hunter22" not in refused.err + refused.out and relay.requests == []


def test_a_bad_invitation_is_not_echoed(edge: Edge, tmp_path: Path, home: Path) -> None:
    file = tmp_path / "invitation"
    file.write_text("cw1secretsecret\n")
    refused = edge("join", "--invitation-file", str(file))
    assert refused.code == 3 and "secretsecret" not in refused.err + refused.out
    assert not home.exists(), "nothing is created for an invitation that cannot be read"


def test_a_wrong_passphrase(edge: Edge, manual: Path, tmp_path: Path) -> None:
    assert edge("ingest", str(manual)).code == 0
    (tmp_path / "passphrase").write_text("wrong one")
    for arguments in (["ask", "x"], ["search", "x"], ["ingest", str(manual)], ["status"]):
        refused = edge(*arguments)
        assert refused.code == 8 and "the passphrase is wrong" in refused.err and "wrong one" not in refused.err
    (tmp_path / "passphrase").write_text(PASSPHRASE)
    assert edge("status", "--json").object["documents"] == 1, "nothing is lost"


def test_a_broken_document_is_reported_and_the_others_are_kept(edge: Edge, manual: Path, tmp_path: Path) -> None:
    (tmp_path / "broken.pdf").write_bytes(b"%PDF-1.4 garbage")
    (tmp_path / "picture.png").write_bytes(b"png")
    done = edge("ingest", str(tmp_path / "broken.pdf"), str(tmp_path / "picture.png"), str(manual), "--json")
    assert done.code == 3 and (done.object["added"], done.object["failed"]) == (1, 2)
    assert [failure["error"] for failure in done.object["failures"]] == ["bad_document", "bad_document"]
    assert "broken.pdf: it is not a PDF" in done.err and "picture.png: files of kind .png" in done.err


def test_jsonl_in_and_out(edge: Edge, tmp_path: Path) -> None:
    corpus, queries = tmp_path / "corpus.jsonl", tmp_path / "queries.jsonl"
    rows = [{"id": str(n), "title": t, "text": f"{t} in a pipe"} for n, t in enumerate(["flow", "heat", "noise"])]
    corpus.write_text("\n".join(map(json.dumps, rows[:2])) + "\nnonsense\n" + json.dumps(rows[2]) + "\n")
    done = edge("ingest", "--jsonl", str(corpus), "--collection", "c")
    assert done.code == 3 and "corpus.jsonl line 3: not JSON" in done.err
    assert done.out.startswith("3 added")
    again = edge("ingest", "--jsonl", "--collection", "c", stdin=json.dumps(rows[0]))
    assert (again.code, again.out) == (0, "0 added (0 passages), 1 unchanged, 0 failed\n")

    queries.write_text('{"id": 7, "text": "heat"}\n{"id": "b", "text": "noise"}\n')
    done = edge("search", "--jsonl", str(queries), "-c", "c", "--top", "2")
    out = [json.loads(line) for line in done.out.splitlines()]
    assert [line["id"] for line in out] == [7, "b"]
    assert [line["hits"][0]["doc"] for line in out] == ["1", "2"] and {len(line["hits"]) for line in out} == {2}
    asked = '{"id": 1, "text": "flow"}\n{"id": 2}\n{"id": 3, "text": "heat"}\n'
    piped = edge("search", "--jsonl", "-c", "c", stdin=asked)
    lines = [json.loads(line) for line in piped.out.splitlines()]
    assert piped.code == 3 and [sorted(line) for line in lines] == [["hits", "id"], ["error"], ["hits", "id"]]
    assert lines[1]["error"]["line"] == 2


def test_the_unexpected_is_a_line_not_a_traceback(edge: Edge, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(self: App, path: Any = None, name: str = "local") -> FakeChat:
        raise RuntimeError("SECRETTEXT")

    monkeypatch.setattr(App, "chat", broken)
    done = edge("ask", "hello")
    assert done.code == 1 and "unexpected" in done.err and "SECRETTEXT" not in done.err
    assert "Traceback" not in done.err


def test_a_port_that_is_taken_is_the_links_fault(edge: Edge) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        done = edge("serve", "--no-store", "--port", port)
    assert done.code == 5 and f"cannot listen on port {port}: address already in use\n" in done.err
    assert "hint: another --port" in done.err
    assert "`edge serve` may run already" in done.err


def test_a_corrupt_store_is_named(edge: Edge, manual: Path, home: Path) -> None:
    assert edge("ingest", str(manual)).code == 0
    (home / "store.key").write_bytes(b"rubbish")
    assert edge("status").code == 8


def test_status_of_a_locked_store(edge: Edge, manual: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert edge("ingest", str(manual)).code == 0
    monkeypatch.delenv("CAUSEWAY_PASSPHRASE_FILE")
    monkeypatch.setattr("edge_client.passphrase._has_terminal", lambda: False)
    assert edge("status", "--json").object["store"] == "locked"
    assert edge("ask", "hello").code == 8


def test_every_command_has_help(edge: Edge) -> None:
    for command in ("", "ask", "ingest", "search", "serve", "join", "status", "models", "models install", "models add",
                    "models list", "models remove", "documents",
                    "documents forget", "documents label"):
        shown = edge(*command.split(), "--help")
        assert shown.code == 0 and "Usage" in shown.out
    assert edge("nonsense").code == 2 and edge("search", "--top", "0", "x").code == 2
    both = edge("ask", "--local", "--relay", "x")
    assert both.code == 2 and "exclude each other" in both.err
    assert edge("--version").out == f"edge {version('causeway')}\n"


def test_a_reader_that_goes_away_is_no_error(home: Path, tmp_path: Path) -> None:
    code = "import sys, edge_client.commands.terminal as t\nasync def w():\n for _ in range(100000): print('x' * 99)\n"
    code += "import typer\ntry: t.run(w)\nexcept typer.Exit as e: sys.exit(e.exit_code)"
    child = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT, env=os.environ
    )
    assert child.stdout is not None and child.stderr is not None
    with child:
        child.stdout.read(10)
        child.stdout.close()
        assert (child.stderr.read(), child.wait()) == (b"", 0)


@pytest.mark.model
def test_the_real_thing(home: Path, manual: Path) -> None:
    """As a user runs it: no fakes, separate processes, an answer with its citation and nothing else on stdout."""
    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "edge_client.cli", *arguments], capture_output=True, text=True, timeout=120,
            cwd=ROOT, stdin=subprocess.DEVNULL, check=False,
        )

    first, again = run("ingest", str(manual), "--json"), run("ingest", str(manual), "--json")
    assert (json.loads(first.stdout)["added"], json.loads(again.stdout)["unchanged"]) == (1, 1)
    assert first.stderr == again.stderr == ""
    asked = run("ask", "What is the maximum pressure of the pump?")
    assert asked.returncode == 0 and "6 bar" in asked.stdout, asked.stderr
    assert "[1] Pumps, line 3" in asked.stderr
    found = run("search", "how much pressure may it have", "--json")
    assert json.loads(found.stdout)["hits"][0]["source"] == str(manual)
    disk = b"".join(path.read_bytes() for path in home.rglob("*") if path.is_file())
    assert disk and b"maximum pressure" not in disk and b"6 bar" in manual.read_bytes()


@pytest.mark.model
def test_serve_as_a_process(tmp_path: Path, home: Path) -> None:
    """A stand-in provider: no store, a name of its own, ended by SIGTERM."""
    from http.client import HTTPConnection

    command = [sys.executable, "-m", "edge_client.cli", "serve"]
    command += ["--no-store", "--port", "0", "--model-id", "demo-cloud"]
    server = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=ROOT)
    assert isinstance(server.stderr, io.TextIOBase)
    with server:
        try:
            line = server.stderr.readline()
            assert line.startswith("edge: ready, serving http://127.0.0.1:"), line
            token = (home / "api-token").read_text().strip()
            connection = HTTPConnection("127.0.0.1", int(line.split("/v1")[0].rsplit(":", 1)[1]), timeout=60)
            body = {"model": "demo-cloud", "max_tokens": 8, "messages": [{"role": "user", "content": "Say hello."}]}
            headers = {"Authorization": f"Bearer {token}"}
            connection.request("POST", "/v1/chat/completions", json.dumps(body), headers)
            answer = json.loads(connection.getresponse().read())
            connection.close()
            assert answer["choices"][0]["message"]["content"] and answer["usage"]["completion_tokens"] <= 8
        finally:
            server.terminate()
    assert server.returncode == 0
    assert not (home / "store.db").exists()


def test_ask_explains_features_scores_and_rule(edge: Edge, manual: Path, relay: FakeRelay) -> None:
    assert edge("ingest", str(manual)).code == 0
    local = edge("ask", "--explain", "the maximum pressure of the pump is?")
    assert local.code == 0 and local.out.endswith('"\n\nSix bar.\n'), "stdout is the answer alone"
    lines = {line[:24].strip(): line[25:] for line in local.err.splitlines() if line.startswith("  ")}
    assert (lines["rule"], lines["route"], lines["words"], lines["asked for"]) == ("documents", "local", "7", "none")
    assert float(lines["evidence"]) >= 0.84 and 0 < float(lines["need"]) < float(lines["difficulty"]) < 1
    assert "length -" in lines["difficulty by"] and "words " in lines["difficulty by"]

    relayed = edge("ask", "--explain", "Explain the tides")
    assert relayed.err.index("beyond-local") < relayed.err.index("edge: relay"), "said before anything leaves"
    answer = edge("ask", "--explain", "--json", "Explain the tides").object
    assert (answer["explanation"]["rule"], answer["explanation"]["asks_for_reasoning"]) == ("beyond-local", "yes")
    assert "explanation" not in edge("ask", "--json", "Explain the tides").object


def test_ask_explains_a_refusal_too(edge: Edge, relay: FakeRelay) -> None:
    for arguments in ([], ["--json"]):
        refused = edge("ask", "--explain", "--relay", *arguments, "log in with password: hunter22")
        lines = {line[:24].strip(): line[25:] for line in refused.err.splitlines() if line.startswith("  ")}
        assert refused.code == 6 and (lines["rule"], lines["route"]) == ("secret", "refuse")
        assert "hunter22" not in refused.err and refused.err.index("refuse") < refused.err.index("edge: ")


def test_ask_explains_both_decisions_where_no_gateway_is_found(
    edge: Edge, relay: FakeRelay, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def nowhere(self: FakeRelay, method: str, route: str, body: bytes) -> None:
        raise Unreached

    monkeypatch.setattr(FakeRelay, "request", nowhere)
    asked = edge("ask", "--explain", "Explain the tides")
    assert asked.code == 0 and asked.err.index("beyond-local") < asked.err.index("unreached")


def test_a_persons_threshold_moves_the_same_question(edge: Edge, home: Path, relay: FakeRelay) -> None:
    home.mkdir(exist_ok=True)
    for share, route in ((0, "local"), (1, "relay")):
        (home / "config.toml").write_text(f"[router]\nshare_relayed = {share}\n")
        assert edge("ask", "--json", "Explain the tides").object["route"] == route

"""`edge setup`: what it asks of whom, what it leaves as it is, and what a failure or Ctrl-C leaves behind."""

import asyncio
import io
import json
import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import keyring
import numpy as np
import pytest
from numpy.typing import NDArray
from typer.testing import CliRunner

from edge_client.app import App
from edge_client.cli import app
from store.keys import held_for
from tests.support.ca import Ca
from tests.support.edge_lab import ENDPOINT
from tests.support.fake_engine import FakeEmbedder
from tests.support.fake_gateway import FakeGateway, say_hello
from tests.support.fake_keyring import FakeSecretService
from transport.errors import LinkLost
from transport.identity.join import Invitation
from transport.links.base import Link
from transport.primitives import Secret, sha256

Answers = Callable[..., tuple[int, str, str]]


@pytest.fixture(autouse=True)
def embedder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeEmbedder:
    secret = tmp_path / "passphrase"
    secret.write_text("correct horse\n")
    secret.chmod(0o600)
    monkeypatch.setenv("CAUSEWAY_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("CAUSEWAY_PASSPHRASE_FILE", str(secret))
    monkeypatch.setattr("edge_client.engine.models.installed", lambda: {"model": True, "embedder": True})
    embedder = FakeEmbedder()
    monkeypatch.setattr(App, "embedder", lambda self, progress=None: embedder)
    return embedder


@pytest.fixture
def docs(tmp_path: Path) -> Path:
    docs = tmp_path / "docs"
    docs.mkdir()
    for name in "abc":
        (docs / f"{name}.md").write_text(f"# {name}\n\nThe pressure of pump {name} is 6 bar.\n")
    return docs


@pytest.fixture
def gateway(monkeypatch: pytest.MonkeyPatch) -> FakeGateway:
    gateway = FakeGateway(Ca(), say_hello)
    monkeypatch.setattr("edge_client.dialing.connect", lambda endpoint, **_: gateway.dial(endpoint))
    return gateway


@pytest.fixture
def invitation(gateway: FakeGateway, tmp_path: Path) -> Path:
    file = tmp_path / "invitation"
    ca = gateway.ca
    made = Invitation(sha256(ca.root_der), b"t" * 8, Secret(b"s" * 16), ca.trust_domain, "edge/lap-1", (str(ENDPOINT),))
    file.write_text(made.encode() + "\n")
    return file


@pytest.fixture
def answer(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Answers:
    """Runs `edge setup` as on a terminal where these answers are typed; each has to be used."""

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    def run(*answers: str, options: Sequence[str] = ()) -> tuple[int, str, str]:
        typed = Terminal("".join(f"{answer}\n" for answer in answers))
        monkeypatch.setattr(sys, "stdin", typed)

        def hidden(prompt: str) -> str:
            print(prompt, end="", file=sys.stderr)
            if not (line := typed.readline()):
                raise EOFError
            return line

        monkeypatch.setattr("edge_client.passphrase.hidden", hidden)
        capsys.readouterr()
        code = app(["setup", *options], standalone_mode=False) or 0
        assert typed.read() == "", "an answer was not asked for"
        told = capsys.readouterr()
        return code, told.out, told.err

    return run


def script(*options: str, stdin: str = "") -> tuple[int, Any, str]:
    done = CliRunner().invoke(app, ["setup", "--json", *options], input=stdin)
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return done.exit_code, json.loads(done.stdout), done.stderr


def test_three_answers_and_it_works(answer: Answers, docs: Path, invitation: Path, gateway: FakeGateway) -> None:
    code, out, err = answer(invitation.read_text().strip(), str(docs), "")
    assert code == 0, err
    assert err.index("1 of 3") < err.index("2 of 3") < err.index("3 of 3") < err.index("made an encrypted store")
    assert "joined as spiffe://field.example/edge/lap-1" in err and "3 added (3 passages)" in err
    assert "unlocked by the passphrase" in out and "documents  3, 3 passages" in out
    assert all(f"next       edge {verb}" in out for verb in ("ask", "chat", "serve"))
    assert invitation.read_text().strip() not in out + err
    found = CliRunner().invoke(app, ["search", "pressure", "--json"])
    assert len(json.loads(found.stdout)["hits"]) == 3


def test_enter_alone_stays_on_this_device(answer: Answers, docs: Path) -> None:
    code, out, _ = answer("", f"'{docs}' ", "pass")
    assert code == 0 and "gateway    none: nothing leaves this device" in out and "documents  3" in out


def test_what_cannot_be_used_is_asked_again(answer: Answers, docs: Path) -> None:
    code, out, err = answer("cw1secretsecret", "", "/nowhere", str(docs), "fingerprint", "p")
    assert code == 0 and "documents  3" in out
    assert "there is no /nowhere" in err and "that is neither" in err and "secretsecret" not in err + out


def test_the_end_of_input_ends_it_and_makes_nothing(answer: Answers, tmp_path: Path) -> None:
    assert answer("")[0] == 130
    assert not (tmp_path / "home").exists()


def test_again_keeps_what_is_there(
    answer: Answers, docs: Path, invitation: Path, gateway: FakeGateway, embedder: FakeEmbedder
) -> None:
    options = ("--invitation-file", str(invitation), "--folder", str(docs), "--unlock", "passphrase")
    first = script(*options)
    assert (first[0], first[1]["store"], first[1]["identity"]) == (0, "created", "spiffe://field.example/edge/lap-1")
    dials, embedded = gateway.dials, embedder.embedded
    again = script(*options)
    assert (again[0], again[1]["store"], again[1]["ingested"]["unchanged"]) == (0, "kept", 3)
    assert "is kept, with 3 documents" in again[2] and "has joined as spiffe://field.example/edge/lap-1" in again[2]
    assert script()[0] == 0, "nothing is missing any more"
    assert (gateway.dials, embedder.embedded) == (dials, embedded), "the used invitation was not shown again"
    code, out, err = answer("", "")
    assert code == 0 and "1 of 3" not in err and "2 of 3" in err and "documents  3" in out


@pytest.mark.parametrize(("options", "missing"), [
    (["--folder", "docs", "--unlock", "passphrase"], "--invitation-file"),
    (["--invitation-file", "empty", "--unlock", "passphrase"], "--folder"),
    (["--invitation-file", "empty", "--folder", "docs"], "--unlock"),
])
def test_a_script_is_told_which_option_is_missing(
    docs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: list[str], missing: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("empty").touch()
    code, told, err = script(*options)
    assert code == 3 and told["error"]["code"] == "bad_use" and told["error"]["message"].startswith(missing)
    assert f"give {missing}, or --yes" in err and not (tmp_path / "home").exists()
    code, told, _ = script(*options, "--yes")
    assert (code, told["store"], told["identity"], told["unlock"]) == (0, "created", None, "passphrase")
    assert ("edge ingest FOLDER" in told["next"]) == (told["documents"] == 0)


def test_an_invitation_from_a_pipe(invitation: Path, gateway: FakeGateway) -> None:
    code, told, _ = script("--yes", "--invitation-file", "-", stdin=invitation.read_text())
    assert code == 0 and told["identity"] == "spiffe://field.example/edge/lap-1"


@pytest.mark.parametrize("options", [
    ["--invitation-file", "broken"], ["--invitation-file", "nowhere"], ["--folder", "nowhere"],
])
def test_nothing_is_made_for_an_option_that_cannot_be_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("broken").write_text("cw1secretsecret")
    code, told, err = script("--yes", *options)
    assert code == 3 and "error" in told and "secretsecret" not in err and not (tmp_path / "home").exists()


def test_the_keyring_is_switched_on_with_the_passphrase_asked_once(
    answer: Answers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ring = FakeSecretService()
    monkeypatch.setattr(keyring, "get_keyring", lambda: ring)
    monkeypatch.delenv("CAUSEWAY_PASSPHRASE_FILE")
    code, out, err = answer("", "", "keyring", "correct horse", "correct horse")
    assert code == 0 and "unlocked by the keyring" in out and len(ring.kept) == 1
    assert err.index("the login keyring unlocks the store") > err.index("made an encrypted store")
    code, out, err = answer("", "")  # opened by the keyring: neither the passphrase nor the third question
    assert code == 0 and "unlocked by the keyring" in out and "3 of 3" not in err


def test_a_step_that_fails_is_told_and_takes_no_other_along(
    answer: Answers, docs: Path, invitation: Path, gateway: FakeGateway, monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    async def down(endpoint: object, **_: object) -> Link:
        raise LinkLost("nobody answers")

    with monkeypatch.context() as patch:
        patch.setattr("edge_client.dialing.connect", down)
        patch.setattr(keyring, "get_keyring", lambda: object())  # of no kind that is trusted
        code, told, _ = script("--invitation-file", str(invitation), "--folder", str(docs), "--unlock", "keyring")
        assert code == 8 and [failure["code"] for failure in told["failures"]] == ["no_keyring", "link_lost"]
        assert (told["documents"], told["identity"], told["unlock"]) == (3, None, "passphrase")
        assert held_for(tmp_path / "home" / "store.key") is None
        code, out, _ = answer(options=("--invitation-file", str(invitation), "--folder", str(docs), "--yes"))
        assert code == 5 and "next       `edge setup` once more" in out
    code, told, _ = script("--invitation-file", str(invitation))
    assert (code, told["identity"], told["failures"]) == (0, "spiffe://field.example/edge/lap-1", [])


def test_missing_models_are_told_and_fetched_by_a_command_of_their_own(
    docs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    have = {"model": True, "embedder": False}
    monkeypatch.setattr("edge_client.engine.models.installed", lambda: have)
    code, told, _ = script("--yes", "--folder", str(docs))
    assert code == 3 and [failure["code"] for failure in told["failures"]] == ["model_missing"]
    assert "edge models install" in told["failures"][0]["hint"] and told["documents"] == 0
    have["embedder"] = True
    assert script("--yes", "--folder", str(docs))[0] == 0


def test_a_broken_document_is_told_by_the_exit_code(docs: Path) -> None:
    (docs / "broken.pdf").write_bytes(b"%PDF-1.4 garbage")
    code, told, err = script("--yes", "--folder", str(docs))
    assert code == 3 and told["ingested"]["failed"] == 1 and told["documents"] == 3 and "broken.pdf: " in err


def test_ctrl_c_leaves_what_is_done_and_again_goes_on(
    docs: Path, monkeypatch: pytest.MonkeyPatch, embedder: FakeEmbedder
) -> None:
    real = FakeEmbedder.embed

    async def interrupted(self: FakeEmbedder, texts: Sequence[str]) -> NDArray[np.float32]:
        if any("pump c" in text for text in texts):
            os.kill(os.getpid(), signal.SIGINT)
            await asyncio.sleep(0)
        return await real(self, texts)

    with monkeypatch.context() as patch:
        patch.setattr(FakeEmbedder, "embed", interrupted)
        done = CliRunner().invoke(app, ["setup", "--yes", "--folder", str(docs)])
    assert done.exit_code == 130 and "what is done stays; `edge setup` goes on from there" in done.stderr
    code, told, _ = script("--yes", "--folder", str(docs))
    assert code == 0 and (told["ingested"]["added"], told["ingested"]["unchanged"]) == (1, 2)

"""`edge chat`: what is typed becomes prompts, what is said stays together, and Ctrl-C stops an answer alone."""

import asyncio
import io
import json
import os
import select
import signal
import subprocess
import sys
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from edge_client.app import App
from edge_client.cli import app
from edge_client.commands.beside import Beside
from edge_client.commands.prompting import prompts
from edge_client.config import Config
from edge_client.engine.base import Finished, Message, Sampling, Text
from edge_client.errors import EngineFailed
from edge_client.history import NAMESPACE, History
from store.settings import Settings
from tests.support.fake_engine import FakeChat, FakeEmbedder, FakeRelay

ROOT = Path(__file__).resolve().parent.parent.parent
Piped = Callable[..., tuple[int, str, str]]


class Engine(FakeChat):
    """`meets` is called as an answer begins, in the event loop's thread."""

    loaded = 0
    meets: Callable[[], None] = staticmethod(lambda: None)

    async def generate(self, messages: Sequence[Message], sampling: Sampling) -> AsyncGenerator[Text | Finished, None]:
        async for event in super().generate(messages, sampling):
            yield event
            if isinstance(event, Text):
                self.meets()


@pytest.fixture
def chat(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Engine:
    secret = tmp_path / "passphrase"
    secret.write_text("correct horse\n")
    secret.chmod(0o600)
    monkeypatch.setenv("CAUSEWAY_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("CAUSEWAY_PASSPHRASE_FILE", str(secret))
    chat, embedder = Engine(), FakeEmbedder()

    def make(self: App, path: Path | None = None, name: str = "local") -> Engine:
        chat.loaded += 1
        return chat

    monkeypatch.setattr(App, "chat", make)
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
def manual(tmp_path: Path, chat: Engine) -> Path:
    path = tmp_path / "manual.md"
    path.write_text("# Pumps\n\n## Limits\n\nThe maximum pressure of the pump is 6 bar.\n")
    assert CliRunner().invoke(app, ["ingest", str(path)]).exit_code == 0
    return path


def piped(*lines: str, options: Sequence[str] = ()) -> tuple[int, str, str]:
    done = CliRunner().invoke(app, ["chat", *options], input="".join(f"{line}\n" for line in lines))
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return done.exit_code, done.stdout, done.stderr


def typed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *lines: str) -> tuple[int, str, str]:
    """As on a terminal, but for the line editor."""

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr(sys, "stdin", Terminal("".join(f"{line}\n" for line in lines)))
    code = app(["chat"], standalone_mode=False) or 0
    told = capsys.readouterr()
    return code, told.out, told.err


def kept() -> list[list[dict[str, Any]]]:
    """The turns of each conversation in the store, newest first."""

    async def look() -> list[Any]:
        async with App.open(Config.load(), store="if present") as opened:
            history = History(Settings(opened.database, NAMESPACE))
            found = [await history.get(told["id"]) for told in await history.search("")]
            return [json.loads(talk)["turns"] for talk in found if talk is not None]

    return asyncio.run(look())


def said(messages: Sequence[Message]) -> list[tuple[str, str]]:
    return [(message.role, message.content) for message in messages if message.role != "system"]


def test_a_pipe_is_a_question_a_line_in_one_conversation(chat: Engine) -> None:
    assert piped("who are you?", "", "and who am I?") == (
        0, "Six bar.\nSix bar.\n", "local: the prompt is short and simple\n" * 2
    ), "stdout is the answers alone"
    assert said(chat.asked[1]) == [("user", "who are you?"), ("assistant", "Six bar."), ("user", "and who am I?")]
    assert chat.loaded == 1


def test_it_is_kept_in_the_encrypted_store_where_the_page_looks(chat: Engine, manual: Path, tmp_path: Path) -> None:
    assert piped("the maximum pressure of the pump is?", "/new", "who are you?", "and I?")[0] == 0
    second, first = sorted(kept(), key=len, reverse=True)
    assert first[0]["text"] == "the maximum pressure of the pump is?" and first[1]["text"].endswith("Six bar.")
    assert first[1]["about"]["route"] == "local" and first[1]["about"]["citations"][0]["document"] == "Pumps"
    assert len(second) == 4 and said(chat.asked[2]) == [
        ("user", "who are you?"), ("assistant", "Six bar."), ("user", "and I?")
    ]
    disk = b"".join(path.read_bytes() for path in (tmp_path / "home").rglob("*") if path.is_file())
    assert disk and b"who are you" not in disk and b"maximum pressure" not in disk


def test_without_a_store_nothing_is_kept(
    chat: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = typed(monkeypatch, capsys, "who are you?")
    assert code == 0 and "Six bar." in out and "kept nowhere: there is no store" in err
    assert not (tmp_path / "home").exists()


def test_where_each_answer_comes_from_is_said_and_may_be_chosen(
    chat: Engine, manual: Path, relay: FakeRelay
) -> None:
    code, out, err = piped(
        "the maximum pressure of the pump is?", "/sources", "/relay", "hello", "/local", "hello again", "/auto",
        "Explain the tides", "/sources", options=["--model", "m-1"],
    )
    assert code == 0 and out.endswith("Six bar.\nIt stands.\nSix bar.\nIt stands.\n")
    told = iter(err.splitlines())
    for line in (  # in this order, whatever stands between
        "local: your documents hold", "  [1] Pumps, line 3 (manual.md)", "[1] Pumps, line 3", "    The maximum",
        "by the gateway from now on", "relay to m-1: you asked to relay", "relayed to m-1", "via spiffe://",
        "on this device from now on", "local: you asked", "the router decides from now on", "relay to m-1: the prompt",
        "the last answer is made from no document",
    ):
        assert any(line in one for one in told), line
    assert len(relay.requests) == 2 and b"Explain the tides" in relay.requests[1][2]


def test_options_begin_it(chat: Engine, relay: FakeRelay, manual: Path) -> None:
    assert piped("the maximum pressure of the pump is?", options=["--relay", "--no-documents"])[1] == "It stands.\n"
    assert b"6 bar" not in relay.requests[0][2]
    assert piped("Explain the tides", options=["--local"])[1] == "Six bar.\n"
    assert CliRunner().invoke(app, ["chat", "--local", "--relay"]).exit_code == 2


def test_what_fails_is_told_and_the_rest_is_answered(chat: Engine, relay: FakeRelay) -> None:
    code, out, err = piped("/relay", "log in with password: hunter22", "/local", "hello", "/nonsense")
    assert (code, out) == (6, "Six bar.\n") and "hunter22" not in err
    assert "edge: there is no /nonsense\nhint: /help" in err and "or ask with /local" in err and relay.requests == []
    assert said(chat.asked[0]) == [("user", "hello")], "what came to no answer is not carried along"
    assert "/sources" in piped("/help")[2] and piped("/help")[0] == 0


def test_an_answer_from_local_only_documents_keeps_the_conversation_here(
    chat: Engine, manual: Path, relay: FakeRelay
) -> None:
    assert CliRunner().invoke(app, ["documents", "label", str(manual), "local-only"]).exit_code == 0
    code, out, err = piped(
        "the maximum pressure of the pump is?", "/relay", "and in short?", "/auto", "Explain the tides", "/new",
        "Explain the tides",
    )
    assert code == 6 and "made from local-only documents" in err and out.endswith("Six bar.\nIt stands.\n")
    assert len(relay.requests) == 1 and b"6 bar" not in relay.requests[0][2] and b"Six bar" not in relay.requests[0][2]


def test_half_an_answer_is_carried_along(chat: Engine) -> None:
    chat.error = EngineFailed("the engine stopped")
    assert piped("one", "two")[:2] == (1, "Six bar.\nSix bar.\n")
    assert said(chat.asked[1]) == [("user", "one"), ("assistant", "Six bar."), ("user", "two")]


def test_a_failure_on_a_terminal_is_no_failure_of_the_program(
    chat: Engine, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = typed(monkeypatch, capsys, "/nonsense", "hello", "/quit", "never asked")
    assert code == 0 and out.endswith("Six bar.\n> ") and "there is no /nonsense" in err and len(chat.asked) == 1


def test_ctrl_c_stops_the_answer_and_not_the_program(
    chat: Engine, manual: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    chat.endless = True

    def interrupt() -> None:
        if chat.said == 6:
            chat.endless = False  # the next answer ends by itself
            os.kill(os.getpid(), signal.SIGINT)
            stopped.append(stop.wait(60))  # nothing more is said until the main thread has taken the signal

    stop, stopped = threading.Event(), list[bool]()
    real = asyncio.BaseEventLoop.call_soon_threadsafe

    def cancelled(self: asyncio.BaseEventLoop, callback: Any, *arguments: Any, **options: Any) -> asyncio.Handle:
        handle = real(self, callback, *arguments, **options)
        if getattr(callback, "__name__", "") == "cancel":
            stop.set()
        return handle

    monkeypatch.setattr(asyncio.BaseEventLoop, "call_soon_threadsafe", cancelled)
    monkeypatch.setattr(Engine, "meets", staticmethod(interrupt))
    code, out, err = typed(monkeypatch, capsys, "tell me", "hello")
    assert stopped == [True] and code == 0 and "(stopped)" in err and out.endswith("Six bar.\n> ")
    assert chat.said == 8 and said(chat.asked[1])[1] == ("assistant", "Six bar." * 3), "it goes on from there"
    assert len(kept()[0]) == 4


def test_ctrl_c_ends_what_reads_a_pipe(chat: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(shown: str) -> str:
        raise KeyboardInterrupt

    monkeypatch.setattr("edge_client.commands.prompting._piped", interrupted)
    assert piped("hello")[0] == 130


def reading(*lines: str | type[BaseException]) -> Callable[[str], str]:
    left = list(lines)

    def read(shown: str) -> str:
        if not left:
            raise EOFError
        line = left.pop(0)
        if isinstance(line, str):
            return line
        raise line

    return read


@pytest.mark.parametrize(("lines", "expected"), [
    ([], []),
    (["one", "  ", "two "], ["one", "two"]),
    (["one \\", "two\\", "three", "four"], ["one \ntwo\nthree", "four"]),
    (['"""', "a \\", "", "b", '"""', "c"], ["a \\\n\nb", "c"]),
    (['"""a', 'b"""'], ["a\nb"]),
    (['"""one line"""', "two"], ["one line", "two"]),
    (['"""', '"""'], []),
    (["pasted\nat once", "two"], ["pasted\nat once", "two"]),
    (["begun \\"], ["begun"]),
    (['"""', "begun"], ["begun"]),
    (["begun \\", KeyboardInterrupt, "anew"], ["", "anew"]),
    (['"""', "begun", KeyboardInterrupt, "anew"], ["", "anew"]),
    ([KeyboardInterrupt, "one"], ["", "one"]),
])
def test_lines_become_prompts(lines: list[str | type[BaseException]], expected: list[str]) -> None:
    assert list(prompts(reading(*lines))) == expected


_LINES = st.lists(st.text(st.characters(exclude_characters='"\\\r\n')), min_size=1)


@given(_LINES.filter(lambda lines: "".join(lines).strip()))
def test_any_text_can_be_typed_as_a_block_and_by_backslashes(lines: list[str]) -> None:
    text = "\n".join(lines).strip()
    assert list(prompts(reading('"""', *lines, '"""'))) == [text]
    assert list(prompts(reading(*(f"{line}\\" for line in lines[:-1]), lines[-1]))) == [text]


def test_the_event_loop_lives_while_a_line_is_awaited() -> None:
    alive = threading.Event()

    @asynccontextmanager
    async def within() -> AsyncIterator[None]:
        async def live() -> None:
            await asyncio.sleep(0)
            alive.set()

        task = asyncio.create_task(live())
        yield
        await task

    with Beside(within()):
        assert alive.wait(60), "nobody runs anything in it"


def test_what_fails_to_open_or_to_close_is_raised() -> None:
    @asynccontextmanager
    async def broken(when: str) -> AsyncIterator[None]:
        if when == "opening":
            raise ValueError(when)
        yield
        raise ValueError(when)

    for when in ("opening", "closing"):
        with pytest.raises(ValueError, match=when), Beside(broken(when)) as beside:
            assert when == "closing"
            assert beside.run(asyncio.sleep(0, "done")) == "done"


ECHOING = """
from edge_client.app import App
from edge_client.engine.base import Finished, Text
from tests.support.fake_engine import FakeEmbedder

class Echo:
    name = "local"
    async def generate(self, messages, sampling):
        yield Text(f"heard {messages[-1].content!r}")
        yield Finished("stop", 1, 1)

App.chat = lambda self, path=None, name="local": Echo()
App.embedder = lambda self, progress=None: FakeEmbedder()
from edge_client.cli import main
main()
"""


class Screen:
    """A process on a terminal of its own."""

    def __init__(self) -> None:
        self._ours, theirs = os.openpty()
        environment = {**os.environ, "TERM": "xterm", "PYTHONPATH": str(ROOT)}
        environment.pop("NO_COLOR", None)
        self.process = subprocess.Popen(
            [sys.executable, "-c", ECHOING, "chat"], stdin=theirs, stdout=theirs, stderr=theirs, cwd=ROOT,
            env=environment, start_new_session=True,
        )
        os.close(theirs)
        self.shown = b""

    def until(self, text: str) -> None:
        """Reads until it is shown, and drops what was shown until then."""
        while text.encode() not in self.shown:
            assert select.select([self._ours], [], [], 60)[0], self.shown
            self.shown += os.read(self._ours, 4096)
        self.shown = self.shown.partition(text.encode())[2]

    def type(self, text: str) -> None:
        os.write(self._ours, text.encode())

    def interrupt(self) -> None:
        """Ctrl-C, once it waits for a key: a signal that comes just before that wait is taken with the next key."""
        stat = Path(f"/proc/{self.process.pid}/stat")
        while stat.read_text().rpartition(")")[2].split()[0] != "S":
            os.sched_yield()
        self.process.send_signal(signal.SIGINT)

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._ours)


@pytest.fixture
def screen(chat: Engine, manual: Path) -> Iterator[Callable[[], Screen]]:
    screens: list[Screen] = []

    def begin() -> Screen:
        screens.append(Screen())
        screens[-1].until("\n")
        screens[-1].until("\x1b[?2004h")  # pastes are wanted in brackets
        screens[-1].until("> ")
        return screens[-1]

    yield begin
    for one in screens:
        one.close()


def test_the_line_editor_takes_a_paste_whole_and_knows_questions_of_before(
    screen: Callable[[], Screen], tmp_path: Path
) -> None:
    pytest.importorskip("readline")
    first = screen()
    first.type("\x1b[200~one\rtwo\x1b[201~")
    first.until("two")
    first.type("\r")
    first.until("\x1b[32mlocal\x1b[0m: ")
    first.until(r"heard 'one\ntwo'")
    first.until("> ")
    first.type("half a line")
    first.until("line")
    first.interrupt()
    first.until("/quit leaves)")
    first.until("> ")
    first.type("whole\r")
    first.until("heard 'whole'")
    first.until("> ")
    first.type("\x04")
    assert first.process.wait(60) == 0
    second = screen()
    second.type("\x1b[A\r")
    second.until("heard 'whole'")
    second.until("> ")
    second.type("/quit\r")
    assert second.process.wait(60) == 0
    assert not list(tmp_path.rglob("*history*"))

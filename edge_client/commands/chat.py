"""`edge chat`: a conversation in the terminal, kept where the page keeps its own: in the encrypted store."""

import sys
import time
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal

import typer

from edge_client.commands.ask import announce, cited, say_what_leaves
from edge_client.commands.terminal import Exit, ended, exit_code, note, tell

if TYPE_CHECKING:
    from edge_client.answering import Answer
    from edge_client.app import App
    from edge_client.engine.llama import LlamaChat
    from edge_client.history import History

_PAST: Final = 20  # conversations whose questions the arrow keys bring back
_HELP: Final = """\
/local    answer on this device from now on
/relay    ask the gateway from now on
/auto     let the router decide, as at the beginning
/sources  the passages that the last answer is made from
/new      begin another conversation
/quit     leave, as Ctrl-D does
A line that ends in a backslash goes on in the next; so do all lines
between two that hold three double quotes, and what is pasted at once.
Ctrl-C stops an answer."""


def chat(
    local: Annotated[bool, typer.Option("--local", help="Answer on this device.")] = False,
    relay: Annotated[bool, typer.Option("--relay", help="Ask the gateway.")] = False,
    model: Annotated[str | None, typer.Option(help="The model that relayed questions ask for.")] = None,
    no_documents: Annotated[
        bool, typer.Option("--no-documents", help="Look into no document, and send none along.")
    ] = False,
) -> None:
    """Talk with your documents and models. From a pipe, a question a line.

    Answers stream, and say where they come from; /help lists what else there is.
    """
    if local and relay:
        raise typer.BadParameter("--local and --relay exclude each other")

    def work() -> None:
        from edge_client.app import App
        from edge_client.commands.beside import Beside
        from edge_client.commands.prompting import prompts, reader
        from edge_client.config import Config

        app = App.open(Config.load(), store="if present", tell=note)
        talk = _Talk(app, "local" if local else "relay" if relay else None, model, documents=not no_documents)
        failed = 0
        typed = sys.stdin.isatty()
        with Beside(app) as beside:
            past = beside.run(talk.past()) if typed else []
            if typed:
                where = "in the encrypted store" if app.has_store else "nowhere: there is no store"
                _aside(f"/help lists the rest, Ctrl-D leaves. All of it is kept {where}.")
            for text in prompts(reader(past)):
                try:
                    if text == "/quit":
                        break
                    if text.startswith("/") and text[1:].isalpha():
                        talk.command(text)
                    elif text:
                        beside.run(talk.ask(text))
                    elif typed:
                        _aside("\n(Ctrl-D or /quit leaves)")
                    else:
                        raise KeyboardInterrupt
                except KeyboardInterrupt:
                    if not typed:
                        raise
                    _aside("(stopped)")
                except Exception as error:
                    if hint := getattr(error, "hint", None):
                        error.hint = hint.replace("`--local`", "/local")  # type: ignore[attr-defined]
                    code = exit_code(tell(error)["fault"])
                    failed = failed or code
            if typed:
                print(file=sys.stderr)
        if failed and not typed:
            raise Exit(failed)

    ended(work)


class _Talk:
    """What was said so far, and how the next question is to be answered."""

    def __init__(
        self, app: "App", flag: Literal["local", "relay"] | None, model: str | None, *, documents: bool
    ) -> None:
        self._app, self._flag, self._model, self._documents = app, flag, model, documents
        self._chat: LlamaChat | None = None
        self._last: Answer | None = None
        self._id, self._turns = "", list[dict[str, Any]]()

    def command(self, name: str) -> None:
        """Raises BadUse for one that there is not."""
        from edge_client.errors import BadUse

        match name:
            case "/local" | "/relay":
                self._flag = "local" if name == "/local" else "relay"
                _aside("on this device from now on" if name == "/local" else "by the gateway from now on")
            case "/auto":
                self._flag = None
                _aside("the router decides from now on")
            case "/sources":
                self._sources()
            case "/new":
                self._id, self._turns, self._last = "", [], None
                _aside("a new conversation")
            case "/help":
                _aside(_HELP)
            case _:
                raise BadUse(f"there is no {name}", hint="/help lists what there is")

    async def ask(self, text: str) -> None:
        """Answers on standard output, and says on standard error where and why. Raises what `Assistant.answer` does."""
        from edge_client.answering import Question, Routed
        from edge_client.api.shapes import causeway_object
        from edge_client.engine.base import Message, Text

        if self._chat is None:
            self._chat = self._app.chat()  # one, so that the model is loaded once
        pieces, routed, self._last = list[str](), None, None

        async def deliver(event: Routed | Text) -> None:
            nonlocal routed
            if isinstance(event, Text):
                pieces.append(event.text)
                print(event.text, end="", flush=True)
            else:
                routed = event
                announce(event, _aside)

        before = [*self._turns, {"role": "user", "text": text}]
        messages = tuple(Message(turn["role"], turn["text"]) for turn in before)
        try:
            assistant = await self._app.assistant(self._chat, relay=self._flag != "local")
            asked = Question(messages, self._flag, self._model, documents=self._documents)
            answer = await assistant.answer(asked, deliver, lambda what: say_what_leaves(what, _aside))
            for late in answer.routed.notes[len(routed.notes) if routed is not None else 0 :]:
                _aside(late)
            routed, self._last = answer.routed, answer
        finally:
            if pieces:  # what came to no answer is asked anew, not carried along
                print(flush=True)
                self._turns = [*before, {
                    "role": "assistant", "text": "".join(pieces), "about": causeway_object(routed) if routed else None,
                }]
                await self._keep()
        if answer.via:
            _aside(f"via {answer.via}")
        for number, passage in enumerate(answer.routed.citations, 1):
            _aside(f"  [{number}] {cited(passage)}")

    async def past(self) -> list[str]:
        """Questions of the conversations before this one, the oldest first."""
        import msgspec

        found: list[str] = []
        if self._app.has_store:
            history = self._history()
            for told in reversed((await history.search(""))[:_PAST]):
                turns = msgspec.json.decode(await history.get(told["id"]) or b'{"turns": []}')["turns"]
                found += [turn["text"] for turn in turns if turn["role"] == "user"]
        return found

    def _history(self) -> "History":
        from edge_client.history import NAMESPACE, History
        from store.settings import Settings

        return History(Settings(self._app.database, NAMESPACE))

    async def _keep(self) -> None:
        import secrets

        import msgspec

        if self._app.has_store:
            self._id = self._id or secrets.token_hex(16)
            await self._history().put(self._id, msgspec.json.encode({"turns": self._turns}), now=int(time.time()))

    def _sources(self) -> None:
        if self._last is None or not self._last.routed.citations:
            _aside("the last answer is made from no document")
            return
        for number, passage in enumerate(self._last.routed.citations, 1):
            _aside(f"[{number}] {cited(passage)}\n    " + passage.text.strip().replace("\n", "\n    "))


def _aside(text: str) -> None:
    """What is no answer, to stderr; a conversation needs no name before each line."""
    print(text, file=sys.stderr, flush=True)

"""`edge serve` as a process of its own, with stand-ins for the models: everything else in it is what ships.

As a program it is the command `edge` with those stand-ins. A question with the word "endlessly" gets no end.
"""

import contextlib
import json
import os
import re
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import AsyncGenerator, Iterator, Sequence
from pathlib import Path
from typing import Any, Self

from edge_client.engine.base import Finished, Message, Sampling, Text
from tests.support.fake_engine import FakeChat, FakeEmbedder

ROOT = Path(__file__).resolve().parents[2]
LIMIT_S = 120  # for hanging alone


class TalkingChat(FakeChat):
    async def generate(
        self, messages: Sequence[Message], sampling: Sampling
    ) -> AsyncGenerator[Text | Finished, None]:
        talk = FakeChat(endless="endlessly" in messages[-1].content)
        async with contextlib.aclosing(talk.generate(messages, sampling)) as events:
            async for event in events:
                yield event


class ServeProcess:
    """Started without a terminal. `passphrase_file` is all that its environment has to unlock the store."""

    def __init__(self, home: Path, *arguments: str, passphrase_file: Path | None = None) -> None:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("CAUSEWAY_")}
        environment["CAUSEWAY_HOME"] = str(home)
        if passphrase_file is not None:
            environment["CAUSEWAY_PASSPHRASE_FILE"] = str(passphrase_file)
        self.home, self.said = home, list[str]()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.support.serve_process", "serve", "--port", "0", *arguments],
            cwd=ROOT, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
            text=True, start_new_session=True,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        if self.process.poll() is None:
            self.process.terminate()
        try:
            _, rest = self.process.communicate(timeout=LIMIT_S)
            self.said += rest.splitlines()
        finally:
            self.process.kill()

    def until(self, words: str) -> str:
        """Reads what it says up to the line that holds `words`; AssertionError if it ends before."""
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.said.append(line.rstrip())
            if words in line:
                return line
        raise AssertionError(self.said)

    def ready(self) -> Self:
        found = re.search(r"http://127\.0\.0\.1:(\d+)", self.until("ready, serving"))
        assert found is not None
        self.address, self.port = found[0], int(found[1])
        return self

    def open(self, path: str, body: dict[str, Any] | None = None) -> Any:
        """The answer as urllib has it, to be read while it comes."""
        token = (self.home / "api-token").read_text().strip()
        request = urllib.request.Request(
            self.address + path, None if body is None else json.dumps(body).encode(),
            {"Authorization": f"Bearer {token}", "Content-Type": "application/json"},
        )
        return urllib.request.urlopen(request, timeout=LIMIT_S)

    def call(self, path: str, body: dict[str, Any] | None = None) -> tuple[int, Any]:
        try:
            with self.open(path, body) as answer:
                return answer.status, json.loads(answer.read())
        except urllib.error.HTTPError as error:
            with error:
                return error.code, json.loads(error.read())

    def ask(self, model: str, question: str = "What is the pressure?") -> tuple[int, Any]:
        return self.call("/v1/chat/completions", chat(model, question))

    @contextlib.contextmanager
    def stream(self, model: str, question: str) -> Iterator[Iterator[Any]]:
        """The events of a streamed answer, None for [DONE]."""
        with self.open("/v1/chat/completions", chat(model, question) | {"stream": True}) as answer:
            lines = (line.decode().removeprefix("data: ").strip() for line in answer if line.strip())
            yield (None if line == "[DONE]" else json.loads(line) for line in lines)


def chat(model: str, question: str) -> dict[str, Any]:
    return {"model": model, "messages": [{"role": "user", "content": question}]}


def main() -> None:
    from edge_client.app import App
    from edge_client.cli import main

    engine, embedder = TalkingChat(), FakeEmbedder()
    App.chat = lambda self, path=None, name="local": engine  # type: ignore[method-assign,assignment,return-value]
    App.embedder = lambda self, progress=None: embedder  # type: ignore[method-assign,assignment,return-value]
    main()


if __name__ == "__main__":
    main()

"""llama.cpp behind `ChatEngine` and `Embedder`: streaming from a thread, taking turns, cancellation, rest when idle."""

import asyncio
import codecs
import contextlib
import threading
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from edge_client.engine.base import EMBEDDER_TOKENS, Finished, Message, Sampling, Text
from edge_client.engine.conversations import Conversations
from edge_client.engine.json_mode import grammar_of
from edge_client.engine.loading import Brake, load
from edge_client.engine.prompt import Prompter, trimmed
from edge_client.errors import BadUse, EdgeError, EngineBusy, EngineFailed, ModelUnusable, PromptTooLong

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["DIMENSIONS", "LlamaChat", "LlamaEmbedder"]

DIMENSIONS: Final = 384  # of the store's vectors
_MIN_ANSWER: Final = 16  # tokens of context a prompt has to leave for its answer
_EMBED_BATCH: Final = 16  # texts per call, so that a long ingest can be interrupted
_QUEUE_MAX: Final = 64  # requests that wait for their turn


class _Run:
    """One answer under way, as both threads see it."""

    def __init__(self) -> None:
        self.stopped = threading.Event()
        self.reading = False  # the prompt, which is many tokens at once


class LlamaChat:
    """A GGUF chat model. Loads at first use; answers one request at a time, in the order they came."""

    def __init__(
        self, locate: Callable[[], Path], *, name: str, context: int, threads: int | None = None,
        rest_after_s: float | None = None,
    ) -> None:
        """`locate` finds the file when it is first needed: an edge that only relays needs none.

        After `rest_after_s` seconds without a request the model gives its memory back, and loads again when needed.
        """
        self._locate = locate
        self._name = name
        self._context = context
        # None leaves the library's choice: half of the cores to generate, all to read the prompt. With a thread on
        # every core a busy neighbour halves the speed or worse, for the threads wait for each other at each token.
        self._threads = threads
        self._rest_after_s = rest_after_s
        self._turn = asyncio.Lock()  # first come, first served; waiting here holds no thread
        self._busy = threading.Lock()  # the context is in use, even by a thread nobody awaits any more
        self._requests = 0  # under way or waiting
        self._llama: Any = None
        self._prompter: Prompter | None = None
        self._conversations: Conversations | None = None
        self._brake: Brake | None = None
        self._rest: asyncio.TimerHandle | None = None
        self._resting: asyncio.Task[None] | None = None

    @property
    def name(self) -> str:
        return self._name

    @property
    def is_loaded(self) -> bool:
        return self._llama is not None

    async def load(self) -> None:
        """Loads now rather than at the first prompt. Raises ModelMissing, ModelUnusable or MemoryShort."""
        async with self._turn:
            await asyncio.to_thread(self._loaded)
        self._rest_later()

    async def unload(self) -> None:
        """Gives the memory back, unless somebody waits for the model."""
        async with self._turn:
            if not self._requests:
                await asyncio.to_thread(self._close)

    async def generate(self, messages: Sequence[Message], sampling: Sampling) -> AsyncGenerator[Text | Finished, None]:
        """See `ChatEngine.generate`; wrap it in `contextlib.aclosing` so that an early exit stops the model at once."""
        if self._requests > _QUEUE_MAX:
            raise EngineBusy
        self._requests += 1
        if self._rest is not None:
            self._rest.cancel()
        try:
            async with self._turn, contextlib.aclosing(self._answer(tuple(messages), sampling)) as events:
                async for event in events:
                    yield event
        finally:
            self._requests -= 1
            self._rest_later()

    async def _answer(
        self, messages: tuple[Message, ...], sampling: Sampling
    ) -> AsyncGenerator[Text | Finished, None]:
        loop = asyncio.get_running_loop()
        # Not bounded by the queue but by the context: an answer cannot be longer than that.
        events: asyncio.Queue[Text | Finished | EdgeError] = asyncio.Queue()
        run = _Run()

        def emit(event: Text | Finished | EdgeError) -> None:
            with contextlib.suppress(RuntimeError):  # the loop has closed: nobody listens any more
                loop.call_soon_threadsafe(events.put_nowait, event)

        worker = asyncio.ensure_future(asyncio.to_thread(self._work, messages, sampling, run, emit))
        try:
            while True:
                event = await events.get()
                if isinstance(event, EdgeError):
                    raise event
                yield event
                if isinstance(event, Finished):
                    return
        finally:
            run.stopped.set()
            if run.reading and self._brake is not None:
                self._brake.pull()
            await asyncio.shield(worker)

    def _rest_later(self) -> None:
        if self._rest is not None:
            self._rest.cancel()
        if not self._requests and self._rest_after_s is not None:
            self._rest = asyncio.get_running_loop().call_later(self._rest_after_s, self._retire)

    def _retire(self) -> None:
        self._resting = asyncio.ensure_future(self.unload())

    def _work(
        self, messages: tuple[Message, ...], sampling: Sampling, run: _Run,
        emit: Callable[[Text | Finished | EdgeError], None],
    ) -> None:
        with self._busy:
            try:
                for event in self._events(self._loaded(), messages, sampling, run):
                    emit(event)
            except EdgeError as error:
                emit(error)
            except Exception as error:  # llama.cpp's binding raises many types; none may kill the stream unseen
                if self._llama is not None:
                    self._llama.reset()  # what the context holds of a batch that failed is not known
                emit(EngineFailed(f"the local model stopped ({type(error).__name__})"))

    def _loaded(self) -> Any:
        if self._llama is None:
            llama = load(self._locate(), n_ctx=self._context, n_threads=self._threads)
            self._prompter, self._brake, self._conversations = Prompter(llama), Brake(llama), Conversations(llama)
            self._llama = llama
        return self._llama

    def _close(self) -> None:
        with self._busy:
            llama, self._llama, self._prompter, self._conversations = self._llama, None, None, None
            if llama is not None:
                llama.close()
            self._brake = None

    def _events(
        self, llama: Any, messages: tuple[Message, ...], sampling: Sampling, run: _Run
    ) -> Iterator[Text | Finished]:
        import llama_cpp

        # Loaded with the model.
        assert self._prompter is not None and self._brake is not None and self._conversations is not None
        grammar = None if sampling.json_schema is None else grammar_of(sampling.json_schema, llama)
        context = min(llama.n_ctx(), llama_cpp.llama_model_n_ctx_train(llama.model))
        kept_free = max(_MIN_ANSWER, min(sampling.max_tokens or context // 4, context // 4))
        prompt, dropped = trimmed(messages, self._prompter.tokens, context - kept_free)
        room = context - len(prompt)
        if room < _MIN_ANSWER:
            raise PromptTooLong(
                f"the prompt has {len(prompt)} tokens, the local model takes {context - _MIN_ANSWER}",
                hint="shorten it, raise [model] context, or `--relay`",
            )
        limit = room if sampling.max_tokens is None else min(room, sampling.max_tokens)
        if sampling.seed is not None:
            llama.set_seed(sampling.seed)
        text = _TextSplitter(sampling.stop)
        answered, cut = 0, True
        yield Text("")
        self._conversations.turn_to(prompt)
        self._brake.release()
        run.reading = True
        if run.stopped.is_set():
            return
        for token in llama.generate(
            prompt, temp=sampling.temperature, top_p=sampling.top_p, grammar=grammar,
            repeat_penalty=1.0 if grammar else sampling.repeat_penalty,  # JSON repeats its marks
        ):
            run.reading = False
            if run.stopped.is_set():
                return
            if self._prompter.ends(token):
                cut = False
                break
            answered += 1
            if piece := text.feed(llama.detokenize([token])):
                yield Text(piece)
            if text.stopped:
                cut = False
                break
            if answered >= limit:
                break
        if piece := text.end():
            yield Text(piece)
        yield Finished("length" if cut else "stop", len(prompt), answered, dropped)


class _TextSplitter:
    """Bytes of tokens to whole characters, holding back what may turn out to be a stop sequence."""

    def __init__(self, stops: tuple[str, ...]) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._stops = tuple(stop for stop in stops if stop)
        self._held = ""
        self.stopped = False

    def feed(self, data: bytes) -> str:
        self._held += self._decoder.decode(data)
        for stop in self._stops:
            if (at := self._held.find(stop)) >= 0:
                self.stopped = True
                out, self._held = self._held[:at], ""
                return out
        keep = max((n for stop in self._stops for n in range(1, len(stop)) if self._held.endswith(stop[:n])), default=0)
        cut = len(self._held) - keep
        out, self._held = self._held[:cut], self._held[cut:]
        return out

    def end(self) -> str:
        if self.stopped:
            return ""
        out, self._held = self._held + self._decoder.decode(b"", True), ""
        return out


class LlamaEmbedder:
    """A GGUF embedding model of 384 dimensions. Loads at first use."""

    def __init__(self, path: Path, *, model_id: str, threads: int | None = None) -> None:
        self._path = path
        self._model_id = model_id
        self._threads = threads
        self._busy = threading.Lock()
        self._loading = threading.Lock()
        self._llama: Any = None

    @property
    def model_id(self) -> str:
        return self._model_id

    def count(self, text: str) -> int:
        """Tokens of the text without the two special ones. Raises ModelMissing or ModelUnusable at first use.

        Does not wait for vectors under way: the vocabulary never changes.
        """
        return self._tokens(self._loaded(), text)

    async def embed(self, texts: Sequence[str]) -> "NDArray[np.float32]":
        """See `Embedder.embed`."""
        import numpy as np

        parts = [np.empty((0, DIMENSIONS), np.float32)]
        for start in range(0, len(texts), _EMBED_BATCH):
            parts.append(await asyncio.to_thread(self._embed, list(texts[start : start + _EMBED_BATCH])))
        return np.concatenate(parts)

    def _embed(self, texts: list[str]) -> "NDArray[np.float32]":
        import numpy as np

        with self._busy:
            llama = self._loaded()
            for text in texts:
                if (count := self._tokens(llama, text)) > EMBEDDER_TOKENS:
                    raise BadUse(f"a text of {count} tokens is too long to embed, the limit is {EMBEDDER_TOKENS}")
            try:
                vectors = np.asarray(llama.embed(texts), np.float32)
            except Exception as error:  # the binding raises many types
                raise EngineFailed(f"the embedder stopped ({type(error).__name__})") from None
        lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
        if not np.isfinite(lengths).all() or (lengths == 0).any():
            raise EngineFailed("the embedder gave a vector without a direction")
        return np.asarray(vectors / lengths, np.float32)

    def _tokens(self, llama: Any, text: str) -> int:
        return len(llama.tokenize(text.encode(), add_bos=False, special=False))

    def _loaded(self) -> Any:
        with self._loading:
            if self._llama is None:
                # One physical batch must hold a whole text, for attention here looks both ways.
                llama = load(
                    self._path, embedding=True, n_ctx=512, n_batch=512, n_ubatch=512,
                    n_threads=self._threads, n_threads_batch=self._threads,
                )
                if llama.n_embd() != DIMENSIONS:
                    raise ModelUnusable(
                        f"{self._path.name} gives {llama.n_embd()} dimensions, the store has {DIMENSIONS}"
                    )
                self._llama = llama
            return self._llama

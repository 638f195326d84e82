"""llama.cpp behind `ChatEngine` and `Embedder`: loading, streaming from a thread, cancellation, silence.

The library is imported when a model loads, not before. It prints to stderr from C; a log callback that does nothing
ends that, and what it prints while loading is swallowed by the library's own `verbose=False`.
"""

import asyncio
import codecs
import contextlib
import ctypes
import threading
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from edge_client.engine.base import EMBEDDER_TOKENS, Finished, Message, Sampling, Text
from edge_client.errors import BadUse, EdgeError, EngineFailed, ModelMissing, ModelUnusable, PromptTooLong

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["DIMENSIONS", "LlamaChat", "LlamaEmbedder"]

DIMENSIONS: Final = 384  # of the store's vectors
_MIN_ANSWER: Final = 16  # tokens of context a prompt has to leave for its answer
_EMBED_BATCH: Final = 16  # texts per call, so that a long ingest can be interrupted

# Loading swaps the process's stdout and stderr (inside the library) and installs the callback: one at a time.
_load_lock = threading.Lock()
_silence: Any = None  # the C side keeps a pointer to it

# Used when a GGUF brings no chat template of its own.
_CHATML: Final = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "<|im_start|>assistant\n"
)


def _load(path: Path, **options: Any) -> Any:
    global _silence
    if not path.is_file():
        raise ModelMissing(f"there is no model file {path}", hint="`edge models install`, or mend config.toml")
    with _load_lock:
        try:
            import llama_cpp
        except (ImportError, OSError, RuntimeError):
            raise ModelMissing("llama-cpp-python is not installed", hint="pip install 'causeway[edge]'") from None
        if _silence is None:
            _silence = llama_cpp.llama_log_callback(lambda level, text, user: None)
            llama_cpp.llama_log_set(_silence, ctypes.c_void_p(0))
        try:
            return llama_cpp.Llama(str(path), verbose=False, **options)
        except (ValueError, RuntimeError, OSError, AssertionError):
            raise ModelUnusable(
                f"{path.name} is not a model this engine can load",
                hint="the file may be cut short, or of an architecture llama.cpp does not know",
            ) from None


class LlamaChat:
    """A GGUF chat model. Loads at first use; answers one request at a time."""

    def __init__(
        self, locate: Callable[[], Path], *, name: str, context: int, threads: int | None = None
    ) -> None:
        """`locate` finds the file when it is first needed: an edge that only relays needs none."""
        self._locate = locate
        self._name = name
        self._context = context
        # None leaves the library's choice: half of the cores to generate, all to read the prompt. With a thread on
        # every core a busy neighbour halves the speed or worse, for the threads wait for each other at each token.
        self._threads = threads
        self._turn = asyncio.Lock()  # who is next; waiting here holds no thread
        self._busy = threading.Lock()  # the context is in use, even by a thread nobody awaits any more
        self._llama: Any = None
        self._template: Any = None

    @property
    def name(self) -> str:
        return self._name

    async def load(self) -> None:
        """Loads now rather than at the first prompt. Raises ModelMissing or ModelUnusable."""
        async with self._turn:
            await asyncio.to_thread(self._loaded)

    async def generate(self, messages: Sequence[Message], sampling: Sampling) -> AsyncGenerator[Text | Finished, None]:
        """See `ChatEngine.generate`; wrap it in `contextlib.aclosing` so that an early exit stops the model at once."""
        async with self._turn:
            loop = asyncio.get_running_loop()
            # Not bounded by the queue but by the context: an answer cannot be longer than that.
            events: asyncio.Queue[Text | Finished | EdgeError] = asyncio.Queue()
            stop = threading.Event()

            def emit(event: Text | Finished | EdgeError) -> None:
                with contextlib.suppress(RuntimeError):  # the loop has closed: nobody listens any more
                    loop.call_soon_threadsafe(events.put_nowait, event)

            worker = asyncio.ensure_future(asyncio.to_thread(self._work, tuple(messages), sampling, stop, emit))
            try:
                while True:
                    event = await events.get()
                    if isinstance(event, EdgeError):
                        raise event
                    yield event
                    if isinstance(event, Finished):
                        return
            finally:
                stop.set()
                await asyncio.shield(worker)

    def _work(
        self, messages: tuple[Message, ...], sampling: Sampling, stop: threading.Event,
        emit: Callable[[Text | Finished | EdgeError], None],
    ) -> None:
        with self._busy:
            try:
                for event in self._events(self._loaded(), messages, sampling, stop):
                    emit(event)
            except EdgeError as error:
                emit(error)
            except Exception as error:  # llama.cpp's binding raises many types; none may kill the stream unseen
                emit(EngineFailed(f"the local model stopped ({type(error).__name__})"))

    def _loaded(self) -> Any:
        if self._llama is None:
            llama = _load(self._locate(), n_ctx=self._context, n_threads=self._threads)
            from llama_cpp.llama_chat_format import Jinja2ChatFormatter

            def piece(token: int) -> str:
                return "" if token < 0 else str(llama.detokenize([token], special=True).decode("utf-8", "replace"))

            self._template = Jinja2ChatFormatter(
                template=llama.metadata.get("tokenizer.chat_template", _CHATML),
                eos_token=piece(llama.token_eos()), bos_token=piece(llama.token_bos()),
            )
            self._llama = llama
        return self._llama

    def _events(
        self, llama: Any, messages: tuple[Message, ...], sampling: Sampling, stop: threading.Event
    ) -> Iterator[Text | Finished]:
        import llama_cpp

        vocabulary = llama_cpp.llama_model_get_vocab(llama.model)
        prompt = self._prompt(llama, vocabulary, messages)
        room = min(llama.n_ctx(), llama_cpp.llama_model_n_ctx_train(llama.model)) - len(prompt)
        if room < _MIN_ANSWER:
            raise PromptTooLong(
                f"the prompt has {len(prompt)} tokens, the local model takes {room + len(prompt) - _MIN_ANSWER}",
                hint="shorten it, raise [model] context, or `--relay`",
            )
        limit = room if sampling.max_tokens is None else min(room, sampling.max_tokens)
        if sampling.seed is not None:
            llama.set_seed(sampling.seed)
        text = _TextSplitter(sampling.stop)
        answered, cut = 0, True
        for token in llama.generate(
            prompt, temp=sampling.temperature, top_p=sampling.top_p, repeat_penalty=sampling.repeat_penalty
        ):
            if stop.is_set():
                return
            if llama_cpp.llama_vocab_is_eog(vocabulary, token):
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
        yield Finished("length" if cut else "stop", len(prompt), answered)

    def _prompt(self, llama: Any, vocabulary: Any, messages: tuple[Message, ...]) -> list[int]:
        plain = [{"role": m.role, "content": _without_control(llama, vocabulary, m.content)} for m in messages]
        try:
            rendered = self._template(messages=plain)
        except Exception:  # a template is a program of the model's maker: it may raise anything, also on purpose
            raise BadUse("the model's chat template does not take this sequence of messages") from None
        add_bos = not getattr(rendered, "added_special", False)
        return list(llama.tokenize(rendered.prompt.encode(), add_bos=add_bos, special=True))


def _without_control(llama: Any, vocabulary: Any, content: str) -> str:
    """The content with the texts of control tokens broken up: a document must not be able to end its own turn."""
    import llama_cpp

    for _ in range(4):  # breaking one up could in theory make another; a fixed number of rounds always ends
        control = {
            bytes(llama.detokenize([token], special=True)).decode("utf-8", "replace")
            for token in llama.tokenize(content.encode(), add_bos=False, special=True)
            if llama_cpp.llama_vocab_get_attr(vocabulary, token) & llama_cpp.LLAMA_TOKEN_ATTR_CONTROL
        }
        control.discard("")
        if not control:
            break
        for token_text in control:
            content = content.replace(token_text, f"{token_text[0]} {token_text[1:]}")
    return content


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
        self._llama: Any = None

    @property
    def model_id(self) -> str:
        return self._model_id

    def count(self, text: str) -> int:
        """Tokens of the text without the two special ones. Raises ModelMissing or ModelUnusable at first use."""
        with self._busy:
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
        if self._llama is None:
            # One physical batch must hold a whole text, for attention here looks both ways.
            llama = _load(
                self._path, embedding=True, n_ctx=512, n_batch=512, n_ubatch=512,
                n_threads=self._threads, n_threads_batch=self._threads,
            )
            if llama.n_embd() != DIMENSIONS:
                raise ModelUnusable(f"{self._path.name} gives {llama.n_embd()} dimensions, the store has {DIMENSIONS}")
            self._llama = llama
        return self._llama

"""What the rest of the edge needs from a model, and nothing of how it runs."""

from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["EMBEDDER_TOKENS", "ChatEngine", "Embedder", "Finished", "Message", "Sampling", "Text"]

# MiniLM was trained on 256 tokens with the two special ones; what is longer it would cut off without a word.
EMBEDDER_TOKENS = 250


@dataclass(frozen=True)
class Message:
    """`extras` are further fields of an OpenAI message (tool calls and what they gave), which only a relay takes along.

    Engines are given system, user and assistant messages alone.
    """

    role: Literal["system", "user", "assistant", "tool"]
    content: str
    extras: Mapping[str, Any] = field(default_factory=dict, hash=False)


@dataclass(frozen=True)
class Sampling:
    """`max_tokens` bounds the answer (None: what the context leaves). Temperature 0 always picks the likeliest token.

    `repeat_penalty` above 1 keeps a small model out of loops; at 1 it copies names and numbers more faithfully.
    `json_schema` is a JSON schema that the answer has to follow, "{}" any JSON object, None plain text.
    """

    max_tokens: int | None = None
    temperature: float = 0.0
    top_p: float = 0.95
    seed: int | None = None
    stop: tuple[str, ...] = ()
    repeat_penalty: float = 1.1
    json_schema: str | None = None


@dataclass(frozen=True)
class Text:
    """A piece of the answer: whole characters, not necessarily one token.

    `calls` are pieces of tool calls, as a provider streams them; no engine here makes any.
    """

    text: str
    calls: tuple[Mapping[str, Any], ...] = ()


@dataclass(frozen=True)
class Finished:
    """The last event of an answer. `reason` is "length" when a limit cut it off.

    `dropped` old messages did not fit into the model's context.
    """

    reason: Literal["stop", "length"]
    prompt_tokens: int
    answer_tokens: int
    dropped: int = 0


class ChatEngine(Protocol):
    @property
    def name(self) -> str: ...

    def generate(self, messages: Sequence[Message], sampling: Sampling) -> AsyncGenerator[Text | Finished, None]:
        """Streams the answer; the last event is Finished. Closing the iterator stops the model within one token.

        An empty Text may come first: the prompt is taken and being read.

        Concurrent calls wait for each other, in their order. Where a conversation does not fit, its oldest turns are
        dropped, never a system message or the last turn. Raises PromptTooLong, BadUse (a JSON schema it cannot follow),
        ModelMissing, ModelUnusable, MemoryShort, EngineBusy or EngineFailed.
        """
        ...


class Embedder(Protocol):
    @property
    def model_id(self) -> str:
        """Names weights and precision; vectors of different ids do not compare."""
        ...

    def count(self, text: str) -> int:
        """Tokens of the text without special ones."""
        ...

    async def embed(self, texts: Sequence[str]) -> "NDArray[np.float32]":
        """float32 of shape (len(texts), 384), each row of length 1.

        Raises BadUse for a text of more than EMBEDDER_TOKENS tokens, ModelMissing or ModelUnusable.
        """
        ...

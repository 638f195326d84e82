"""From messages to the tokens of a prompt: the model's own template, trimming, texts that cannot pose as its marks."""

import bisect
from collections.abc import Callable, Sequence
from typing import Any, Final

from edge_client.engine.base import Message
from edge_client.errors import BadUse

__all__ = ["Prompter", "trimmed"]

# Used when a GGUF brings no chat template of its own.
_CHATML: Final = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "<|im_start|>assistant\n"
)


def trimmed(
    messages: Sequence[Message], tokens: Callable[[Sequence[Message]], list[int]], limit: int
) -> tuple[list[int], int]:
    """Tokens of at most `limit` with the oldest turns dropped, and how many messages those were.

    System messages stay, and a conversation begins with what the user says. The last turn is never dropped: what is
    left may be over the limit. `tokens` is asked about log2 of the turns.
    """
    prompt = tokens(messages)
    system = [message for message in messages if message.role == "system"]
    turns = [message for message in messages if message.role != "system"]
    starts = [at for at, message in enumerate(turns) if message.role == "user" and at]
    if len(prompt) <= limit or not starts:
        return prompt, 0
    found = bisect.bisect_left(
        range(len(starts)), True, key=lambda at: len(tokens([*system, *turns[starts[at]:]])) <= limit
    )
    start = starts[min(found, len(starts) - 1)]
    return tokens([*system, *turns[start:]]), start


class Prompter:
    """For one loaded `llama_cpp.Llama`."""

    def __init__(self, llama: Any) -> None:
        import llama_cpp
        from llama_cpp.llama_chat_format import Jinja2ChatFormatter

        self._llama = llama
        self._vocabulary = llama_cpp.llama_model_get_vocab(llama.model)
        self._template: Any = Jinja2ChatFormatter(
            template=llama.metadata.get("tokenizer.chat_template", _CHATML),
            eos_token=self._piece(llama.token_eos()), bos_token=self._piece(llama.token_bos()),
        )

    def tokens(self, messages: Sequence[Message]) -> list[int]:
        """Raises BadUse where the model's template does not take these messages."""
        plain = [{"role": m.role, "content": self._without_control(m.content)} for m in messages]
        try:
            rendered = self._template(messages=plain)
        except Exception:  # a template is a program of the model's maker: it may raise anything, also on purpose
            raise BadUse("the model's chat template does not take this sequence of messages") from None
        add_bos = not getattr(rendered, "added_special", False)
        return list(self._llama.tokenize(rendered.prompt.encode(), add_bos=add_bos, special=True))

    def ends(self, token: int) -> bool:
        """Whether this token ends an answer."""
        import llama_cpp

        return bool(llama_cpp.llama_vocab_is_eog(self._vocabulary, token))

    def _piece(self, token: int) -> str:
        return "" if token < 0 else self._text(token)

    def _text(self, token: int) -> str:
        return bytes(self._llama.detokenize([token], special=True)).decode("utf-8", "replace")

    def _without_control(self, content: str) -> str:
        """The content with the texts of control tokens broken up: a document must not be able to end its own turn."""
        import llama_cpp

        for _ in range(4):  # breaking one up could in theory make another; a fixed number of rounds always ends
            control = {
                self._text(token)
                for token in set(self._llama.tokenize(content.encode(), add_bos=False, special=True))
                if llama_cpp.llama_vocab_get_attr(self._vocabulary, token) & llama_cpp.LLAMA_TOKEN_ATTR_CONTROL
            }
            control.discard("")
            if not control:
                break
            for token_text in control:
                content = content.replace(token_text, f"{token_text[0]} {token_text[1:]}")
        return content

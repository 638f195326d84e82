"""What the model has read of conversations other than the one its context holds: kept aside, and put back.

A second turn on what is read already begins after some 60 ms; reading 700 tokens anew takes seconds. A state is copied
at memory speed (23 kB a token of the shipped model, 6 ms for 57 MB), and only when the conversation changes.
"""

import ctypes
import mmap
from typing import Any, Final

from edge_client.engine.loading import free_memory

__all__ = ["Conversations"]

_SHARE: Final = 4  # what is kept aside has at most a quarter of the context's tokens, and so of its memory
_WORTH: Final = 16  # tokens that must be saved, or nothing is moved
_SPARE_BYTES: Final = 128 << 20  # memory that stays free for others


class Conversations:
    """For one loaded `llama_cpp.Llama`; used by one thread at a time."""

    def __init__(self, llama: Any) -> None:
        self._llama = llama
        self._kept: list[tuple[list[int], mmap.mmap]] = []  # tokens and state, the last used last

    @property
    def tokens(self) -> int:
        return sum(len(tokens) for tokens, _ in self._kept)

    def turn_to(self, prompt: list[int]) -> None:
        """Makes the context hold the conversation that begins most like `prompt`; keeps what it held until now."""
        import llama_cpp

        llama = self._llama
        held = llama.input_ids[: llama.n_tokens].tolist()
        common = _common(held, prompt)
        best = max(self._kept, key=lambda kept: _common(kept[0], prompt), default=None)
        if best is not None and _common(best[0], prompt) < common + _WORTH:
            best = None
        if best is not None:
            self._kept.remove(best)
        if len(held) - common > max(_WORTH, common):  # else most of it stays, and the rest is soon read again
            self._keep(held)
        if best is not None:
            tokens, state = best
            buffer = (ctypes.c_uint8 * len(state)).from_buffer(state)
            llama.reset()
            if llama_cpp.llama_state_seq_set_data(llama.ctx, buffer, len(state), 0) == len(state):
                llama.input_ids[: len(tokens)] = tokens
                llama.n_tokens = len(tokens)

    def _keep(self, tokens: list[int]) -> None:
        import llama_cpp

        room, free = self._llama.n_ctx() // _SHARE - len(tokens), free_memory()
        size = llama_cpp.llama_state_seq_get_size(self._llama.ctx, 0)
        if room < 0 or size == 0 or (free is not None and free < size + _SPARE_BYTES):
            return
        while self.tokens > room:
            self._kept.pop(0)
        state = mmap.mmap(-1, size)  # which goes back to the system as soon as it is dropped
        buffer = (ctypes.c_uint8 * size).from_buffer(state)
        if llama_cpp.llama_state_seq_get_data(self._llama.ctx, buffer, size, 0) == size:
            self._kept.append((tokens, state))


def _common(one: list[int], other: list[int]) -> int:
    """How many tokens both begin with."""
    return next((at for at, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))

"""Small model files, whole and broken."""

import struct
from collections.abc import Sequence


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value.encode())) + value.encode()


def pair(key: str, value: int | str) -> bytes:
    if isinstance(value, str):
        return text(key) + struct.pack("<I", 8) + text(value)
    return text(key) + struct.pack("<II", 4, value)


def gguf(
    *, architecture: str = "llama", tensors: Sequence[tuple[int, int, int]] = (), data: int | None = None
) -> bytes:
    """A file with tensors of (items, type, offset) and `data` bytes for them; None for as many as they need."""
    words = text("tokenizer.ggml.tokens") + struct.pack("<IIQ", 9, 8, 3) + text("a") + text("b") + text("c")
    scores = text("tokenizer.ggml.scores") + struct.pack("<IIQ3f", 9, 6, 3, 1, 2, 3)
    pairs = [
        pair("general.architecture", architecture), words, scores, pair(f"{architecture}.block_count", 30),
        pair(f"{architecture}.embedding_length", 576), pair(f"{architecture}.attention.head_count", 9),
        pair(f"{architecture}.attention.head_count_kv", 3),
    ]
    described = b"".join(
        text(f"t{number}") + struct.pack("<IQIQ", 1, items, kind, offset)
        for number, (items, kind, offset) in enumerate(tensors)
    )
    head = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(pairs)) + b"".join(pairs) + described
    head += bytes(-len(head) % 32)
    needed = max((offset + items * 4 for items, kind, offset in tensors), default=0)
    return head + bytes(needed if data is None else data)

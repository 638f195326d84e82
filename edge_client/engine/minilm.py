"""all-MiniLM-L6-v2 from its published safetensors to the GGUF that llama.cpp runs. Done once per user.

The safetensors format is an 8-byte little-endian header length, that many bytes of JSON (name -> dtype, shape and byte
range) and the tensors: no library is needed to read it. The GGUF names are llama.cpp's for the architecture "bert".
"""

import json
import mmap
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from edge_client.errors import ModelUnusable

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["CONVERTER", "convert"]

CONVERTER: Final = "f16-1"  # part of the converted file's name: change it when the outcome changes
_HEADER_MAX: Final = 1 << 20
_DTYPES: Final = {"F32": "<f4", "F16": "<f2"}
_SPECIAL: Final = {"[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"}
_ROLES: Final = {"pad": "[PAD]", "unk": "[UNK]", "sep": "[SEP]", "mask": "[MASK]", "bos": "[CLS]", "eos": "[SEP]"}
_FIXED: Final = {
    "embeddings.word_embeddings": "token_embd",
    "embeddings.position_embeddings": "position_embd",
    "embeddings.token_type_embeddings": "token_types",
    "embeddings.LayerNorm": "token_embd_norm",
}
_LAYER: Final = {
    "attention.self.query": "attn_q",
    "attention.self.key": "attn_k",
    "attention.self.value": "attn_v",
    "attention.output.dense": "attn_output",
    "attention.output.LayerNorm": "attn_output_norm",
    "intermediate.dense": "ffn_up",
    "output.dense": "ffn_down",
    "output.LayerNorm": "layer_output_norm",
}


def convert(source: Path, target: Path, progress: Callable[[int, int], None] = lambda done, total: None) -> None:
    """Writes `target` (GGUF, matrices as float16) from the folder `source`, atomically; parents are made, mode 0700.

    `progress(done, total)` is told tensors. Raises ModelUnusable if the folder does not hold a BERT model.
    """
    import gguf

    target.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    descriptor, name = tempfile.mkstemp(dir=target.parent, prefix=target.stem, suffix=".part")
    os.close(descriptor)
    try:
        settings = json.loads((source / "config.json").read_text())
        words = (source / "vocab.txt").read_text("utf-8").split("\n")[: settings["vocab_size"]]
        writer = gguf.GGUFWriter(name, "bert")
        _describe(writer, gguf, settings, words)
        names = dict(_FIXED)
        for layer in range(settings["num_hidden_layers"]):
            names |= {f"encoder.layer.{layer}.{old}": f"blk.{layer}.{new}" for old, new in _LAYER.items()}
        total = 2 * len(names) - 3  # weight and bias, but for the three tables
        done = 0
        for old, tensor in _tensors(source / "model.safetensors"):
            base, _, kind = old.rpartition(".")
            if base not in names:
                continue  # the pooler and position ids: not used for sentence vectors
            new = names[base]
            # The reader wants norms, biases and the two small tables in float32.
            half = tensor.ndim == 2 and new not in ("position_embd", "token_types")
            writer.add_tensor(f"{new}.{kind}", tensor.astype("<f2" if half else "<f4"))
            done += 1
            progress(done, total)
        if done != total:
            raise ModelUnusable("the embedder's weights are not complete", hint="`edge models install`")
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        with Path(name).open("rb") as written:
            os.fsync(written.fileno())
        Path(name).replace(target)
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = error.strerror if isinstance(error, OSError) else type(error).__name__
        raise ModelUnusable(f"the embedder could not be converted: {reason}", hint="`edge models install`") from None
    finally:
        Path(name).unlink(missing_ok=True)


def _describe(writer: Any, gguf: Any, settings: dict[str, Any], words: list[str]) -> None:
    writer.add_name("all-MiniLM-L6-v2")
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16)
    writer.add_context_length(settings["max_position_embeddings"])
    writer.add_embedding_length(settings["hidden_size"])
    writer.add_feed_forward_length(settings["intermediate_size"])
    writer.add_block_count(settings["num_hidden_layers"])
    writer.add_head_count(settings["num_attention_heads"])
    writer.add_layer_norm_eps(settings["layer_norm_eps"])
    writer.add_causal_attention(False)
    writer.add_pooling_type(gguf.PoolingType.MEAN)
    writer.add_tokenizer_model("bert")
    writer.add_tokenizer_pre("default")
    writer.add_token_list([_token_text(word).encode() for word in words])
    writer.add_token_types([_token_type(gguf.TokenType, word) for word in words])
    writer.add_token_type_count(settings["type_vocab_size"])
    for role, word in _ROLES.items():
        getattr(writer, f"add_{role}_token_id")(words.index(word))


def _token_text(word: str) -> str:
    """llama.cpp marks the start of a word (U+2581), BERT's list marks its continuation (##)."""
    if word in _SPECIAL or word.startswith("[unused"):
        return word
    return word[2:] if word.startswith("##") else "\u2581" + word


def _token_type(types: Any, word: str) -> int:
    if word == "[UNK]":
        return int(types.UNKNOWN)
    if word in _SPECIAL:
        return int(types.CONTROL)
    return int(types.UNUSED if word.startswith("[unused") else types.NORMAL)


def _tensors(path: Path) -> Iterator[tuple[str, "NDArray[Any]"]]:
    """Name and array of each tensor. Raises ValueError or KeyError for anything that is not safetensors."""
    import numpy as np

    with path.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
        length = int.from_bytes(data[:8], "little")
        if length > min(_HEADER_MAX, len(data) - 8):
            raise ValueError("header")
        header = json.loads(data[8 : 8 + length])
        for name, entry in header.items():
            if name == "__metadata__" or entry["dtype"] not in _DTYPES:
                continue
            begin, end = entry["data_offsets"]
            raw = data[8 + length + begin : 8 + length + end]
            yield name, np.frombuffer(raw, _DTYPES[entry["dtype"]]).reshape(entry["shape"])

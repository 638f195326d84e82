"""`/v1/embeddings`: vectors of the local embedder, 384 numbers of length 1. Texts alone, no token numbers."""

import asyncio
import base64
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal

import msgspec

from edge_client.api.shapes import decoded
from edge_client.engine.base import EMBEDDER_TOKENS, Embedder
from edge_client.errors import BadUse, PromptTooLong

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["EmbeddingsRequest", "embeddings_object", "parse_embeddings"]

_DIMENSIONS: Final = 384
_BATCH: Final = 2048  # texts in one request, as with OpenAI's API


class EmbeddingsRequest(msgspec.Struct):
    model: Annotated[str, msgspec.Meta(min_length=1, max_length=256)]
    input: Any  # looked at by hand, so that token numbers are refused in words
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: int | None = None


_decoder = msgspec.json.Decoder(EmbeddingsRequest)


def parse_embeddings(body: bytes) -> tuple[EmbeddingsRequest, list[str]]:
    """The request and its texts, 1 to 2048. Raises BadUse, naming the field."""
    request = decoded(_decoder, body)
    texts = [request.input] if isinstance(request.input, str) else request.input
    if not isinstance(texts, list) or not 1 <= len(texts) <= _BATCH:
        raise BadUse(f"`input` is a text or a list of 1 to {_BATCH} texts")
    if not all(isinstance(text, str) for text in texts):
        raise BadUse("`input` may not hold token numbers, whose meaning depends on the model", hint="send texts")
    if not all(text.strip() for text in texts):
        raise BadUse("`input` may not hold an empty text")
    if request.dimensions not in (None, _DIMENSIONS):
        raise BadUse(f"`dimensions` other than {_DIMENSIONS} are not supported")
    return request, texts


async def embeddings_object(request: EmbeddingsRequest, texts: list[str], embedder: Embedder) -> dict[str, Any]:
    """The list in the order of the texts. Raises PromptTooLong over 250 tokens a text, and like `Embedder.embed`."""
    counts = await asyncio.to_thread(lambda: [embedder.count(text) for text in texts])
    if max(counts) > EMBEDDER_TOKENS:
        raise PromptTooLong(
            f"a text of {max(counts)} tokens is too long to embed, the limit is {EMBEDDER_TOKENS}", hint="split it"
        )
    vectors = await embedder.embed(texts)
    total = sum(counts)
    return {
        "object": "list", "model": request.model,
        "data": [
            {"object": "embedding", "index": index, "embedding": _encoded(vector, request.encoding_format)}
            for index, vector in enumerate(vectors)
        ],
        "usage": {"prompt_tokens": total, "total_tokens": total},
        "causeway": {"route": "local", "model": embedder.model_id},
    }


def _encoded(vector: "NDArray[np.float32]", form: str) -> list[float] | str:
    """Base64 of little-endian float32, or numbers."""
    if form == "base64":
        return base64.b64encode(vector.astype("<f4").tobytes()).decode()
    return [float(value) for value in vector]

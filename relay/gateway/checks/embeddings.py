"""Embeddings, as OpenAI's API has them."""

from typing import Annotated, Literal

from msgspec import Meta

from relay.gateway.checks.fields import Label, ModelName, Request
from relay.gateway.pipeline import Said

_Token = Annotated[int, Meta(ge=0, le=(1 << 31) - 1)]
_Input = str | _Token | Annotated[list[_Token], Meta(min_length=1, max_length=65_536)]


class EmbeddingsRequest(Request):
    """Vectors for one text or several, each as it is or as token numbers."""

    model: ModelName
    input: str | Annotated[list[_Input], Meta(min_length=1, max_length=65_536)]
    dimensions: Annotated[int, Meta(ge=1, le=65_536)] | None = None
    encoding_format: Literal["float", "base64"] | None = None
    user: Label | None = None
    input_type: Label | None = None  # of other servers with this API

    def named(self) -> str:
        return self.model

    def said(self) -> list[Said]:
        """The texts. Token numbers are no text to us."""
        texts = [self.input] if isinstance(self.input, str) else self.input
        return [Said("user", text) for text in texts if isinstance(text, str) and text]

    def empty(self) -> bool:
        return isinstance(self.input, str) or isinstance(self.input[0], str)

    def output_max(self) -> int | None:
        return 0

    def fault(self) -> str:
        """One list is of one kind."""
        return "input" if not isinstance(self.input, str) and len({type(one) for one in self.input}) > 1 else ""

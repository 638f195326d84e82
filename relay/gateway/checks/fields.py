"""What the requests of several endpoints have in common: bounds, names, and what passes untouched.

The rule for unknown fields, everywhere: an object whose members we list has these and no others. Where a member is
`Passed` it is known and not looked into: JSON Schemas, metadata, what is for the provider alone. Nothing that a model
reads is in such a place without being in `said` too.
"""

from typing import Annotated, Any, Final

from msgspec import Meta, Struct, UnsetType

from relay.gateway.pipeline import Said

BODY_MAX: Final = 1 << 20  # bytes
MESSAGES_MAX: Final = 2_048
TOOLS_MAX: Final = 512
OUTPUT_MAX: Final = 10_000_000  # tokens

Passed = Any | UnsetType
ModelName = Annotated[str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._:/@+-]{0,127}\Z")]
Label = Annotated[str, Meta(max_length=512)]  # a name or an id
Tokens = Annotated[int, Meta(ge=1, le=OUTPUT_MAX)]
Temperature = Annotated[float, Meta(ge=0, le=2)]
Share = Annotated[float, Meta(ge=0, le=1)]
DataUrl = Annotated[str, Meta(pattern=r"^data:")]  # what a request shows comes with it: no provider fetches for anybody
Choice = str | dict[str, Any]

class Body(Struct, forbid_unknown_fields=True, kw_only=True, gc=False):
    """An object with the members that it lists and no others."""


class Request(Body):
    """What an endpoint takes. Fields that its API has and that this gateway takes as null alone are typed None."""

    model: str = ""
    stream: bool | None = None

    def said(self) -> list[Said]:
        """All text that the model will read, in order."""
        raise NotImplementedError

    def empty(self) -> bool:
        """Whether there is nothing to answer, if nothing is said either."""
        return True

    def output_max(self) -> int | None:
        """Tokens of all its answers together, if it names a bound."""
        return None

    def fault(self) -> str:
        """The place of a field that is not valid in a way that types do not tell; "" if there is none."""
        return ""

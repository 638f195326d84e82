"""What the requests of several endpoints have in common: bounds, names, and what passes untouched.

The rule for unknown fields, everywhere: an object whose members we list has these and no others. A member that is
`Passed` is known and not looked into: JSON Schemas, metadata, settings that are for the provider alone. What a model
reads is in `said`, also where it passes. A member of the API that this gateway takes as null alone is typed None, and
`REFUSED` says why.
"""

import base64
import re
from typing import Annotated, Any, Final
from urllib.parse import unquote

import msgspec
from msgspec import Meta, Struct, UnsetType

from relay.gateway.pipeline import Said

BODY_MAX: Final = 1 << 20  # bytes
MESSAGES_MAX: Final = 2_048
TOOLS_MAX: Final = 512
OUTPUT_MAX: Final = 10_000_000  # tokens

# No provider fetches for a caller, looks into what it keeps for all of us under one key, or runs tools that nobody here
# sees: code of the refusal by the field.
REFUSED: Final = {
    "url": "remote_content", "image_url": "remote_content", "file_url": "remote_content",
    "file_id": "provider_state", "previous_response_id": "provider_state", "conversation": "provider_state",
    "prompt": "provider_state", "container": "provider_state", "audio": "provider_state",
    "web_search_options": "hosted_tool", "mcp_servers": "hosted_tool",
}

Passed = Any | UnsetType
ModelName = Annotated[str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._:/@+-]{0,127}\Z")]
Label = Annotated[str, Meta(max_length=512)]  # a name or an id
Whole = Annotated[int, Meta(ge=-(1 << 63), le=(1 << 63) - 1)]
Tokens = Annotated[int, Meta(ge=1, le=OUTPUT_MAX)]
Temperature = Annotated[float, Meta(ge=0, le=2)]
Share = Annotated[float, Meta(ge=0, le=1)]
DataUrl = Annotated[str, Meta(pattern=r"^data:")]
Choice = str | dict[str, Any]

_ESCAPE: Final = re.compile(r"\\(?:u[0-9a-f]{4}|.)")


class Body(Struct, forbid_unknown_fields=True, kw_only=True, gc=False):
    """An object with the members that it lists and no others."""


class Request(Body):
    """What an endpoint takes."""

    def named(self) -> str:
        """The model; "" if the route names it."""
        return ""

    def streams(self) -> bool:
        return False

    def said(self) -> list[Said]:
        """All text that the model will read, in order."""
        raise NotImplementedError

    def empty(self) -> bool:
        """Whether there is nothing to answer, if nothing is said either."""
        return True

    def output_max(self) -> int | None:
        """Tokens of all its answers together, if it names a bound."""
        return None

    def answers(self) -> int:
        """How many are asked for at once."""
        return 1

    def fault(self) -> str:
        """The place of a field that is not valid in a way that types do not tell; "" if there is none."""
        return ""

    @classmethod
    def read(cls, value: dict[str, Any]) -> "Request":
        """Raises msgspec.ValidationError. May change `value`, of which nothing goes on."""
        return msgspec.convert(value, cls)


class Conversation(Request, kw_only=True):
    """A request for a model's words."""

    model: ModelName
    stream: bool | None = None

    def named(self) -> str:
        return self.model

    def streams(self) -> bool:
        return bool(self.stream)


def dumped(speaker: str, value: object) -> list[Said]:
    """JSON that a model will read, its strings without escapes: the words in them stand as they would in a text."""
    if not value:
        return []
    text = msgspec.json.encode(value).decode()
    return [Said(speaker, text if "\\" not in text else _ESCAPE.sub(_clear, text))]


def in_file(speaker: str, data: str) -> list[Said]:
    """What a model will read of a file that came in base64, or as a data URL, if that is text."""
    head, comma, rest = data.partition(",")
    try:
        if comma and not head.endswith(";base64"):
            text = unquote(rest)
        else:
            text = base64.b64decode(rest if comma else data).decode()
    except ValueError:
        return []
    return [Said(speaker, text)] if text and "\0" not in text else []


def _clear(escape: re.Match[str]) -> str:
    return str(msgspec.json.decode(f'"{escape[0]}"'))

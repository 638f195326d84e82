"""Messages, as Anthropic's API has them."""

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from msgspec import UNSET, Meta

from relay.gateway.checks.fields import (
    MESSAGES_MAX,
    TOOLS_MAX,
    Body,
    Conversation,
    Label,
    Passed,
    Share,
    Tokens,
    Whole,
    dumped,
    in_file,
)
from relay.gateway.pipeline import Said


class Text(Body, tag_field="type", tag="text"):
    text: str
    cache_control: Passed = UNSET
    citations: Passed = UNSET


class Base64Source(Body, tag_field="type", tag="base64"):
    media_type: Label
    data: str


class TextSource(Body, tag_field="type", tag="text"):
    media_type: Label
    data: str


class UrlSource(Body, tag_field="type", tag="url"):
    url: None


class FileSource(Body, tag_field="type", tag="file"):
    file_id: None


class Image(Body, tag_field="type", tag="image"):
    source: Base64Source | UrlSource | FileSource
    cache_control: Passed = UNSET


class ContentSource(Body, tag_field="type", tag="content"):
    content: str | list[Text | Image]


class Document(Body, tag_field="type", tag="document"):
    source: Base64Source | TextSource | ContentSource | UrlSource | FileSource
    title: str | None = None
    context: str | None = None
    citations: Passed = UNSET
    cache_control: Passed = UNSET


class SearchResult(Body, tag_field="type", tag="search_result"):
    content: list[Text]
    source: str
    title: str
    citations: Passed = UNSET
    cache_control: Passed = UNSET


class Thinking(Body, tag_field="type", tag="thinking"):
    thinking: str
    signature: str


class RedactedThinking(Body, tag_field="type", tag="redacted_thinking"):
    data: str


class ToolUse(Body, tag_field="type", tag="tool_use"):
    id: Label
    name: Label
    input: dict[str, Any]
    caller: Passed = UNSET
    cache_control: Passed = UNSET


class ToolResult(Body, tag_field="type", tag="tool_result"):
    tool_use_id: Label
    content: str | list[Text | Image | Document | SearchResult] | None = None
    is_error: bool | None = None
    cache_control: Passed = UNSET


class Message(Body):
    role: Literal["user", "assistant", "system"]
    content: str | list[
        Text | Image | Document | SearchResult | Thinking | RedactedThinking | ToolUse | ToolResult
    ]


class Tool(Body):
    """Run by the caller: its own, or one of Anthropic's that a client carries out. `input_schema` is a JSON Schema."""

    name: Label
    type: Annotated[str, Meta(pattern=r"^(custom|(bash|text_editor|computer|memory)_\d{8})\Z")] | None = None
    description: str | None = None
    input_schema: dict[str, Any] | None = None
    input_examples: list[dict[str, Any]] | None = None
    strict: bool | None = None
    eager_input_streaming: bool | None = None
    display_width_px: Whole | None = None
    display_height_px: Whole | None = None
    display_number: Whole | None = None
    max_characters: Whole | None = None
    cache_control: Passed = UNSET


class ThinkingConfig(Body):
    type: Literal["enabled", "disabled", "adaptive"]
    budget_tokens: Tokens | None = None
    display: Label | None = None


class OutputConfig(Body):
    effort: Label | None = None
    format: dict[str, Any] | None = None


class MessagesRequest(Conversation, kw_only=True):
    """A conversation, of which the model is to say what comes next."""

    messages: Annotated[list[Message], Meta(min_length=1, max_length=MESSAGES_MAX)]
    max_tokens: Tokens
    system: str | list[Text] | None = None
    temperature: Share | None = None
    top_p: Share | None = None
    top_k: Annotated[int, Meta(ge=0)] | None = None
    stop_sequences: Annotated[list[Label], Meta(max_length=64)] | None = None
    tools: Annotated[list[Tool], Meta(max_length=TOOLS_MAX)] | None = None
    tool_choice: dict[str, Any] | None = None
    thinking: ThinkingConfig | None = None
    output_config: OutputConfig | None = None
    output_format: dict[str, Any] | None = None
    service_tier: Literal["auto", "standard_only"] | None = None
    inference_geo: Label | None = None
    speed: Literal["standard"] | None = None  # "fast" costs six times what prices are set for
    metadata: Passed = UNSET
    cache_control: Passed = UNSET
    context_management: Passed = UNSET
    container: None = None
    mcp_servers: None = None

    def said(self) -> list[Said]:
        """Definitions of tools first, then the system prompt, then the messages."""
        found = dumped("developer", self.tools) + dumped("developer", self.output_format)
        if self.output_config is not None:
            found += dumped("developer", self.output_config.format)
        found += _texts("system", self.system)
        for message in self.messages:
            found += _texts(message.role, message.content)
        return found

    def empty(self) -> bool:
        """Whether there is no image or file either."""
        return not any(
            type(block) in (Image, Document, ToolResult)
            for message in self.messages if not isinstance(message.content, str) for block in message.content
        )

    def output_max(self) -> int | None:
        return self.max_tokens


def _texts(speaker: str, content: str | Sequence[Body] | None) -> list[Said]:
    if isinstance(content, str):
        return [Said(speaker, content)] if content else []
    found: list[Said] = []
    for block in content or ():
        match block:
            case Text(text=text, citations=cited):
                found.append(Said(speaker, text))
                found += dumped(speaker, cited if cited is not UNSET else None)
            case Thinking(thinking=text):
                found.append(Said("assistant", text))
            case ToolUse(name=name, input=given):
                found += [Said("assistant", name), *dumped("assistant", given)]
            case ToolResult(content=result):
                found += _texts("tool", result)
            case SearchResult(title=title, source=place, content=result):
                found += [Said("tool", title), Said("tool", place), *_texts("tool", result)]
            case Document(source=source, title=name, context=context):
                found += [Said(speaker, text) for text in (name, context) if text]
                if isinstance(source, Base64Source):
                    found += in_file(speaker, source.data)
                elif isinstance(source, TextSource):
                    found.append(Said(speaker, source.data))
                elif isinstance(source, ContentSource):
                    found += _texts(speaker, source.content)
    return [one for one in found if one.text]

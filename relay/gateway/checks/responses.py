"""Responses, as OpenAI's API has them, without what it keeps: a request brings its whole conversation."""

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from msgspec import UNSET, Meta

from relay.gateway.checks.fields import (
    MESSAGES_MAX,
    TOOLS_MAX,
    Body,
    Choice,
    Conversation,
    DataUrl,
    Label,
    Passed,
    Share,
    Temperature,
    Tokens,
    dumped,
    in_file,
)
from relay.gateway.pipeline import Said

_Status = Literal["in_progress", "completed", "incomplete"]


class InputText(Body, tag_field="type", tag="input_text"):
    text: str


class OutputText(Body, tag_field="type", tag="output_text"):
    text: str
    annotations: Passed = UNSET
    logprobs: Passed = UNSET


class RefusalText(Body, tag_field="type", tag="refusal"):
    refusal: str


class InputImage(Body, tag_field="type", tag="input_image"):
    image_url: DataUrl
    detail: Label | None = None
    file_id: None = None


class InputFile(Body, tag_field="type", tag="input_file"):
    file_data: str
    filename: Label | None = None
    file_url: None = None
    file_id: None = None


class InputAudio(Body, tag_field="type", tag="input_audio"):
    input_audio: dict[str, str]


class SummaryText(Body, tag_field="type", tag="summary_text"):
    text: str


class ReasoningText(Body, tag_field="type", tag="reasoning_text"):
    text: str


class Item(Body, tag_field="type"):
    """Part of a conversation; what an answer held may be sent back as it came."""

    id: Label | None = None
    status: _Status | None = None


class Message(Item, tag="message", kw_only=True):
    """The one item that may leave its type out."""

    role: Literal["user", "assistant", "system", "developer"]
    content: str | list[InputText | OutputText | RefusalText | InputImage | InputFile | InputAudio]
    phase: Label | None = None


class FunctionCall(Item, tag="function_call", kw_only=True):
    call_id: Label
    name: Label
    arguments: str
    namespace: Label | None = None


class FunctionOutput(Item, tag="function_call_output", kw_only=True):
    call_id: Label
    output: str | list[InputText | InputImage | InputFile]


class CustomCall(Item, tag="custom_tool_call", kw_only=True):
    call_id: Label
    name: Label
    input: str


class CustomOutput(Item, tag="custom_tool_call_output", kw_only=True):
    call_id: Label
    output: str | list[InputText | InputImage | InputFile]


class ShellCall(Item, tag="local_shell_call", kw_only=True):
    call_id: Label
    action: dict[str, Any]


class ShellOutput(Item, tag="local_shell_call_output", kw_only=True):
    output: str
    call_id: Label | None = None


class Reasoning(Item, tag="reasoning", kw_only=True):
    """`encrypted_content` is the provider's own, which only it can have made."""

    summary: list[SummaryText]
    content: list[ReasoningText] | None = None
    encrypted_content: str | None = None


class Tool(Body):
    """Run by the caller. `parameters` is a JSON Schema."""

    type: Literal["function", "custom", "local_shell"]
    name: Label | None = None
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None
    format: Passed = UNSET


class TextConfig(Body):
    format: dict[str, Any] | None = None
    verbosity: Label | None = None


class ResponsesRequest(Conversation, kw_only=True):
    """A conversation, of which the model is to say what comes next."""

    input: str | Annotated[
        list[
            Message | FunctionCall | FunctionOutput | CustomCall | CustomOutput | ShellCall | ShellOutput | Reasoning
        ],
        Meta(min_length=1, max_length=MESSAGES_MAX),
    ]
    instructions: str | None = None
    max_output_tokens: Tokens | None = None
    temperature: Temperature | None = None
    top_p: Share | None = None
    top_logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None
    tools: Annotated[list[Tool], Meta(max_length=TOOLS_MAX)] | None = None
    tool_choice: Choice | None = None
    parallel_tool_calls: bool | None = None
    max_tool_calls: Annotated[int, Meta(ge=1)] | None = None
    text: TextConfig | None = None
    truncation: Literal["auto", "disabled"] | None = None
    include: Annotated[list[Label], Meta(max_length=16)] | None = None
    service_tier: Literal["auto", "default", "flex"] | None = None  # no dearer one than prices are set for
    store: bool | None = None
    user: Label | None = None
    safety_identifier: Label | None = None
    prompt_cache_key: Label | None = None
    prompt_cache_retention: Label | None = None
    metadata: Passed = UNSET
    reasoning: Passed = UNSET
    stream_options: Passed = UNSET
    background: Literal[False] | None = None
    previous_response_id: None = None
    conversation: None = None
    prompt: None = None

    @classmethod
    def read(cls, value: dict[str, Any]) -> "ResponsesRequest":
        """A message that leaves its type out gets it."""
        items = value.get("input")
        for item in items if type(items) is list else ():
            if type(item) is dict:
                item.setdefault("type", "message")
        return super().read(value)  # type: ignore[return-value]

    def said(self) -> list[Said]:
        """Definitions of tools first, then the instructions, then the items."""
        found = dumped("developer", self.tools)
        if self.text is not None:
            found += dumped("developer", self.text.format)
        found += _texts("system", self.instructions)
        if isinstance(self.input, str):
            return found + _texts("user", self.input)
        for item in self.input:
            match item:
                case Message(role=role, content=content):
                    found += _texts(role, content)
                case FunctionCall(name=name, arguments=given) | CustomCall(name=name, input=given):
                    found += [Said("assistant", name), *_texts("assistant", given)]
                case FunctionOutput(output=output) | CustomOutput(output=output):
                    found += _texts("tool", output)
                case ShellOutput(output=output):
                    found += _texts("tool", output)
                case ShellCall(action=action):
                    found += dumped("assistant", action)
                case Reasoning(summary=summary, content=content):
                    found += _texts("assistant", [*summary, *(content or ())])
        return found

    def empty(self) -> bool:
        """Whether there is no image, voice or file either."""
        return isinstance(self.input, str) or not any(
            type(part) in (InputImage, InputFile, InputAudio)
            for item in self.input if isinstance(item, Message) and not isinstance(item.content, str)
            for part in item.content
        )

    def output_max(self) -> int | None:
        return self.max_output_tokens


def _texts(speaker: str, content: str | Sequence[Body] | None) -> list[Said]:
    if isinstance(content, str):
        return [Said(speaker, content)] if content else []
    found: list[Said] = []
    for part in content or ():
        if isinstance(part, InputFile):
            found += [Said(speaker, part.filename or ""), *in_file(speaker, part.file_data)]
        else:
            found.append(Said(speaker, getattr(part, "text", None) or getattr(part, "refusal", None) or ""))
    return [one for one in found if one.text]

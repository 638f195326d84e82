"""Chat completions, as OpenAI's API and those after it have them."""

from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, Literal

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
    Whole,
    dumped,
    in_file,
)
from relay.gateway.pipeline import Said

_Penalty = Annotated[float, Meta(ge=-2, le=2)]


class TextPart(Body, tag_field="type", tag="text"):
    text: str
    cache_control: Passed = UNSET


class RefusalPart(Body, tag_field="type", tag="refusal"):
    refusal: str


class ImageUrl(Body):
    url: DataUrl
    detail: Label | None = None


class ImagePart(Body, tag_field="type", tag="image_url"):
    image_url: ImageUrl
    cache_control: Passed = UNSET


class Audio(Body):
    data: str
    format: Label


class AudioPart(Body, tag_field="type", tag="input_audio"):
    input_audio: Audio


class File(Body):
    file_data: str
    filename: Label | None = None
    file_id: None = None


class FilePart(Body, tag_field="type", tag="file"):
    file: File


class Function(Body):
    """What a model may call. `parameters` is a JSON Schema."""

    name: Label
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class CustomTool(Body):
    name: Label
    description: str | None = None
    format: Passed = UNSET


class Tool(Body):
    """Run by the caller. What a provider would run is not for a device to ask for."""

    type: Literal["function", "custom"]
    function: Function | None = None
    custom: CustomTool | None = None
    cache_control: Passed = UNSET


class FunctionCall(Body):
    name: Label
    arguments: str


class CustomCall(Body):
    name: Label
    input: str


class ToolCall(Body):
    id: Label | None = None
    type: Literal["function", "custom"] = "function"
    function: FunctionCall | None = None
    custom: CustomCall | None = None
    index: Whole | None = None


class System(Body, tag_field="role", tag="system"):
    speaker: ClassVar[str] = "system"
    content: str | list[TextPart]
    name: Label | None = None


class Developer(Body, tag_field="role", tag="developer"):
    speaker: ClassVar[str] = "developer"
    content: str | list[TextPart]
    name: Label | None = None


class User(Body, tag_field="role", tag="user"):
    speaker: ClassVar[str] = "user"
    content: str | list[TextPart | ImagePart | AudioPart | FilePart]
    name: Label | None = None


class Assistant(Body, tag_field="role", tag="assistant"):
    """As answers have it, so that an answer may be sent back as it came."""

    speaker: ClassVar[str] = "assistant"
    content: str | list[TextPart | RefusalPart] | None = None
    refusal: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    tool_calls: Annotated[list[ToolCall], Meta(max_length=TOOLS_MAX)] | None = None
    function_call: FunctionCall | None = None
    name: Label | None = None
    annotations: Passed = UNSET
    audio: None = None


class ToolResult(Body, tag_field="role", tag="tool"):
    speaker: ClassVar[str] = "tool"
    content: str | list[TextPart]
    tool_call_id: Label
    name: Label | None = None


class FunctionResult(Body, tag_field="role", tag="function"):
    speaker: ClassVar[str] = "tool"
    content: str | None
    name: Label


class Prediction(Body):
    type: Literal["content"]
    content: str | list[TextPart]


class ResponseFormat(Body):
    type: Literal["text", "json_object", "json_schema"]
    json_schema: dict[str, Any] | None = None


class ChatRequest(Conversation, kw_only=True):
    """Chat completions: a conversation, of which the model is to say what comes next."""

    messages: Annotated[
        list[System | Developer | User | Assistant | ToolResult | FunctionResult],
        Meta(min_length=1, max_length=MESSAGES_MAX),
    ]
    max_tokens: Tokens | None = None
    max_completion_tokens: Tokens | None = None
    n: Annotated[int, Meta(ge=1, le=16)] | None = None
    temperature: Temperature | None = None
    top_p: Share | None = None
    frequency_penalty: _Penalty | None = None
    presence_penalty: _Penalty | None = None
    stop: Label | Annotated[list[Label], Meta(max_length=16)] | None = None
    seed: Whole | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None
    tools: Annotated[list[Tool], Meta(max_length=TOOLS_MAX)] | None = None
    tool_choice: Choice | None = None
    parallel_tool_calls: bool | None = None
    functions: Annotated[list[Function], Meta(max_length=TOOLS_MAX)] | None = None
    function_call: Choice | None = None
    response_format: ResponseFormat | None = None
    prediction: Prediction | None = None
    reasoning_effort: Label | None = None
    verbosity: Label | None = None
    modalities: Annotated[list[Literal["text", "audio"]], Meta(max_length=2)] | None = None
    service_tier: Literal["auto", "default", "flex"] | None = None  # no dearer one than prices are set for
    store: bool | None = None
    user: Label | None = None
    safety_identifier: Label | None = None
    prompt_cache_key: Label | None = None
    prompt_cache_retention: Label | None = None
    top_k: Whole | None = None  # of other servers with this API
    min_p: Share | None = None
    repetition_penalty: Annotated[float, Meta(ge=0, le=10)] | None = None
    audio: Passed = UNSET
    logit_bias: Passed = UNSET
    metadata: Passed = UNSET
    stream_options: Passed = UNSET
    web_search_options: None = None


    def said(self) -> list[Said]:
        """Definitions of tools first, then the messages."""
        found = dumped("developer", self.tools) + dumped("developer", self.functions)
        if self.response_format is not None:
            found += dumped("developer", self.response_format.json_schema)
        for message in self.messages:
            if message.name:
                found.append(Said(message.speaker, message.name))
            found += _texts(message.speaker, message.content)
            if type(message) is Assistant:
                found += _more(message)
        if self.prediction is not None:
            found += _texts("assistant", self.prediction.content)
        return found

    def empty(self) -> bool:
        """Whether there is no image, voice or file either."""
        return not any(
            type(message) is User and type(message.content) is list
            and any(type(part) is not TextPart for part in message.content)
            for message in self.messages
        )

    def output_max(self) -> int | None:
        """Of two bounds the larger."""
        return max(self.max_tokens or 0, self.max_completion_tokens or 0) * self.answers() or None

    def answers(self) -> int:
        return self.n or 1


def _texts(speaker: str, content: str | Sequence[Body] | None) -> list[Said]:
    if type(content) is str:
        return [Said(speaker, content)] if content else []
    found = []
    for part in content or ():
        if type(part) is TextPart:
            found.append(Said(speaker, part.text))
        elif type(part) is RefusalPart:
            found.append(Said(speaker, part.refusal))
        elif type(part) is FilePart:
            found += [Said(speaker, part.file.filename or ""), *in_file(speaker, part.file.file_data)]
    return [one for one in found if one.text]


def _more(message: Assistant) -> list[Said]:
    texts = [message.refusal, message.reasoning_content, message.reasoning]
    if message.function_call is not None:
        texts += [message.function_call.name, message.function_call.arguments]
    for call in message.tool_calls or ():
        if call.function is not None:
            texts += [call.function.name, call.function.arguments]
        if call.custom is not None:
            texts += [call.custom.name, call.custom.input]
    return [Said("assistant", text) for text in texts if text]

"""`/v1/chat/completions`: what a request may hold, and how its answer looks, whole and streamed.

What would change the answer is never ignored in silence: a relayed request holds what the client gave, the local model
heeds what `sampling_of` takes and says in a note what it did not, and what nobody here can do (`n`, pictures, logprobs)
is refused. Fields not named here have no effect.

Everything that no other server has is under one name, `causeway`: see `causeway_object`.
"""

import time
from collections.abc import Iterable, Iterator, Mapping
from typing import Annotated, Any, Final, Literal, TypeVar

import msgspec

from edge_client.answering import Answer, Question, Routed
from edge_client.engine.base import Message, Sampling, Text
from edge_client.errors import BadUse

__all__ = [
    "ChatRequest", "ChatVoice", "answer_object", "causeway_object", "content_of", "decoded", "json_schema_of",
    "parse_request", "question_of", "refuse", "unheeded", "usage_object",
]

_ROLES: Final[dict[str, Literal["system", "user", "assistant", "tool"]]] = {
    "system": "system", "developer": "system", "user": "user", "assistant": "assistant", "tool": "tool",
}
_SCHEMA_MAX: Final = 32 << 10  # bytes of a JSON schema


class Part(msgspec.Struct):
    type: str
    text: str = ""


class _ChatMessage(msgspec.Struct, omit_defaults=True):
    role: str
    content: str | list[Part] | None = None
    name: str | None = None
    tool_calls: list[dict[str, Any]] | None = None
    tool_call_id: str | None = None


class _StreamOptions(msgspec.Struct):
    include_usage: bool = False


T = TypeVar("T")
Tokens = Annotated[int, msgspec.Meta(ge=1, le=1 << 20)]
Temperature = Annotated[float, msgspec.Meta(ge=0, le=2)]
TopP = Annotated[float, msgspec.Meta(gt=0, le=1)]


class ChatRequest(msgspec.Struct):
    model: Annotated[str, msgspec.Meta(min_length=1, max_length=256)]
    messages: Annotated[list[_ChatMessage], msgspec.Meta(min_length=1, max_length=4096)]
    stream: bool | None = None
    stream_options: _StreamOptions | None = None
    max_tokens: Tokens | None = None
    max_completion_tokens: Tokens | None = None
    temperature: Temperature | None = None
    top_p: TopP | None = None
    seed: int | None = None
    stop: str | Annotated[list[str], msgspec.Meta(max_length=4)] | None = None
    n: int | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    response_format: dict[str, Any] | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    logit_bias: dict[str, float] | None = None
    reasoning_effort: str | None = None
    verbosity: str | None = None
    user: str | None = None
    safety_identifier: str | None = None
    metadata: dict[str, str] | None = None
    store: bool | None = None
    service_tier: str | None = None
    prediction: dict[str, Any] | None = None
    modalities: list[str] | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    functions: list[Any] | None = None
    function_call: Any = None
    audio: Any = None
    web_search_options: Any = None


_REFUSED: Final = ("logprobs", "top_logprobs", "functions", "function_call", "audio", "web_search_options")
_HERE: Final = frozenset({  # not the client's word on a relay
    "model", "messages", "stream", "stream_options", "n", "modalities", *_REFUSED,
})
# They would change the answer, and the local model knows nothing of them.
_NOT_LOCAL: Final = ("frequency_penalty", "presence_penalty", "logit_bias", "reasoning_effort", "verbosity")
_decoder = msgspec.json.Decoder(ChatRequest)


def decoded(decoder: "msgspec.json.Decoder[T]", body: bytes) -> T:
    """Raises BadUse, naming the field."""
    try:
        return decoder.decode(body)
    except msgspec.ValidationError as error:
        raise BadUse(str(error)[:1].lower() + str(error)[1:]) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise BadUse("the body is not JSON") from None


def parse_request(body: bytes) -> ChatRequest:
    """Raises BadUse, naming the field."""
    request = decoded(_decoder, body)
    if request.n not in (None, 1):
        raise BadUse("`n` other than 1 is not supported")
    if request.modalities not in (None, ["text"]):
        raise BadUse("only text is answered")
    refuse(request, _REFUSED)
    return request


def refuse(request: msgspec.Struct, names: Iterable[str]) -> None:
    """Raises BadUse if the client wants one of these."""
    for name in names:
        if getattr(request, name):
            raise BadUse(f"`{name}` is not supported here")


def unheeded(routed: Routed, given: Mapping[str, object]) -> tuple[str, ...]:
    """A note on those of the `given` fields that the local model does not know, if it answers."""
    names = [f"`{name}`" for name in _NOT_LOCAL if given.get(name)]
    if routed.decision.route != "local" or not names:
        return ()
    return (f"the local model does not heed {', '.join(names)}",)


def question_of(request: ChatRequest, pattern: Question) -> Question:
    """The question, with flag, model and documents of `pattern`. Raises BadUse for what is not text or of no role."""
    given = {name: getattr(request, name) for name in request.__struct_fields__ if name not in _HERE}
    options = {name: value for name, value in given.items() if value is not None}
    messages = tuple(_message(message) for message in request.messages)
    # A provider counts in a stream only if it is asked to, and everything is streamed from there.
    return Question(
        messages, pattern.flag, pattern.model, sampling_of(request), pattern.documents,
        options | {"stream_options": {"include_usage": True}},
    )


def _message(message: _ChatMessage) -> Message:
    if message.role not in _ROLES:
        raise BadUse("a message's role is system, developer, user, assistant or tool")
    if (message.role == "tool") != (message.tool_call_id is not None):
        raise BadUse("`tool_call_id` belongs to a message of role tool, and only there")
    extras = {
        name: value for name in ("name", "tool_calls", "tool_call_id") if (value := getattr(message, name)) is not None
    }
    return Message(_ROLES[message.role], content_of(message.content, ("text",)), extras)


def content_of(content: str | list[Part] | None, types: tuple[str, ...]) -> str:
    """The text of a content whose parts are all of `types`. Raises BadUse for another part."""
    if content is None or isinstance(content, str):
        return content or ""
    if any(part.type not in types for part in content):
        raise BadUse("only text parts are supported")
    return "".join(part.text for part in content)


def sampling_of(request: ChatRequest) -> Sampling:
    """For the local model. Raises BadUse for an unknown `response_format`."""
    stop = (request.stop,) if isinstance(request.stop, str) else tuple(request.stop or ())
    format = request.response_format or {"type": "text"}
    return Sampling(
        max_tokens=request.max_completion_tokens or request.max_tokens,
        temperature=request.temperature or 0.0,
        top_p=request.top_p or Sampling.top_p,
        seed=None if request.seed is None else request.seed & 0xFFFFFFFF,
        stop=stop,
        json_schema=json_schema_of(format, format.get("json_schema")),
    )


def json_schema_of(format: dict[str, Any], described: object) -> str | None:
    """JSON mode: None for plain text, "{}" for any object, or the schema in `described`. Raises BadUse."""
    kind = format.get("type")
    if kind == "text":
        return None
    if kind == "json_object":
        return "{}"
    schema = described.get("schema") if isinstance(described, dict) else None
    if kind != "json_schema" or not isinstance(schema, dict):
        raise BadUse("the response format is text, json_object, or json_schema with its schema")
    text = msgspec.json.encode(schema).decode()
    if len(text) > _SCHEMA_MAX:
        raise BadUse(f"a JSON schema has at most {_SCHEMA_MAX >> 10} KiB")
    return text


def usage_object(answer: Answer) -> dict[str, int] | None:
    """None where the provider did not say."""
    if answer.prompt_tokens is None or answer.answer_tokens is None:
        return None
    return {
        "prompt_tokens": answer.prompt_tokens, "completion_tokens": answer.answer_tokens,
        "total_tokens": answer.prompt_tokens + answer.answer_tokens,
    }


def causeway_object(routed: Routed, notes: tuple[str, ...] = ()) -> dict[str, Any]:
    """`route` (local, relay), the `rule` and `reasons` for it, `model`, `notes` for the person, `trace_id`,
    `citations`: passages the answer was made from, each with its document, id in the store and, if known, page or
    line; `label`: the strictest of theirs; `documents`: whether they seem to hold an answer (held, silent, null).
    """
    return {
        "route": routed.decision.route, "rule": routed.decision.rule, "reasons": list(routed.decision.reasons),
        "model": routed.model, "notes": [*routed.notes, *notes],
        "citations": [
            {"id": p.id, "document": p.document, "page": p.page, "line": p.line, "text": p.text}
            for p in routed.citations
        ],
        "documents": routed.documents, "label": routed.label, "trace_id": routed.trace_id,
    }


def answer_object(id: str, request: ChatRequest, answer: Answer) -> dict[str, Any]:
    """`chat.completion`."""
    message: dict[str, Any] = {"role": "assistant", "content": answer.text}
    if answer.tool_calls:
        message |= {"content": answer.text or None, "tool_calls": answer.tool_calls}
    return {
        "id": id, "object": "chat.completion", "created": int(time.time()), "model": request.model,
        "choices": [{"index": 0, "message": message, "logprobs": None, "finish_reason": answer.finish_reason}],
        "usage": usage_object(answer),
        "causeway": causeway_object(answer.routed, unheeded(answer.routed, msgspec.structs.asdict(request))),
    }


class ChatVoice:
    """A streamed answer's events: `chat.completion.chunk`. The last chunk with a choice tells `causeway` once more,
    with the notes that came up in the meantime.
    """

    def __init__(self, id: str, request: ChatRequest) -> None:
        self._frame = {
            "id": id, "object": "chat.completion.chunk", "created": int(time.time()), "model": request.model
        }
        self._given = msgspec.structs.asdict(request)
        self._usage = request.stream_options is not None and request.stream_options.include_usage

    def begin(self, routed: Routed) -> Iterator[bytes]:
        yield self._chunk({"role": "assistant", "content": ""}, causeway=self._causeway(routed))

    def piece(self, text: Text) -> Iterator[bytes]:
        calls = {"tool_calls": text.calls} if text.calls else {}
        yield self._chunk(({"content": text.text} if text.text else {}) | calls)

    def end(self, answer: Answer) -> Iterator[bytes]:
        yield self._chunk({}, answer.finish_reason, causeway=self._causeway(answer.routed))
        if self._usage:
            yield _event(self._frame | {"choices": [], "usage": usage_object(answer)})
        yield b"data: [DONE]\n\n"

    def fail(self, body: dict[str, Any]) -> Iterator[bytes]:
        yield _event(body)

    def _causeway(self, routed: Routed) -> dict[str, Any]:
        return causeway_object(routed, unheeded(routed, self._given))

    def _chunk(self, delta: dict[str, Any], finish_reason: str | None = None, **more: Any) -> bytes:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
        return _event(self._frame | {"choices": [choice]} | more)


def _event(data: dict[str, Any]) -> bytes:
    return b"data: " + msgspec.json.encode(data) + b"\n\n"

"""`/v1/responses`, a subset of OpenAI's: text in, text out, whole or streamed.

Taken: `input` (a text, or messages of text), `instructions`, `model`, `stream`, `max_output_tokens`, `temperature`,
`top_p`, `text.format` (text, json_object, json_schema); on a relay also `reasoning.effort`, `text.verbosity`, `user`,
`safety_identifier` and `service_tier`. Nothing is kept between requests, whatever `store` says; so
`previous_response_id` and `conversation` are refused, and so are tools, which `/v1/chat/completions` relays.
Streamed: response.created, .in_progress, .output_item.added, .content_part.added, .output_text.delta,
.output_text.done, .content_part.done, .output_item.done, then .completed or .incomplete; an error on the way is the
event `error`.
"""

import time
from collections.abc import Iterator
from typing import Annotated, Any, Final, Literal

import msgspec

from edge_client.answering import Answer, Question, Routed
from edge_client.api.shapes import (
    Part,
    Temperature,
    Tokens,
    TopP,
    causeway_object,
    content_of,
    decoded,
    json_schema_of,
    refuse,
    unheeded,
)
from edge_client.engine.base import Message, Sampling, Text

__all__ = ["ResponsesRequest", "ResponsesVoice", "parse_responses", "response_object", "responses_question"]

_PARTS: Final = ("input_text", "output_text", "text")


class _Item(msgspec.Struct):
    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[Part]
    type: Literal["message"] = "message"


class _TextSettings(msgspec.Struct):
    format: dict[str, Any] | None = None
    verbosity: str | None = None


class _Reasoning(msgspec.Struct):
    effort: str | None = None


class ResponsesRequest(msgspec.Struct):
    model: Annotated[str, msgspec.Meta(min_length=1, max_length=256)]
    input: str | Annotated[list[_Item], msgspec.Meta(min_length=1, max_length=4096)]
    instructions: str | None = None
    stream: bool | None = None
    max_output_tokens: Tokens | None = None
    temperature: Temperature | None = None
    top_p: TopP | None = None
    text: _TextSettings | None = None
    tools: list[Any] | None = None
    previous_response_id: str | None = None
    conversation: Any = None
    background: bool | None = None
    prompt: Any = None
    top_logprobs: int | None = None
    reasoning: _Reasoning | None = None
    user: str | None = None
    safety_identifier: str | None = None
    service_tier: str | None = None


_decoder = msgspec.json.Decoder(ResponsesRequest)


def parse_responses(body: bytes) -> ResponsesRequest:
    """Raises BadUse, naming the field."""
    request = decoded(_decoder, body)
    refuse(request, ("tools", "previous_response_id", "conversation", "background", "prompt", "top_logprobs"))
    return request


def _only_relayed(request: ResponsesRequest) -> dict[str, Any]:
    """What is the client's word on a relay alone, as chat completions spell it."""
    return {
        "reasoning_effort": request.reasoning.effort if request.reasoning else None,
        "verbosity": request.text.verbosity if request.text else None,
        "user": request.user, "safety_identifier": request.safety_identifier, "service_tier": request.service_tier,
    }


def responses_question(request: ResponsesRequest, pattern: Question) -> Question:
    """The question, with flag, model and documents of `pattern`. Raises BadUse for what is not text."""
    items = [_Item("user", request.input)] if isinstance(request.input, str) else request.input
    messages = [Message("system", request.instructions)] if request.instructions else []
    for item in items:
        role: Literal["system", "user", "assistant"] = "system" if item.role == "developer" else item.role
        messages.append(Message(role, content_of(item.content, _PARTS)))
    format = (request.text.format if request.text else None) or {"type": "text"}
    schema = json_schema_of(format, format)
    sampling = Sampling(
        max_tokens=request.max_output_tokens, temperature=request.temperature or 0.0,
        top_p=request.top_p or Sampling.top_p, json_schema=schema,
    )
    given = {
        "max_completion_tokens": request.max_output_tokens, "temperature": request.temperature, "top_p": request.top_p,
        "response_format": None if schema is None else _chat_format(format), **_only_relayed(request),
    }
    options = {name: value for name, value in given.items() if value is not None}
    options["stream_options"] = {"include_usage": True}
    return Question(tuple(messages), pattern.flag, pattern.model, sampling, pattern.documents, options)


def _chat_format(format: dict[str, Any]) -> dict[str, Any]:
    """The same wish as chat completions spell it."""
    if format["type"] == "json_object":
        return {"type": "json_object"}
    described = {name: format[name] for name in ("name", "description", "schema", "strict") if name in format}
    return {"type": "json_schema", "json_schema": {"name": "answer", **described}}


def response_object(id: str, request: ResponsesRequest, created: int, answer: Answer | None) -> dict[str, Any]:
    """`response`, in progress without an answer."""
    cut = answer is not None and answer.finish_reason == "length"
    response: dict[str, Any] = {
        "id": id, "object": "response", "created_at": created, "model": request.model,
        "status": "in_progress" if answer is None else "incomplete" if cut else "completed",
        "error": None, "incomplete_details": {"reason": "max_output_tokens"} if cut else None,
        "instructions": request.instructions, "max_output_tokens": request.max_output_tokens, "metadata": {},
        "output": [] if answer is None else [_item(id, _part(answer.text), "incomplete" if cut else "completed")],
        "parallel_tool_calls": False, "previous_response_id": None, "store": False, "temperature": request.temperature,
        "text": {"format": (request.text.format if request.text else None) or {"type": "text"}},
        "tool_choice": "none", "tools": [], "top_p": request.top_p, "usage": None,
    }
    if answer is not None:
        response["causeway"] = causeway_object(answer.routed, unheeded(answer.routed, _only_relayed(request)))
        if answer.prompt_tokens is not None and answer.answer_tokens is not None:
            response["usage"] = {
                "input_tokens": answer.prompt_tokens, "input_tokens_details": {"cached_tokens": 0},
                "output_tokens": answer.answer_tokens, "output_tokens_details": {"reasoning_tokens": 0},
                "total_tokens": answer.prompt_tokens + answer.answer_tokens,
            }
    return response


def _part(text: str) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


def _item(id: str, part: dict[str, Any] | None, status: str) -> dict[str, Any]:
    content = [] if part is None else [part]
    return {"id": _item_id(id), "type": "message", "status": status, "role": "assistant", "content": content}


def _item_id(id: str) -> str:
    return "msg_" + id.removeprefix("resp_")


class ResponsesVoice:
    """A streamed answer's events, each with its name and a number."""

    def __init__(self, id: str, request: ResponsesRequest) -> None:
        self._id, self._request, self._created = id, request, int(time.time())
        self._number = -1

    def begin(self, routed: Routed) -> Iterator[bytes]:
        response = response_object(self._id, self._request, self._created, None)
        response["causeway"] = causeway_object(routed, unheeded(routed, _only_relayed(self._request)))
        yield self._event("response.created", response=response)
        yield self._event("response.in_progress", response=response)
        yield self._event("response.output_item.added", output_index=0, item=_item(self._id, None, "in_progress"))
        yield self._within("response.content_part.added", part=_part(""))

    def piece(self, text: Text) -> Iterator[bytes]:
        if text.text:
            yield self._within("response.output_text.delta", delta=text.text, logprobs=[])

    def end(self, answer: Answer) -> Iterator[bytes]:
        response = response_object(self._id, self._request, self._created, answer)
        yield self._within("response.output_text.done", text=answer.text, logprobs=[])
        yield self._within("response.content_part.done", part=_part(answer.text))
        yield self._event("response.output_item.done", output_index=0, item=response["output"][0])
        yield self._event(f"response.{response['status']}", response=response)

    def fail(self, body: dict[str, Any]) -> Iterator[bytes]:
        yield self._event("error", **{name: body["error"][name] for name in ("code", "message", "param")})

    def _within(self, kind: str, **fields: Any) -> bytes:
        return self._event(kind, item_id=_item_id(self._id), output_index=0, content_index=0, **fields)

    def _event(self, kind: str, **fields: Any) -> bytes:
        self._number += 1
        data = {"type": kind, "sequence_number": self._number, **fields}
        return b"event: " + kind.encode() + b"\ndata: " + msgspec.json.encode(data) + b"\n\n"

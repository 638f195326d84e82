"""Is the body a request that its route takes? Each endpoint's are described in a module of its own, beside this one.

Nothing is added, dropped or written anew: what passes goes on as the bytes that came.
"""

import re
from typing import Final

import msgspec

from relay.gateway.checks.chat import ChatRequest
from relay.gateway.checks.embeddings import EmbeddingsRequest
from relay.gateway.checks.fields import BODY_MAX, REFUSED, Request
from relay.gateway.checks.infer import InferRequest
from relay.gateway.checks.messages import MessagesRequest
from relay.gateway.checks.reading import read
from relay.gateway.checks.responses import ResponsesRequest
from relay.gateway.pipeline import Refusal, RequestContext

REQUESTS: Final[dict[str, type[Request]]] = {  # by a route's operation
    "chat": ChatRequest, "responses": ResponsesRequest, "embeddings": EmbeddingsRequest, "messages": MessagesRequest,
    "infer": InferRequest,
}

_TOO_LARGE: Final = Refusal(413, "request_too_large", "the request is over 1 MiB")
_EMPTY: Final = Refusal(400, "empty_prompt", "the request holds no text to answer")
_AMBIGUOUS: Final = Refusal(400, "ambiguous_json", "the request body names the same field twice")
_BODY_UNWANTED: Final = Refusal(400, "unexpected_body", "this route takes no body")
_NOT_JSON: Final = Refusal(415, "unsupported_content_type", "this route takes application/json")

_WHERE = re.compile(r"- at `\$\.?([A-Za-z_0-9.\[\]]{1,128})`")
_UNKNOWN = re.compile(r"unknown field `([A-Za-z_]{1,32})`")
_TOOL = re.compile(r"tools\[\d+\]\.type")
_WHY: Final = {
    "remote_content": "what a request shows has to come with it, as data",
    "provider_state": "what a provider keeps is not for one device to refer to",
    "hosted_tool": "tools are run by the caller, not by the provider",
}
_MISSING = re.compile(r"required field `(\w{1,32})`")


class Schema:
    """After authorise, whose `context.model` it confirms. Sets `context.stream`, `said`, `output_max`, `answers` and
    `parsed`.
    """

    async def check(self, context: RequestContext) -> Refusal | None:
        target = context.target
        assert target is not None
        if not target.bodied:
            if context.body:
                return _BODY_UNWANTED
            context.parsed = True
            return None
        if len(context.body) > BODY_MAX:
            return _TOO_LARGE
        if context.content_type.partition(";")[0].strip().lower() != "application/json":
            return _NOT_JSON
        value = read(context.body)
        if isinstance(value, Refusal):
            return value
        try:
            request = REQUESTS[target.operation].read(value)
        except msgspec.ValidationError as error:
            return _explained(error)
        if fault := request.fault():
            return _invalid(fault)
        if (target.model or request.named()) != context.model:
            return _AMBIGUOUS  # two decoders of ours disagree: nothing may pass
        context.said = request.said()
        if not context.said and request.empty():
            return _EMPTY
        context.output_max, context.stream = request.output_max(), request.streams()
        context.answers = request.answers()
        context.parsed = True
        return None


def _explained(error: Exception) -> Refusal:
    """Names the field at fault, by our own names for it: never the value, which may be a prompt."""
    text = str(error)
    where, unknown, missing = _WHERE.search(text), _UNKNOWN.search(text), _MISSING.search(text)
    place = where[1] if where else ""
    if "unknown field" in text:
        name = _joined(place, unknown[1] if unknown else "")
        return Refusal(400, "unknown_field", f"the request has a field this gateway does not know: {name}", param=name)
    if missing:
        name = _joined(place, missing[1])
        return Refusal(400, "invalid_request", f"the request lacks a field: {name}", param=name)
    if not place:
        return Refusal(400, "invalid_request", "the request is not one that this route takes")
    if "Expected `null`" in text or "'^data:'" in text:
        code = REFUSED.get(place.rpartition(".")[2], "")
    else:
        code = "hosted_tool" if _TOOL.fullmatch(place) else ""
    return _elsewhere(code, place) if code else _invalid(place)


def _elsewhere(code: str, place: str) -> Refusal:
    why = f"{_WHY[code]}: {place}"
    match code:
        case "remote_content":
            return Refusal(400, "remote_content", why, param=place)
        case "provider_state":
            return Refusal(400, "provider_state", why, param=place)
    return Refusal(400, "hosted_tool", why, param=place)


def _joined(place: str, name: str) -> str:
    return f"{place}.{name}".strip(".")


def _invalid(place: str) -> Refusal:
    return Refusal(400, "invalid_request", f"the request has a field that is not valid: {place}", param=place)

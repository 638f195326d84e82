"""Is the body a request that its route takes? Each endpoint's are described in a module of its own, beside this one.

Nothing is added, dropped or written anew: what passes goes on as the bytes that came.
"""

import re
from typing import Final

import msgspec

from relay.gateway.checks.chat import ChatRequest
from relay.gateway.checks.fields import BODY_MAX, Request
from relay.gateway.checks.infer import InferRequest
from relay.gateway.checks.reading import read
from relay.gateway.pipeline import Refusal, RequestContext

REQUESTS: Final[dict[str, type[Request]]] = {"chat": ChatRequest, "infer": InferRequest}  # by a route's operation

_NO_SCHEMA: Final = Refusal(404, "unknown_route", "the gateway has no such route")
_TOO_LARGE: Final = Refusal(413, "request_too_large", "the request is over 1 MiB")
_EMPTY: Final = Refusal(400, "empty_prompt", "the request holds no text to answer")
_AMBIGUOUS: Final = Refusal(400, "ambiguous_json", "the request body names the same field twice")
_BODY_UNWANTED: Final = Refusal(400, "unexpected_body", "this route takes no body")
_NOT_JSON: Final = Refusal(415, "unsupported_content_type", "this route takes application/json")

_WHERE = re.compile(r"- at `\$\.?([A-Za-z_0-9.\[\]]{1,128})`")
_UNKNOWN = re.compile(r"unknown field `([A-Za-z_]{1,32})`")
_MISSING = re.compile(r"required field `(\w{1,32})`")


class Schema:
    """After authorise, whose `context.model` it confirms. Sets `context.stream`, `said`, `output_max` and `parsed`."""

    async def check(self, context: RequestContext) -> Refusal | None:
        target = context.target
        assert target is not None
        if not target.bodied:
            if context.body:
                return _BODY_UNWANTED
            context.parsed = True
            return None
        if target.operation not in ("chat", "infer"):
            return _NO_SCHEMA
        if len(context.body) > BODY_MAX:
            return _TOO_LARGE
        if context.content_type.partition(";")[0].strip().lower() != "application/json":
            return _NOT_JSON
        value = read(context.body)
        if isinstance(value, Refusal):
            return value
        try:
            request = msgspec.convert(value, REQUESTS[target.operation])
        except msgspec.ValidationError as error:
            return _explained(error)
        if fault := request.fault():
            return _invalid(fault)
        if (request.model if not target.model else target.model) != context.model:
            return _AMBIGUOUS  # two decoders of ours disagree: nothing may pass
        context.said = request.said()
        if not context.said and request.empty():
            return _EMPTY
        context.output_max, context.stream = request.output_max(), bool(request.stream)
        context.parsed = True
        return None


def _explained(error: Exception) -> Refusal:
    """Names the field at fault, by our own names for it: never the value, which may be a prompt."""
    text = str(error)
    unknown, missing, where = _UNKNOWN.search(text), _MISSING.search(text), _WHERE.search(text)
    place = where[1] if where else ""
    if "unknown field" in text:
        name = _joined(place, unknown[1] if unknown else "")
        return Refusal(400, "unknown_field", f"the request has a field this gateway does not know: {name}")
    if missing:
        return Refusal(400, "invalid_request", f"the request lacks a field: {_joined(place, missing[1])}")
    return _invalid(place) if place else Refusal(400, "invalid_request", "the request is not one that this route takes")


def _joined(place: str, name: str) -> str:
    return f"{place}.{name}".strip(".")


def _invalid(place: str) -> Refusal:
    return Refusal(400, "invalid_request", f"the request has a field that is not valid: {place}")

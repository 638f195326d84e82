"""Is the body what it says it is? The provider gets the very bytes that were checked, so they must have one meaning.

What a second parser could read differently is refused: duplicate names (also such that differ in case only, at the top
level: some servers do not mind case), numbers that are none, invalid UTF-8, deep nesting. Unknown top-level fields are
refused; below the known ones, content is the provider's business and passes untouched.
"""

import json
import math
import re
from typing import Annotated, Any, Final, Literal, NoReturn

import msgspec
from msgspec import UNSET, Meta, Raw, Struct, UnsetType

from relay.gateway.pipeline import Refusal, RequestContext

BODY_MAX: Final = 1 << 20  # bytes
DEPTH_MAX: Final = 32
NODES_MAX: Final = 100_000  # objects and arrays in one body
MESSAGES_MAX: Final = 2_048

_NO_SCHEMA: Final = Refusal(404, "unknown_route", "the gateway has no such route")
_TOO_LARGE: Final = Refusal(413, "request_too_large", "the request is over 1 MiB")
_EMPTY: Final = Refusal(400, "empty_prompt", "the request holds no text to answer")
_SHAPE: Final = Refusal(400, "invalid_request", "the request has a field that is not valid: shape")
_MALFORMED: Final = Refusal(400, "malformed_json", "the request body is not a JSON object")
_AMBIGUOUS: Final = Refusal(400, "ambiguous_json", "the request body names the same field twice")
_TOO_DEEP: Final = Refusal(400, "json_too_deep", "the request body is nested too deeply or has too many parts")
_BODY_UNWANTED: Final = Refusal(400, "unexpected_body", "this route takes no body")
_NOT_JSON: Final = Refusal(415, "unsupported_content_type", "this route takes application/json")

Passed = Raw | UnsetType
ModelName = Annotated[str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._:/@+-]{0,127}\Z")]


class ChatMessage(Struct):
    """Only what is looked at; other fields of a message pass."""

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: str | list[dict[str, Any]] | None = None


class ChatRequest(Struct, forbid_unknown_fields=True, kw_only=True):
    """Chat completions, as OpenAI's API has them. `Passed` fields are known and not looked into."""

    model: ModelName
    messages: Annotated[list[ChatMessage], Meta(min_length=1, max_length=MESSAGES_MAX)]
    stream: bool | None = None
    max_tokens: Annotated[int, Meta(ge=1, le=10_000_000)] | None = None
    max_completion_tokens: Annotated[int, Meta(ge=1, le=10_000_000)] | None = None
    n: Annotated[int, Meta(ge=1, le=16)] | None = None
    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    top_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    audio: Passed = UNSET
    frequency_penalty: Passed = UNSET
    function_call: Passed = UNSET
    functions: Passed = UNSET
    logit_bias: Passed = UNSET
    logprobs: Passed = UNSET
    metadata: Passed = UNSET
    modalities: Passed = UNSET
    parallel_tool_calls: Passed = UNSET
    prediction: Passed = UNSET
    presence_penalty: Passed = UNSET
    reasoning_effort: Passed = UNSET
    response_format: Passed = UNSET
    safety_identifier: Passed = UNSET
    seed: Passed = UNSET
    service_tier: Passed = UNSET
    stop: Passed = UNSET
    store: Passed = UNSET
    stream_options: Passed = UNSET
    tool_choice: Passed = UNSET
    tools: Passed = UNSET
    top_logprobs: Passed = UNSET
    user: Passed = UNSET
    verbosity: Passed = UNSET


Name = Annotated[str, Meta(min_length=1, max_length=128)]
Shape = Annotated[list[Annotated[int, Meta(ge=0, le=BODY_MAX)]], Meta(max_length=8)]
Tensors = Meta(min_length=1, max_length=64)


class Tensor(Struct, forbid_unknown_fields=True, kw_only=True):
    """One input, as the open inference protocol has it, in JSON."""

    name: Name
    shape: Shape
    datatype: Literal["BOOL", "UINT8", "UINT16", "UINT32", "UINT64", "INT8", "INT16", "INT32", "INT64", "FP16", "FP32",
                      "FP64", "BYTES"]
    data: Raw
    parameters: Passed = UNSET


class Wanted(Struct, forbid_unknown_fields=True, kw_only=True):
    """One output that is asked for."""

    name: Name
    parameters: Passed = UNSET


class InferRequest(Struct, forbid_unknown_fields=True, kw_only=True):
    """Inference, as the open inference protocol, version 2, has it."""

    inputs: Annotated[list[Tensor], Tensors]
    outputs: Annotated[list[Wanted], Tensors] | None = None
    id: Annotated[str, Meta(max_length=128)] | None = None
    parameters: Passed = UNSET


_infer = msgspec.json.Decoder(InferRequest)
_chat = msgspec.json.Decoder(ChatRequest)
_WHERE = re.compile(r"- at `\$(?:\.([A-Za-z_]{1,32}))?")
_UNKNOWN = re.compile(r"unknown field `([A-Za-z_]{1,32})`")


class Schema:
    """After authorise, whose `context.model` it confirms. Sets `context.stream` and `context.parsed`."""

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
        refusal = one_meaning(context.body)
        if refusal is not None:
            return refusal
        try:
            refusal = _tensors(context) if target.model else _conversation(context)
        except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
            return _explained(error)
        context.parsed = refusal is None
        return refusal


def _conversation(context: RequestContext) -> Refusal | None:
    request = _chat.decode(context.body)
    if not any(message.content for message in request.messages):
        return _EMPTY
    if request.model != context.model:  # two decoders of ours disagree: nothing may pass
        return _AMBIGUOUS
    context.stream = bool(request.stream)
    return None


def _tensors(context: RequestContext) -> Refusal | None:
    request = _infer.decode(context.body)
    if any(math.prod(tensor.shape) > BODY_MAX for tensor in request.inputs):  # more than a body could hold
        return _SHAPE
    assert context.model
    return None


class _Duplicate(ValueError):
    pass


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise _Duplicate
    return found


def _no_constant(_: str) -> NoReturn:
    raise ValueError("not a JSON number")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):  # 1e999 is infinity to one parser and an error to another
        raise ValueError("not a JSON number")
    return value


def one_meaning(body: bytes) -> Refusal | None:
    """Refuses what is not a JSON object (RFC 8259) that every parser reads the same way, within depth and size."""
    try:
        value = json.loads(
            body.decode("utf-8"), object_pairs_hook=_unique, parse_constant=_no_constant, parse_float=_finite
        )
    except _Duplicate:
        return _AMBIGUOUS
    except RecursionError:
        return _TOO_DEEP
    except ValueError:  # also UnicodeDecodeError, JSONDecodeError and absurdly long integers
        return _MALFORMED
    if not isinstance(value, dict):
        return _MALFORMED
    if len({name.casefold() for name in value}) != len(value):
        return _AMBIGUOUS
    level: list[Any] = [value]
    nodes = 0
    for _ in range(DEPTH_MAX):
        nodes += len(level)
        level = [
            child
            for node in level
            for child in (node.values() if isinstance(node, dict) else node)
            if isinstance(child, dict | list)
        ]
        if not level:
            return None
        if nodes + len(level) > NODES_MAX:
            break
    return _TOO_DEEP


def _explained(error: Exception) -> Refusal:
    """Names the field at fault, by our own names for it: never the value, which may be a prompt."""
    text = str(error)
    unknown, where = _UNKNOWN.search(text), _WHERE.search(text)
    if unknown:
        return Refusal(400, "unknown_field", f"the request has a field this gateway does not know: {unknown[1]}")
    if "missing required field" in text:
        missing = re.search(r"required field `(\w{1,32})`", text)
        return Refusal(400, "invalid_request", f"the request lacks a field: {missing[1] if missing else 'unknown'}")
    if where and where[1]:
        return Refusal(400, "invalid_request", f"the request has a field that is not valid: {where[1]}")
    return Refusal(400, "invalid_request", "the request is not one that this route takes")

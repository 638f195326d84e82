"""OpenAI's shapes on the loopback API: what a request may hold, and how answers and errors look.

The rule for fields not named here: they are accepted and have no effect, as with other servers of this API; but what
would change the meaning of the answer (`tools`, `n`, pictures) is refused rather than ignored.
"""

import time
from typing import Annotated, Any, Final, Literal

import msgspec
from aiohttp import web

from edge_client.answering import Answer, Routed
from edge_client.engine.base import Message, Sampling
from edge_client.errors import BadUse

__all__ = [
    "ChatRequest", "answer_object", "chunk_object", "error_object", "error_response", "failure_response", "messages_of",
    "parse_request", "sampling_of", "usage_object",
]

_ROLES: Final[dict[str, Literal["system", "user", "assistant"]]] = {
    "system": "system", "developer": "system", "user": "user", "assistant": "assistant",
}
_STATUS: Final = {"user": 400, "identity": 403, "policy": 403, "provider": 502, "link": 503, "peer": 502, "store": 503}


class _Part(msgspec.Struct):
    type: str
    text: str = ""


class _ChatMessage(msgspec.Struct):
    role: str
    content: str | list[_Part] | None = None


class _StreamOptions(msgspec.Struct):
    include_usage: bool = False


Tokens = Annotated[int, msgspec.Meta(ge=1, le=1 << 20)]


class ChatRequest(msgspec.Struct):
    model: Annotated[str, msgspec.Meta(min_length=1, max_length=256)]
    messages: Annotated[list[_ChatMessage], msgspec.Meta(min_length=1, max_length=4096)]
    stream: bool | None = None
    stream_options: _StreamOptions | None = None
    max_tokens: Tokens | None = None
    max_completion_tokens: Tokens | None = None
    temperature: Annotated[float, msgspec.Meta(ge=0, le=2)] | None = None
    top_p: Annotated[float, msgspec.Meta(gt=0, le=1)] | None = None
    seed: int | None = None
    stop: str | Annotated[list[str], msgspec.Meta(max_length=4)] | None = None
    n: int | None = None
    tools: list[Any] | None = None


_decoder = msgspec.json.Decoder(ChatRequest)


def parse_request(body: bytes) -> ChatRequest:
    """Raises BadUse, naming the field."""
    try:
        request = _decoder.decode(body)
    except msgspec.ValidationError as error:
        raise BadUse(str(error)[:1].lower() + str(error)[1:]) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise BadUse("the body is not JSON") from None
    if request.n not in (None, 1):
        raise BadUse("`n` other than 1 is not supported")
    if request.tools:
        raise BadUse("`tools` are not supported")
    return request


def messages_of(request: ChatRequest) -> tuple[Message, ...]:
    """Raises BadUse for a role or content part that is not text."""
    return tuple(Message(_role(message.role), _content(message.content)) for message in request.messages)


def _role(role: str) -> Literal["system", "user", "assistant"]:
    if role not in _ROLES:
        raise BadUse("a message's role is system, developer, user or assistant")
    return _ROLES[role]


def _content(content: str | list[_Part] | None) -> str:
    if content is None or isinstance(content, str):
        return content or ""
    if any(part.type != "text" for part in content):
        raise BadUse("only text parts are supported")
    return "".join(part.text for part in content)


def sampling_of(request: ChatRequest) -> Sampling:
    stop = (request.stop,) if isinstance(request.stop, str) else tuple(request.stop or ())
    return Sampling(
        max_tokens=request.max_completion_tokens or request.max_tokens,
        temperature=request.temperature or 0.0,
        top_p=request.top_p or Sampling.top_p,
        seed=None if request.seed is None else request.seed & 0xFFFFFFFF,
        stop=stop,
    )


def usage_object(answer: Answer) -> dict[str, int] | None:
    """None where the provider did not say."""
    if answer.prompt_tokens is None or answer.answer_tokens is None:
        return None
    return {
        "prompt_tokens": answer.prompt_tokens, "completion_tokens": answer.answer_tokens,
        "total_tokens": answer.prompt_tokens + answer.answer_tokens,
    }


def _causeway(routed: Routed) -> dict[str, Any]:
    """What no other server has, under one name of our own."""
    return {
        "route": routed.decision.route, "rule": routed.decision.rule, "reasons": list(routed.decision.reasons),
        "citations": [
            {"document": p.document, "page": p.page, "line": p.line, "text": p.text} for p in routed.citations
        ],
        "trace_id": routed.trace_id,
    }


def answer_object(id: str, model: str, answer: Answer) -> dict[str, Any]:
    """`chat.completion`."""
    message = {"role": "assistant", "content": answer.text}
    return {
        "id": id, "object": "chat.completion", "created": int(time.time()), "model": model,
        "choices": [{"index": 0, "message": message, "logprobs": None, "finish_reason": answer.finish_reason}],
        "usage": usage_object(answer),
        "causeway": _causeway(answer.routed),
    }


def chunk_object(
    id: str, model: str, created: int, delta: dict[str, str] | None, finish_reason: str | None = None,
    *, usage: dict[str, int] | None = None, routed: Routed | None = None,
) -> dict[str, Any]:
    """`chat.completion.chunk`; `delta` None makes the last one, which holds the usage and no choice."""
    choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
    chunk: dict[str, Any] = {
        "id": id, "object": "chat.completion.chunk", "created": created, "model": model,
        "choices": [] if delta is None else [choice],
    }
    if usage is not None:
        chunk["usage"] = usage
    if routed is not None:
        chunk["causeway"] = _causeway(routed)
    return chunk


def error_object(status: int, code: str, message: str) -> dict[str, Any]:
    kinds = {401: "authentication_error", 403: "permission_error"}
    kind = kinds.get(status, "invalid_request_error" if status < 500 else "server_error")
    return {"error": {"message": message, "type": kind, "param": None, "code": code}}


def error_response(status: int, code: str, message: str) -> web.Response:
    return web.json_response(error_object(status, code, message), status=status)


def failure_response(error: Exception) -> tuple[int, dict[str, Any]]:
    """Status and body for an error of the edge, the wire or the store; anything else is a bare 500."""
    code, fault = getattr(error, "code", None), getattr(error, "fault", None)
    if not isinstance(code, str) or not isinstance(fault, str):
        return 500, error_object(500, "internal_error", "something unexpected went wrong")
    own = {"model_not_found": 404, "model_missing": 503, "model_unusable": 503}  # the server's doing, not the request's
    status = own.get(code) or _STATUS.get(fault, 500)
    hint = getattr(error, "hint", None)
    text = f"{error} ({hint})" if hint else str(error)
    # The one code that clients of this API act upon.
    code = "context_length_exceeded" if code == "prompt_too_long" else code
    return status, error_object(status, code, text)

"""OpenAI's chat completions as a relayed prompt uses them: the request's body, and the answer's text from its bytes.

What comes back was written by a provider: it is parsed strictly, bounded, and never quoted in an error.
"""

import contextlib
import re
from collections.abc import AsyncIterable, AsyncIterator, Iterable, Mapping, Sequence
from typing import Any, Final

import msgspec

from edge_client.engine.base import Message, Sampling, Text
from edge_client.errors import PromptTooLong, ProviderFailed

__all__ = ["RELAY_MAX_BYTES", "ROUTE", "AnswerReader", "failure", "request_body", "whole_calls"]

ROUTE: Final = "/v1/chat/completions"
RELAY_MAX_BYTES: Final = 256 << 10  # of a request's body
_LINE_MAX: Final = 1 << 20
_CALLS_MAX: Final = 128  # tool calls in one answer
_HINT: Final = "ask again later, or with `--local`; the gateway's trace shows what its provider did"
_CODE: Final = re.compile(r"[a-z][a-z0-9_]{1,47}", re.ASCII)


class _Piece(msgspec.Struct):
    content: str | None = None
    tool_calls: list[dict[str, Any]] | None = None


class _Choice(msgspec.Struct):
    delta: _Piece | None = None
    message: _Piece | None = None
    finish_reason: str | None = None


class _Usage(msgspec.Struct):
    prompt_tokens: int | None = None
    completion_tokens: int | None = None


class _Problem(msgspec.Struct):
    code: str | int | None = None


class _Envelope(msgspec.Struct):
    choices: list[_Choice] = []
    usage: _Usage | None = None
    error: _Problem | None = None


_decoder = msgspec.json.Decoder(_Envelope)


def request_body(
    model: str, messages: Sequence[Message], sampling: Sampling, options: Mapping[str, Any] | None = None
) -> bytes:
    """The JSON of a streamed request; `options` are fields that a client gave, in place of `sampling`.

    Raises PromptTooLong over 256 KiB.
    """
    body: dict[str, object] = {
        "model": model,
        "messages": [{"role": message.role, "content": _content(message), **message.extras} for message in messages],
        "stream": True,
    }
    if options:
        return _encoded(body | dict(options))
    if sampling.max_tokens is not None:
        body["max_tokens"] = sampling.max_tokens
    if sampling.temperature:
        body["temperature"] = sampling.temperature
    if sampling.seed is not None:
        body["seed"] = sampling.seed
    if sampling.stop:
        body["stop"] = list(sampling.stop)
    return _encoded(body)


def _content(message: Message) -> str | None:
    return None if not message.content and "tool_calls" in message.extras else message.content


def _encoded(body: Mapping[str, object]) -> bytes:
    encoded = msgspec.json.encode(body)
    if len(encoded) > RELAY_MAX_BYTES:
        raise PromptTooLong(
            f"the prompt has {len(encoded) >> 10} KiB, a relayed one may have {RELAY_MAX_BYTES >> 10}",
            hint="shorten it; documents are better ingested than pasted",
        )
    return encoded


class AnswerReader:
    """Text from the bytes of an answer, streamed (server-sent events) or whole.

    The counts are there afterwards; None where the provider did not say.
    """

    def __init__(self, content_type: str) -> None:
        self._streamed = content_type.partition(";")[0].strip().lower() == "text/event-stream"
        self.prompt_tokens: int | None = None
        self.answer_tokens: int | None = None
        self.finish_reason = ""

    async def texts(self, chunks: AsyncIterable[bytes]) -> AsyncIterator[str]:
        """As `pieces`, of the text alone."""
        async for piece in self.pieces(chunks):
            if piece.text:
                yield piece.text

    async def pieces(self, chunks: AsyncIterable[bytes]) -> AsyncIterator[Text]:
        """Pieces of the answer. Raises ProviderFailed for an error, garbage, or an answer without an end."""
        if self._streamed:
            async for line in _lines(chunks):
                if not line.startswith(b"data:"):
                    continue  # comments keep a connection alive; event names are not used by this API
                data = line[5:].strip()
                if data == b"[DONE]":
                    self.finish_reason = self.finish_reason or "stop"
                elif piece := self._piece(data):
                    yield piece
        else:
            held = bytearray()
            async for chunk in chunks:
                held += chunk
                if len(held) > _LINE_MAX:
                    raise ProviderFailed("the provider's answer is too large", hint=_HINT)
            if piece := self._piece(bytes(held)):
                yield piece
        if not self.finish_reason:
            raise ProviderFailed("the provider's answer ended in the middle", hint=_HINT)

    def _piece(self, data: bytes) -> Text | None:
        try:
            envelope = _decoder.decode(data)
        except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
            raise ProviderFailed("the provider's answer is not what this API promises", hint=_HINT) from None
        if envelope.error is not None:
            raise _failed("the provider reported an error", envelope.error)
        if envelope.usage is not None:
            self.prompt_tokens = envelope.usage.prompt_tokens
            self.answer_tokens = envelope.usage.completion_tokens
        if not envelope.choices:
            return None
        choice = envelope.choices[0]
        self.finish_reason = choice.finish_reason or self.finish_reason
        piece = choice.delta or choice.message or _Piece()
        calls = piece.tool_calls or []
        if choice.message is not None:
            self.finish_reason = self.finish_reason or "stop"
            calls = [{"index": index, **call} for index, call in enumerate(calls)]
        return Text(piece.content or "", tuple(calls)) if piece.content or calls else None


def whole_calls(pieces: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Tool calls from the pieces in which a provider streams them: arguments are joined, the rest is as it is.

    Raises ProviderFailed for pieces that are not of this API.
    """
    calls: dict[int, dict[str, Any]] = {}
    arguments: dict[int, list[str]] = {}
    for piece in pieces:
        index, function = piece.get("index", 0), piece.get("function") or {}
        if not isinstance(index, int) or not isinstance(function, dict) or len(calls) > _CALLS_MAX:
            raise ProviderFailed("the provider's answer is not what this API promises", hint=_HINT)
        call = calls.setdefault(index, {})
        call |= {name: value for name, value in piece.items() if name not in ("index", "function") and value}
        if function:
            told = {name: value for name, value in function.items() if name != "arguments" and value}
            call["function"] = call.get("function", {}) | told
            arguments.setdefault(index, []).append(str(function.get("arguments") or ""))
    for index, parts in arguments.items():
        calls[index]["function"]["arguments"] = "".join(parts)
    return [calls[index] for index in sorted(calls)]


async def failure(status: int, chunks: AsyncIterable[bytes]) -> ProviderFailed:
    """The error for an answer of another status than 200."""
    held = bytearray()
    async for chunk in chunks:
        held += chunk[: (64 << 10) - len(held)]
    problem = _Problem()
    with contextlib.suppress(msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        problem = _decoder.decode(bytes(held)).error or problem
    texts = {
        401: "the provider does not accept the gateway's key",
        403: "the provider does not allow this",
        404: "the provider does not know this model or route",
        408: "the provider took too long",
        429: "the provider is over its limit for now",
        504: "the provider took too long",
    }
    return _failed(texts.get(status, f"the provider failed with status {status}"), problem)


def _failed(message: str, problem: _Problem) -> ProviderFailed:
    known = isinstance(problem.code, str) and _CODE.fullmatch(problem.code)
    return ProviderFailed(f"{message} ({problem.code})" if known else message, hint=_HINT)


async def _lines(chunks: AsyncIterable[bytes]) -> AsyncIterator[bytes]:
    held = bytearray()
    async for chunk in chunks:
        held += chunk
        while (end := held.find(b"\n")) >= 0:
            yield bytes(held[:end]).rstrip(b"\r")
            del held[: end + 1]
        if len(held) > _LINE_MAX:
            raise ProviderFailed("the provider's answer has a line without end", hint=_HINT)
    if held:
        yield bytes(held)

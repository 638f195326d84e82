"""How answers look in each API that the gateway carries: where a stream ends, what a model wrote, what it cost.

All that differs between OpenAI's chat completions, its responses and Anthropic's messages is here, so that upstream,
taps, quotas and the HTTP side need not know which of them they have. An answer itself is never translated.

Sources: OpenAI API reference, "Chat Completions > Streaming", "Responses > Streaming events"; Anthropic API, "Streaming
messages", "Errors"; WHATWG HTML section 9.2 (event streams).
"""

from collections.abc import Iterator
from typing import Any, Final, Protocol

import msgspec
from msgspec import Raw, Struct

from relay.gateway.errors import ProviderFailure

TEXT_MAX: Final = 1 << 20  # characters of a response that are kept to end it by
_EACH: Final = 64  # for each piece of it

_INVALID: Final = (msgspec.DecodeError, RecursionError, UnicodeDecodeError)


class Told(Struct, frozen=True):
    """What an event, or an answer, says of its cost; None where it says nothing."""

    model: str = ""
    input_tokens: int | None = None
    output_tokens: int | None = None


class Followed(Protocol):
    """One stream as it goes by."""

    def feed(self, payload: bytes) -> str:
        """The text that the model wrote in this event."""
        ...

    def cut(self, output_tokens: int = 0) -> bytes:
        """The events that end the stream here, for its length, so that a client takes it to be whole."""
        ...


class AnswerFormat(Protocol):
    """`payload` is what one `data:` line of an event stream holds, or a whole JSON answer where that is said."""

    name: str

    def ends(self, payload: bytes) -> bool:
        """Whether this event ends its stream. Raises ProviderFailure for one that tells of an error."""
        ...

    def check(self, body: bytes) -> None:
        """Raises ProviderFailure unless a whole answer is a JSON object, and no error."""
        ...

    def told(self, payload: bytes) -> Told | None:
        """Of an event or a whole answer; None where it cannot be read."""
        ...

    def text(self, payload: bytes) -> str:
        """What the model wrote in an event. What cannot be read counts as text."""
        ...

    def follow(self) -> Followed: ...

    def error(self, body: dict[str, Any]) -> bytes:
        """An event of ours that ends a stream which is not whole; `body` is a refusal, as it would be sent alone."""
        ...


def garbled() -> ProviderFailure:
    return ProviderFailure(
        "the provider's answer was cut short or is not one of its API", kind="provider_garbled", status=502
    )


def payloads(lines: bytes) -> Iterator[bytes]:
    """What the `data:` lines among whole lines of a stream hold."""
    for line in lines.split(b"\n"):
        if line.startswith(b"data:"):
            yield line[5:].strip()


class Code(Struct):
    code: str | int | None = None
    type: str | None = None


class _Usage(Struct):
    prompt_tokens: int | None = None  # chat
    completion_tokens: int | None = None
    input_tokens: int | None = None  # responses and messages
    output_tokens: int | None = None
    cache_creation_input_tokens: int | None = None  # messages: not among their input_tokens
    cache_read_input_tokens: int | None = None

    def of(self, model: str) -> Told:
        if self.prompt_tokens is not None or self.completion_tokens is not None:
            return Told(model, self.prompt_tokens, self.completion_tokens)
        asked = self.input_tokens
        if asked is not None:
            asked += (self.cache_creation_input_tokens or 0) + (self.cache_read_input_tokens or 0)
        return Told(model, asked, self.output_tokens)


class _Whole(Struct):
    """An answer, or the part of an event that describes it."""

    model: str | None = None
    usage: _Usage | None = None


class _Event(_Whole):
    """Where it stands: in the answer or chunk itself, in `response`, or in `message`."""

    response: _Whole | None = None
    message: _Whole | None = None


class _Mark(Struct):
    """What tells of an end or an error."""

    type: str | int | None = None
    status: str | int | None = None
    error: Code | str | None = None


_event = msgspec.json.Decoder(_Event)
_mark = msgspec.json.Decoder(_Mark)


class _Format:
    """What they have in common; `ENDS` are the types of last events, and `MARKS` what is not in most others."""

    name: str
    ENDS: tuple[str, ...] = ()
    FAILS: tuple[str, ...] = ("error",)
    MARKS: tuple[bytes, ...] = ()

    def ends(self, payload: bytes) -> bool:
        for mark in self.MARKS:
            if mark in payload:
                break
        else:
            if b'"error"' not in payload:
                return False
        event = self._read(payload)
        if event.type in self.FAILS or event.error is not None:
            raise _failed()
        return event.type in self.ENDS

    def check(self, body: bytes) -> None:
        answer = self._read(body)
        if answer.error is not None or answer.type == "error" or answer.status == "failed":
            raise _failed()

    def told(self, payload: bytes) -> Told | None:
        try:
            event = _event.decode(payload)
        except _INVALID:
            return None
        inner = event.response or event.message or event
        usage = inner.usage or event.usage
        return Told(inner.model or "") if usage is None else usage.of(inner.model or "")

    @staticmethod
    def _read(payload: bytes) -> _Mark:
        try:
            return _mark.decode(payload)
        except _INVALID:
            raise garbled() from None


# --- chat completions; embeddings and inference, which are never streamed, share what is said of whole answers --------


class _Function(Struct):
    name: str | None = None
    arguments: str | None = None


class _Custom(Struct):
    name: str | None = None
    input: str | None = None


class _Tool(Struct):
    function: _Function | None = None
    custom: _Custom | None = None


class _Audio(Struct):
    data: str | None = None
    transcript: str | None = None


class _Delta(Struct):
    content: str | None = None
    refusal: str | None = None
    reasoning_content: str | None = None  # of DeepSeek, vLLM
    reasoning: str | None = None  # of Ollama, OpenRouter
    tool_calls: list[_Tool] | None = None
    function_call: _Function | None = None
    audio: _Audio | None = None


class _Choice(Struct):
    index: int = 0
    delta: _Delta | None = None
    finish_reason: str | None = None


class _Chunk(Struct):
    choices: list[_Choice] = []


_chunk = msgspec.json.Decoder(_Chunk)


class _Chat(_Format):
    name = "chat"

    def ends(self, payload: bytes) -> bool:
        return payload == b"[DONE]" or super().ends(payload)

    def text(self, payload: bytes) -> str:
        return "" if payload == b"[DONE]" else self.written(payload)[0]

    @staticmethod
    def written(payload: bytes) -> tuple[str, list[_Choice]]:
        try:
            choices = _chunk.decode(payload).choices
        except _INVALID:
            return payload.decode("utf-8", "replace"), []
        if len(choices) == 1 and (delta := choices[0].delta) is not None and delta.content and not delta.tool_calls:
            return delta.content, choices  # nearly all of them
        parts: list[str | None] = []
        for choice in choices:
            if (delta := choice.delta) is not None:
                parts += [delta.content, delta.refusal, delta.reasoning_content, delta.reasoning]
                if (audio := delta.audio) is not None:  # how much sound a token is nobody says: one an event
                    parts += [audio.transcript, " " if audio.data else None]
                calls = [delta.function_call, *(tool.function for tool in delta.tool_calls or ())]
                parts += [part for call in calls if call is not None for part in (call.name, call.arguments)]
                customs = [tool.custom for tool in delta.tool_calls or ()]
                parts += [part for one in customs if one is not None for part in (one.name, one.input)]
        return "".join(filter(None, parts)), choices

    def follow(self) -> Followed:
        return _FollowedChat()

    def error(self, body: dict[str, Any]) -> bytes:
        return b"\n\ndata: " + msgspec.json.encode(body) + b"\n\n"


class _FollowedChat:
    def __init__(self) -> None:
        self._first = b""
        self._open = {0}  # choices that have not finished
        self._seen: set[int] = set()

    def feed(self, payload: bytes) -> str:
        if payload == b"[DONE]":
            return ""
        text, choices = CHAT.written(payload)
        if choices and not self._first:
            self._first = payload
        for choice in choices:
            if choice.index not in self._seen and len(self._seen) < 128:
                self._seen.add(choice.index)
                self._open.add(choice.index)
            if choice.finish_reason is not None:
                self._open.discard(choice.index)
        return text

    def cut(self, output_tokens: int = 0) -> bytes:
        like = _object(self._first) or {"id": "", "object": "chat.completion.chunk", "created": 0, "model": ""}
        kept = {name: value for name, value in like.items() if name not in ("usage", "obfuscation")}
        ends = [{"index": index, "delta": {}, "finish_reason": "length"} for index in sorted(self._open)]
        last = [] if not ends else [msgspec.json.encode(kept | {"choices": ends})]
        return b"\n" + b"".join(b"data: " + one + b"\n\n" for one in (*last, b"[DONE]"))


# --- responses --------------------------------------------------------------------------------------------------------


class _Item(Struct):
    id: str | None = None
    type: str = ""


class _Step(Struct):
    type: str = ""
    delta: Any = None
    sequence_number: int = 0
    output_index: int = 0
    item: Raw = msgspec.field(default_factory=Raw)
    response: Raw = msgspec.field(default_factory=Raw)


_step = msgspec.json.Decoder(_Step)


class _Responses(_Format):
    name = "responses"
    ENDS = ("response.completed", "response.incomplete")
    FAILS = ("error", "response.failed")
    MARKS = (b"response.completed", b"response.incomplete", b"response.failed")

    def text(self, payload: bytes) -> str:
        return self.step(payload)[0]

    @staticmethod
    def step(payload: bytes) -> tuple[str, _Step | None]:
        try:
            step = _step.decode(payload)
        except _INVALID:
            return ("" if payload == b"[DONE]" else payload.decode("utf-8", "replace")), None
        return (step.delta if isinstance(step.delta, str) else ""), step

    def follow(self) -> Followed:
        return _FollowedResponse()

    def error(self, body: dict[str, Any]) -> bytes:
        """Flat, as the reference has it, and with `error`, without which OpenAI's client does not raise."""
        inner = body.get("error", {})
        flat = {name: inner.get(name) for name in ("code", "message", "param")}
        event = {"type": "error", "sequence_number": 0, **flat, "error": inner}
        return b"\n\nevent: error\ndata: " + msgspec.json.encode(event) + b"\n\n"


class _FollowedResponse:
    """Keeps the response as it began and what has come of it, up to TEXT_MAX, for the object that ends it."""

    def __init__(self) -> None:
        self._began = b""
        self._items: dict[int, bytes] = {}
        self._done: set[int] = set()
        self._texts: dict[int, list[str]] = {}
        self._room = TEXT_MAX
        self._number = 0

    def feed(self, payload: bytes) -> str:
        text, step = RESPONSES.step(payload)
        if step is None:
            return text
        self._number = step.sequence_number
        if not self._began:
            self._began = bytes(step.response)
        if (item := bytes(step.item)) and self._takes(len(item) + _EACH):
            self._items[step.output_index] = item
            if step.type.endswith(".done"):
                self._done.add(step.output_index)
                self._texts.pop(step.output_index, None)
        elif step.type == "response.output_text.delta" and self._takes(len(text) + _EACH):
            self._texts.setdefault(step.output_index, []).append(text)
        return text

    def _takes(self, size: int) -> bool:
        self._room -= size
        return self._room >= 0

    def cut(self, output_tokens: int = 0) -> bytes:
        response = _object(self._began) or {"id": "", "object": "response", "created_at": 0, "model": ""}
        output = []
        for index, raw in sorted(self._items.items()):
            item = _object(raw)
            if index not in self._done:
                item["status"] = "incomplete"
                if index in self._texts:
                    text = "".join(self._texts[index])
                    item["content"] = [{"type": "output_text", "text": text, "annotations": []}]
            output.append(item)
        response |= {"status": "incomplete", "incomplete_details": {"reason": "max_output_tokens"}, "output": output}
        event = {"type": "response.incomplete", "sequence_number": self._number + 1, "response": response}
        return b"\nevent: response.incomplete\ndata: " + msgspec.json.encode(event) + b"\n\n"


# --- Anthropic's messages ---------------------------------------------------------------------------------------------


class _Part(Struct):
    text: str | None = None
    partial_json: str | None = None
    thinking: str | None = None


class _Block(Struct):
    type: str = ""
    index: int = 0
    delta: _Part | None = None


_block = msgspec.json.Decoder(_Block)


class _Messages(_Format):
    name = "messages"
    ENDS = ("message_stop",)
    MARKS = (b"message_stop",)

    def text(self, payload: bytes) -> str:
        return self.block(payload)[0]

    @staticmethod
    def block(payload: bytes) -> tuple[str, _Block | None]:
        try:
            block = _block.decode(payload)
        except _INVALID:
            return payload.decode("utf-8", "replace"), None
        delta = block.delta
        return ("" if delta is None else delta.text or delta.partial_json or delta.thinking or ""), block

    def follow(self) -> Followed:
        return _FollowedMessage()

    def error(self, body: dict[str, Any]) -> bytes:
        return b"\n\nevent: error\ndata: " + msgspec.json.encode(body) + b"\n\n"


class _FollowedMessage:
    def __init__(self) -> None:
        self._open: int | None = None  # the block that is being written; there is one at a time

    def feed(self, payload: bytes) -> str:
        text, block = MESSAGES.block(payload)
        if block is not None and block.type == "content_block_start":
            self._open = block.index
        elif block is not None and block.type == "content_block_stop":
            self._open = None
        return text

    def cut(self, output_tokens: int = 0) -> bytes:
        events: list[dict[str, Any]] = [
            {"type": "message_delta", "delta": {"stop_reason": "max_tokens", "stop_sequence": None},
             "usage": {"output_tokens": output_tokens}},
            {"type": "message_stop"},
        ]
        if self._open is not None:
            events.insert(0, {"type": "content_block_stop", "index": self._open})
        return b"\n" + b"".join(
            b"event: " + one["type"].encode() + b"\ndata: " + msgspec.json.encode(one) + b"\n\n" for one in events
        )


def _object(raw: bytes) -> dict[str, Any]:
    """Empty for what is none: a provider may send anything."""
    try:
        found = msgspec.json.decode(raw)
    except _INVALID:
        return {}
    return found if isinstance(found, dict) else {}


def _failed() -> ProviderFailure:
    return ProviderFailure("the provider failed", kind="provider_error", status=502)


CHAT: Final = _Chat()
RESPONSES: Final = _Responses()
MESSAGES: Final = _Messages()

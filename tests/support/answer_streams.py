"""Streams of the three APIs, made of pieces of text, and read back as a client would."""

import json
from collections.abc import Iterable
from typing import Any

FORMATS = ("chat", "responses", "messages")
TOOL = "tool"  # instead of the text: the arguments of a tool call


def event(kind: str, body: dict[str, Any]) -> bytes:
    """With the name, as OpenAI's responses and Anthropic's messages have it; chat completions have none."""
    data = json.dumps(body, ensure_ascii=False).encode()
    return (b"" if kind == "chat" else b"event: " + body["type"].encode() + b"\n") + b"data: " + data + b"\n\n"


def delta(kind: str, text: str, *, place: int = 0, what: str = "text") -> bytes:
    """An event with a piece of text, of the choice, item or block `place`."""
    if kind == "chat":
        part: dict[str, Any] = {"content": text}
        if what == TOOL:
            part = {"tool_calls": [{"index": 0, "function": {"arguments": text}}]}
        choices = [{"index": place, "delta": part, "finish_reason": None}]
        return event(kind, {"id": "c1", "object": "chat.completion.chunk", "model": "mock-1", "choices": choices})
    if kind == "responses":
        type_ = "response.function_call_arguments.delta" if what == TOOL else "response.output_text.delta"
        more = {} if what == TOOL else {"content_index": 0, "logprobs": [{"token": text}]}
        return event(kind, {"type": type_, "item_id": f"i{place}", "output_index": place, **more, "delta": text,
                            "sequence_number": 3})
    part = {"type": "input_json_delta", "partial_json": text} if what == TOOL else {"type": "text_delta", "text": text}
    return event(kind, {"type": "content_block_delta", "index": place, "delta": part})


def closed(kind: str, place: int = 0) -> bytes:
    """The text of `place` is over, and others go on."""
    if kind == "messages":
        return event(kind, {"type": "content_block_stop", "index": place})
    return b"" if kind == "chat" else event(kind, {
        "type": "response.content_part.done", "item_id": f"i{place}", "output_index": place, "sequence_number": 4,
    })


def opening(kind: str) -> bytes:
    if kind == "chat":
        return b""
    if kind == "responses":
        response = {"id": "r1", "object": "response", "status": "in_progress", "model": "mock-1", "output": [],
                    "usage": None, "error": None}
        item = {"id": "i0", "type": "message", "role": "assistant", "status": "in_progress", "content": []}
        return event(kind, {"type": "response.created", "response": response, "sequence_number": 0}) + event(kind, {
            "type": "response.output_item.added", "output_index": 0, "item": item, "sequence_number": 1,
        })
    usage = {"input_tokens": 4, "cache_read_input_tokens": 7, "output_tokens": 1}
    message = {"id": "m1", "type": "message", "role": "assistant", "model": "mock-1", "content": [],
               "stop_reason": None, "usage": usage}
    return event(kind, {"type": "message_start", "message": message}) + event(kind, {
        "type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""},
    })


def ending(kind: str, text: str = "") -> bytes:
    """11 tokens in, 5 out."""
    if kind == "chat":
        usage = {"prompt_tokens": 11, "completion_tokens": 5, "total_tokens": 16}
        return event(kind, {"id": "c1", "model": "mock-1", "choices": [], "usage": usage}) + b"data: [DONE]\n\n"
    if kind == "responses":
        return event(kind, {"type": "response.completed", "sequence_number": 9, "response": whole(kind, text)})
    return closed(kind) + event(kind, {
        "type": "message_delta", "delta": {"stop_reason": "end_turn", "stop_sequence": None},
        "usage": {"output_tokens": 5},
    }) + event(kind, {"type": "message_stop"})


def stream(kind: str, pieces: Iterable[str]) -> list[bytes]:
    """A whole one."""
    texts = list(pieces)
    return [*filter(None, [opening(kind)]), *(delta(kind, text) for text in texts), ending(kind, "".join(texts))]


def whole(kind: str, text: str) -> dict[str, Any]:
    """The same answer as one JSON object."""
    if kind == "chat":
        message = {"role": "assistant", "content": text}
        return {"id": "c1", "object": "chat.completion", "model": "mock-1",
                "usage": {"prompt_tokens": 11, "completion_tokens": 5, "total_tokens": 16},
                "choices": [{"index": 0, "message": message, "finish_reason": "stop"}]}
    if kind == "responses":
        part = {"type": "output_text", "text": text, "annotations": [], "logprobs": []}
        item = {"id": "i0", "type": "message", "role": "assistant", "status": "completed", "content": [part]}
        return {"id": "r1", "object": "response", "created_at": 0, "status": "completed", "model": "mock-1",
                "output": [item], "parallel_tool_calls": True, "tool_choice": "auto", "tools": [], "error": None,
                "usage": {"input_tokens": 11, "output_tokens": 5, "total_tokens": 16,
                          "input_tokens_details": {"cached_tokens": 0},
                          "output_tokens_details": {"reasoning_tokens": 0}}}
    return {"id": "m1", "type": "message", "role": "assistant", "model": "mock-1", "stop_reason": "end_turn",
            "content": [{"type": "text", "text": text}], "usage": {"input_tokens": 11, "output_tokens": 5}}


def events(data: bytes) -> list[dict[str, Any]]:
    return [json.loads(line[6:]) for line in data.splitlines() if line.startswith(b"data: {")]


def written(kind: str, data: bytes, *, place: int = 0, what: str = "text") -> str:
    """The text that a stream makes of `place`."""
    out = []
    for one in events(data):
        if kind == "chat":
            for choice in one["choices"]:
                if choice["index"] == place:
                    part = choice["delta"]
                    call = "".join(tool["function"]["arguments"] for tool in part.get("tool_calls", []))
                    out.append(call if what == TOOL else part.get("content") or "")
        elif one["type"] in ("response.output_text.delta", "response.function_call_arguments.delta"):
            if one["item_id"] == f"i{place}":
                out.append(one["delta"])
        elif one["type"] == "content_block_delta" and one["index"] == place:
            out.append(one["delta"]["partial_json" if what == TOOL else "text"])
    return "".join(out)


def ends_whole(kind: str, data: bytes) -> bool:
    """Whether a client takes the stream to be whole."""
    if kind == "chat":
        return data.endswith(b"data: [DONE]\n\n")
    last = events(data)[-1]["type"]
    return last in ("response.completed", "response.incomplete", "message_stop")

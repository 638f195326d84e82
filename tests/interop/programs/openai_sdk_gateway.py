"""What a program does with the official SDK at a gateway: prints one JSON object of what it saw."""

import json
import sys

import openai

MESSAGES = [{"role": "user", "content": "hello"}]
saw = {}


def failure(attempt):
    try:
        attempt()
    except openai.APIStatusError as error:
        return [type(error).__name__, error.code, error.status_code]
    except openai.APIError as error:
        return [type(error).__name__, error.code]
    return None


def read(stream):
    return lambda: list(stream())


with openai.OpenAI() as client:
    saw["models"] = [model.id for model in client.models.list()]
    for name in ("small", "alias"):
        whole = client.chat.completions.create(model=name, messages=MESSAGES, response_format={"type": "json_object"})
        saw[name] = [whole.choices[0].message.content, whole.usage.completion_tokens, whole.model]
    chunks = list(client.chat.completions.create(
        model="small", messages=MESSAGES, stream=True, stream_options={"include_usage": True}
    ))
    saw["streamed"] = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    saw["streamed_usage"] = chunks[-1].usage.total_tokens
    response = client.responses.create(model="small", input="hello", store=False)
    saw["response"] = [response.output_text, response.usage.output_tokens, response.status]
    events = list(client.responses.create(model="small", input="hello", store=False, stream=True))
    saw["response_streamed"] = "".join(event.delta for event in events if event.type == "response.output_text.delta")
    saw["response_final"] = [events[-1].type, events[-1].response.output_text]
    vectors = client.embeddings.create(model="small", input=["one"])
    saw["vectors"] = [entry.embedding for entry in vectors.data]
    saw["refused"] = failure(lambda: client.chat.completions.create(model="nobody-s", messages=MESSAGES))
    saw["elsewhere"] = failure(lambda: client.chat.completions.create(model="claude", messages=MESSAGES))
    saw["malformed"] = failure(lambda: client.chat.completions.create(model="small", messages=[]))
    saw["broken"] = failure(read(lambda: client.chat.completions.create(
        model="broken", messages=MESSAGES, stream=True
    )))
    saw["broken_response"] = failure(read(lambda: client.responses.create(
        model="broken", input="hello", store=False, stream=True
    )))
    saw["once"] = failure(lambda: client.chat.completions.create(model="failing", messages=MESSAGES))
json.dump(saw, sys.stdout)

"""What a program does with the official SDK: prints one JSON object of what it saw."""

import asyncio
import json
import sys

import openai

MESSAGES = [{"role": "user", "content": "hello"}]
TOOLS = [{"type": "function", "function": {"name": "pressure", "parameters": {"type": "object", "properties": {}}}}]
saw = {}

with openai.OpenAI() as client:
    saw["models"] = [model.id for model in client.models.list()]
    saw["model"] = client.models.retrieve("auto").id
    whole = client.chat.completions.create(model="local", messages=MESSAGES)
    saw["whole"] = [whole.choices[0].message.content, whole.usage.total_tokens, whole.model_extra["causeway"]["route"]]
    stream = client.chat.completions.create(
        model="local", messages=MESSAGES, stream=True, stream_options={"include_usage": True}
    )
    chunks = list(stream)
    saw["streamed"] = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    saw["streamed_usage"] = chunks[-1].usage.total_tokens
    with client.chat.completions.stream(model="cloud-tools", messages=MESSAGES, tools=TOOLS) as events:
        call = events.get_final_completion().choices[0].message.tool_calls[0]
    saw["called"] = [call.id, call.function.name, call.function.arguments]
    whole = client.chat.completions.create(model="cloud-tools", messages=MESSAGES, tools=TOOLS, tool_choice="auto")
    saw["called_whole"] = whole.choices[0].message.tool_calls[0].function.arguments
    response = client.responses.create(model="local", input="hello", instructions="be kind")
    saw["response"] = [response.output_text, response.usage.total_tokens, response.status]
    with client.responses.stream(model="local", input=[{"role": "user", "content": "hello"}]) as events:
        saw["response_deltas"] = [event.delta for event in events if event.type == "response.output_text.delta"]
        saw["response_streamed"] = events.get_final_response().output_text
    vectors = client.embeddings.create(model="local", input=["one", "two words"])
    saw["vectors"] = [[len(entry.embedding), round(sum(x * x for x in entry.embedding), 3)] for entry in vectors.data]
    numbers = client.embeddings.create(model="local", input="one", encoding_format="float")
    saw["same_vector"] = max(
        abs(a - b) for a, b in zip(numbers.data[0].embedding, vectors.data[0].embedding, strict=True)
    ) < 1e-6
    errors = {}
    for name, attempt in {
        "unknown": lambda: client.chat.completions.create(model="gpt-99", messages=MESSAGES),
        "empty": lambda: client.chat.completions.create(model="local", messages=[{"role": "user", "content": " "}]),
        "refused": lambda: client.chat.completions.create(model="cloud-refuses", messages=MESSAGES),
        "unclear": lambda: client.chat.completions.create(model="cloud-unclear", messages=MESSAGES),
        "token": lambda: client.with_options(api_key="x" * 43).models.list(),
    }.items():
        try:
            attempt()
        except openai.APIStatusError as error:
            errors[name] = [type(error).__name__, error.code]
    saw["errors"] = errors
    try:
        for _ in client.chat.completions.create(model="cloud-breaks", messages=MESSAGES, stream=True):
            pass
    except openai.APIError as error:
        saw["broken"] = error.code


async def concurrently():
    async with openai.AsyncOpenAI() as client:
        async def one():
            return (await client.chat.completions.create(model="local", messages=MESSAGES)).choices[0].message.content

        async def pieces():
            stream = await client.chat.completions.create(model="local", messages=MESSAGES, stream=True)
            return "".join([chunk.choices[0].delta.content or "" async for chunk in stream if chunk.choices])

        return await asyncio.gather(one(), pieces(), one(), pieces())


saw["async"] = asyncio.run(concurrently())
json.dump(saw, sys.stdout)

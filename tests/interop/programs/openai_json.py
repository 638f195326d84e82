"""JSON mode and a vector by the official SDK: prints what came, parsed."""

import json

import openai

PUMP = {
    "type": "object", "required": ["name", "bar"],
    "properties": {
        "name": {"type": "string", "maxLength": 20}, "bar": {"type": "integer", "minimum": 0, "maximum": 99},
    },
}
asked = {
    "model": "local", "messages": [{"role": "user", "content": "Give a JSON object about a pump."}], "max_tokens": 120,
    "response_format": {"type": "json_schema", "json_schema": {"name": "pump", "schema": PUMP}},
}
with openai.OpenAI() as client:
    whole = client.chat.completions.create(**asked).choices[0].message.content
    stream = client.chat.completions.create(**asked, stream=True)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in stream)
    vector = client.embeddings.create(model="local", input="a pump").data[0].embedding
print(json.dumps([json.loads(whole), json.loads(text), len(vector)]))

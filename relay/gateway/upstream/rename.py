"""Another model's name in a request's body, and not a byte else."""

import re
from typing import Final

import msgspec

# A string, with the colon behind it if it names a member; or a bracket. Possessive: no text makes it go back.
_TOKEN: Final = re.compile(rb'("(?:[^"\\]++|\\.)*+")[ \t\r\n]*+(:?)|[{}\[\]]', re.DOTALL)

_KEY: Final = b'"model"'
_ESCAPED: Final = b"\\u006"  # how each letter of it could be written otherwise
_MEMBER: Final = re.compile(rb'"model"[ \t\r\n]*+:[ \t\r\n]*+("(?:[^"\\]++|\\.)*+")', re.DOTALL)


def renamed(body: bytes, model: str) -> bytes:
    """`body` with the value of its own `model` replaced. It is a JSON object that passed `schema`: no name twice."""
    at = body.find(_KEY)
    if at == body.rfind(_KEY) and _ESCAPED not in body and (only := _MEMBER.match(body, at)) is not None:
        return body[:only.start(1)] + msgspec.json.encode(model) + body[only.end(1):]  # nearly always
    depth, named = 0, False
    for token in _TOKEN.finditer(body):
        text = token[1]
        if text is None:
            depth += 1 if token[0] in b"{[" else -1
        elif token[2]:
            named = depth == 1 and msgspec.json.decode(text) == "model"
        elif named:
            return body[:token.start(1)] + msgspec.json.encode(model) + body[token.end(1):]
    raise ValueError("a request without a model")  # schema lets none pass

"""What is published of the requests: JSON Schema 2020-12 of each endpoint,
and OpenAPI 3.1; from the Structs that check.

Of what JSON Schema cannot say,
    `x-limits` has the numbers and docs/GATEWAY_API.md the words. A body that fits its schema
may be refused for these; one that does not fit is refused always.
"""

import functools
from typing import Any, Final

import msgspec

from relay.gateway.checks.fields import BODY_MAX
from relay.gateway.checks.problems import MEDIA_TYPE, PROBLEMS
from relay.gateway.checks.reading import DEPTH_MAX, DIGITS_MAX, NODES_MAX
from relay.gateway.checks.schema import REQUESTS

DIALECT: Final = "https://json-schema.org/draft/2020-12/schema"
PATHS: Final = {  # of the operations
    "chat": "/v1/chat/completions", "responses": "/v1/responses", "embeddings": "/v1/embeddings",
    "messages": "/v1/messages", "infer": "/v2/models/{name}/infer",
}
_STREAMED: Final = ("chat", "responses", "messages")
_LIMITS: Final = {"bytes": BODY_MAX, "depth": DEPTH_MAX, "parts": NODES_MAX, "characters of a number": DIGITS_MAX}
_BY_HTTPS: Final = sorted({one.status for one in PROBLEMS.values()} - {499})  # by a session alone


@functools.cache
def schemas() -> dict[str, dict[str, Any]]:
    """A document of JSON Schema for each operation."""
    return {operation: _document(operation) for operation in REQUESTS}


def _document(operation: str) -> dict[str, Any]:
    (top,), parts = _components([operation], "#/$defs/{name}")
    return {"$schema": DIALECT, "$id": f"/schemas/{operation}.json", **top, "$defs": parts}


@functools.cache
def openapi() -> dict[str, Any]:
    """The document of OpenAPI, with every kind of refusal under `x-problems`."""
    tops, parts = _components(list(REQUESTS), "#/components/schemas/{name}")
    paths: dict[str, dict[str, Any]] = {
        PATHS[operation]: {"post": _operation(operation, top)} for operation, top in zip(REQUESTS, tops, strict=True)
    }
    paths[PATHS["infer"]]["parameters"] = [_parameter("name", "^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
    models = {"operationId": "models", "summary": "The models that this device may use.", "responses": {
        "200": {"description": "A list.", "content": _json({"type": "object", "required": ["object", "data"]})},
        **_refusals(),
    }}
    return {
        "openapi": "3.1.0", "jsonSchemaDialect": DIALECT,
        "info": {
            "title": "Causeway gateway", "version": "1", "x-limits": _LIMITS,
            "description": "By HTTPS and in an edge's session alike. docs/GATEWAY_API.md says the rest.",
        },
        "security": [{"svid": []}, {"token": []}],
        "paths": {**paths, "/v1/models": {"get": models}},
        "components": {
            "schemas": {**parts, "Refusal": _refusal(), "AnthropicRefusal": _refusal(anthropic=True)},
            "securitySchemes": {
                "svid": {"type": "mutualTLS", "description": "A short-lived certificate of the trust domain."},
                "token": {"type": "http", "scheme": "DPoP", "description": "Of /oauth/token, bound to key or SVID."},
            },
        },
        "x-problems": {code: problem._asdict() for code, problem in PROBLEMS.items()},
    }


@functools.cache
def published(name: str) -> bytes | None:
    """`openapi`, or the schema of an operation, as JSON; None if there is no such document."""
    found = openapi() if name == "openapi" else schemas().get(name)
    return None if found is None else msgspec.json.format(msgspec.json.encode(found), indent=1) + b"\n"


def errors() -> str:
    """The table of all refusals for a page."""
    rows = (f"| `{code}` | {one.status} | {one.title} | {one.remedy} |" for code, one in PROBLEMS.items())
    return "\n".join(["| code | status | when | what to do |", "| --- | --- | --- | --- |", *rows])


def _components(operations: list[str], template: str) -> tuple[tuple[dict[str, Any], ...], dict[str, Any]]:
    made = msgspec.json.schema_components([REQUESTS[operation] for operation in operations], ref_template=template)
    text = msgspec.json.encode(made).decode()
    # Names of their modules tell classes of one name apart; Python's end of a text is `$` elsewhere.
    tops, parts = msgspec.json.decode(text.replace("relay.gateway.checks.", "").replace("\\\\Z", "$"))
    if "ResponsesRequest" in parts:
        parts[next(name for name in ("responses.Message", "Message") if name in parts)]["required"].remove("type")
        for one in parts["ResponsesRequest"]["properties"]["input"]["anyOf"]:
            one.get("items", {}).pop("discriminator", None)  # which needs a type in all
    return tuple(tops), parts


def _operation(operation: str, top: dict[str, Any]) -> dict[str, Any]:
    answer = _json({"type": "object"})
    if operation in _STREAMED:
        answer["text/event-stream"] = {"schema": {"type": "string"}}
    return {
        "operationId": operation, "summary": REQUESTS[operation].__doc__,
        "requestBody": {"required": True, "content": _json(top)},
        "responses": {
            "200": {"description": "The provider's answer.", "content": answer},
            **_refusals("AnthropicRefusal" if operation == "messages" else "Refusal"),
        },
    }


def _refusals(shape: str = "Refusal") -> dict[str, Any]:
    schema = {"$ref": f"#/components/schemas/{shape}"}
    return {str(status): {
        "description": ", ".join(code for code, one in PROBLEMS.items() if one.status == status),
        "content": {**_json(schema), MEDIA_TYPE: {"schema": schema}},
    } for status in _BY_HTTPS}


def _refusal(*, anthropic: bool = False) -> dict[str, Any]:
    text = {"type": "string"}
    error = {"message": text, "type": text, "param": {"type": ["string", "null"]}, "code": {"enum": sorted(PROBLEMS)},
             "trace_id": {"type": "string", "pattern": "^[0-9a-f]{32}$"}}
    members = {"error": {"type": "object", "required": sorted(error), "properties": error},
               "type": {"const": "error"} if anthropic else {"type": "string", "format": "uri-reference"},
               "title": text, "status": {"type": "integer"}, "detail": text, "instance": text}
    return {"type": "object", "required": sorted(members), "properties": members}


def _parameter(name: str, pattern: str) -> dict[str, Any]:
    return {"name": name, "in": "path", "required": True, "schema": {"type": "string", "pattern": pattern}}


def _json(schema: dict[str, Any]) -> dict[str, Any]:
    return {"application/json": {"schema": schema}}

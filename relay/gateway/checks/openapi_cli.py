"""`relay gateway openapi`."""

from typing import Annotated

import typer


def openapi(
    schema: Annotated[str, typer.Option(
        "--schema", metavar="NAME", help="One endpoint's JSON Schema: chat, responses, embeddings, messages, infer.",
    )] = "",
) -> None:
    """Print what the gateway takes, as OpenAPI 3.1; it serves the same at /openapi.json."""
    from relay.gateway.checks.openapi import published
    from relay.gateway.errors import NotFound

    body = published(schema or "openapi")
    if body is None:
        raise NotFound("there is no such endpoint", hint="chat, responses, embeddings, messages or infer")
    typer.echo(body, nl=False)

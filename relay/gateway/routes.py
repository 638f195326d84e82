"""Every door of the gateway, with the verb that policy decides on. What is not here does not exist, or fails a test."""

import re
from dataclasses import dataclass, replace
from typing import Final

from relay.gateway.upstream.formats import CHAT, MESSAGES, RESPONSES, AnswerFormat


@dataclass(frozen=True)
class Route:
    """`operation` names who answers it (and is the GenAI operation name); `bodied` routes carry a JSON body.

    `model`: the one that the route itself names; "" where the body does, or none is meant. `format`: of its answers.
    """

    operation: str
    verb: str
    bodied: bool
    model: str = ""
    format: AnswerFormat = CHAT


ROUTES: Final[dict[tuple[str, str], Route]] = {
    ("POST", "/v1/chat/completions"): Route("chat", "model:invoke", bodied=True),
    ("POST", "/v1/responses"): Route("responses", "model:invoke", bodied=True, format=RESPONSES),
    ("POST", "/v1/embeddings"): Route("embeddings", "model:invoke", bodied=True),
    ("POST", "/v1/messages"): Route("messages", "model:invoke", bodied=True, format=MESSAGES),
    ("GET", "/v1/models"): Route("models", "model:invoke", bodied=False),  # of those that it may
    ("POST", "/v2/models/NAME/infer"): Route("infer", "model:invoke", bodied=True),
}
_INFER = re.compile(r"/v2/models/([A-Za-z0-9][A-Za-z0-9._-]{0,63})/infer", re.ASCII)

# By HTTPS. OPEN: who asks has no identity yet and shows an invitation or a key, or nothing of anybody's is told.
OPEN: Final = "open"
HTTPS_ROUTES: Final[dict[tuple[str, str], str]] = {
    ("GET", "/v1/bundle"): OPEN,
    ("POST", "/v1/join/nonce"): OPEN,
    ("POST", "/v1/join"): OPEN,
    ("POST", "/v1/renew"): OPEN,
    ("POST", "/v1/revocations"): "relay:use",  # of hops, by their role; what they bring is believed for its signature
    ("GET", "/v1/tunnel"): "relay:use",  # decided for each request and the device that makes it, in `requests`
    ("POST", "/v1/chat/completions"): "model:invoke",  # as in a session: decided in `checks.authorise`
    ("POST", "/v1/responses"): "model:invoke",
    ("POST", "/v1/embeddings"): "model:invoke",
    ("POST", "/v1/messages"): "model:invoke",
    ("GET", "/v1/models"): "model:invoke",
    ("POST", "/v2/models/{name}/infer"): "model:invoke",
    ("POST", "/oauth/token"): OPEN,  # what its tokens allow is decided with each request that they come with
    ("GET", "/oauth/jwks"): OPEN,
    ("GET", "/.well-known/oauth-authorization-server"): OPEN,
    ("GET", "/openapi.json"): OPEN,  # what is in docs/openapi.json
    ("GET", "/schemas/{name}.json"): OPEN,
    ("GET", "/v1/edge"): OPEN,  # the session inside has the identity
    ("GET", "/healthz"): OPEN,
    ("GET", "/hop"): OPEN,  # the public listener, from here on
    ("GET", "/hop/FILE"): OPEN,
    ("POST", "/hop/join"): OPEN,
    ("POST", "/hop/token"): OPEN,
    ("GET", "/hop/tunnel"): "relay:use",  # as /v1/tunnel
}

# By the control socket, which is the gateway's own user's alone; policy is not asked there, whoever reads it owns it.
ADMIN_OPERATIONS: Final[dict[str, str]] = {
    "invite": "admin:invite",
    "devices": "admin:devices",
    "trace": "admin:trace",
    "policy_reload": "admin:policy",
    "revoke": "admin:revoke",
    "reinstate": "admin:reinstate",
    "snapshot": "admin:backup",
    "examine": "admin:doctor",
    "rotate_tokens": "admin:keys",
    "usage": "admin:usage",
}


def find(method: str, route: str) -> Route | None:
    """The route of a request; None if there is none."""
    if (exact := ROUTES.get((method, route))) is not None and "NAME" not in route:
        return exact
    if method == "POST" and (found := _INFER.fullmatch(route)) is not None:
        return replace(ROUTES["POST", "/v2/models/NAME/infer"], model=found[1])
    return None

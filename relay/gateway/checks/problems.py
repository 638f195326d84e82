"""Every refusal there is, and how it is told by HTTP: one object that OpenAI's clients and RFC 9457 readers understand.

`error` is as OpenAI has it; `type`, `title`, `status`, `detail` and `instance` stand beside it. On `/v1/messages` it is
Anthropic's: there `type` is "error", which a reader of RFC 9457 takes for a type that it does not know.
"""

from typing import TYPE_CHECKING, Any, Final, NamedTuple

if TYPE_CHECKING:
    from relay.gateway.pipeline import Refusal

MEDIA_TYPE: Final = "application/problem+json"  # for who asks for it; OpenAI's clients look for application/json
TYPE: Final = "/openapi.json#/x-problems/"  # relative to the gateway, where it can be looked up; the code behind it


class Problem(NamedTuple):
    """A kind of refusal, in words that never change with the request."""

    status: int
    title: str
    remedy: str


_LATER: Final = "try again later"
_ADMIN: Final = "ask whoever runs the gateway; its audit says more under the trace id"
_FIX: Final = "mend the request; `param` names the field"
_UNKNOWN_OUTCOME: Final = "the model may have been called, and billed; ask again only if that does not matter"

PROBLEMS: Final[dict[str, Problem]] = {
    # the request
    "malformed_json": Problem(400, "the body is not a JSON object that every parser reads alike", "mend the body"),
    "ambiguous_json": Problem(400, "a field is named twice", "name it once; case does not tell fields apart"),
    "json_too_deep": Problem(400, "nested over 32 levels, or over 100,000 parts", "send less, or flatter"),
    "unknown_field": Problem(400, "a field that this endpoint does not have", "leave it out; `param` names its place"),
    "invalid_request": Problem(400, "a field is missing or not valid", _FIX),
    "empty_prompt": Problem(400, "there is nothing to answer", "send some text"),
    "remote_content": Problem(400, "something is to be fetched from elsewhere", "send it along, as a data: URL"),
    "provider_state": Problem(400, "something refers to what the provider keeps", "send what is meant along"),
    "hosted_tool": Problem(400, "a tool that the provider would run", "run tools yourself, as functions"),
    "unexpected_body": Problem(400, "this route takes no body", "send none"),
    "bad_request": Problem(400, "the request is not whole", "send it whole"),
    "bad_expiry": Problem(400, "the expiry is more than 7 days ahead", "set the clock right"),
    "request_too_large": Problem(413, "the body is over 1 MiB", "send less"),
    "unsupported_content_type": Problem(415, "the body is not application/json", "say Content-Type: application/json"),
    "unsupported_encoding": Problem(415, "the body is compressed", "send it as it is"),
    "request_timeout": Problem(408, "the body came too slowly", _LATER),
    "request_expired": Problem(410, "the request is past the time its sender set", "ask anew"),
    "unknown_route": Problem(404, "there is no such route", "`/openapi.json` has those there are"),
    "model_not_on_route": Problem(404, "no provider has the model on this route", "ask by another of its routes"),
    "method_not_allowed": Problem(405, "this route is there for other methods", "`Allow` names them"),
    # who asks
    "identity_unknown": Problem(401, "nobody knows who asks", "show the SVID, or a token"),
    "identity_expired": Problem(401, "the certificate has run out", "renew it; an edge does so by itself"),
    "identity_refused": Problem(403, "the device is not registered, or revoked", _ADMIN),
    "invalid_token": Problem(401, "the token is not good", "ask for a new one; once"),
    "invalid_dpop_proof": Problem(401, "the proof of the key is not valid", "make a new proof; is the clock right?"),
    "use_dpop_nonce": Problem(401, "the proof lacks our nonce", "again, with the nonce of this answer"),
    # what it may
    "not_allowed": Problem(403, "nothing is granted to this device", _ADMIN),
    "model_not_allowed": Problem(403, "this model is not granted to it", "`/v1/models` lists those that are"),
    "relay_not_allowed": Problem(403, "not by this hop", "come by another, or by HTTPS"),
    "quarantined": Problem(403, "the device is under suspicion, and in quarantine", _ADMIN),
    "throttled": Problem(429, "the device is under suspicion, and slowed down", "wait as long as Retry-After says"),
    "policy_changed": Problem(403, "new rules do not allow the rest of the answer", _ADMIN),
    "policy_unavailable": Problem(503, "policy cannot be asked", _LATER),
    "prompt_refused": Problem(403, "the wording is like an attempt to take over the model", _ADMIN),
    "inspection_unavailable": Problem(503, "requests cannot be inspected", _LATER),
    # how much
    "too_many_requests": Problem(429, "too many requests at once", _LATER),
    "rate_limited": Problem(429, "its requests in a window are used up", "come again after `Retry-After`"),
    "quota_exceeded": Problem(429, "its tokens in a window are used up", "after `Retry-After`, or lower max_tokens"),
    "budget_exceeded": Problem(429, "its money in a window is used up", "after `Retry-After`, or with a cheaper model"),
    "overloaded": Problem(503, "too much to do for all clients together", _LATER),
    "shutting_down": Problem(503, "the gateway is shutting down", _LATER),
    "journal_full": Problem(429, "too much of the device's answers waits", "fetch and acknowledge them"),
    # the provider
    "provider_unavailable": Problem(503, "the provider failed before, and is not asked for now", _LATER),
    "provider_unreachable": Problem(502, "no connection to the provider", _LATER),
    "provider_auth": Problem(502, "the provider refused the gateway's key", _ADMIN),
    "provider_rate_limited": Problem(429, "the provider limits the gateway's rate", _LATER),
    "provider_rejected": Problem(400, "the provider refused the request", "see its reason in the message"),
    "provider_error": Problem(502, "the provider failed", _UNKNOWN_OUTCOME),
    "provider_timeout": Problem(504, "the provider did not answer in time", _UNKNOWN_OUTCOME),
    "provider_garbled": Problem(502, "the answer was cut short, or is none of its API", _UNKNOWN_OUTCOME),
    # an edge's request, by its id
    "journal_unavailable": Problem(503, "without its journal the gateway calls nobody", _LATER),
    "unknown_request": Problem(404, "nothing is known of this request id", "send the request itself"),
    "id_conflict": Problem(409, "the id was used for another request", "use a new id"),
    "interrupted": Problem(409, "the gateway stopped while it was under way", _UNKNOWN_OUTCOME),
    "cancelled": Problem(499, "the edge cancelled it", "nothing"),
    "acknowledged": Problem(410, "the answer was acknowledged, and is gone", "nothing"),
    "superseded": Problem(409, "a newer stream took over this answer", "nothing"),
    # ourselves
    "audit_unavailable": Problem(503, "without an audit record nothing is done", _ADMIN),
    "internal_error": Problem(500, "the gateway failed", _ADMIN),
}

_ANTHROPIC: Final = {
    401: "authentication_error", 403: "permission_error", 404: "not_found_error", 413: "request_too_large",
    429: "rate_limit_error", 503: "overloaded_error", 504: "timeout_error",
}


def body(refusal: "Refusal", trace_id: str, route: str = "") -> dict[str, Any]:
    """The JSON object for a client of `route`."""
    code, status = refusal.code, refusal.status
    known = PROBLEMS.get(code)
    told = {
        "title": known.title if known else code, "status": status, "detail": refusal.message,
        "instance": f"urn:causeway:trace:{trace_id}",
    }
    common = {"message": refusal.message, "param": refusal.param, "code": code, "trace_id": trace_id}
    if route == "/v1/messages":
        kind = _ANTHROPIC.get(status, "invalid_request_error" if status < 500 else "api_error")
        return {"type": "error", "error": {"type": kind, **common}, "request_id": trace_id, **told}
    kind = "server_error" if status >= 500 else "invalid_request_error"
    return {"error": {"type": kind, **common}, "type": TYPE + code, **told}


def media_type(accept: str) -> str:
    """Of a refusal, by the request's Accept."""
    return MEDIA_TYPE if MEDIA_TYPE in accept else "application/json"

"""Errors as OpenAI's API has them: `{"error": {"message", "type", "param", "code"}}`, and a word on trying again.

The clients of this API repeat by themselves what ended in 408, 409, 429 or 5xx. A relayed request may not be repeated
so: its provider may have done the work, or it waits in the outbox. `x-should-retry`, which those clients heed, says it.
"""

import re
from typing import Any, Final

from aiohttp import web

__all__ = ["error_object", "error_response", "failure_object", "failure_response"]

_STATUS: Final = {
    "user": 400, "identity": 403, "policy": 403, "provider": 502, "link": 503, "peer": 502, "store": 503,
    "unknown_outcome": 409,
}
# The server's doing, not the request's.
_OWN: Final = {
    "model_not_found": 404, "model_missing": 503, "model_unusable": 503, "memory_short": 503, "engine_busy": 429,
    "store_locked": 423,  # RFC 4918 section 11.3; clients of this API do not repeat it
}
_RETRY: Final = "x-should-retry"
_REASON: Final = re.compile(r"[a-z][a-z0-9_]{1,47}", re.ASCII)


def error_object(status: int, code: str, message: str) -> dict[str, Any]:
    kinds = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
    kind = kinds.get(status, "invalid_request_error" if status < 500 else "server_error")
    return {"error": {"message": message, "type": kind, "param": None, "code": code}}


def error_response(status: int, code: str, message: str) -> web.Response:
    return web.json_response(error_object(status, code, message), status=status, headers={_RETRY: "false"})


def failure_object(error: Exception) -> tuple[int, dict[str, Any]]:
    """Status and body for an error of the edge, the wire or the store; anything else is a bare 500.

    What the gateway refused has its status and its code (docs/SPEC.md section 11), but for 401, which is our token's.
    """
    code, fault = getattr(error, "code", None), getattr(error, "fault", None)
    if not isinstance(code, str) or not isinstance(fault, str):
        return 500, error_object(500, "internal_error", "something unexpected went wrong")
    status = _OWN.get(code) or _STATUS.get(fault, 500)
    told, reason = getattr(error, "status", None), getattr(error, "reason", None)
    if isinstance(told, int) and 400 <= told < 600 and isinstance(reason, str) and _REASON.fullmatch(reason):
        status, code = 403 if told == 401 else told, reason
    hint = getattr(error, "hint", None)
    # The one code that clients of this API act upon.
    code = "context_length_exceeded" if code == "prompt_too_long" else code
    return status, error_object(status, code, f"{error} ({hint})" if hint else str(error))


def failure_response(error: Exception) -> web.Response:
    status, body = failure_object(error)
    again = "true" if getattr(error, "retryable", False) is True else "false"
    return web.json_response(body, status=status, headers={_RETRY: again})

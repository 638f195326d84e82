"""What can go wrong on a hop, apart from links and identities (transport.errors) and the sealed file (store.errors).

    HopError
     +-- HopMisuse       fault user    wrong options, not joined yet, joined already
     +-- GatewayAnswer   fault peer    the gateway answered what makes no sense
     +-- JoinRefused     fault policy  the gateway said no, with one of its codes
"""

from typing import ClassVar


class HopError(Exception):
    """Root. The message is lower case, without a final period."""

    code: ClassVar[str] = "hop_error"
    fault: ClassVar[str] = "local"

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.hint = hint


class HopMisuse(HopError):
    code = "hop_misuse"
    fault = "user"


class GatewayAnswer(HopError):
    code = "gateway_answer"
    fault = "peer"


class JoinRefused(HopError):
    """`reason` is the gateway's code, or "other" if it is not a plain word."""

    code = "join_refused"
    fault = "policy"

    def __init__(self, message: str, *, reason: str, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.reason = reason

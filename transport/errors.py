"""Errors of the wire. Each says whose fault it is, carries a stable code, and never echoes secrets or peer bytes.

    TransportError
     +-- LocalMisuse           fault local     our own code called something out of order
     +-- SignerFailed          fault store     what holds one of our keys did not sign, or did not answer a challenge
     +-- BadInput              fault user      an invitation or endpoint that does not parse
     |    +-- NotSpiffeId      fault user      a SPIFFE ID or trust domain name that is none; `rule` says why
     +-- ProtocolViolation     fault peer      the peer sent what the specification forbids
     |    +-- DecryptFailed    fault peer      an AEAD tag did not verify; one text for every cause
     +-- IdentityRefused       fault identity  a certificate, role or signature was not acceptable
     |    +-- IdentityExpired  fault identity  outside its validity; also how a wrong clock shows
     +-- AgentLost             fault identity  the SPIFFE agent that this side's identity comes from does not answer
     +-- PeerRefused           fault policy    the peer said no, with a code from the specification
     +-- RequestRefused        fault policy    the gateway ended one request; `reason`, `status` and `may_retry` say how
     +-- StreamEnded           fault link      nobody waits for this answer any more: cancelled, or the session is gone
     +-- Overloaded            fault peer      a limit of ours or theirs is reached; try later
     +-- TicketRefused         fault link      the gateway does not know this ticket; a full handshake will do
     +-- LinkLost              fault link      the link ended without an authenticated close
     +-- HandshakeTimeout      fault link      the peer made no progress in time

Retrying helps after TicketRefused, LinkLost, HandshakeTimeout, Overloaded and AgentLost, and after nothing else.
"""

from typing import ClassVar, Literal

CloseReason = Literal["done", "idle", "limit", "shutdown", "error"]  # why an end closes a link
LostReason = Literal["lost", "idle", "limit", "shutdown", "error", "out_of_range", "unavailable", "refused"]


class TransportError(Exception):
    """Root of everything `transport` raises. The message is lower case, without a final period."""

    code: ClassVar[str] = "transport_error"
    fault: ClassVar[str] = "local"
    retryable: ClassVar[bool] = False

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.hint = hint


class LocalMisuse(TransportError):
    code = "local_misuse"


class SignerFailed(TransportError):
    """Another key or another link changes nothing about it; what holds the key has to be mended."""

    code = "signer_failed"
    fault = "store"


class BadInput(TransportError):
    code = "bad_input"
    fault = "user"


class NotSpiffeId(BadInput):
    """`rule` names the rule of SPIFFE-ID section 2 that is broken (docs/SPIFFE.md)."""

    def __init__(self, message: str, *, rule: str, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.rule = rule


class ProtocolViolation(TransportError):
    code = "protocol_violation"
    fault = "peer"


class DecryptFailed(ProtocolViolation):
    """A tag did not verify. Same text whatever was wrong, so that nothing can be probed."""

    code = "decrypt_failed"

    def __init__(self) -> None:
        super().__init__("message did not authenticate")


class IdentityRefused(TransportError):
    """`rule` names the broken rule for logs and people on our side; it never travels to the peer."""

    code = "identity_refused"
    fault = "identity"

    def __init__(self, message: str, *, rule: str, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.rule = rule


class IdentityExpired(IdentityRefused):
    code = "identity_expired"


class AgentLost(TransportError):
    """`reason` is "unreachable", "no identity" (the agent answers, but not for this process) or "answer"."""

    code = "agent_lost"
    fault = "identity"
    retryable = True

    def __init__(self, message: str, *, reason: str, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.reason = reason


class PeerRefused(TransportError):
    """The peer ended the exchange with `reason`, a code of the specification's table (unknown codes read `other`)."""

    code = "peer_refused"
    fault = "policy"

    def __init__(self, message: str, *, reason: str, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.reason = reason


class RequestRefused(TransportError):
    """`reason` and `status` are the gateway's; `may_retry` only if no provider accepted the request."""

    code = "request_refused"
    fault = "policy"

    def __init__(self, message: str, *, status: int, reason: str, retryable: bool) -> None:
        super().__init__(message)
        self.status = status
        self.reason = reason
        self.may_retry = retryable


class StreamEnded(TransportError):
    code = "stream_ended"
    fault = "link"


class Overloaded(TransportError):
    code = "overloaded"
    fault = "peer"
    retryable = True


class TicketRefused(TransportError):
    code = "ticket_refused"
    fault = "link"
    retryable = True


class LinkLost(TransportError):
    """`reason` is the peer's own if it closed the link with one (never "done", which is an end of file), else what is
    known here: "lost", or of a radio "out_of_range", "unavailable" (none, or off), "refused" (no permission).
    """

    code = "link_lost"
    fault = "link"
    retryable = True

    def __init__(self, message: str, *, reason: LostReason = "lost", hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.reason: LostReason = reason


class HandshakeTimeout(TransportError):
    code = "handshake_timeout"
    fault = "link"
    retryable = True

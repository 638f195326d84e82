"""Errors of the gateway. Each says whose fault it is and carries a stable code; none echoes keys, prompts or answers.

    GatewayError
     +-- ConfigError        fault user      the configuration file, named by key path
     +-- SetupRefused       fault user      init would overwrite something, or was asked for something it may not do
     +-- NotReady           fault user      a command needs a gateway folder or a running gateway that is not there
     +-- NotFound           fault user      what was asked for is not on record
     +-- Busy               fault store     another process holds the gateway's state
     +-- EnrolmentRefused   fault identity  an invitation or registration does not allow this; the reason stays here
     +-- AuthorityExpired   fault identity  the online intermediate certificate has run out
     +-- KeysUnavailable    fault local     the token or service that holds a key cannot be used, or has no such key
     +-- AuditUnavailable   fault local     the audit record could not be written, so nothing may happen
     +-- ProviderFailure    fault provider  the provider refused, failed, was too slow or answered garbage
     +-- JournalFull        fault policy    too much of a device's answers waits to be fetched
     +-- PolicyUnavailable  fault policy    whether something is allowed could not be asked

A request that a check ends is not an error but a `Refusal` (relay.gateway.pipeline).
"""

from typing import ClassVar


class GatewayError(Exception):
    """Root of everything `relay.gateway` raises. The message is lower case, without a final period."""

    code: ClassVar[str] = "gateway_error"
    fault: ClassVar[str] = "local"
    retryable: ClassVar[bool] = False

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.hint = hint


class ConfigError(GatewayError):
    code = "config_error"
    fault = "user"


class SetupRefused(GatewayError):
    code = "setup_refused"
    fault = "user"


class NotReady(GatewayError):
    code = "not_ready"
    fault = "user"


class NotFound(GatewayError):
    code = "not_found"
    fault = "user"


class Busy(GatewayError):
    code = "busy"
    fault = "store"
    retryable = True


class EnrolmentRefused(GatewayError):
    """`reason` is for audit and people on our side; the device only learns that it was refused."""

    code = "enrolment_refused"
    fault = "identity"

    def __init__(self, message: str, *, reason: str, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.reason = reason


class AuthorityExpired(GatewayError):
    code = "authority_expired"
    fault = "identity"


class KeysUnavailable(GatewayError):
    """`again` says whether the holder of the key may answer later: not if it has no such key or takes no PIN."""

    code = "keys_unavailable"

    def __init__(self, message: str, *, hint: str | None = None, again: bool = False) -> None:
        super().__init__(message, hint=hint)
        self.again = again


class AuditUnavailable(GatewayError):
    code = "audit_unavailable"


class ProviderFailure(GatewayError):
    """`kind` is the public code (`provider_auth`, ...), `status` the HTTP status the client sees, `again` if a retry
    may help; `well`: the provider is, what was asked of it was too much. The provider's own words never become
    part of the message: they may hold the key.
    """

    code = "provider_failure"
    fault = "provider"

    def __init__(self, message: str, *, kind: str, status: int, again: bool = False, well: bool = False) -> None:
        super().__init__(message)
        self.kind = kind
        self.status, self.again, self.well = status, again, well


class PolicyUnavailable(GatewayError):
    code = "policy_unavailable"
    fault = "policy"
    retryable = True


class JournalFull(GatewayError):
    """An answer was cut because nobody fetched it, or others before it."""

    code = "journal_full"
    fault = "policy"

"""Errors of the edge. Each says whose fault it is and carries a stable code; see `transport.errors` for the wire's.

    EdgeError                fault local
     +-- BadUse              user      an option, file or configuration value that cannot be used
     |    +-- EmptyPrompt    user      nothing was asked
     |    +-- PromptTooLong  user      over the local model's context, or over the relay's limit
     |    +-- UnknownModel   user      a model name nobody here answers to
     |    +-- BadDocument    user      a document that cannot be read
     +-- NoPassphrase        store     the store needs a passphrase and there is no way to ask for one
     +-- NoKeyring           store     the login keyring is locked, not there, or does not have the store's key
     +-- NoStore             store     there is no store yet
     +-- ModelMissing        user      weights are not installed, or not where the configuration says
     +-- ModelUnusable       user      weights are there but the engine cannot load them
     +-- MemoryShort         local     the model does not fit into the memory that is free
     +-- EngineFailed        local     the engine stopped in the middle of its work
     +-- EngineBusy          local     too many prompts wait for the local model
     +-- CannotListen        link      the port is taken, or may not be used
     +-- AlreadyServing      user      an `edge serve` runs for this home
     +-- NotServing          user      none runs, or none that answers
     +-- NotJoined           identity  a relayed prompt without an identity
     +-- KeptLocal           policy    privacy forbids to relay this prompt
     +-- GatewayRefused      policy    the gateway said no, with a code
     +-- ProviderFailed      provider  the gateway's provider answered with an error or with garbage
     +-- Interrupted         unknown_outcome  no whole answer will come, and nobody knows what the provider did
     +-- GaveUp              link      no way to the gateway for too long; the request is kept
     +-- Unreached           link      no way to the gateway just now; nothing was sent, and nothing is kept
     +-- RequestExpired      link      a request waited for a link beyond its expiry

The message is lower case, without a final period, and never holds a secret, a prompt or a peer's bytes.
"""

from typing import ClassVar


class EdgeError(Exception):
    """Root of everything `edge_client` raises."""

    code: ClassVar[str] = "edge_error"
    fault: ClassVar[str] = "local"

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.hint = hint


class BadUse(EdgeError):
    code = "bad_use"
    fault = "user"


class EmptyPrompt(BadUse):
    code = "empty_prompt"

    def __init__(self) -> None:
        super().__init__("the prompt is empty", hint="give it as an argument or on standard input")


class PromptTooLong(BadUse):
    code = "prompt_too_long"


class UnknownModel(BadUse):
    code = "model_not_found"


class BadDocument(BadUse):
    code = "bad_document"


class NoPassphrase(EdgeError):
    code = "no_passphrase"
    fault = "store"


class NoKeyring(EdgeError):
    code = "no_keyring"
    fault = "store"


class NoStore(EdgeError):
    code = "no_store"
    fault = "store"

    def __init__(self) -> None:
        super().__init__("there is no store yet", hint="`edge ingest` or `edge join` makes one")


class ModelMissing(EdgeError):
    code = "model_missing"
    fault = "user"


class ModelUnusable(EdgeError):
    code = "model_unusable"
    fault = "user"


class CannotListen(EdgeError):
    code = "cannot_listen"
    fault = "link"


class AlreadyServing(EdgeError):
    """`port` is None while the other one is starting."""

    code = "already_serving"
    fault = "user"

    def __init__(self, port: int | None) -> None:
        where = "is starting" if port is None else f"runs on port {port}"
        super().__init__(
            f"an `edge serve` for this home {where}",
            hint="use that one, or end it first; with another CAUSEWAY_HOME a second may run beside it",
        )
        self.port = port


class NotServing(EdgeError):
    code = "not_serving"
    fault = "user"

    def __init__(
        self, message: str = "no `edge serve` runs here, which would hold the store open",
        *, hint: str | None = "start `edge serve`; without it every command unlocks the store for itself",
    ) -> None:
        super().__init__(message, hint=hint)


class MemoryShort(EdgeError):
    code = "memory_short"


class EngineFailed(EdgeError):
    code = "engine_failed"


class EngineBusy(EdgeError):
    code = "engine_busy"
    retryable: ClassVar[bool] = True

    def __init__(self) -> None:
        super().__init__("too many prompts wait for the local model", hint="try again in a while")


class NotJoined(EdgeError):
    code = "not_joined"
    fault = "identity"

    def __init__(self) -> None:
        super().__init__("this device has not joined a gateway", hint="`edge join` with an invitation, or `--local`")


class KeptLocal(EdgeError):
    code = "kept_local"
    fault = "policy"


class ProviderFailed(EdgeError):
    """`reason` and `status` are the gateway's where it gave them, such as provider_rate_limited and 429.

    `retryable` only if no provider can have accepted the request.
    """

    code = "provider_failed"
    fault = "provider"

    def __init__(
        self, message: str, *, hint: str | None = None, reason: str = "provider_failed", status: int = 502,
        retryable: bool = False,
    ) -> None:
        super().__init__(message, hint=hint)
        self.reason, self.status, self.retryable = reason, status, retryable


class GatewayRefused(EdgeError):
    """`reason` and `status` are the gateway's, such as model_not_allowed and 403; `retryable` as in ProviderFailed."""

    code = "gateway_refused"
    fault = "policy"

    def __init__(
        self, message: str, *, hint: str | None = None, reason: str, status: int = 403, retryable: bool = False
    ) -> None:
        super().__init__(message, hint=hint)
        self.reason, self.status, self.retryable = reason, status, retryable


class Interrupted(EdgeError):
    """`reason` is the code of what happened to the session."""

    code = "interrupted"
    fault = "unknown_outcome"

    def __init__(self, reason: str) -> None:
        super().__init__(
            "the request was interrupted before its answer was whole; whether the provider was called is not known",
            hint="nothing is sent again by itself; ask again, or `edge outbox retry` it: it may be billed twice",
        )
        self.reason = reason


class GaveUp(EdgeError):
    """`request` is the outbox id as shown to people, or empty if the request was not worth keeping."""

    code = "gave_up"
    fault = "link"

    def __init__(self, request: str, seconds: float, *, sent: bool) -> None:
        kept = f"; the question is kept in the outbox as {request}" if request else ""
        then = "fetches its answer" if sent else "sends it"
        super().__init__(
            f"there was no way to the gateway for {seconds:.0f} s{kept}",
            hint=f"`edge outbox retry {request}` {then}" if request else "is the hop on, and in reach?",
        )
        self.request = request


class Unreached(EdgeError):
    code = "unreached"
    fault = "link"

    def __init__(self) -> None:
        super().__init__("there is no way to the gateway now", hint="`edge ask --queue` leaves the question for later")


class RequestExpired(EdgeError):
    code = "request_expired"
    fault = "link"

    def __init__(self) -> None:
        super().__init__("the request waited for a link until it expired", hint="ask again")

"""What policy is asked, and what it answers: one document for every engine. docs/POLICY.md describes it for people."""

import re
from dataclasses import dataclass, replace
from typing import Any, Final, Protocol

import msgspec

from transport.errors import BadInput
from transport.identity.svid import SpiffeId
from transport.messages import Posture

ADMIN_VERBS: Final = tuple(f"admin:{operation}" for operation in (
    "invite", "devices", "trace", "policy", "revoke", "reinstate", "keys", "backup", "doctor", "usage",
))
VERBS: Final[dict[str, str]] = {  # and the type of resource that each is about
    "model:invoke": "Model", "package:fetch": "Package", "package:publish": "Package", "data:read": "Data",
    "relay:use": "Relay", **dict.fromkeys(ADMIN_VERBS, "Gateway"),
}
ATTESTED: Final = ("none", "any", "certified")  # identity.attestation says what of a TPM each has shown
UNKNOWN: Final = Posture("unknown", "unknown", "")  # of a device that has said nothing, and never better than any
_VERSION = re.compile(r"([0-9]{1,3})\.([0-9]{1,3})\.([0-9]{1,3})", re.ASCII)


def posture_of(disk: str, tpm: str, version: str) -> Posture:
    """From a person's words. Raises BadInput."""
    try:
        return msgspec.convert([20, disk, tpm, version], Posture)
    except msgspec.ValidationError as error:
        raise BadInput(f"this is no posture: {error}", hint="see `relay gateway policy explain --help`") from None


@dataclass(frozen=True, slots=True)
class Question:
    """May `id` do `verb` to the resource of this name? `via`: SPIFFE ID of the hop it comes through, "" if none.

    `verb` is one of VERBS. `posture` is what the device says of itself; `attested_tpm`, one of ATTESTED, what it has
    shown as it joined.
    """

    id: SpiffeId
    verb: str
    resource: str
    via: str = ""
    posture: Posture = UNKNOWN
    attested_tpm: str = "none"

    def about(self, resource: str) -> "Question":
        """The same of another resource."""
        return replace(self, resource=resource)

    def document(self, groups: tuple[str, ...]) -> dict[str, Any]:
        """The input document. `groups`: those that the ID's patterns give it."""
        return {
            "principal": {
                "id": str(self.id), **principal(self.id, self.posture, self.attested_tpm), "groups": list(groups),
            },
            "action": self.verb,
            "resource": self.entity(),
            "context": {"via": self.via},
        }

    def entity(self) -> dict[str, str]:
        return {"type": VERBS[self.verb], "id": self.resource}


def principal(identity: SpiffeId, posture: Posture, attested_tpm: str) -> dict[str, Any]:
    """What policy sees of who asks, beside its ID and groups."""
    return {
        "trust_domain": identity.trust_domain, "role": identity.role, "attested_tpm": attested_tpm,
        "posture": {
            "source": "unknown" if posture == UNKNOWN else "self-reported", "disk": posture.disk, "tpm": posture.tpm,
            "version": posture.version, "version_number": version_number(posture.version),
        },
    }


def version_number(version: str) -> int:
    """"1.2.3" as 1,002,003, to be compared; 0 for what is no version. Parts are below 1,000 (transport.messages)."""
    found = _VERSION.match(version)
    return 0 if found is None else int(found[1]) * 1_000_000 + int(found[2]) * 1_000 + int(found[3])


@dataclass(frozen=True)
class Decision:
    """`rules` names those that decided; `reason` is for the operator alone, never for the device.

    `unavailable`: nothing was decided, since the engine could not be asked; that is a denial which may pass.
    """

    allowed: bool
    rules: tuple[str, ...]
    reason: str
    unavailable: bool = False


class Engine(Protocol):
    """Decides. `cacheable`: the same question has the same answer for as long as this object lives."""

    cacheable: bool

    async def decide(self, question: Question, groups: tuple[str, ...]) -> Decision:
        """Never raises: whatever goes wrong is a denial that says so."""
        ...

    async def close(self) -> None: ...

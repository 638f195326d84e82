"""Keys in AWS KMS, found by alias: ECC_NIST_P256 for signatures, a symmetric one that wraps the state's key.

Credentials are looked for where every program of AWS's looks for them. Of the service's answers the code of an error
goes into messages, never its words, and nothing of what was asked.
"""

import contextlib
import re
from typing import Any, Final

import boto3
from botocore.config import Config
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    NoCredentialsError,
    NoRegionError,
    PartialCredentialsError,
    ProfileNotFound,
)
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature

from relay.gateway.errors import KeysUnavailable
from transport.errors import ProtocolViolation
from transport.primitives import VerifyKey, sha256

CONNECT_S: Final = 3.0
READ_S: Final = 5.0
ATTEMPTS: Final = 3  # all in all
DELETED_AFTER_DAYS: Final = 7
RAW_MAX: Final = 4_096  # bytes of a message that the service hashes itself

_NO_KEY: Final = ("NotFoundException", "InvalidAliasNameException")
_NOT_USABLE: Final = ("DisabledException", "KMSInvalidStateException", "InvalidKeyUsageException")
_NOT_US: Final = (
    "AccessDeniedException", "UnrecognizedClientException", "InvalidClientTokenId", "ExpiredTokenException",
    "InvalidSignatureException", "SignatureDoesNotMatch", "MissingAuthenticationToken", "IncompleteSignature",
)
_AGAIN: Final = ("ThrottlingException", "LimitExceededException", "DependencyTimeoutException", "KMSInternalException")


class NoSuchKey(KeysUnavailable):
    """The service has none under the alias."""


class Kms:
    """A Holder: one account and region. `endpoint` is for a stand-in; `profile` for credentials of their own."""

    source = "kms"

    def __init__(self, region: str, *, endpoint: str | None = None, profile: str | None = None) -> None:
        """Nothing is opened before the first use."""
        self._region, self._endpoint, self._profile = region, endpoint, profile
        self._client: Any = None

    def make(self, name: str) -> VerifyKey:
        self._create(name, KeySpec="ECC_NIST_P256", KeyUsage="SIGN_VERIFY")
        return self._public(name)

    def find(self, name: str) -> None:
        self._public(name)

    def sign(self, name: str, message: bytes) -> bytes:
        raw = 1 <= len(message) <= RAW_MAX
        answer = self._call(
            "sign", KeyId=_alias(name), Message=message if raw else sha256(message),
            MessageType="RAW" if raw else "DIGEST", SigningAlgorithm="ECDSA_SHA_256",
        )
        try:
            r, s = decode_dss_signature(answer["Signature"])
            return r.to_bytes(32, "big") + s.to_bytes(32, "big")
        except (ValueError, OverflowError):
            raise KeysUnavailable("AWS KMS answered with a signature that is none", again=True) from None

    def destroy(self, name: str) -> None:
        """After as short a time as the service offers; the alias is free at once."""
        with contextlib.suppress(NoSuchKey):
            self._call("schedule_key_deletion", KeyId=self._id(name), PendingWindowInDays=DELETED_AFTER_DAYS)
            self._call("delete_alias", AliasName=_alias(name))

    def make_wrapping(self, name: str) -> None:
        self._create(name, KeySpec="SYMMETRIC_DEFAULT", KeyUsage="ENCRYPT_DECRYPT")

    def wrap(self, name: str, secret: bytes, context: str) -> bytes:
        answer = self._call("encrypt", KeyId=_alias(name), Plaintext=secret, EncryptionContext=_context(context))
        return bytes(answer["CiphertextBlob"])

    def unwrap(self, name: str, wrapped: bytes, context: str) -> bytes:
        answer = self._call(
            "decrypt", KeyId=_alias(name), CiphertextBlob=wrapped, EncryptionContext=_context(context)
        )
        return bytes(answer["Plaintext"])

    # --- inside -----------------------------------------------------------------------------------------------------

    def _create(self, name: str, **settings: str) -> None:
        made = self._call("create_key", Description="Causeway gateway", **settings)
        self._call("create_alias", AliasName=_alias(name), TargetKeyId=made["KeyMetadata"]["KeyId"])

    def _id(self, name: str) -> str:
        """For what takes no alias."""
        return str(self._call("describe_key", KeyId=_alias(name))["KeyMetadata"]["KeyId"])

    def _public(self, name: str) -> VerifyKey:
        answer = self._call("get_public_key", KeyId=_alias(name))
        try:
            return VerifyKey.from_spki(answer["PublicKey"])
        except ProtocolViolation:
            raise KeysUnavailable(
                f"AWS KMS has no P-256 key under {_alias(name)}", hint="was the alias moved?"
            ) from None

    def _call(self, operation: str, **arguments: Any) -> dict[str, Any]:
        try:
            if self._client is None:
                self._client = boto3.session.Session(profile_name=self._profile).client(
                    "kms", region_name=self._region, endpoint_url=self._endpoint, config=Config(
                        connect_timeout=CONNECT_S, read_timeout=READ_S,
                        retries={"total_max_attempts": ATTEMPTS, "mode": "standard"},
                    ),
                )
            answer: dict[str, Any] = getattr(self._client, operation)(**arguments)
            return answer
        except ClientError as error:
            code = re.sub(r"[^A-Za-z.]", "", str(error.response.get("Error", {}).get("Code", "")))[:64]
            raise _explained(code, operation, arguments) from None
        except (NoCredentialsError, PartialCredentialsError, ProfileNotFound):
            raise KeysUnavailable("there are no AWS credentials for the gateway's keys",
                                  hint="give it a role, or see boto3's documentation on credentials") from None
        except (BotoCoreError, NoRegionError) as error:
            raise KeysUnavailable(f"AWS KMS does not answer: {type(error).__name__}",
                                  hint="is keys.region right, and is the network up?", again=True) from None


def _alias(name: str) -> str:
    return f"alias/{name}"


def _context(context: str) -> dict[str, str]:
    return {"causeway": "state key", "store": context}


def _explained(code: str, operation: str, arguments: dict[str, Any]) -> KeysUnavailable:
    name = arguments.get("KeyId") or arguments.get("AliasName")
    key = f"the key {name}" if isinstance(name, str) else "a key"
    if code in _NO_KEY:
        return NoSuchKey(f"AWS KMS does not have {key}", hint="keys.region and the account: are they right?")
    if code in _NOT_US:
        return KeysUnavailable(f"AWS KMS refuses {operation} with {key}: {code}",
                               hint="credentials and their policy; docs/KEYS.md lists what a gateway needs")
    if code in _NOT_USABLE:
        return KeysUnavailable(f"AWS KMS has disabled {key}: {code}", hint="enable it, or cancel its deletion")
    return KeysUnavailable(f"AWS KMS failed at {operation}: {code}", again=code in _AGAIN)

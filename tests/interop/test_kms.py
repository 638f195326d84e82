"""Keys in AWS KMS: what it is asked, and what is told when it does not do its part."""

import socket
from collections.abc import Iterator

import pytest

from relay.gateway.errors import KeysUnavailable
from relay.gateway.identity import kms as module
from relay.gateway.identity.held import Held
from relay.gateway.identity.kms import Kms
from tests.support.fake_kms import REGION, FakeKms, fake_kms
from transport.primitives import sha256

CANARY = "canary"


@pytest.fixture
def kms() -> Iterator[FakeKms]:
    with fake_kms() as kms:
        yield kms


def opened(kms: FakeKms, **changes: str) -> Kms:
    return Kms(REGION, endpoint=kms.url, **changes)


def test_the_service_gets_a_message_or_if_it_is_long_its_digest(kms: FakeKms) -> None:
    holder = opened(kms)
    holder.make("signs")
    for message, asked in ((b"m" * 4_096, ("RAW", b"m" * 4_096)), (b"m" * 4_097, ("DIGEST", sha256(b"m" * 4_097))),
                           (b"", ("DIGEST", sha256(b"")))):
        holder.sign("signs", message)
        operation, arguments = kms.asked[-1]
        assert operation == "Sign" and (arguments["MessageType"], arguments["Message"]) == asked
        assert arguments["SigningAlgorithm"] == "ECDSA_SHA_256" and arguments["KeyId"] == "alias/signs"


def test_what_is_wrapped_is_bound_to_its_context(kms: FakeKms) -> None:
    holder = opened(kms)
    holder.make_wrapping("wraps")
    wrapped = holder.wrap("wraps", b"s" * 32, "aa")
    assert kms.asked[-1][1]["EncryptionContext"] == {"causeway": "state key", "store": "aa"}
    assert holder.unwrap("wraps", wrapped, "aa") == b"s" * 32
    with pytest.raises(KeysUnavailable):
        holder.unwrap("wraps", wrapped, "bb")


def test_a_new_key_is_one_that_the_service_never_gives_away(kms: FakeKms) -> None:
    opened(kms).make("signs")
    (created,) = (arguments for operation, arguments in kms.asked if operation == "CreateKey")
    assert (created["KeySpec"], created["KeyUsage"]) == ("ECC_NIST_P256", "SIGN_VERIFY")


@pytest.mark.parametrize(("code", "told", "again"), [
    ("NotFoundException", "does not have the key alias/signs", False),
    ("AccessDeniedException", "refuses sign with the key alias/signs", False),
    ("ExpiredTokenException", "refuses sign", False),
    ("DisabledException", "has disabled the key", False),
    ("KMSInvalidStateException", "has disabled the key", False),
    ("ThrottlingException", "failed at sign: ThrottlingException", True),
    ("Strange\x1b[31mException", "failed at sign: StrangemException", False),
])
def test_an_error_is_told_by_its_code_and_nothing_of_the_request(
    kms: FakeKms, monkeypatch: pytest.MonkeyPatch, code: str, told: str, again: bool
) -> None:
    monkeypatch.setattr(module, "ATTEMPTS", 1)
    holder = opened(kms)
    holder.make("signs")
    kms.refuses = code
    with pytest.raises(KeysUnavailable) as failed:
        holder.sign("signs", CANARY.encode())
    assert CANARY in str(failed.value.__context__), "the service says it"
    assert told in str(failed.value) and failed.value.again is again
    assert CANARY not in f"{failed.value}{failed.value.hint}" and failed.value.__suppress_context__


def test_a_service_that_is_silent_is_given_up(kms: FakeKms, monkeypatch: pytest.MonkeyPatch) -> None:
    """However fast the machine: it never answers."""
    monkeypatch.setattr(module, "READ_S", 0.05)
    monkeypatch.setattr(module, "ATTEMPTS", 2)
    kms.silent = True
    with pytest.raises(KeysUnavailable, match="does not answer: ReadTimeoutError") as failed:
        opened(kms).find("signs")
    assert failed.value.again and len(kms.asked) == 2


def test_a_service_that_is_not_there(kms: FakeKms, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ATTEMPTS", 1)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with pytest.raises(KeysUnavailable, match="does not answer") as failed:
        Kms(REGION, endpoint=f"http://127.0.0.1:{port}").find("signs")
    assert failed.value.again and failed.value.hint is not None


def test_without_credentials_nothing_is_asked(kms: FakeKms, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(KeysUnavailable, match="no AWS credentials"):
        opened(kms, profile="nobody").find("signs")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_SECURITY_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(KeysUnavailable, match="no AWS credentials"):
        opened(kms).find("signs")
    assert kms.asked == []


def test_an_alias_that_was_moved_signs_nothing_for_us(kms: FakeKms) -> None:
    holder = opened(kms)
    custody = Held(holder, None, "causeway")
    signer, kept = custody.make("intermediate")
    (name,) = (one for one in kms.aliases() if one.startswith("causeway-"))
    holder.make("theirs")
    theirs = kms.moto.describe_key(KeyId="alias/theirs")["KeyMetadata"]["KeyId"]
    kms.moto.update_alias(AliasName=f"alias/{name}", TargetKeyId=theirs)
    for one in (signer, custody.open(kept)):
        with pytest.raises(KeysUnavailable, match="no longer the key"):
            one.sign(b"message")


def test_an_alias_of_a_key_of_another_kind(kms: FakeKms) -> None:
    holder = opened(kms)
    holder.make_wrapping("wraps")
    with pytest.raises(KeysUnavailable):
        holder.find("wraps")


def test_what_is_destroyed_ends_after_a_week_and_is_not_found_at_once(kms: FakeKms) -> None:
    holder = opened(kms)
    holder.make("signs")
    holder.destroy("signs")
    holder.destroy("signs")
    (asked,) = (arguments for operation, arguments in kms.asked if operation == "ScheduleKeyDeletion")
    assert asked["PendingWindowInDays"] == 7
    with pytest.raises(KeysUnavailable, match="does not have"):
        holder.find("signs")

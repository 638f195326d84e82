"""Another provider key takes the place of the one in use without a restart, and never a worse one; none ever shows."""

import asyncio
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import boto3
import pytest
from hypothesis import given
from hypothesis import strategies as st
from moto import mock_aws

from relay.gateway.audit.log import AuditLog
from relay.gateway.checks.authorise import Authorise
from relay.gateway.checks.schema import Schema
from relay.gateway.errors import ConfigError, KeysUnavailable
from relay.gateway.forward import Forward
from relay.gateway.upstream.aws_secrets import AGAIN_S, KeySecret, read_secret
from relay.gateway.upstream.http import HttpUpstream
from relay.gateway.upstream.keys import KeyFile, ProviderKey, SecretPlace
from tests.support.gateway_lab import allowing, audit_lines, chat, context
from tests.support.mock_provider import KEY, MockProvider
from tests.support.virtually import in_virtual_time
from transport import telemetry
from transport.links.virtual_time import wall
from transport.primitives import Secret

REGION = "eu-central-1"
OLD, NEW = "sk-old-0000", "sk-new-1111"


@pytest.fixture
def vault() -> Iterator[Any]:
    """AWS Secrets Manager within this process."""
    names = {"AWS_ACCESS_KEY_ID": "nobody", "AWS_SECRET_ACCESS_KEY": "nobody", "AWS_EC2_METADATA_DISABLED": "true",
             "AWS_CONFIG_FILE": os.devnull, "AWS_SHARED_CREDENTIALS_FILE": os.devnull}
    with patch.dict(os.environ, names), mock_aws():
        yield boto3.client("secretsmanager", region_name=REGION)


def moved(path: Path, text: str) -> None:
    beside = path.with_suffix(".new")
    beside.write_text(text)
    beside.replace(path)


def test_a_file_moved_into_place_is_taken_and_a_bad_one_is_not(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "provider.key"
    path.write_text(OLD)
    key = KeyFile(path)
    moved(path, NEW + "\n")
    assert key.current().expose() == NEW.encode() and "calls that begin from now on" in caplog.text
    for bad in ("", "two words", "half\n-writ\x00ten", "x" * 5_000):
        moved(path, bad)
        caplog.clear()
        assert [key.current().expose() for _ in range(3)] == [NEW.encode()] * 3
        assert caplog.text.count("is not used") == 1 and "half" not in caplog.text
    path.unlink()
    caplog.clear()
    assert key.current().expose() == NEW.encode() and "cannot be read" in caplog.text
    path.write_text(OLD)  # written in place
    assert key.current().expose() == OLD.encode()
    assert OLD not in caplog.text + repr(key) + repr(vars(key)) and NEW not in caplog.text


def test_a_file_that_has_not_changed_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "provider.key"
    path.write_text(OLD)
    key = KeyFile(path)
    monkeypatch.setattr(Path, "open", None)
    assert key.current().expose() == OLD.encode()


@given(st.lists(st.binary(max_size=12), max_size=8))
def test_whatever_is_written_the_last_good_key_is_in_use(
    tmp_path_factory: pytest.TempPathFactory, written: list[bytes]
) -> None:
    path = tmp_path_factory.mktemp("keys") / "provider.key"
    path.write_bytes(b"first")
    key, good = KeyFile(path), b"first"
    for number, data in enumerate(written):
        beside = path.with_suffix(f".{number}")
        beside.write_bytes(data)
        beside.replace(path)
        word = data.strip()
        good = word if word and all_printable(word) else good
        assert key.current().expose() == good


def all_printable(word: bytes) -> bool:
    return all(0x20 < byte < 0x7F for byte in word)


async def test_a_call_under_way_keeps_its_key(tmp_path: Path) -> None:
    path = tmp_path / "provider.key"
    path.write_text(KEY)
    async with MockProvider() as provider:
        upstream, tracing = HttpUpstream(provider.base_url), telemetry.start("gateway")
        provider.mode = "quotes_key"  # the answer is judged by the key that was sent, not by the one of meanwhile
        forward = Forward.to_one(upstream, (key := KeyFile(path)), AuditLog(tmp_path / "a"), tracing)
        request = context(chat())
        await _checked(request)
        async with forward.answer(request) as answer:
            moved(path, NEW)
            key.current()  # as another call would
            with pytest.raises(Exception, match="held what it must not"):
                _ = [chunk async for chunk in answer.chunks]
        await upstream.close()
        tracing.close()


async def _checked(request: Any) -> None:
    assert await Authorise(allowing({"/edge/*": ["small"]})).check(request) is None
    assert await Schema().check(request) is None


# --- AWS Secrets Manager --------------------------------------------------------------------------------------------


def test_a_secret_is_the_key_or_a_field_of_an_object(vault: Any) -> None:
    vault.create_secret(Name="plain", SecretString=f"{OLD}\n")
    vault.create_secret(Name="object", SecretString=f'{{"openai": "{NEW}", "n": 1}}')
    vault.create_secret(Name="binary", SecretBinary=b"x")
    assert read_secret(SecretPlace(id="plain", region=REGION)).expose() == OLD.encode()
    assert read_secret(SecretPlace(id="object", region=REGION, field="openai")).expose() == NEW.encode()
    for place in (
        SecretPlace(id="object", region=REGION), SecretPlace(id="object", region=REGION, field="absent"),
        SecretPlace(id="object", region=REGION, field="n"), SecretPlace(id="plain", region=REGION, field="openai"),
        SecretPlace(id="binary", region=REGION),
    ):
        with pytest.raises(ConfigError) as refused:
            read_secret(place)
        assert OLD not in str(refused.value) and NEW not in str(refused.value)
    with pytest.raises(KeysUnavailable, match="ResourceNotFoundException") as absent:
        read_secret(SecretPlace(id="absent", region=REGION))
    assert absent.value.hint and "GetSecretValue" in absent.value.hint


class Shelf:
    """What a reading gives, and how many there were."""

    def __init__(self) -> None:
        self.key, self.readings, self.broken = OLD, 0, False

    def read(self) -> Secret:
        self.readings += 1
        if self.broken:
            raise KeysUnavailable("AWS Secrets Manager refuses the provider's key: AccessDenied")
        return Secret(self.key.encode())


@in_virtual_time
async def test_it_is_read_every_so_often_and_at_once_after_a_refusal_but_once_a_minute() -> None:
    shelf = Shelf()
    key = KeySecret(Secret(OLD.encode()), shelf.read, 600.0, ticking=wall)
    with patch("asyncio.to_thread", _inline):
        task = asyncio.create_task(key.keep_fresh())
        await asyncio.sleep(599.0)
        assert shelf.readings == 0
        shelf.key = NEW
        await asyncio.sleep(2.0)
        assert shelf.readings == 1 and key.current().expose() == NEW.encode()
        shelf.key = "sk-third"
        for _ in range(5):
            key.refused(key.current())
            await asyncio.sleep(1.0)
        assert shelf.readings == 2 and key.current().expose() == b"sk-third"
        await asyncio.sleep(AGAIN_S)
        key.refused(Secret(NEW.encode()))  # of a call that began before
        await asyncio.sleep(1.0)
        assert shelf.readings == 2
        shelf.broken = True
        key.refused(key.current())
        await asyncio.sleep(1.0)
        assert shelf.readings == 3 and key.current().expose() == b"sk-third"
        task.cancel()


async def _inline(work: Any) -> Any:
    return work()


@pytest.mark.parametrize("rotated", [True, False])
async def test_a_refusal_by_the_provider_has_the_secret_read(tmp_path: Path, rotated: bool) -> None:
    """And the call goes through with the key that has taken the place of the one refused; if none has, it is over."""
    shelf = Shelf()
    key = KeySecret(Secret(OLD.encode()), shelf.read, 600.0)
    shelf.key = KEY if rotated else OLD
    async with MockProvider() as provider:
        upstream, tracing = HttpUpstream(provider.base_url), telemetry.start("gateway")
        audit = AuditLog(tmp_path / "a")
        forward = Forward.to_one(upstream, key, audit, tracing)
        task = asyncio.create_task(key.keep_fresh())
        request = context(chat())
        await _checked(request)
        if rotated:
            async with forward.answer(request) as answer:
                assert answer.status == 200
        else:
            with pytest.raises(Exception, match="refused the gateway's key"):
                async with forward.answer(request):
                    pass
        shown = [headers["Authorization"] for headers in provider.headers]
        assert shown == [f"Bearer {OLD}"] + [f"Bearer {KEY}"] * rotated
        attempts = [line["code"] for line in audit_lines(tmp_path / "a")]
        assert attempts == ["provider_auth"] * rotated
        task.cancel()
        await upstream.close()
        await audit.close()
        tracing.close()


async def test_a_key_file_that_changes_meanwhile_is_tried_once(tmp_path: Path) -> None:
    path = tmp_path / "provider.key"
    path.write_text(OLD)
    async with MockProvider() as provider:
        upstream, tracing = HttpUpstream(provider.base_url), telemetry.start("gateway")
        audit = AuditLog(tmp_path / "a")
        provider.refusing = lambda: moved(path, NEW if len(provider.headers) == 1 else "sk-third")
        forward = Forward.to_one(upstream, KeyFile(path), audit, tracing)
        request = context(chat())
        await _checked(request)
        with pytest.raises(Exception, match="refused the gateway's key"):
            async with forward.answer(request):
                pass
        assert [headers["Authorization"] for headers in provider.headers] == [f"Bearer {OLD}", f"Bearer {NEW}"]
        await upstream.close()
        await audit.close()
        tracing.close()


async def test_opened_from_the_service_and_what_aws_says_stays_there(
    vault: Any, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    vault.create_secret(Name="prod/openai", SecretString=OLD)
    key = await KeySecret.open(SecretPlace(id="prod/openai", region=REGION))
    assert key.current().expose() == OLD.encode() and isinstance(key, ProviderKey)
    assert OLD not in caplog.text + repr(key) + repr(vars(key))

"""The configured providers as a gateway runs them: connections, key and breaker of each."""

import asyncio
import contextlib
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path

from relay.gateway.errors import ConfigError
from relay.gateway.upstream.base import Upstream
from relay.gateway.upstream.breaker import Breaker
from relay.gateway.upstream.http import HttpUpstream
from relay.gateway.upstream.keys import KeyFile, ProviderKey, key_from_environment
from relay.gateway.upstream.settings import InferenceServer, Provider, sections_of


@dataclass(frozen=True)
class Provided:
    """One of them. `section` of gateway.toml; key None: it asks for none."""

    upstream: Upstream
    key: ProviderKey | None
    breaker: Breaker = field(default_factory=Breaker)
    section: str = "provider"


async def opened(
    stack: AsyncExitStack, directory: Path, providers: Sequence[Provider], inference: InferenceServer | None
) -> dict[str, Provided]:
    """By name. `stack` takes them down again. Raises ConfigError, KeysUnavailable."""
    found = {}
    for section, one in sections_of(providers, inference):
        key = await _key(stack, directory, section, one)
        upstream = HttpUpstream(one.base_url, dialect=one.dialect(), name=one.name, timeouts=one.timeouts())
        stack.push_async_callback(upstream.close)
        found[one.name] = Provided(upstream, key, Breaker(one.breaker_failures, one.breaker_open_s), section)
    return found


async def _key(
    stack: AsyncExitStack, directory: Path, section: str, one: Provider | InferenceServer
) -> ProviderKey | None:
    """From where the configuration says, if it says."""
    if one.key_file is not None:
        return KeyFile(directory / one.key_file)
    if one.key_env is not None:
        return ProviderKey(key_from_environment(one.key_env))
    if one.secret is None:
        return None
    try:
        from relay.gateway.upstream.aws_secrets import KeySecret
    except ModuleNotFoundError:
        raise ConfigError(f"{section}.secret: boto3 is not installed", hint="pip install 'causeway[kms]'") from None
    key = await KeySecret.open(one.secret)
    stack.push_async_callback(_ended, asyncio.create_task(key.keep_fresh()))
    return key


async def _ended(task: asyncio.Task[None]) -> None:
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task

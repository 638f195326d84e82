"""A provider's key in AWS Secrets Manager: read at the start, every so often, and when the provider refuses it.

Credentials are looked for where every program of AWS's looks for them. Of the service's answers the code of an error
goes into messages and nothing else.
"""

import asyncio
import contextlib
import json
import logging
import re
import time
from collections.abc import Callable
from typing import Final, Self

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from relay.gateway.errors import ConfigError, GatewayError, KeysUnavailable
from relay.gateway.upstream.keys import ProviderKey, SecretPlace, checked_key
from transport.primitives import Secret

AGAIN_S: Final = 60.0  # at least, between two readings because of refusals
WAIT_S: Final = 5.0  # of a request whose key was refused, for the one that may have taken its place
_log = logging.getLogger(__name__)


class KeySecret(ProviderKey):
    """What was last read of a secret; `keep_fresh` reads it again."""

    def __init__(
        self, key: Secret, read: Callable[[], Secret], every_s: float, ticking: Callable[[], float] = time.monotonic
    ) -> None:
        """`read` blocks and raises GatewayError; `ticking`: seconds by a clock that nobody sets."""
        super().__init__(key)
        self._read, self._every_s, self._ticking = read, every_s, ticking
        self._due = asyncio.Event()
        self._looked = asyncio.Event()  # set unless it is to be read, or is being read
        self._looked.set()
        self._not_before = 0.0

    @classmethod
    async def open(cls, place: SecretPlace) -> Self:
        """Raises ConfigError, KeysUnavailable."""
        return cls(await asyncio.to_thread(read_secret, place), lambda: read_secret(place), place.every_min * 60.0)

    def refused(self, key: Secret) -> None:
        """Has it read at once, once per minute at most; not for a key that another has replaced already."""
        if key is self._key and (now := self._ticking()) >= self._not_before:
            self._not_before = now + AGAIN_S
            self.look()

    async def another(self, key: Secret) -> Secret | None:
        """Waits for a reading that is due."""
        self.refused(key)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(WAIT_S):
                await self._looked.wait()
        return None if self._key is key else self._key

    def look(self) -> None:
        """Has it read at once."""
        self._looked.clear()
        self._due.set()

    async def keep_fresh(self) -> None:
        """Runs until it is cancelled; a secret that cannot be read leaves the key as it is, and the log says so."""
        while True:
            try:
                async with asyncio.timeout(self._every_s):
                    await self._due.wait()
            except TimeoutError:
                pass
            self._due.clear()
            try:
                self._take(await asyncio.to_thread(self._read))
            except GatewayError as error:
                _log.error("the provider's key is not read anew, that of before stays in use: %s", error)
            if not self._due.is_set():
                self._looked.set()


def read_secret(place: SecretPlace) -> Secret:
    """Its current version. Blocks, for 16 seconds at most or so. Raises ConfigError, KeysUnavailable."""
    try:
        answer = boto3.session.Session(profile_name=place.profile).client(
            "secretsmanager", region_name=place.region, endpoint_url=place.endpoint,
            config=Config(connect_timeout=3.0, read_timeout=5.0, retries={"total_max_attempts": 2, "mode": "standard"}),
        ).get_secret_value(SecretId=place.id)
    except ClientError as error:
        code = re.sub(r"[^A-Za-z.]", "", str(error.response.get("Error", {}).get("Code", "")))[:64]
        raise KeysUnavailable(
            f"AWS Secrets Manager refuses the provider's key: {code}", again=True,
            hint="are id and region right, and may this machine's role secretsmanager:GetSecretValue of it?",
        ) from None
    except (BotoCoreError, ValueError) as error:
        raise KeysUnavailable(
            f"AWS Secrets Manager does not give the provider's key: {type(error).__name__}", again=True,
            hint="is there a way to it, are there AWS credentials on this machine, and is the region right?",
        ) from None
    text = answer.get("SecretString")
    if isinstance(text, str) and place.field is not None:
        try:
            text = json.loads(text)[place.field]
        except (ValueError, KeyError, TypeError, RecursionError):
            text = None
    if not isinstance(text, str):
        raise ConfigError("the secret does not hold the provider's key as text",
                          hint="`field` names a key of a secret that is a JSON object; without it, it is the key alone")
    return checked_key(text.encode("utf-8", "surrogatepass"))

"""OPA by its REST API: asks for one boolean, and takes nothing but `true` for a yes.

A rule that is undefined is HTTP 200 without `result` in OPA, which is a no. What is no answer of OPA's is no, too, and
says that it may pass. Answers are not kept: only OPA knows when its policy changes.
"""

import asyncio
from typing import Any, Final

import aiohttp
import msgspec

from relay.gateway.policy.questions import Decision, Question
from relay.gateway.policy.settings import OpaSettings
from transport.primitives import Secret

ANSWER_MAX: Final = 65_536
_CONNECTIONS: Final = 32


class _Answer(msgspec.Struct):
    result: Any = None
    decision_id: str = ""


_decoder = msgspec.json.Decoder(_Answer)


class Opa:
    """See `Engine`. The connection is made inside the running event loop, on first use."""

    cacheable = False

    def __init__(self, settings: OpaSettings, token: Secret | None) -> None:
        self._settings, self._token = settings, token
        self._session: aiohttp.ClientSession | None = None

    async def decide(self, question: Question, groups: tuple[str, ...]) -> Decision:
        """See `Engine`."""
        body = msgspec.json.encode({"input": question.document(groups)})
        headers = {"Content-Type": "application/json"}
        if self._token is not None:
            headers["Authorization"] = "Bearer " + self._token.expose().decode("ascii")
        try:
            async with (
                asyncio.timeout(self._settings.timeout_s),
                self._pool().post(self._settings.url, data=body, headers=headers, allow_redirects=False) as response,
            ):
                if response.status != 200:
                    return _unavailable(f"OPA answered with status {response.status}")
                answer = _decoder.decode(await _whole(response))
        except TimeoutError:
            return _unavailable("OPA did not answer in time")
        except (aiohttp.ClientError, OSError, ValueError, RecursionError) as error:
            return _unavailable(f"OPA could not be asked: {type(error).__name__}")
        told = f" (decision {answer.decision_id[:64]})" if answer.decision_id else ""
        if answer.result is True:
            return Decision(True, ("opa",), "allowed by OPA" + told)
        if answer.result is None:
            return Decision(False, ("opa",), "denied: OPA's rule is undefined for this" + told)
        return Decision(False, ("opa",), "denied by OPA" + told)

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()
            self._session = None

    def _pool(self) -> aiohttp.ClientSession:
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=_CONNECTIONS), cookie_jar=aiohttp.DummyCookieJar(),
                trust_env=False, auto_decompress=False,
            )
        return self._session


async def _whole(response: aiohttp.ClientResponse) -> bytes:
    """Raises ValueError for more than 64 KiB."""
    data = await response.content.read(ANSWER_MAX + 1)
    while len(data) <= ANSWER_MAX and (more := await response.content.read(ANSWER_MAX + 1)):
        data += more
    if len(data) > ANSWER_MAX:
        raise ValueError("too long")
    return data


def _unavailable(why: str) -> Decision:
    return Decision(False, (), why + ", which counts as a denial", unavailable=True)

"""What differs between providers' APIs on the way there: paths, and how the key is shown.

Of a request only its route goes into a path, and for Azure the name that the configuration gives a model there.
"""

from typing import Final, Protocol

from transport.primitives import Secret

ANTHROPIC_VERSION: Final = "2023-06-01"


class Dialect(Protocol):
    """`ping`: a GET that costs nothing, behind the base URL."""

    ping: str

    def path(self, route: str, model: str) -> str:
        """Behind the base URL."""
        ...

    def headers(self, key: Secret | None) -> dict[str, str]: ...


class OpenAi:
    """OpenAI's own, and who is compatible with it: Bedrock, vLLM, Ollama and others. The base URL ends in /v1."""

    ping = "/models"

    def path(self, route: str, model: str) -> str:
        return route.removeprefix("/v1")

    def headers(self, key: Secret | None) -> dict[str, str]:
        return {} if key is None else {"Authorization": f"Bearer {_shown(key)}"}


class Azure:
    """Azure OpenAI. With `version`, by deployments, and the base URL is the resource's (Azure OpenAI REST API
    reference); without, its API of 2025, which is OpenAI's, and the base URL ends in /openai/v1.
    """

    def __init__(self, version: str | None) -> None:
        self._version = version
        self.ping = "/models" if version is None else f"/openai/models?api-version={version}"

    def path(self, route: str, model: str) -> str:
        rest = route.removeprefix("/v1")
        if self._version is None:
            return rest
        if rest == "/responses":
            return f"/openai/responses?api-version={self._version}"
        return f"/openai/deployments/{model}{rest}?api-version={self._version}"

    def headers(self, key: Secret | None) -> dict[str, str]:
        return {} if key is None else {"api-key": _shown(key)}


class Anthropic:
    """Anthropic's API reference, "Versions", "Beta headers". The base URL ends in /v1."""

    ping = "/models"

    def __init__(self, version: str = ANTHROPIC_VERSION, betas: tuple[str, ...] = ()) -> None:
        self._headers = {"anthropic-version": version} | ({"anthropic-beta": ",".join(betas)} if betas else {})

    def path(self, route: str, model: str) -> str:
        return route.removeprefix("/v1")

    def headers(self, key: Secret | None) -> dict[str, str]:
        return self._headers | ({} if key is None else {"x-api-key": _shown(key)})


class Inference:
    """A server of the open inference protocol, version 2; the base URL has no path, as a rule."""

    ping = "/v2/health/ready"

    def path(self, route: str, model: str) -> str:
        return route

    def headers(self, key: Secret | None) -> dict[str, str]:
        return {} if key is None else {"Authorization": f"Bearer {_shown(key)}"}


def _shown(key: Secret) -> str:
    return key.expose().decode("ascii")

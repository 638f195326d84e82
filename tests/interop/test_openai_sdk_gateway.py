"""The official `openai` SDK asks a gateway as it would ask OpenAI: every route, streams, aliases, and errors."""

import json
import shutil
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.support.client_programs import client_programs, run_client
from tests.support.https_client import Gateway, https_gateway
from tests.support.mock_provider import WORDS, MockProvider
from tests.support.route_lab import ALLOWED, HEAD, section, write_keys
from transport.primitives import Secret

TOKEN = "a-token-of-a-good-length"
MODELS = ["small", "alias", "claude", "broken", "failing"]


class Served:
    def __init__(self, gateway: Gateway, providers: dict[str, MockProvider]) -> None:
        self.gateway, self.providers = gateway, providers


@pytest.fixture
async def served(made: Path, tmp_path: Path) -> AsyncIterator[Served]:
    async with AsyncExitStack() as stack:
        names = {"openai": "openai", "anthropic": "anthropic", "breaks": "openai", "fails": "openai"}
        providers = {
            name: await stack.enter_async_context(MockProvider(kind, f"sk-of-{name}")) for name, kind in names.items()
        }
        providers["breaks"].mode, providers["fails"].mode = "stream_error", "500"
        serves = {"openai": ["small"], "anthropic": ["claude"], "breaks": ["broken"], "fails": ["failing"]}
        text = HEAD + 'insecure = "127.0.0.1:0"\n'
        text += "".join(section(one, name=name, models=serves[name]) for name, one in providers.items())
        text += '[[model]]\nname = "alias"\nas = "small"\n' + ALLOWED.format(models=json.dumps(MODELS))
        folder = tmp_path / "gateway"
        shutil.copytree(made, folder)
        write_keys(folder, **{name: one.key for name, one in providers.items()})
        gateway = await stack.enter_async_context(
            https_gateway(made, folder, providers["openai"], text=text, loopback_token=Secret(TOKEN.encode()))
        )
        yield Served(gateway, providers)


async def test_the_sdk_at_the_gateway(served: Served) -> None:
    program = Path(__file__).parent / "programs" / "openai_sdk_gateway.py"
    address = f"http://{served.gateway.ready.insecure}/v1"
    environment = {"OPENAI_BASE_URL": address, "OPENAI_API_KEY": TOKEN}
    code, out, err = await run_client(client_programs() / "python", program, environment=environment)
    assert code == 0, err
    saw: dict[str, Any] = json.loads(out)
    text = "".join(WORDS)
    assert set(saw["models"]) == set(MODELS)
    assert saw["small"] == saw["alias"] == [text, 5, "mock-1"]
    assert (saw["streamed"], saw["streamed_usage"]) == (text, 16)
    assert saw["response"] == [text, 5, "completed"]
    assert saw["response_streamed"] == text and saw["response_final"] == ["response.completed", text]
    assert saw["vectors"] == [[0.5, -0.001]]
    assert saw["refused"] == ["PermissionDeniedError", "model_not_allowed", 403]
    assert saw["elsewhere"] == ["NotFoundError", "model_not_on_route", 404]
    assert saw["malformed"][0] == "BadRequestError"
    for broken in (saw["broken"], saw["broken_response"]):  # by an event, or by a status if it all came at once
        assert broken in (["APIError", "provider_error"], ["InternalServerError", "provider_error", 502])
    assert saw["once"] == ["InternalServerError", "provider_error", 502]
    assert served.providers["fails"].calls == 1, "what may have been billed is not repeated by the SDK"
    assert b'"model": "small"' in served.providers["openai"].bodies[1] or b'"model":"small"' in (
        served.providers["openai"].bodies[1]
    )

"""The official `openai` SDK, LangChain's ChatOpenAI and the `llm` command use the loopback API unchanged."""

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from edge_client.answering import Assistant
from edge_client.api.guard import load_token
from edge_client.api.server import Names, make_runner
from edge_client.app import App
from edge_client.config import Config
from edge_client.errors import GatewayRefused, Interrupted
from tests.support.client_programs import client_programs, run_client
from tests.support.fake_engine import FakeAnswer, FakeChat, FakeEmbedder, FakeRelay, sse
from transport import telemetry

PROGRAMS = Path(__file__).parent / "programs"


class Gateway(FakeRelay):
    """Answers by the model's name."""

    def __init__(self) -> None:
        super().__init__(granted=["cloud-model", "cloud-tools", "cloud-refuses", "cloud-unclear", "cloud-breaks"])

    async def request(self, method: str, route: str, body: bytes) -> FakeAnswer:
        await super().request(method, route, body)
        model = json.loads(body)["model"]
        if model == "cloud-refuses":
            raise GatewayRefused("not this model", reason="model_not_allowed", status=403)
        if model == "cloud-unclear":
            raise Interrupted("link_lost")
        if model == "cloud-breaks":
            return FakeAnswer(200, "text/event-stream", sse("half")[:1], "")
        if model == "cloud-tools":
            function = {"name": "pressure", "arguments": '{"pump": '}
            deltas = (
                {"index": 0, "id": "call_1", "type": "function", "function": function},
                {"index": 0, "function": {"arguments": '"P-101"}'}},
            )
            choices = [{"index": 0, "delta": {"tool_calls": [delta]}, "finish_reason": None} for delta in deltas]
            choices.append({"index": 0, "delta": {}, "finish_reason": "tool_calls"})
            events = [f"data: {json.dumps({'choices': [choice]})}\n\n".encode() for choice in choices]
            return FakeAnswer(200, "text/event-stream", [*events, b"data: [DONE]\n\n"], "")
        assert self.last is not None
        return self.last


class Served:
    def __init__(self, address: str, token: str, relay: Gateway, chat: FakeChat) -> None:
        self.address, self.relay, self.chat = address, relay, chat
        self.environment = {"OPENAI_BASE_URL": address, "OPENAI_API_KEY": token}


@pytest.fixture
async def served(tmp_path: Path) -> AsyncIterator[Served]:
    tracing = telemetry.start("edge")
    chat, relay, token = FakeChat(), Gateway(), load_token(tmp_path / "api-token")
    alone = Assistant(chat=chat, retrieval=None, relay=None, tracing=tracing)

    async def auto() -> Assistant:
        return Assistant(chat=chat, retrieval=None, relay=relay, tracing=tracing)

    async def embedder() -> FakeEmbedder:
        return FakeEmbedder()

    runner = make_runner(Names(alone=alone, auto=auto, granted=relay.models, embedder=embedder), token)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        yield Served(f"http://127.0.0.1:{runner.addresses[0][1]}/v1", token, relay, chat)
    finally:
        await runner.cleanup()
        tracing.close()


@pytest.fixture(scope="module")
def programs() -> Path:
    return client_programs()


async def seen(served: Served, programs: Path, name: str) -> Any:
    code, out, err = await run_client(programs / "python", PROGRAMS / name, environment=served.environment)
    assert code == 0, err
    return json.loads(out)


async def test_the_official_sdk(served: Served, programs: Path) -> None:
    saw = await seen(served, programs, "openai_sdk.py")
    assert saw["models"][:3] == ["local", "auto", "cloud-model"] and saw["model"] == "auto"
    assert saw["whole"] == ["Six bar.", 9, "local"]
    assert (saw["streamed"], saw["streamed_usage"]) == ("Six bar.", 9)
    assert saw["called"] == ["call_1", "pressure", '{"pump": "P-101"}']
    assert saw["called_whole"] == '{"pump": "P-101"}'
    assert saw["response"] == ["Six bar.", 9, "completed"]
    assert saw["response_deltas"] == ["Six", " bar."] and saw["response_streamed"] == "Six bar."
    assert saw["vectors"] == [[384, 1.0], [384, 1.0]] and saw["same_vector"]
    assert saw["async"] == ["Six bar."] * 4
    assert saw["errors"] == {
        "unknown": ["NotFoundError", "model_not_found"], "empty": ["BadRequestError", "empty_prompt"],
        "refused": ["PermissionDeniedError", "model_not_allowed"], "unclear": ["ConflictError", "interrupted"],
        "token": ["AuthenticationError", "invalid_api_key"],
    }
    assert saw["broken"] == "provider_failed"
    asked = [json.loads(body)["model"] for _, _, body in served.relay.requests]
    assert asked.count("cloud-unclear") == 1, "what may have been billed is not repeated by the SDK"


async def test_langchain(served: Served, programs: Path) -> None:
    saw = await seen(served, programs, "langchain_chat.py")
    assert saw["whole"] == ["Six bar.", 9] and saw["streamed"] == "Six bar." and saw["async"] == ["Six bar."] * 2
    assert saw["called"] == ["pressure", {"pump": "P-101"}]
    assert saw["after_tool"] == "It stands." and saw["responses_api"] == "Six bar."
    assert [message["role"] for message in json.loads(served.relay.requests[-1][2])["messages"]] == [
        "user", "assistant", "tool",
    ]
    assert saw["vectors"] == [384, 384]


async def test_the_llm_command(served: Served, programs: Path, tmp_path: Path) -> None:
    folder = tmp_path / "llm"
    folder.mkdir()
    (folder / "keys.json").write_text(json.dumps({"causeway": served.environment["OPENAI_API_KEY"]}))
    models = [{"model_id": "edge", "model_name": "local", "api_base": served.address, "api_key_name": "causeway"}]
    (folder / "extra-openai-models.yaml").write_text(json.dumps(models))  # JSON is YAML
    for more in ((), ("--no-stream",), ("-s", "be kind")):
        code, out, err = await run_client(
            programs / "llm", "-m", "edge", *more, "hello", environment={"LLM_USER_PATH": str(folder)}
        )
        assert (code, out.strip()) == (0, "Six bar."), err
    assert [message.role for message in served.chat.asked[-1]] == ["system", "user"]


@pytest.mark.model
async def test_the_sdk_and_the_real_model(programs: Path, tmp_path: Path) -> None:
    token = load_token(tmp_path / "api-token")
    async with App.open(Config(tmp_path), store="none") as app:
        alone = Assistant(chat=app.chat(), retrieval=None, relay=None, tracing=app.tracing)

        async def embedder() -> Any:
            return app.embedder()

        runner = make_runner(Names(alone=alone, auto=app.assistant, embedder=embedder), token)
        await runner.setup()
        try:
            await web.TCPSite(runner, "127.0.0.1", 0).start()
            environment = {
                "OPENAI_BASE_URL": f"http://127.0.0.1:{runner.addresses[0][1]}/v1", "OPENAI_API_KEY": token,
            }
            code, out, err = await run_client(programs / "python", PROGRAMS / "openai_json.py", environment=environment)
        finally:
            await runner.cleanup()
    assert code == 0, err
    whole, streamed, numbers = json.loads(out)
    for told in (whole, streamed):
        assert isinstance(told["name"], str) and isinstance(told["bar"], int)
    assert numbers == 384

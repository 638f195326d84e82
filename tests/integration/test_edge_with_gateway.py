"""The product's two ends together: links that break anywhere, a gateway that restarts, an edge that is killed."""

import asyncio
import contextlib
import json
import random
import shutil
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from aiohttp import ClientSession, web

from edge_client.answering import Assistant
from edge_client.api.names import Names
from edge_client.api.server import make_runner
from edge_client.errors import Interrupted
from edge_client.gateway_client import GatewayClient
from edge_client.identity import NAMESPACE, join
from edge_client.inference import Inference
from edge_client.outbox import Outbox
from edge_client.posture import posture, told
from relay.gateway.policy.decisions import Policy
from relay.gateway.policy.settings import Group, Policies, checked
from store.database import STORE_SCHEMA, Database
from store.keys import DatabaseKey
from store.queue import Queue
from store.settings import Settings
from tests.support.edge_lab import ENDPOINT, read, until
from tests.support.fake_engine import FakeChat
from tests.support.fake_gateway import CuttingLink, FakeClock
from tests.support.fake_triton import FakeTriton, tensors
from tests.support.gateway_lab import chat
from tests.support.memory_link import MemoryLink
from tests.support.mock_provider import MockProvider, chunk
from tests.support.session_lab import Lab, gateway
from transport import telemetry
from transport.errors import LinkLost
from transport.links.base import Endpoint, Link

STREAM = [chunk(f"{number} " + "x" * 400) for number in range(40)] + [b"data: [DONE]\n\n"]
WHOLE = b"".join(STREAM)


@dataclass
class Both:
    directory: Path
    provider: MockProvider
    settings: Settings
    queue: Queue
    tracing: telemetry.Telemetry
    lab: Lab | None = None
    running: contextlib.AsyncExitStack = field(default_factory=contextlib.AsyncExitStack)
    links: list[MemoryLink] = field(default_factory=list)
    cuts: list[dict[str, int]] = field(default_factory=list)  # for the next links
    clients: list[GatewayClient] = field(default_factory=list)

    async def start_gateway(self, **options: Any) -> None:
        self.lab = await self.running.enter_async_context(gateway(self.directory, self.provider.base_url, **options))

    async def stop_gateway(self) -> None:
        self.lab = None
        for link in self.links:
            await link.abort()
        await self.running.aclose()

    async def dial(self, endpoint: Endpoint) -> Link:
        if self.lab is None:
            raise LinkLost("nobody answers")
        self.links.append(link := self.lab.link())
        return CuttingLink(link, **self.cuts.pop(0)) if self.cuts else link

    def start_edge(self) -> GatewayClient:
        self.clients.append(GatewayClient(
            self.settings, Outbox(self.queue), (), self.tracing, self.dial, clock=FakeClock(),
            posture=told(self.directory),
        ))
        return self.clients[-1]

    async def ask(self, client: GatewayClient) -> bytes:
        return await read(await client.request("POST", "/v1/chat/completions", chat(stream=True)))

    async def states(self) -> list[tuple[str, str]]:
        return [(row.state, row.note) for row in await self.queue.list()]


@pytest.fixture
async def both(made: Path, tmp_path: Path) -> AsyncIterator[Both]:
    shutil.copytree(made, tmp_path / "gateway")
    database = Database.open(tmp_path / "store.db", DatabaseKey.generate(), schema=STORE_SCHEMA)
    async with asyncio.timeout(300), MockProvider() as provider:
        provider.stream = STREAM
        both = Both(
            tmp_path / "gateway", provider, Settings(database, NAMESPACE), Queue(database, "outbox"),
            telemetry.start("edge"),
        )
        await both.start_gateway()
        assert both.lab is not None
        invitation = await both.lab.enrolment.invite("edge/lap-1")
        await join(both.settings, invitation, await both.dial(ENDPOINT), (str(ENDPOINT),))
        try:
            yield both
        finally:
            for client in both.clients:
                await client.close()
            await both.stop_gateway()
            both.tracing.close()
            database.close()


async def test_links_cut_at_random(both: Both) -> None:
    dice = random.Random(7)
    client = both.start_edge()
    for run in range(12):
        both.cuts = [
            {dice.choice(["sent", "received"]): dice.choice([dice.randrange(800), dice.randrange(30_000)])}
            for _ in range(dice.randrange(5))
        ]
        if both.links and dice.random() < 0.7:
            await both.links[-1].abort()
        assert await both.ask(client) == WHOLE, run
        assert both.provider.calls == run + 1
    assert {state for state, _ in await both.states()} == {"done"}
    await both.links[-1].abort()
    await client.models()
    assert both.lab is not None
    journal = both.lab.journal
    (owner,) = journal.owners
    await until(lambda: journal._usage[owner].kept == 0)  # every answer was acknowledged


async def test_killed_gateway_is_told_as_interrupted(both: Both) -> None:
    both.provider.mode = "stream_stall"
    client = both.start_edge()
    answer = await client.request("POST", "/v1/chat/completions", chat(stream=True))
    chunks = answer.chunks()
    await anext(chunks)
    await both.stop_gateway()
    both.provider.mode = "ok"
    await both.start_gateway()
    with pytest.raises(Interrupted):
        async for _ in chunks:
            pass
    assert both.provider.calls == 1
    assert await both.states() == [("interrupted", "interrupted")]
    assert await read(await client.retry(answer.request_id)) == WHOLE


async def test_gateway_that_restarts_before_the_answer_is_fetched(both: Both) -> None:
    client = both.start_edge()
    answer = await client.request("POST", "/v1/chat/completions", chat(stream=True))
    assert both.lab is not None
    lab = both.lab
    await both.links[-1].abort()
    await until(lambda: not lab.journal.running)
    await both.stop_gateway()
    await both.start_gateway()
    assert await read(answer) == WHOLE
    assert both.provider.calls == 1


async def test_killed_edge_fetches_its_answer(both: Both) -> None:
    client = both.start_edge()
    answer = await client.request("POST", "/v1/chat/completions", chat(stream=True))
    await anext(answer.chunks())
    for link in both.links:
        await link.abort()
    await client.close()
    client = both.start_edge()
    (left,) = await client.unsettled()
    assert await read(await client.take_up(left.id)) == WHOLE
    assert both.provider.calls == 1 and await both.states() == [("done", "")]


async def test_cancel_from_another_process_stops_the_provider(both: Both) -> None:
    both.provider.mode = "stream_stall"
    client = both.start_edge()
    answer = await client.request("POST", "/v1/chat/completions", chat(stream=True))
    for link in both.links:
        await link.abort()
    await client.close()
    client = both.start_edge()
    assert await client.cancel(answer.request_id)
    assert both.lab is not None
    journal = both.lab.journal
    await until(lambda: not journal.running)  # the edge hears of it while the gateway writes it down
    await both.provider.ended.wait()
    assert await both.states() == [("interrupted", "cancelled")]


async def test_cancel_after_the_answer_was_whole_lets_it_go(both: Both) -> None:
    client = both.start_edge()
    answer = await client.request("POST", "/v1/chat/completions", chat(stream=True))
    assert both.lab is not None
    journal = both.lab.journal
    await both.links[-1].abort()
    await until(lambda: not journal.running)
    await client.close()
    assert await both.start_edge().cancel(answer.request_id)
    (owner,) = journal.owners
    await until(lambda: journal._usage[owner].kept == 0)
    assert both.provider.calls == 1


TOKEN = "t" * 43
TOOLS = [{"type": "function", "function": {"name": "pressure", "parameters": {"type": "object", "properties": {}}}}]


@contextlib.asynccontextmanager
async def loopback(both: Both) -> AsyncIterator[ClientSession]:
    """The loopback API of this edge, and a program that has its token."""
    client = both.start_edge()

    async def auto() -> Assistant:
        return Assistant(chat=FakeChat(), retrieval=None, relay=client, tracing=both.tracing)

    alone = Assistant(chat=FakeChat(), retrieval=None, relay=None, tracing=both.tracing)

    async def way() -> GatewayClient:
        return client

    infer = Inference(way, both.tracing)
    runner = make_runner(Names(alone=alone, auto=auto, granted=client.models, infer=infer), TOKEN)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        headers = {"Authorization": f"Bearer {TOKEN}"}
        async with ClientSession(f"http://127.0.0.1:{runner.addresses[0][1]}", headers=headers) as session:
            yield session
    finally:
        await runner.cleanup()


async def test_a_program_has_its_tensors_looked_at_by_a_model_behind_the_gateway(both: Both) -> None:
    """From the loopback through the session to the server of the model, by a device whose disk policy has asked for."""
    await both.stop_gateway()
    disk = posture(both.directory).state
    (both.directory / "p.cedar").write_text(
        'permit (principal in Group::"floor", action, resource == Model::"defect-detection") '
        f'when {{ principal.posture.disk == "{disk}" && principal.posture.version_number > 0 }};'
    )
    groups, files = [Group(name="floor", ids=["/edge/lap-1"])], Policies(cedar=["p.cedar"])
    async with FakeTriton() as triton:
        policy = Policy(checked(both.directory, groups, [], files, []))
        await both.start_gateway(policy=policy, inference=triton.base_url)
        async with loopback(both) as program:
            async with program.post("/v2/models/defect-detection/infer", data=tensors(0.9)) as answer:
                assert answer.status == 200 and (await answer.json())["outputs"][0]["data"] == [True]
            async with program.post("/v2/models/another/infer", data=tensors(0.9)) as answer:
                assert answer.status == 403 and (await answer.json())["error"]["code"] == "not_allowed"
        assert triton.bodies == [tensors(0.9)]


def asked(**more: Any) -> dict[str, Any]:
    return {"model": "small", "messages": [{"role": "user", "content": "How much is it?"}], **more}


async def test_tools_of_a_program_reach_the_provider_and_its_calls_come_back(both: Both) -> None:
    deltas = [
        {"index": 0, "id": "call_1", "type": "function", "function": {"name": "pressure", "arguments": ""}},
        *({"index": 0, "function": {"arguments": piece}} for piece in ('{"pump"', ': "P-', '101"', "}")),
    ]
    choices = [{"index": 0, "delta": {"tool_calls": [delta]}, "finish_reason": None} for delta in deltas]
    choices.append({"index": 0, "delta": {}, "finish_reason": "tool_calls"})
    events = [{"id": "c1", "object": "chat.completion.chunk", "model": "m", "choices": [one]} for one in choices]
    both.provider.stream = [*(b"data: " + json.dumps(one).encode() + b"\n\n" for one in events), b"data: [DONE]\n\n"]
    given = {"tools": TOOLS, "tool_choice": "auto", "seed": 7, "temperature": 0, "response_format": {"type": "text"}}
    async with loopback(both) as program:
        listed = await (await program.get("/v1/models")).json()
        assert [model["id"] for model in listed["data"]][:3] == ["local", "auto", "small"]
        body = await (await program.post("/v1/chat/completions", json=asked(**given))).json()
        (call,) = body["choices"][0]["message"]["tool_calls"]
        assert call == {"id": "call_1", "type": "function", "function": {
            "name": "pressure", "arguments": '{"pump": "P-101"}',
        }}
        streamed = await (await program.post("/v1/chat/completions", json=asked(**given, stream=True))).text()
    chunks = [json.loads(line.removeprefix("data: ")) for line in streamed.split("\n\n")[:-2]]
    pieces = [call for chunk in chunks for call in chunk["choices"][0]["delta"].get("tool_calls", ())]
    assert pieces == deltas, "as the provider made them"
    sent = json.loads(both.provider.bodies[0])
    assert {name: sent[name] for name in given} == given


@pytest.mark.parametrize(("mode", "status", "code", "again"), [
    ("400", 400, "provider_rejected", "false"), ("401", 502, "provider_auth", "false"),
    ("429", 429, "provider_rate_limited", "true"), ("500", 502, "provider_error", "false"),
])  # fmt: skip
async def test_what_the_provider_refuses_is_a_status_to_the_program(
    both: Both, mode: str, status: int, code: str, again: str
) -> None:
    both.provider.mode = mode
    async with loopback(both) as program:
        for stream in (False, True):
            answer = await program.post("/v1/chat/completions", json=asked(stream=stream))
            error = (await answer.json())["error"]
            assert (answer.status, error["code"], answer.headers["x-should-retry"]) == (status, code, again)
            assert "sk-mock" not in error["message"]


async def test_a_program_that_goes_in_the_middle_ends_the_providers_work(both: Both) -> None:
    both.provider.mode = "stream_lingers"
    async with loopback(both) as program:
        answer = await program.post("/v1/chat/completions", json=asked(stream=True))
        await answer.content.readany()
        answer.close()
        await both.provider.ended.wait()
    assert [state for state in await both.states() if state[0] != "done"] == [("interrupted", "cancelled")]

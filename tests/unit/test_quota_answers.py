"""What calls reserve, what they are charged, and where their answers end, in all three formats."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from relay.gateway.checks.quota import Quota as Check
from relay.gateway.errors import AuditUnavailable, ProviderFailure
from relay.gateway.pipeline import Refusal
from relay.gateway.quota.ledger import Price, Rule
from relay.gateway.quota.quotas import CallHold, Quotas
from relay.gateway.quota.settings import UNLIMITED, Limiting
from relay.gateway.quota.tap import Allowance
from relay.gateway.upstream.formats import CHAT
from tests.support.answer_streams import FORMATS, delta, ends_whole, events, opening, stream, whole, written
from tests.support.gateway_lab import Clock, KeptSink, chat, context, peer
from tests.support.quota_lab import Lab, limiting, quota, quota_lab
from transport.errors import LinkLost

WORDS = ["The ", "pump ", "runs ", "at ", "6 bar."]
TOKENS, ALL = {"tokens": 2_000}, {"requests": 10, "tokens": 2_000, "money": "0.01"}


@pytest.fixture
async def lab(tmp_path: Path) -> AsyncIterator[Lab]:
    async with quota_lab(tmp_path, quota(**ALL)) as made:
        yield made


def asked(kind: str = "chat", **fields: Any) -> bytes:
    """A request for a stream, or not."""
    if kind == "responses":
        fields = {"max_output_tokens" if name == "max_tokens" else name: value for name, value in fields.items()}
        return json.dumps({"model": "small", "input": "Go on.", **fields}).encode()
    return chat(**fields)


def failure(kind: str, *, again: bool = False) -> ProviderFailure:
    return ProviderFailure("the provider failed", kind=kind, status=502, again=again)


async def test_while_a_call_runs_all_that_it_may_cost_is_reserved(lab: Lab) -> None:
    lab.provider.pieces = [delta("chat", "The ")]
    lab.provider.stall = True
    body = chat(stream=True, max_tokens=100)
    task = asyncio.create_task(lab.ask(body))
    await lab.provider.stalled.wait()
    cost = -(-(len(body) * 150_000 + 100 * 600_000) // 1_000_000)
    assert lab.used() == {"requests": (0, 1), "tokens": (0, len(body) + 100), "money": (0, cost)}
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    given = -(-len(body) // 3)  # of the answer, one event of four bytes
    assert lab.used() == {"requests": (1, 0), "tokens": (given + 2, 0), "money": (-(-(given * 15 + 2 * 60) // 100), 0)}


@pytest.mark.parametrize(("part", "text"), [
    ({"tool_calls": [{"index": 0, "type": "custom", "custom": {"name": "g", "input": "raw"}}]}, "graw"),
    ({"audio": {"id": "a", "transcript": "spoken"}}, "spoken"),
    ({"audio": {"id": "a", "data": "UklGRg=="}}, " "),
    ({"audio": {"id": "a", "expires_at": 1}}, ""),
])
def test_what_is_no_plain_text_counts_too(part: dict[str, Any], text: str) -> None:
    """Else an answer in sound, or as a custom tool's input, would cost nothing to who goes before its last event."""
    payload = json.dumps({"choices": [{"index": 0, "delta": {"content": None, **part}}]}).encode()
    assert CHAT.follow().feed(payload) == text


@pytest.mark.parametrize("streamed", [True, False])
async def test_what_the_provider_reports_is_charged_and_the_rest_given_back(lab: Lab, streamed: bool) -> None:
    lab.provider.pieces = stream("chat", WORDS) if streamed else [json.dumps(whole("chat", "".join(WORDS))).encode()]
    body = chat(stream=streamed)
    sink, _ = await lab.ask(body)
    assert sink.ended
    assert lab.used() == {"requests": (1, 0), "tokens": (16, 0), "money": (5, 0)}  # 11 x 0.15 + 5 x 0.6 = 4.65
    intent, outcome = lab.lines()
    assert (intent["reserved_tokens"], intent["reserved"]) == (len(body) + 200, -(-(len(body) * 15 + 200 * 60) // 100))
    assert (outcome["result"], outcome["attempts"], outcome["charged_tokens"], outcome["charged"]) == (
        "answered", 1, 16, 5)


async def test_many_answers_at_once_are_reserved_for(lab: Lab) -> None:
    lab.provider.pieces = [json.dumps(whole("chat", "yes")).encode()]
    for fields, output in (({"n": 3}, 600), ({"n": 3, "max_tokens": 50}, 150)):
        await lab.ask(chat(**fields))
        assert lab.lines()[-2]["reserved_tokens"] == len(chat(**fields)) + output


async def test_more_than_was_reserved_is_charged_if_reported_and_missing_to_the_next(lab: Lab) -> None:
    answer = whole("chat", "yes")
    answer["usage"] = {"prompt_tokens": 11, "completion_tokens": 9_000}
    lab.provider.pieces = [json.dumps(answer).encode()]
    sink, _ = await lab.ask(chat(max_tokens=10))
    assert sink.ended and lab.used()["tokens"] == (9_011, 0)
    sink, _ = await lab.ask(chat(max_tokens=10))
    assert sink.refused == (429, "quota_exceeded", False)
    assert lab.provider.calls == 1


@pytest.mark.parametrize("kind", FORMATS)
async def test_a_stream_is_cut_where_its_tokens_end_and_is_whole_to_a_client(kind: str, tmp_path: Path) -> None:
    async with quota_lab(tmp_path, quota(tokens=400)) as lab:
        lab.provider.pieces = [*filter(None, [opening(kind)]), *(delta(kind, f"word {n:03} ") for n in range(400))]
        body = asked(kind, stream=True, max_tokens=5_000)
        sink, request = await lab.ask(body, kind=kind)
        assert sink.ended and sink.refused is None
        assert ends_whole(kind, sink.data)
        text = written(kind, sink.data)
        assert text == "".join(f"word {n:03} " for n in range(len(text) // 9))
        room = 400 - len(body)
        assert room < -(-len(text) // 3) <= room + 3  # by one event at most
        assert lab.provider.read < 200  # and nothing more was asked of the provider
        assert request.cut == "quota_exceeded"
        outcome = lab.lines()[-1]
        assert (outcome["result"], outcome["code"]) == ("cut", "quota_exceeded")
        used, held = lab.used()["tokens"]
        assert held == 0 and used == outcome["charged_tokens"] < 400
        finish = {"chat": '"length"', "responses": '"max_output_tokens"', "messages": '"max_tokens"'}
        assert finish[kind] in json.dumps(events(sink.data)[-2:])


async def test_of_a_piece_with_many_events_nothing_passes_behind_the_last(tmp_path: Path) -> None:
    async with quota_lab(tmp_path, quota(tokens=400)) as lab:
        lab.provider.pieces = [b"".join(delta("chat", "same ") for _ in range(500)), delta("chat", "never")]
        sink, _ = await lab.ask(chat(stream=True, max_tokens=5_000))
        room = 400 - len(chat(stream=True, max_tokens=5_000))
        text = written("chat", sink.data)
        assert set(text.split()) == {"same"} and room < -(-len(text) // 3) <= room + 2
        assert lab.provider.read == 1 and sink.ended


async def test_a_stream_ends_for_money_too(tmp_path: Path) -> None:
    async with quota_lab(tmp_path, quota(money="0.000400", models=["small"])) as lab:
        lab.provider.pieces = [delta("chat", "word ") for _ in range(1_000)]
        sink, request = await lab.ask(chat(stream=True, max_tokens=5_000))
        assert request.cut == "budget_exceeded" and ends_whole("chat", sink.data)
        assert lab.used()["money"][0] <= 400


async def test_a_cap_that_the_provider_keeps_to_is_not_cut_short_by_our_estimate(tmp_path: Path) -> None:
    """Ten tokens of English are more than thirty bytes, by which we would count; the last of a budget is usable."""
    body = chat(stream=True, max_tokens=10)
    async with quota_lab(tmp_path, quota(tokens=len(body) + 10)) as lab:
        lab.provider.pieces = [*(delta("chat", "pressure ") for _ in range(10)), b"data: [DONE]\n\n"]
        sink, request = await lab.ask(body)
        assert request.cut == "" and written("chat", sink.data) == "pressure " * 10
        assert lab.used()["tokens"] == (-(-len(body) // 3) + 10, 0)


async def test_a_provider_that_does_not_keep_to_the_cap_is_cut(tmp_path: Path) -> None:
    body = chat(stream=True, max_tokens=10)
    async with quota_lab(tmp_path, quota(tokens=len(body) + 10)) as lab:
        lab.provider.pieces = [delta("chat", "x ") for _ in range(100)]
        _, request = await lab.ask(body)
        assert request.cut == "quota_exceeded" and lab.provider.read == 11


async def test_the_rest_of_other_calls_lets_a_stream_go_on(tmp_path: Path) -> None:
    """It was begun with what there was, and takes what comes back meanwhile."""
    first, body = chat(stream=True, max_tokens=800), chat(stream=True, max_tokens=500)
    async with quota_lab(tmp_path, quota(tokens=len(first) + 800 + len(body) + 100)) as lab:
        lab.provider.pieces, lab.provider.stall = [delta("chat", "a")], True
        task = asyncio.create_task(lab.ask(first))
        await lab.provider.stalled.wait()
        lab.provider.pieces = [*(delta("chat", "one") for _ in range(300)), b"data: [DONE]\n\n"]
        lab.provider.stall = False
        sink, request = await lab.ask(body)
        assert request.cut == "quota_exceeded" and len(written("chat", sink.data)) == 3 * 101
        task.cancel()
        await asyncio.wait({task})
        sink, request = await lab.ask(body)
        assert request.cut == "" and len(written("chat", sink.data)) == 900


@pytest.mark.parametrize(("failed", "requests", "charged"), [
    (failure("provider_unreachable", again=True), 0, False),
    (failure("provider_timeout", again=True), 0, False),
    (failure("provider_rate_limited", again=True), 1, False),
    (failure("provider_rejected"), 1, False),
    (failure("provider_auth"), 1, False),
    (failure("provider_error"), 1, False),
    (failure("provider_timeout"), 1, True), (failure("provider_garbled"), 1, True),
])
@pytest.mark.parametrize("streamed", [True, False])
async def test_a_call_that_was_not_accepted_costs_nothing_and_an_unknown_outcome_its_estimate(
    lab: Lab, failed: ProviderFailure, requests: int, charged: bool, streamed: bool
) -> None:
    lab.provider.failure = failed
    body = chat(stream=streamed, max_tokens=50)
    sink, _ = await lab.ask(body)
    assert sink.refused is not None
    used = lab.used()
    assert used.get("requests", (0, 0)) == (requests, 0)
    assert used.get("tokens", (0, 0)) == ((len(body) + 50, 0) if charged else (0, 0))


async def test_a_stream_that_breaks_is_charged_what_came(lab: Lab) -> None:
    lab.provider.pieces = [delta("chat", "one"), delta("chat", "two")]
    lab.provider.failure = failure("provider_garbled")
    body = chat(stream=True)
    await lab.ask(body)
    assert lab.used()["tokens"] == (-(-len(body) // 3) + 2, 0)
    assert lab.lines()[-1]["charged_tokens"] == -(-len(body) // 3) + 2


async def test_a_device_that_goes_away_is_charged_what_came_and_given_back_the_rest(lab: Lab) -> None:
    class Gone(KeptSink):
        async def write(self, data: bytes) -> None:
            raise LinkLost("gone")

    lab.provider.pieces = stream("chat", WORDS)
    body = chat(stream=True)
    with pytest.raises(LinkLost):
        await lab.ask(body, Gone())
    assert lab.used()["tokens"] == (-(-len(body) // 3) + 2, 0)


async def test_an_unknown_end_of_a_whole_answer_is_charged_in_full(lab: Lab) -> None:
    body = chat(max_tokens=50)
    task = asyncio.create_task(lab.ask(body))
    await lab.provider.stalled.wait()
    task.cancel()
    await asyncio.wait({task})
    assert lab.used()["tokens"] == (len(body) + 50, 0)


async def test_attempts_that_reached_a_provider_are_counted(lab: Lab) -> None:
    lab.provider.pieces = [json.dumps(whole("chat", "yes")).encode()]
    await lab.ask(chat(), attempts=2)  # and then the one that is answered
    assert lab.used()["requests"] == (3, 0)


async def test_what_another_check_refuses_reserves_nothing(lab: Lab) -> None:
    for body in (chat(model="forbidden"), chat(nonsense=1), b"{"):
        sink, _ = await lab.ask(body)
        assert sink.refused is not None
    assert lab.used() == {} and not lab.quotas.running


async def test_nothing_stays_reserved_where_the_audit_fails(lab: Lab) -> None:
    async def fails(event: str, *_: object, **__: object) -> None:
        raise AuditUnavailable("full")

    lab.pipeline._audit.append = fails  # type: ignore[method-assign,assignment]
    sink, _ = await lab.ask(chat())
    assert sink.refused == (503, "audit_unavailable", True)
    assert lab.used() == {} and not lab.quotas.running and lab.provider.calls == 0


async def test_token_numbers_of_which_nobody_reports_the_cost_are_charged_in_full(tmp_path: Path) -> None:
    """As where an answer is longer than what is read of it."""
    answer = json.dumps({"data": [{"embedding": "A" * (1 << 20)}], "usage": {"prompt_tokens": 400}}).encode()
    body = b'{"model":"small","encoding_format":"base64","input":[' + b",".join([b"7"] * 400) + b"]}"
    async with quota_lab(tmp_path, quota(tokens=2_000)) as lab:
        lab.provider.pieces = [answer]
        sink, _ = await lab.ask(body, kind="/v1/embeddings")
        assert sink.ended and lab.used()["tokens"] == (len(body), 0)


async def test_embeddings_have_no_output_and_inference_no_tokens(lab: Lab) -> None:
    lab.provider.pieces = [json.dumps({"data": [{"embedding": "A" * 9_000}], "usage": {"prompt_tokens": 3}}).encode()]
    sink, _ = await lab.ask(b'{"model":"small","input":"pump"}', kind="/v1/embeddings")
    assert sink.ended and lab.used()["tokens"] == (3, 0)
    before = lab.used().get("tokens", (0, 0))
    lab.provider.pieces = [b'{"outputs":[]}']
    tensor = {"name": "x", "shape": [1], "datatype": "FP32", "data": [1]}
    sink, _ = await lab.ask(json.dumps({"inputs": [tensor]}).encode(), kind="/v2/models/pump/infer")
    assert sink.ended and lab.used().get("tokens", (0, 0)) == before
    assert lab.used()["requests"][1] == 0 and lab.used()["requests"][0] >= 1


async def test_requests_are_refused_by_the_limit_and_again_when_it_has_slid(tmp_path: Path) -> None:
    async with quota_lab(tmp_path, quota(requests=2, window="1m")) as lab:
        lab.provider.pieces = [json.dumps(whole("chat", "yes")).encode()]
        for _ in range(2):
            assert (await lab.ask(chat()))[0].ended
        sink, _ = await lab.ask(chat())
        assert sink.refused == (429, "rate_limited", False)
        assert sink.message == "quota hourly: 2 requests in 1 min, of which too little is left; again in 61 s"
        assert (await lab.ask(chat(), path="edge/lap-2"))[0].ended
        lab.clock.now += 60
        assert (await lab.ask(chat()))[0].refused is not None
        lab.clock.now += 1
        assert (await lab.ask(chat()))[0].ended
        refused = [line["code"] for line in lab.lines() if line["event"] == "request.refused"]
        assert refused == ["rate_limited"] * 2


async def refused(lab: Lab, body: bytes, path: str = "edge/lap-1", **changes: Any) -> Refusal:
    """By the check alone, with its headers."""
    found = await Check(lab.quotas).check(context(body, model="small", parsed=True, peer=peer(path), **changes))
    assert found is not None
    return found


async def test_a_refusal_says_which_limit_and_when_again_and_nothing_of_others(tmp_path: Path) -> None:
    async with quota_lab(
        tmp_path, quota(tokens=1_000), quota(name="floor", per="role", window="1d", requests=2)
    ) as lab:
        lab.provider.pieces = [json.dumps(whole("chat", "yes")).encode()]
        _, request = await lab.ask(chat(max_tokens=100))
        assert request.hold is not None
        assert request.hold.headers() == {
            "RateLimit-Policy": '"hourly.tokens";q=1000;w=3600;qu="tokens"',
            "RateLimit": '"hourly.tokens";r=984;t=3640',
        }
        never = await refused(lab, chat(), output_max=2_000)
        assert (never.code, never.retryable, "Retry-After" in never.headers) == ("quota_exceeded", False, False)
        assert never.message.startswith("quota hourly: 1,000 tokens in 1 h, and this request may come to 2,")
        later = await refused(lab, chat(), output_max=900)
        assert later.headers["Retry-After"] == "3640" and "again in 61 min" in later.message
        assert later.headers["RateLimit"] == '"hourly.tokens";r=984;t=3640'
        await lab.ask(chat(), path="edge/lap-2")
        shared = await refused(lab, chat(), "edge/lap-3")
        assert shared.code == "rate_limited" and dict(shared.headers) == {"Retry-After": "87040"}
        assert shared.message == "quota floor: 2 requests in 1 d for all, of which too little is left; again in 25 h"


async def test_who_may_come_again_within_a_minute_is_told_so(tmp_path: Path) -> None:
    async with quota_lab(tmp_path, quota(requests=1, window="1m")) as lab:
        lab.provider.pieces = [json.dumps(whole("chat", "yes")).encode()]
        await lab.ask(chat())
        assert not (await refused(lab, chat())).retryable
        lab.clock.now += 1
        again = await refused(lab, chat())
        assert again.retryable and again.headers["Retry-After"] == "60"


@pytest.mark.parametrize("path", ["edge/insecure-loopback", "workload/report-1", "workload/admin", "edge/lap-1"])
async def test_nobody_is_exempt(path: str) -> None:
    found = Limiting(tuple(
        Rule(role, f"/{role}/*", ((role, "*"),), 3_600, (1, None, None)) for role in ("edge", "workload")
    ))
    quotas = Quotas(found, monotonic=lambda: 0.0)
    hold = await Check(quotas).check(context(chat(), model="small", parsed=True, peer=peer(path), token="t"))
    assert hold is None
    assert await Check(quotas).check(context(chat(), model="small", parsed=True, peer=peer(path))) is not None


@pytest.mark.parametrize("shared", [True, False])
def test_a_thousand_streams_at_once_are_over_by_one_event_each_at_most(shared: bool) -> None:
    """In virtual time, in turn, with events of all sizes; whatever comes, what passed is what is charged."""
    clock, limit, event_max = Clock(0.0), 60_000 if shared else 60, 60
    rule = Rule("all", "/edge/*", (("edge", "*"),), 3_600, (None, limit, None), shared)
    quotas = Quotas(Limiting((rule,), {"small": Price()}), clock=lambda: 1e9, monotonic=lambda: clock.now)
    streams = []
    for number in range(1_000):
        request = context(chat(stream=True), model="small", parsed=True, stream=True, peer=peer(f"edge/lap-{number}"))
        request.body = b"x" * 9
        found = quotas.admit(request, True, 40)
        assert isinstance(found, CallHold)
        request.hold, request.answer_type = found, "text/event-stream"
        streams.append((request, found, Allowance(request)))
    windows = [window for slot in quotas.ledger.slots() for window in slot.windows.values()]
    running, turn = dict(enumerate(streams)), 0
    while running:
        turn, clock.now = turn + 1, clock.now + 0.01
        assert turn < 1_000
        for number, (request, hold, tap) in list(running.items()):
            before = hold.output
            passed = tap.feed(delta("chat", "w" * (1 + (number * 7 + turn * 31) % event_max)))
            assert passed and hold.output - before <= -(-event_max // 3)
            if request.cut:
                assert ends_whole("chat", passed) and hold.output - hold.hold.output <= -(-event_max // 3)
                del running[number]
        now = quotas.now()
        assert all(window.free(now) >= 0 for window in windows)  # what is promised is within the limit, all the time
        over = sum(hold.output - hold.hold.output for _, hold, _ in streams if hold.output > hold.hold.output)
        total = sum(9 + hold.output for _, hold, _ in streams)
        assert total <= (limit if shared else limit * 1_000) + over
    came_to = [hold.settle("cut")["charged_tokens"] for _, hold, _ in streams]
    assert came_to == [3 + hold.output for _, hold, _ in streams]
    assert sum(window.spent for window in windows) == sum(came_to)
    assert all(not window.held for window in windows)


async def test_two_devices_may_choose_the_same_request_id(lab: Lab) -> None:
    for path in ("edge/lap-1", "edge/lap-2"):
        task = asyncio.create_task(lab.ask(chat(), path=path, request_id=b"\1" * 16))
        await lab.provider.stalled.wait()
        lab.provider.stalled.clear()
        assert task
    assert len(lab.quotas.running) == 2
    for one in asyncio.all_tasks() - {asyncio.current_task()}:
        one.cancel()
        await asyncio.wait({one})
    assert not lab.quotas.running


async def test_a_clock_that_is_set_moves_no_window() -> None:
    """The time of day is looked at once, at start; and a start cannot go behind where the last process had got to."""
    day = Clock(5_000.0)
    quotas = Quotas(limiting(quota(requests=1)), clock=day, monotonic=lambda: 100.0)
    hold = await Check(quotas).check(context(chat(), model="small", parsed=True))
    assert hold is None
    for now in (0.0, 10.0**9):
        day.now = now
        assert quotas.now() == 5_000
        assert await Check(quotas).check(context(chat(), model="small", parsed=True)) is not None
    quotas.not_before(4_000)
    assert quotas.now() == 5_000
    quotas.not_before(9_000)
    assert quotas.now() == 9_000


async def test_other_limits_hold_from_the_next_request_on_and_counts_stay(tmp_path: Path) -> None:
    async with quota_lab(tmp_path, quota(requests=1)) as lab:
        lab.provider.pieces = [json.dumps(whole("chat", "yes")).encode()]
        assert (await lab.ask(chat()))[0].ended
        assert (await lab.ask(chat()))[0].refused is not None
        lab.quotas.replace(limiting(quota(requests=2)))
        assert (await lab.ask(chat()))[0].ended
        lab.quotas.replace(limiting(quota(requests=2, window="1d")))
        assert (await lab.ask(chat()))[0].refused is not None
        lab.quotas.replace(UNLIMITED)
        assert (await lab.ask(chat()))[0].ended

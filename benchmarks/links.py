"""`scripts/bench links`: what a link costs and how fast it is, in virtual time, beside what one would do without us.

Bluetooth rows run the code that ships on a modelled radio: bleak's API, the pipe over GATT, bumble's stack, an air with
rates, connection events and flow control. Seconds are seconds of that air. `--smoke` plays minutes instead of a day.
"""

import asyncio
import base64
import contextlib
import functools
import itertools
import json
import random
import statistics
import sys
import tracemalloc
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Final

from benchmarks.chains import Chains
from benchmarks.measure import Row, arguments, cost_row, note, show
from benchmarks.radio import Pair, linked, session_over
from relay.sim.runner import run as play
from relay.sim.scenario import Scenario
from transport.edge_session import EdgeSession
from transport.errors import TransportError
from transport.events import CONTENT_TYPE, EventDecoder, EventEncoder
from transport.links import virtual_time
from transport.links.base import Link
from transport.links.simulated import pair as simulated_pair
from transport.messages import Padding, RequestHeader, encode_header
from transport.primitives import sha256
from transport.serving import GatewaySession, Incoming

CEILING: Final = {"1m": 100_000.0, "2m": 178_000.0}  # bytes/s at values of 495; the model's own, without a pipe
TOKENS: Final = 300
TOKEN_RATE: Final = 30.0  # a second
EVENT: Final = (  # as OpenAI's API writes them
    'data: {"id":"chatcmpl-CAbCdEfGhIjKlMnOpQrStUvWxYz01","object":"chat.completion.chunk","created":1790000000,'
    '"model":"gpt-4o-mini-2024-07-18","service_tier":"default","system_fingerprint":"fp_0123456789","choices":[{"index":0,'
    '"delta":{"content":"%s"},"logprobs":null,"finish_reason":null}]}\n\n'
)
DONE: Final = b"data: [DONE]\n\n"
ORIGINAL_DELAY_MS: Final = 450.0  # per token, of the system this project follows


def main() -> int:
    options = arguments(__doc__ or "")
    rows: list[Row] = []
    for phy in CEILING:
        note(f"rate of the pipe, {phy}")
        rows += in_time(functools.partial(rates, phy, 100_000 if options.smoke else 1_000_000))
    note("overhead of messages")
    rows += in_time(overhead)
    note("a streamed answer")
    rows += in_time(streamed)
    note("delay of tokens")
    rows += in_time(functools.partial(delay_row, "ble-1m")) + in_time(functools.partial(delay_row, "rfcomm"))
    note("20-byte values")
    rows += in_time(small_values)
    note("resuming after drops")
    rows += resumes("20m" if options.smoke else "6h")
    note("walking away" + (", an hour of it" if options.smoke else " for a day"))
    rows += day("1h" if options.smoke else "24h")
    show("links", rows, as_json=options.json)
    return 0


def in_time(work: Callable[[Chains], Awaitable[list[Row]]]) -> list[Row]:
    chains = Chains(intermediate=True)

    async def played() -> list[Row]:
        return await work(chains)

    return virtual_time.run(played(), start=chains.now)


# --- rate of the pipe ---------------------------------------------------------------------------------------------


async def rates(phy: str, size: int, _: Chains) -> list[Row]:
    rows = []
    async with linked(phy) as pair:
        for way, sender, receiver in (("up", pair.edge, pair.hop), ("down", pair.hop, pair.edge)):
            rate = await transfer(sender, receiver, size)
            rows.append(Row(
                f"pipe over GATT, {phy} {way}", rate / 1e3, "kB/s", CEILING[phy] / 1e3, "ceiling of the model",
                rate / CEILING[phy], 0.92,
            ))
    return rows


async def transfer(sender: Link, receiver: Link, size: int) -> float:
    """Bytes a second."""
    data = random.Random(1).randbytes(size)
    began = virtual_time.wall()
    sending = asyncio.create_task(sender.send(data))
    got = bytearray()
    while len(got) < size:
        got += await receiver.receive()
    await sending
    assert got == data
    return size / (virtual_time.wall() - began)


# --- overhead -----------------------------------------------------------------------------------------------------


async def overhead(chains: Chains) -> list[Row]:
    rows = []
    async with linked("1m") as pair:
        edge, gateway = await session_over(pair, chains, Padding.OFF)
        for size in (4_096, 65_536):
            body = random.Random(size).randbytes(size)
            asking = asyncio.create_task(whole(edge, body))
            incoming = await anext(aiter(gateway.requests()))
            await asyncio.sleep(1)  # credit and the rest of it
            pair.reset()
            incoming.begin(200, "application/octet-stream", streamed=False)
            await incoming.write(body)
            incoming.end(len(body), sha256(body))
            assert await asking == body
            uart = len(base64_lines(body))
            rows.append(Row(
                f"plaintext per byte of GATT value, {size >> 10} KiB", size / pair.down, "of it", size / uart,
                "base64 in JSON lines", (size / pair.down) / (size / uart), 0.95 * uart / size,
            ))
        await edge.close()
    return rows


def base64_lines(data: bytes, piece: int = 300) -> bytes:
    """As serial bridges do it: numbered JSON lines of base64."""
    return b"".join(
        json.dumps({"id": 1, "seq": number, "data": base64.b64encode(data[at:at + piece]).decode()}).encode() + b"\n"
        for number, at in enumerate(range(0, len(data), piece))
    )


# --- streamed answers ---------------------------------------------------------------------------------------------


def events() -> list[bytes]:
    dice = random.Random("tokens")
    words = [" " + "".join(dice.choices("etaoinshrdlu", k=dice.randint(1, 8))) for _ in range(TOKENS)]
    return [(EVENT % word).encode() for word in words] + [DONE]


async def speak(write: Callable[[bytes], Awaitable[None]], said: list[float]) -> None:
    """Writes the events at the rate of the provider, and notes when."""
    for event in events():
        await asyncio.sleep(1 / TOKEN_RATE)
        said.append(virtual_time.wall())
        await write(event)


async def ask(session: EdgeSession) -> AsyncIterator[bytes]:
    """Events of the answer, one by one."""
    body = b'{"model":"m","stream":true,"messages":[{"role":"user","content":"how deep is the water here?"}]}'
    header = encode_header(RequestHeader(
        "POST", "/v1/chat/completions", "application/json", "", len(body), int(virtual_time.wall()) + 600
    ))
    answer = await session.request(random.Random(2).randbytes(16), header, body).started()
    decoder = EventDecoder()
    async for chunk in answer:
        for event in decoder.feed(chunk):
            yield event


async def answer(gateway: GatewaySession, said: list[float]) -> None:
    incoming = await anext(aiter(gateway.requests()))
    assert isinstance(incoming, Incoming)
    incoming.begin(200, CONTENT_TYPE, streamed=True)
    encoder, kept = EventEncoder(), bytearray()

    async def write(event: bytes) -> None:
        entries = encoder.feed(event)
        kept.extend(entries)
        await incoming.write(entries)

    await speak(write, said)
    incoming.end(len(kept), sha256(bytes(kept)))


async def one_answer(edge: EdgeSession, gateway: GatewaySession) -> tuple[list[float], list[float]]:
    """(when each event was written, when the edge's application had it)"""
    said: list[float] = []
    serving = asyncio.create_task(answer(gateway, said))
    heard = [virtual_time.wall() async for _ in ask(edge)]
    await serving
    return said, heard


async def streamed(chains: Chains) -> list[Row]:
    async with linked("1m") as pair:
        edge, gateway = await session_over(pair, chains, Padding.BUCKET)
        pair.reset()
        began = virtual_time.wall()
        _, heard = await one_answer(edge, gateway)
        first = heard[0] - began
        await asyncio.sleep(60)  # the tail is part of the price
        ours = pair.down + pair.up
        await edge.close()
    async with linked("1m") as pair:
        pair.reset()
        theirs_first = await plain_answer(pair)
        theirs = pair.down + pair.up
    return [
        cost_row("answer of 300 tokens, bucket: bytes of GATT values", ours, "B", theirs,
                 "OpenAI's server-sent events, same pipe", wanted=3.0),
        cost_row("the same: time to first token", first * 1e3, "ms", theirs_first * 1e3,
                 "OpenAI's server-sent events, same pipe", wanted=None),
    ]


async def plain_answer(pair: Pair) -> float:
    """HTTP/1.1 in the clear through the same pipe: seconds to the first event."""
    began = virtual_time.wall()
    await pair.edge.send(b"POST /v1/chat/completions HTTP/1.1\r\nHost: api\r\nContent-Length: 97\r\n\r\n" + b"x" * 97)
    await pair.hop.receive()

    async def write(event: bytes) -> None:
        await pair.hop.send(b"%x\r\n%s\r\n" % (len(event), event))

    speaking = asyncio.create_task(speak(write, []))
    got, first = b"", 0.0
    while DONE not in got:
        got += await pair.edge.receive()
        first = first or virtual_time.wall() - began
    await speaking
    return first


async def delay_row(weather: str, chains: Chains) -> list[Row]:
    """Bluetooth on the modelled radio, RFCOMM as simulated weather; each token's way from the gateway to the reader."""
    delays: list[float] = []
    async with contextlib.AsyncExitStack() as stack:
        if weather == "ble-1m":
            pair = await stack.enter_async_context(linked("1m"))
        else:
            near, far = simulated_pair(weather, seed=3)
            pair = Pair(near, far)
            stack.push_async_callback(near.close)
        edge, gateway = await session_over(pair, chains, Padding.BUCKET)
        said, heard = await one_answer(edge, gateway)
        delays = [(after - before) * 1e3 for before, after in zip(said, heard, strict=True)]
        await edge.close()
    p95 = statistics.quantiles(delays, n=20)[-1]
    return [cost_row(
        f"added delay per token, {weather}, bucket, p95", p95, "ms", ORIGINAL_DELAY_MS, "original system", wanted=3.0
    )]


# --- small values, drops, days ------------------------------------------------------------------------------------


async def small_values(chains: Chains) -> list[Row]:
    async with linked("bluez-worst") as pair:
        edge, gateway = await session_over(pair, chains, Padding.OFF)
        pair.reset()
        tracemalloc.start()
        before = tracemalloc.get_traced_memory()[0]
        body = random.Random(4).randbytes(20_000)
        began = virtual_time.wall()
        asking = asyncio.create_task(whole(edge, body))
        incoming = await anext(aiter(gateway.requests()))
        taken = virtual_time.wall() - began
        assert incoming.body == body
        peak = tracemalloc.get_traced_memory()[1] - before
        tracemalloc.stop()
        asking.cancel()
        with contextlib.suppress(asyncio.CancelledError, TransportError):
            await asking
        sent = pair.up
        await edge.close()
    return [
        Row("20 kB prompt at 20-byte values: header overhead", sent / len(body) - 1, "of it", None, "", None),
        Row("the same: arrives within", taken, "s", None, "", None),
        Row("the same: memory of both ends", peak / 1024, "KiB", None, "", None),
    ]


async def whole(session: EdgeSession, body: bytes) -> bytes:
    header = encode_header(RequestHeader(
        "POST", "/v1/x", "application/octet-stream", "", len(body), int(virtual_time.wall()) + 600
    ))
    reply = await session.request(next(_ids).to_bytes(16, "big"), header, body).started()
    return b"".join([chunk async for chunk in reply])


_ids = itertools.count(1)


def resumes(duration: str) -> list[Row]:
    course = play(Scenario.load(f"""
title = "a link that breaks"
duration = "{duration}"
weather = "ble-1m"
[prompts]
every = "30s"
tokens = 300
rate = 20.0
[[faults]]
do = "drop link"
at = "10s"
every = "23s"
"""))
    numbers = course.numbers()
    return [
        cost_row(f"resume after a drop, ble-1m, p95 of {numbers['resumes']}", numbers["resume_p95_s"], "s", 1.0,
                 "wanted", wanted=1.0),
        Row("the same: delivered", numbers["delivered"], f"of {numbers['prompts']}", None, "", None),
    ]


def day(duration: str) -> list[Row]:
    course = play(Scenario.load(f"""
title = "walking away"
duration = "{duration}"
edges = 3
hops = 2
weather = "walk-away"
[prompts]
every = "5m"
"""), progress=lambda share: note(f"  {share:.0%}") if sys.stderr.isatty() else None)
    numbers = course.numbers()
    rows = [
        Row(f"{duration} of walk-away, 3 edges, 2 hops: delivered", numbers["delivered"], f"of {numbers['prompts']}",
            None, "", None),
        Row("the same: lost", numbers["lost"], "prompts", 0, "wanted", 1.0 if not numbers["lost"] else 0.0, 1.0),
        Row("the same: doubled", numbers["doubled"], "calls", 0, "wanted", 1.0 if not numbers["doubled"] else 0.0, 1.0),
        Row("the same: interrupted", numbers["interrupted"], "prompts", None, "", None),
        Row("the same: link drops", numbers["drops"], "drops", None, "", None),
    ]
    rows += [
        Row(f"the same: growth in {name}", numbers[f"{name}_growth"], {"memory": "KiB"}.get(name, name), None, "", None)
        for name in ("tasks", "descriptors", "objects", "memory")
    ]
    return [*rows, Row("the same: real time", course.real_s, "s", None, "", None)]


if __name__ == "__main__":
    sys.exit(main())

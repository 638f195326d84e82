"""The local engine beside a bare `llama_cpp` loop: speed, time to the first token, and what the event loop feels of it.

Both use the same loaded model in the same run and take short turns, so that a neighbour's load hits both; compared are
the two of a pair. Times are by the wall clock, since most of the work is in llama.cpp's own threads. CPU time of the
whole process stands beside it: it counts our second thread in full, and leaves out what other processes take.
"""

import asyncio
import contextlib
import resource
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.measure import Row, Times, arguments, note, show
from edge_client.config import Config
from edge_client.engine.base import Message, Sampling, Text
from edge_client.engine.llama import LlamaChat, LlamaEmbedder
from edge_client.engine.models import chat_model, embedder_file

CONTEXT = 2048
NAME = "bare llama_cpp loop"
MORE_MS = 15.0  # to the first token, over the bare loop
LAG_MS = 20.0
MEMORY_MB = 450.0
PASSAGE = "The P-101 transfer pump has a maximum working pressure of 6 bar and moves 22 cubic metres an hour. "


def question(number: int, passages: int = 1) -> list[Message]:
    """A prompt which nothing in the context begins with."""
    return [Message("user", f"{number}: {PASSAGE * passages}\nTell me a long story about this pump.")]


class Bare:
    """The model's own template, the loop of the library, and each token's text."""

    def __init__(self, llama: Any) -> None:
        from llama_cpp.llama_chat_format import Jinja2ChatFormatter

        self._llama = llama
        template = llama.metadata["tokenizer.chat_template"]
        self._formatter: Any = Jinja2ChatFormatter(template=template, eos_token="", bos_token="")

    def seconds(self, messages: Sequence[Message], count: int) -> tuple[float, float, float]:
        """To the first token, for one of the others, and the process's CPU time for one of the others."""
        begun, times, used = time.perf_counter(), [], []
        rendered = self._formatter(messages=[{"role": m.role, "content": m.content} for m in messages])
        prompt = self._llama.tokenize(rendered.prompt.encode(), add_bos=False, special=True)
        for _, token in zip(range(count), self._llama.generate(prompt, temp=0.0, repeat_penalty=1.1), strict=False):
            self._llama.detokenize([token])
            times.append(time.perf_counter())
            used.append(time.process_time())
        return times[0] - begun, (times[-1] - times[0]) / (count - 1), (used[-1] - used[0]) / (count - 1)


async def seconds(chat: LlamaChat, messages: Sequence[Message], count: int) -> tuple[float, float, float]:
    """The same by `LlamaChat`."""
    begun, times, used = time.perf_counter(), [], []
    async with contextlib.aclosing(chat.generate(messages, Sampling(max_tokens=count))) as events:
        async for event in events:
            if isinstance(event, Text) and event.text:
                times.append(time.perf_counter())
                used.append(time.process_time())
    return times[0] - begun, (times[-1] - times[0]) / (count - 1), (used[-1] - used[0]) / (count - 1)


async def speed(chat: LlamaChat, rounds: int, count: int) -> list[Row]:
    bare = Bare(chat._loaded())
    ours, theirs = [], []
    asked = question(1)
    for _ in range(rounds):  # of one prompt, which both find in the context
        ours.append(await seconds(chat, asked, count))
        theirs.append(await asyncio.to_thread(bare.seconds, asked, count))
    rows = []
    for at, what, wanted in ((1, "tokens of an answer", 0.97), (2, "tokens for a second of CPU time", None)):
        mine, peers = [entry[at] for entry in ours], [entry[at] for entry in theirs]
        ratio = median(peer / own for own, peer in zip(mine, peers, strict=True))
        rows.append(Row(
            what, 1 / median(mine), "tokens/s", 1 / median(peers), NAME, ratio, wanted, Times(tuple(mine)).spread
        ))
    firsts = []
    for number in range(rounds):
        own = (await seconds(chat, question(2 * number + 10), 2))[0]
        peer = (await asyncio.to_thread(bare.seconds, question(2 * number + 11), 2))[0]
        firsts.append((1000 * own, 1000 * peer))
    later = median(own - peer for own, peer in firsts)
    own, peer = (median(column) for column in zip(*firsts, strict=True))
    spread = Times(tuple(entry[0] for entry in firsts)).spread
    rows.append(Row("time to the first token, new prompt", own, "ms", peer, NAME, peer / own, None, spread))
    within = MORE_MS / max(later, 0.1)
    rows.append(Row("first token later than the bare loop's", later, "ms", MORE_MS, "limit", within, 1.0))
    return rows


async def turns(chat: LlamaChat, rounds: int) -> list[Row]:
    """The next question of a conversation: at once, after another conversation, and with nothing of it read before."""
    warm, after, cold = [], [], []
    for number in range(rounds):
        talk = question(1000 + number, 8)
        answer = [event.text async for event in chat.generate(talk, Sampling(max_tokens=16)) if isinstance(event, Text)]
        more = [Message("assistant", "".join(answer)), Message("user", "Why?")]
        warm.append((await seconds(chat, [*talk, *more], 2))[0])
        cold.append((await seconds(chat, [*question(1500 + number, 8), *more], 2))[0])
        after.append((await seconds(chat, [*talk, more[0], Message("user", "How?")], 2))[0])
    theirs = 1000 * median(cold)
    return [
        Row(what, 1000 * median(mine), "ms", theirs, "the same without the cache", theirs / (1000 * median(mine)))
        for what, mine in (("first token of a next turn", warm), ("the same after another conversation", after))
    ]


async def lag(chat: LlamaChat, embedder: LlamaEmbedder, count: int) -> list[Row]:
    """How late the event loop wakes while the model answers and the embedder embeds, and without any of it."""

    async def late(until: asyncio.Event) -> list[float]:
        loop, found = asyncio.get_running_loop(), []
        while not until.is_set():
            begun = loop.time()
            await asyncio.sleep(0.002)
            found.append(1000 * (loop.time() - begun - 0.002))
        return sorted(found)

    async def load() -> None:
        async def answers() -> None:
            for number in range(2):
                await seconds(chat, question(2000 + number, 8), count)

        async def vectors() -> None:
            for _ in range(count // 8):
                await embedder.embed([PASSAGE * 4] * 4)
                embedder.count(PASSAGE)

        await asyncio.gather(answers(), vectors())

    figures = []
    for work in (load(), asyncio.sleep(2)):
        done = asyncio.Event()
        watch = asyncio.ensure_future(late(done))
        await work
        done.set()
        figures.append(await watch)
    busy, idle = figures
    p99, rest = busy[int(0.99 * len(busy))], idle[int(0.99 * len(idle))]
    return [
        Row("event loop late, 99 of 100 times within", p99, "ms", LAG_MS, f"limit; without load {rest:.2f} ms",
            LAG_MS / p99, 1.0),
        Row("event loop late, at most", busy[-1], "ms", idle[-1], "without load", idle[-1] / busy[-1]),
    ]


def memory() -> Row:
    """The most this process has had resident, with model and embedder."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1 << 20 if sys.platform == "darwin" else 1 << 10)
    return Row("resident, model and embedder", peak, "MiB", MEMORY_MB, "limit", MEMORY_MB / peak, 1.0)


async def run(smoke: bool) -> list[Row]:
    config = Config(Path("/nonexistent"))
    chat = LlamaChat(lambda: chat_model(config), name="local", context=CONTEXT)
    file = embedder_file(config)
    embedder = LlamaEmbedder(file.path, model_id=file.model_id)
    rounds, count = (3, 8) if smoke else (40, 17)
    await chat.load()
    await embedder.embed(["warm"])
    note(f"speed, {rounds} rounds of {count} tokens each")
    rows = await speed(chat, rounds, count)
    note("the cache across turns")
    rows += await turns(chat, 2 if smoke else 5)
    note("the event loop under load")
    rows += await lag(chat, embedder, 8 if smoke else 48)
    return [*rows, memory()]


if __name__ == "__main__":
    options = arguments("The local engine beside a bare llama_cpp loop.")
    show("engine", asyncio.run(run(options.smoke)), as_json=options.json)

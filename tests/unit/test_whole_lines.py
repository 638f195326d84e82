"""Event streams of providers: whole lines or nothing, however they come."""

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.gateway.errors import ProviderFailure
from relay.gateway.upstream import lines
from relay.gateway.upstream.base import Timeouts
from relay.gateway.upstream.client import Client
from relay.gateway.upstream.lines import whole_lines
from tests.support.scripted_http import END, HANG, Script, Scripted
from tests.support.virtually import in_virtual_time
from transport.links import virtual_time

HEAD = b"HTTP/1.1 200 OK\r\n\r\n"  # to the connection's end: only the stream's own end shows that it is whole
DONE = b"data: [DONE]\n\n"


async def read(script: Script, limit: int = 1 << 24) -> tuple[list[bytes], str]:
    """The pieces, and how it ended."""
    async with Scripted([[HEAD, *script]]) as server:
        client, pieces = Client(server.url, Timeouts(5.0, 10.0, 5.0)), []
        response = await client.request("GET", "/", {})
        try:
            async for piece in whole_lines(response, limit, b"[DONE]".__eq__):
                pieces.append(piece)
        except ProviderFailure as failure:
            return pieces, str(failure)
        finally:
            response.close()
            await client.close()
        return pieces, "whole"


@pytest.mark.parametrize(("script", "ended"), [
    ([b"data: a\n\n" + DONE, END], "whole"),
    ([b": comment\nevent: x\nid: 1\nretry: 5\ndata:a\r\n\r\n" + DONE, END], "whole"),
    ([DONE, HANG], "whole"),
    ([DONE, 1.0, b": bye\n\n", HANG], "whole"),
    ([b"data: a\n\n", END], "cut short"),
    ([b"data: a\n\n", HANG], "in time"),
    ([b"data: [DONE]", END], "cut short"),
    ([DONE + b"data: ", END], "cut short"),
    ([b"what\n\n" + DONE, END], "cut short"),
    ([b"data: a\rdata: b\n\n" + DONE, END], "cut short"),
    ([b"data: a\r\r\n\n" + DONE, END], "cut short"),
    ([b"data: " + b"a" * 300 + b"\n\n" + DONE, END], "too large"),
    ([b"data: " + b"a" * 150, 0.1, b"a" * 10, 0.1, b"\n" + DONE, END], "too large"),
])
@in_virtual_time
async def test_a_stream_is_whole_or_says_why_not(script: Script, ended: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lines, "LINE_MAX", 100)
        pieces, how = await read(script, limit=250)
    assert ended in how
    assert all(piece.endswith(b"\n") for piece in pieces)


@in_virtual_time
async def test_what_has_said_that_it_ends_is_not_waited_for() -> None:
    begun = asyncio.get_running_loop().time()
    assert await read([DONE, HANG]) == ([DONE], "whole")
    assert asyncio.get_running_loop().time() - begun == pytest.approx(2.0)


@given(st.lists(st.binary(max_size=12).map(lambda data: data.translate(None, b"\r\n")), max_size=8), st.data())
def test_however_it_comes_it_is_the_same_and_cut_behind_lines(payloads: list[bytes], data: st.DataObject) -> None:
    wire = b"".join(b"data: %b\n\n" % payload for payload in payloads) + DONE
    cuts = sorted(data.draw(st.sets(st.integers(0, len(wire)), max_size=8)))
    steps: list[bytes | float] = []
    for begin, end in zip([0, *cuts], [*cuts, len(wire)], strict=True):
        steps += [wire[begin:end], 0.01]
    pieces, how = virtual_time.run(read([*steps, END]))
    assert how == "whole" and b"".join(pieces) == wire
    assert all(piece.endswith(b"\n") for piece in pieces)


@in_virtual_time
async def test_much_at_once_lets_others_have_their_turn() -> None:
    wire = b"data: a\n" * 5_000 + b"data: " + b"b" * 30_000 + b"\n" + b"data: c\n" * 5_000 + DONE
    turns = 0

    async def other() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    async with Scripted([[HEAD + wire, END]]) as server:
        client = Client(server.url, Timeouts(5.0, 10.0, 5.0))
        response = await client.request("GET", "/", {})
        await asyncio.sleep(1.0)  # all of it is there
        beside, sizes, before = asyncio.create_task(other()), [], 0
        async for piece in whole_lines(response, 1 << 20, b"[DONE]".__eq__):
            assert turns > before or not sizes
            before = turns
            sizes.append(len(piece))
        beside.cancel()
        response.close()
        await client.close()
    assert sum(sizes) == len(wire) and sorted(sizes)[-2] <= 16_384 < max(sizes) == 30_007

"""The compact form of an answer at the edge: what stands for much is not unpacked at once."""

import tracemalloc

from edge_client.remote_answer import RemoteAnswer
from transport.events import TEMPLATE_MAX, EventDecoder
from transport.messages import DATA_MAX


async def test_a_piece_that_stands_for_a_thousand_times_as_much_takes_no_memory() -> None:
    answer = RemoteAnswer.__new__(RemoteAnswer)
    answer._events = EventDecoder()
    both = b"p" * (TEMPLATE_MAX - 1) + b"s"
    template = b"\xfe\x1f\x01" + both  # kind 2, n 1,023, m 1
    tracemalloc.start()
    try:
        count = 0
        async for event in answer._unwrapped(template + b"\x01" * DATA_MAX):
            assert event == both
            count += 1
        assert count == DATA_MAX
        assert tracemalloc.get_traced_memory()[1] < 1 << 20, "of 16 MiB"
    finally:
        tracemalloc.stop()

"""Events of a provider's stream, in each format: an end, an error or neither; and always a stream that we can end."""

import contextlib
import json
from collections.abc import Iterable

from relay.gateway.errors import ProviderFailure
from relay.gateway.upstream.formats import CHAT, MESSAGES, RESPONSES, payloads
from tests.support.answer_streams import FORMATS, TOOL, closed, delta, ends_whole, stream, whole


def run_answer_events(data: bytes) -> None:
    for form in (CHAT, RESPONSES, MESSAGES):
        followed = form.follow()
        for payload in (data, *payloads(data)):
            for judge in (form.ends, form.check):
                with contextlib.suppress(ProviderFailure):
                    judge(payload)
            form.told(payload)
            assert form.text(payload) == followed.feed(payload)
        assert ends_whole(form.name, followed.cut(7))


def answer_event_seeds() -> Iterable[bytes]:
    for kind in FORMATS:
        yield b"".join(stream(kind, ["The ", "pump"]))
        yield delta(kind, '{"a":', what=TOOL) + closed(kind)
        yield json.dumps(whole(kind, "text")).encode()

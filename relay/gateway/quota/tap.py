"""Counts an answer as it passes, and ends a stream for which nothing is left."""

from relay.gateway.pipeline import RequestContext
from relay.gateway.quota.quotas import CallHold
from relay.gateway.upstream.formats import CHAT, payloads


class Allowance:
    """The first of the taps: what the provider sends is paid for, whatever becomes of it.

    The event that uses up what is left goes on, and then the events that end the answer for its length; nothing after
    that. So a stream is over by one event at most. A whole answer cannot be ended early: for it all of what it may be
    had been reserved.
    """

    def __init__(self, context: RequestContext) -> None:
        hold, target = context.hold, context.target
        self._context = context
        self._hold = hold if isinstance(hold, CallHold) and hold.hold.lane else None
        self._followed = (CHAT if target is None else target.format).follow() if context.stream else None

    def feed(self, data: bytes) -> bytes:
        hold, followed = self._hold, self._followed
        if hold is None:
            return data
        if followed is None:
            hold.count(len(data))
            return data
        at = 0
        for payload in payloads(data):
            at = data.index(payload, at) + len(payload)
            text = followed.feed(payload)
            if text and (over := hold.take(len(text if text.isascii() else text.encode("utf-8", "surrogatepass")))):
                self._context.cut = over
                return data[:at] + b"\n" + followed.cut(hold.output)
        return data

    def finish(self) -> bytes:
        return b""

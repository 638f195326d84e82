"""Counts what an answer cost: tokens, as the provider reports them, and which model answered."""

from relay.gateway.pipeline import RequestContext
from relay.gateway.upstream.formats import CHAT, payloads

_JSON_MAX = 1 << 20  # an answer body beyond this is passed on uncounted


class Meter:
    """Passes everything on unchanged. Relies on streamed answers coming in whole lines (`upstream` sees to that)."""

    def __init__(self, context: RequestContext) -> None:
        target = context.target
        self._context = context
        self._format = CHAT if target is None else target.format
        self._whole: bytearray | None = None if context.stream else bytearray()

    def feed(self, data: bytes) -> bytes:
        if self._whole is not None:
            if len(self._whole) + len(data) <= _JSON_MAX:
                self._whole += data
        elif b'"usage"' in data or not self._context.usage.model:  # decoding every event would double the cost
            for payload in payloads(data):
                if b"{" in payload:
                    self._note(payload)
        return data

    def finish(self) -> bytes:
        if self._whole:
            self._note(bytes(self._whole))
        return b""

    def _note(self, data: bytes) -> None:
        told, usage = self._format.told(data), self._context.usage
        if told is not None:  # a provider that reports in another form is not counted; its answer stands
            usage.model = (told.model or usage.model)[:128]
            usage.input_tokens = _count(told.input_tokens, usage.input_tokens)
            usage.output_tokens = _count(told.output_tokens, usage.output_tokens)


def _count(reported: int | None, before: int | None) -> int | None:
    return reported if reported is not None and 0 <= reported < 1 << 40 else before

"""Counts what an answer cost: tokens, as the provider reports them, and which model answered."""

import msgspec

from relay.gateway.pipeline import RequestContext

_JSON_MAX = 1 << 20  # an answer body beyond this is passed on uncounted


class _Usage(msgspec.Struct):
    prompt_tokens: int | None = None
    completion_tokens: int | None = None


class _Answer(msgspec.Struct):
    model: str | None = None
    usage: _Usage | None = None


_decoder = msgspec.json.Decoder(_Answer)


class Meter:
    """Passes everything on unchanged. Relies on streamed answers coming in whole lines (`upstream` sees to that)."""

    def __init__(self, context: RequestContext) -> None:
        self._context = context
        self._whole: bytearray | None = None if context.stream else bytearray()

    def feed(self, data: bytes) -> bytes:
        if self._whole is not None:
            if len(self._whole) + len(data) <= _JSON_MAX:
                self._whole += data
        elif b'"usage"' in data or not self._context.usage.model:  # decoding every event would double the cost
            for line in data.splitlines():
                if line.startswith(b"data:") and b"{" in line:
                    self._note(line[5:])
        return data

    def finish(self) -> bytes:
        if self._whole:
            self._note(bytes(self._whole))
        return b""

    def _note(self, data: bytes) -> None:
        try:
            answer = _decoder.decode(data)
        except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
            return  # a provider that reports in another form is not counted; its answer stands
        usage = self._context.usage
        usage.model = (answer.model or usage.model)[:128]
        if answer.usage is not None:
            usage.input_tokens = _count(answer.usage.prompt_tokens, usage.input_tokens)
            usage.output_tokens = _count(answer.usage.completion_tokens, usage.output_tokens)


def _count(reported: int | None, before: int | None) -> int | None:
    return reported if reported is not None and 0 <= reported < 1 << 40 else before

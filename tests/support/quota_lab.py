"""A pipeline with quotas whose provider is a script: answers of any format, failures, and a clock that is told."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from relay.gateway.audit.log import AuditLog
from relay.gateway.checks.authorise import Authorise
from relay.gateway.checks.quota import Quota as QuotaCheck
from relay.gateway.checks.schema import Schema
from relay.gateway.errors import ProviderFailure
from relay.gateway.pipeline import Answer, Pipeline, RequestContext
from relay.gateway.policy.settings import Allow
from relay.gateway.quota.quotas import Quotas
from relay.gateway.quota.settings import Limiting, PriceEntry, Quota, checked_quotas
from relay.gateway.quota.shown import KINDS
from relay.gateway.quota.tap import Allowance
from relay.gateway.taps.meter import Meter
from relay.gateway.taps.secrets import secret_filter
from tests.support.gateway_lab import Clock, KeptSink, allowing, audit_lines, context, peer
from transport import telemetry

MODELS = ("small", "large")
PRICES = (
    PriceEntry(model="small", input="0.15", output="0.60", output_max=200),
    PriceEntry(model="large", input="3", output="12", output_max=200),
)
UNREACHED = ("provider_unreachable", "provider_timeout")
ROUTES = {"chat": "/v1/chat/completions", "responses": "/v1/responses", "messages": "/v1/messages"}


def limiting(*quotas: Quota, prices: Sequence[PriceEntry] = PRICES) -> Limiting:
    return checked_quotas(
        quotas, prices, groups=[], allows=[Allow(id="/edge/*", models=[*MODELS, "pump"])], models=[*MODELS, "pump"],
        uncounted=["pump"],
    )


def quota(**fields: Any) -> Quota:
    return Quota(**({"name": "hourly", "id": "/edge/*", "window": "1h"} | fields))


@dataclass
class Scripted:
    """Answers with `pieces`; then, or before the first where there are none, fails with `failure` if there is one."""

    pieces: Sequence[bytes] = ()
    failure: ProviderFailure | None = None
    stall: bool = False  # after the pieces
    calls: int = 0
    read: int = 0  # pieces that somebody asked for
    stalled: asyncio.Event = field(default_factory=asyncio.Event)

    @asynccontextmanager
    async def answer(self, request: RequestContext) -> AsyncIterator[Answer]:
        self.calls += 1
        if self.failure is None or self.pieces or not (self.failure.again and self.failure.kind in UNREACHED):
            request.attempts += 1
        if not self.pieces and self.failure is not None:
            raise self.failure
        if not self.pieces:
            self.stalled.set()
            await asyncio.Event().wait()
        kind = "text/event-stream" if request.stream else "application/json"
        yield Answer(200, kind, request.stream, self._chunks())

    async def _chunks(self) -> AsyncIterator[bytes]:
        for piece in self.pieces:
            self.read += 1
            yield piece
        if self.failure is not None:
            raise self.failure
        if self.stall:
            self.stalled.set()
            await asyncio.Event().wait()


@dataclass
class Lab:
    quotas: Quotas
    pipeline: Pipeline
    provider: Scripted
    clock: Clock
    directory: Path

    async def ask(
        self, body: bytes, sink: KeptSink | None = None, *, path: str = "edge/lap-1", kind: str = "chat", **changes: Any
    ) -> tuple[KeptSink, RequestContext]:
        sink = sink or KeptSink()
        request = context(body, peer=peer(path), **({"route": ROUTES.get(kind, kind)} | changes))
        await self.pipeline.handle(request, sink)
        return sink, request

    def used(self, name: str = "hourly") -> dict[str, tuple[int, int]]:
        """(used, reserved) by what is counted."""
        now = self.quotas.now()
        return {
            KINDS[kind]: (window.spent, window.held) for slot in self.quotas.ledger.slots() if slot.rule.name == name
            for kind, window in slot.windows.items() if not window.idle(now)
        }

    def lines(self) -> list[dict[str, Any]]:
        return audit_lines(self.directory / "audit.jsonl")


@asynccontextmanager
async def quota_lab(directory: Path, *quotas: Quota, **options: Any) -> AsyncIterator[Lab]:
    clock, provider = Clock(1_700_000_000.0), Scripted()
    found = Quotas(limiting(*quotas, **options), clock=lambda: 1_700_000_000.0, monotonic=lambda: clock.now)
    tracing, audit = telemetry.start("gateway", directory / "spans.jsonl"), AuditLog(directory / "audit.jsonl")
    pipeline = Pipeline(
        checks=[Authorise(allowing({"/edge/*": [*MODELS, "pump"]})), Schema(), QuotaCheck(found)],
        answerers=dict.fromkeys(("chat", "responses", "messages", "embeddings", "infer"), provider),
        taps=[Allowance, Meter, secret_filter(list)], audit=audit, telemetry=tracing,
        node="spiffe://field.example/gateway/main",
    )
    yield Lab(found, pipeline, provider, clock, directory)
    await audit.close()
    tracing.close()

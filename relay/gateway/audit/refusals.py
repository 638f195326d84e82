"""Refusals of whoever has not shown who they are. Strangers decide how many there are, so not each gets its record.

Of each kind (event and reason) a few are written one by one; what comes faster is counted, and the count is written.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from relay.gateway.audit.log import AuditLog, Value
from relay.rates import Rate, TokenBucket

PER_MINUTE: Final = 10
_RATE: Final = Rate(PER_MINUTE / 60, PER_MINUTE)
KINDS_MAX: Final = 64  # reasons come from a fixed set; should one ever not, its kinds share a bucket


@dataclass
class _Kind:
    bucket: TokenBucket
    suppressed: int = 0


class Refusals:
    """The audit's front for strangers."""

    def __init__(self, audit: AuditLog, *, clock: Callable[[], float] = time.time) -> None:
        self._audit = audit
        self._clock = clock
        self._kinds: dict[tuple[str, str], _Kind] = {}

    async def append(self, event: str, *, reason: str, **fields: Value) -> None:
        """Writes or counts one refusal. A record says in `suppressed` how many of its kind had none since the last.

        Raises AuditUnavailable.
        """
        kind = self._kind(event, reason)
        if not kind.bucket.take(self._clock()):
            kind.suppressed += 1
            return
        await self._write(kind, event, reason=reason, **fields)

    async def flush(self) -> None:
        """Writes the counts that still wait. To be called about once a minute, and at the end."""
        for (event, reason), kind in list(self._kinds.items()):
            if kind.suppressed:
                await self._write(kind, event, reason=reason)

    async def _write(self, kind: _Kind, event: str, **fields: Value) -> None:
        count, kind.suppressed = kind.suppressed, 0
        try:
            await self._audit.append(event, **fields, **({"suppressed": count} if count else {}))
        except BaseException:
            kind.suppressed += count
            raise

    def _kind(self, event: str, reason: str) -> _Kind:
        key = (event, reason)
        if key not in self._kinds and len(self._kinds) >= KINDS_MAX:
            key = (event, "other")
        if key not in self._kinds:
            self._kinds[key] = _Kind(TokenBucket(_RATE, self._clock()))
        return self._kinds[key]

"""Profiles of all devices, beside the pipeline: notes each request, judges twice a second, and acts on what it finds.

What is on the way of a request costs some microseconds and waits for nothing. State changes are in force with the next
request; what runs of a device that is quarantined or revoked is cut within a second of the request that was too much.
Profiles are kept in the database, written in the background; in memory are those that ask now, or are under suspicion.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any, Final

import msgspec

from relay.gateway.anomaly.ladder import Level
from relay.gateway.anomaly.profile import Fleet, Habit, Hour, Kept, Profile, kind_of
from relay.gateway.anomaly.settings import Anomaly
from relay.gateway.pipeline import Refusal, RequestContext
from relay.rates import Rate, TokenBucket
from store.database import Database
from store.errors import StoreError
from transport.primitives import random_bytes

TICK_S: Final = 0.5
SWEEP_S: Final = 10.0  # how often those are judged that ask nothing but are under suspicion
STORE_S: Final = 30.0
KEY_S: Final = 86_400.0  # prompts of different days cannot be told to be the same
HELD_MAX: Final = 2_000  # profiles in memory, of those that nothing is the matter with; some 8 KB each
QUARANTINED: Final = Refusal(
    403, "quarantined", "the gateway has put this device in quarantine; an administrator has to look at it"
)
_PART: Final = 96  # characters at a prompt's begin, middle and end; with its length they stand for all of it
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Change:
    """A device has come to `level`, from the one above or below."""

    enrolment: int
    before: Level
    level: Level
    reasons: dict[str, int]  # points by kind


Act = Callable[[Change], Awaitable[None]]


async def _nothing(change: Change) -> None:
    """Beside a gateway that does not run, nothing is to be done."""


class Guard:
    """An `Observer` of the pipeline; owns the table `profiles`. Await `load` first, run `keep`, await `close` last."""

    def __init__(
        self, database: Database, settings: Anomaly, *, act: Act = _nothing, clock: Callable[[], float] = time.time,
    ) -> None:
        """`act` cuts, tells and revokes; where it fails, that is tried again."""
        self._database, self._act, self._clock = database, act, clock
        self.apply(settings)
        self._fleet = Fleet()
        self._profiles: dict[int, Profile] = {}
        self._unread: set[int] = set()  # noted, and what is known of them from before is not here yet
        self._noted: set[int] = set()  # since they were judged
        self._raised: set[int] = set()  # not normal
        self._unsaved: set[int] = set()
        self._buckets: dict[int, TokenBucket] = {}
        self._owed: list[Change] = []
        self._key, self._key_until = random_bytes(16), clock() + KEY_S
        self._swept = self._stored = clock()

    def apply(self, settings: Anomaly) -> None:
        """From now on."""
        self._thresholds = settings.thresholds()
        self._rate = Rate(settings.throttled_per_minute / 60, max(1, settings.throttled_per_minute // 6))

    async def load(self) -> None:
        """Those under suspicion. Raises StoreError."""
        rows = await self._database.run(lambda connection: connection.execute(
            "SELECT enrolment, level, kept FROM profiles WHERE level > 0"
        ).fetchall(), read_only=True)
        for row in rows:
            self._take(*row)

    # --- on the way of each request ---------------------------------------------------------------------------------

    def level(self, enrolment: int) -> Level:
        profile = self._profiles.get(enrolment)
        return Level.NORMAL if profile is None else profile.standing.level

    def wait_s(self, enrolment: int) -> float:
        """Of a throttled device: 0 if it may ask now, else in how many seconds."""
        now = self._clock()
        bucket = self._buckets.get(enrolment)
        if bucket is None:
            bucket = self._buckets[enrolment] = TokenBucket(self._rate, now)
        return 0.0 if bucket.take(now) else 1 / self._rate.per_second

    def refused(self, context: RequestContext, refusal: Refusal) -> None:
        """See `pipeline.Observer`."""
        if refusal.status not in (401, 410) and refusal.code != "identity_refused":  # not of who asks, or of nobody
            self._note(context, kind_of(refusal.status, refusal.code))

    def finished(self, context: RequestContext, result: str, code: str) -> None:
        """See `pipeline.Observer`."""
        self._note(context, "")

    def _note(self, context: RequestContext, kind: str) -> None:
        profile = self._profiles.get(context.enrolment)
        if profile is None:
            profile = self._profiles[context.enrolment] = Profile(context.enrolment, self._clock())
            self._unread.add(context.enrolment)
        text = context.said[-1].text if context.said else context.body
        size, half = len(text), len(text) // 2
        if size > 3 * _PART:
            text = text[:_PART] + text[half:half + _PART] + text[-_PART:]  # type: ignore[operator]
        data = text.encode("utf-8", "replace") if isinstance(text, str) else text
        profile.note(
            (blake2b(data, key=self._key, digest_size=8).digest(), size), "" if kind else context.model,
            len(context.body), context.bytes_out, context.injection, kind,
        )
        self._noted.add(context.enrolment)

    # --- in the background ------------------------------------------------------------------------------------------

    async def keep(self) -> None:
        """Runs until it is cancelled."""
        while True:
            await asyncio.sleep(TICK_S)
            try:
                await self.tick()
            except Exception as error:  # a defect of ours is not to end the watch; the text could quote anything
                _log.error("the watch over devices has failed: %s", type(error).__name__)

    async def tick(self) -> None:
        """Judges who has asked, now and then the rest, and does what follows. Raises nothing."""
        now = self._clock()
        try:
            self._owed += self._judge(now)
            await self._pay()
            if self._unread:
                await self._read()
            if not 0 <= now - self._stored < STORE_S or len(self._profiles) > HELD_MAX + len(self._raised):
                await self._store(now)
        except StoreError as error:
            _log.error("what is known of devices is not kept: %s", error)

    async def close(self) -> None:
        """Raises StoreError."""
        await self._store(self._clock())

    # --- for an administrator ---------------------------------------------------------------------------------------

    def state(self, enrolment: int) -> dict[str, Any]:
        """`state`, `score`, and `reasons`: points by kind. Of one that nothing is the matter with, the first alone."""
        profile, level = self._profiles.get(enrolment), self.level(enrolment)
        if profile is None or not level:
            return {"state": level.word, "score": 0, "reasons": {}}
        return {"state": level.word, "score": round(profile.score), "reasons": profile.reasons()}

    async def lift(self, enrolment: int) -> Level:
        """A person says that all is well with it; the state it had. Raises StoreError."""
        profile, before = self._profiles.get(enrolment), self.level(enrolment)
        if profile is None or not before:
            return before
        profile.excuse(self._clock())
        self._owed = [one for one in self._owed if one.enrolment != enrolment]
        self._raised.discard(enrolment)
        await self._write({enrolment})
        return before

    async def inherit(self, enrolment: int, before: int) -> None:
        """A device has come back under another number: with its habits, and excused of what it was ended for."""
        if before not in self._profiles:
            self._unread.add(before)
            self._profiles[before] = Profile(before, self._clock())
            await self._read()
        old = self._profiles.pop(before)
        old.excuse(self._clock())
        self._raised.discard(before)
        self._profiles[enrolment] = Profile(enrolment, self._clock(), old.kept)
        await self._write({enrolment})
        await self._database.run(
            lambda connection: connection.execute("DELETE FROM profiles WHERE enrolment = ?", (before,)) and None
        )

    # --- inside -----------------------------------------------------------------------------------------------------

    def _judge(self, now: float) -> list[Change]:
        if not 0 <= now - self._swept < SWEEP_S:
            self._swept = now
            self._noted |= self._raised
            if not 0 <= self._key_until - now <= KEY_S:
                self._key, self._key_until = random_bytes(16), now + KEY_S
        noted, self._noted = self._noted - self._unread, self._noted & self._unread
        found = []
        for enrolment in noted:
            profile = self._profiles.get(enrolment)
            if profile is None:
                continue
            before, level = profile.standing.level, profile.judge(now, self._thresholds, self._fleet)
            self._unsaved.add(enrolment)
            if level is None:
                continue
            found.append(Change(enrolment, before, level, profile.reasons()))
            self._buckets.pop(enrolment, None)
            (self._raised.add if level else self._raised.discard)(enrolment)
        return found

    async def _pay(self) -> None:
        """What is owed, of all devices at the same time, of each in order; what cannot be done is owed still."""
        owed, self._owed = self._owed, []
        by: dict[int, list[Change]] = {}
        for change in owed:
            by.setdefault(change.enrolment, []).append(change)
        await asyncio.gather(*map(self._do, by.values()))
        if owed:
            await self._write(set(by))

    async def _do(self, changes: list[Change]) -> None:
        for number, change in enumerate(changes):
            try:
                await self._act(change)
            except Exception as error:  # whatever it is, it is to be done
                _log.error("enrolment %d: %s fails: %s", change.enrolment, change.level.word, type(error).__name__)
                self._owed += changes[number:]
                return

    def _take(self, enrolment: Any, level: Any, kept: Any) -> None:
        now, profile = self._clock(), self._profiles.get(enrolment)
        try:
            known = msgspec.msgpack.decode(kept, type=Kept)
        except msgspec.MsgspecError:
            _log.error("what was known of enrolment %d cannot be read and is learnt anew", enrolment)
            known = Kept(Habit.unknown(), Hour(now), level=level, since=now, judged=now, active=now)  # not forgiven
        if profile is None:
            profile = self._profiles[enrolment] = Profile(enrolment, now, known)
        else:
            profile.restore(known, now)
        if profile.standing.level:
            self._raised.add(enrolment)

    async def _read(self) -> None:
        wanted = tuple(self._unread)

        found = await self._database.run(lambda connection: [
            connection.execute("SELECT enrolment, level, kept FROM profiles WHERE enrolment = ?", (one,)).fetchone()
            for one in wanted
        ], read_only=True)
        for row in filter(None, found):
            self._take(*row)
        self._unread.difference_update(wanted)

    async def _store(self, now: float) -> None:
        self._stored = now
        await self._write(self._unsaved)
        spare = len(self._profiles) - len(self._raised) - HELD_MAX
        if spare > 0:  # who was silent longest, and a tenth more than needed
            idle = self._profiles.keys() - self._noted - self._raised - self._unread - self._unsaved
            for enrolment in sorted(idle, key=lambda one: self._profiles[one].kept.active)[:spare + HELD_MAX // 10]:
                del self._profiles[enrolment]

    async def _write(self, enrolments: set[int]) -> None:
        rows = [
            (one, profile.standing.level, profile.encode())
            for one in enrolments if (profile := self._profiles.get(one)) is not None and one not in self._unread
        ]
        self._unsaved -= {row[0] for row in rows}
        try:
            if rows:
                await self._database.run(lambda connection: connection.executemany(
                    "INSERT OR REPLACE INTO profiles VALUES (?, ?, ?)", rows
                ) and None)
        except BaseException:
            self._unsaved |= {row[0] for row in rows}
            raise


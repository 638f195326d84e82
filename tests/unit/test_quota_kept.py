"""Counts outlive the process: by the state's tables where there was time, and by the audit for the rest."""

import json
import logging
import sqlite3
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from relay.gateway.pipeline import RequestContext, Usage
from relay.gateway.quota.kept import Kept
from relay.gateway.quota.quotas import CallHold, Quotas
from relay.gateway.quota.settings import Limiting, Quota
from store.errors import StoreBusy
from tests.support.gateway_lab import DOMAIN, chat, context, peer
from tests.support.quota_lab import limiting, quota

STEP = (files("relay.gateway.state") / "schema" / "0009_quotas.sql").read_text()
ALL = quota(requests=1_000, tokens=1_000_000, money="10")
T0 = 1_700_000_000


class FakeDatabase:
    """The tables alone, unencrypted and in memory."""

    def __init__(self) -> None:
        self.connection = sqlite3.connect(":memory:", isolation_level=None)
        self.connection.executescript(STEP)
        self.broken = False

    async def run(self, work: Callable[[Any], Any], *, read_only: bool = False) -> Any:
        if self.broken:
            raise StoreBusy("busy")
        self.connection.execute("BEGIN")
        found = work(self.connection)
        self.connection.execute("COMMIT")
        return found


@dataclass
class Machine:
    """A gateway that starts and ends, with the database and the audit that outlive it."""

    directory: Path
    rules: Sequence[Quota] = (ALL,)
    database: FakeDatabase = field(default_factory=FakeDatabase)
    now: float = T0
    sequence: int = 0

    @property
    def audit(self) -> Path:
        return self.directory / "audit.jsonl"

    async def start(self) -> None:
        self.audit.touch()
        found: Limiting = limiting(*self.rules)
        self.quotas = Quotas(found, clock=lambda: self.now, monotonic=lambda: self.now - T0)
        self.kept = Kept(self.quotas, cast(Any, self.database), self.audit, lambda: (self.sequence, ""))
        await self.kept.load()

    def begin(self, path: str = "edge/lap-1", model: str = "small") -> RequestContext:
        request = context(chat(), model=model, peer=peer(path), parsed=True)
        hold = self.quotas.admit(request, True, 100)
        assert isinstance(hold, CallHold)
        request.hold = hold
        self.write("request.intent", request, **hold.reserved())
        return request

    def end(self, request: RequestContext, tokens: int = 30) -> None:
        request.usage = Usage(tokens, 0)
        assert request.hold is not None
        self.write("request.outcome", request, **request.hold.settle("answered"))

    def write(self, event: str, request: RequestContext, **fields: int) -> None:
        self.sequence += 1
        line = {"seq": self.sequence, "event": event, "id": f"spiffe://{DOMAIN}{request.peer.id.path}",
                "request": request.request_id.hex(), "model": request.model, **fields, "prev": "0"}
        with self.audit.open("a") as file:
            file.write(json.dumps(line) + "\n")

    def used(self) -> dict[tuple[str, str], list[int]]:
        """What is spent, by rule and device."""
        assert all(not window.held for slot in self.quotas.ledger.slots() for window in slot.windows.values())
        now = self.quotas.now()
        return {
            (slot.rule.name, slot.who): [window.limit - window.free(now) for window in slot.windows.values()]
            for slot in self.quotas.ledger.slots() if not slot.idle(now)
        }


@pytest.fixture
async def machine(tmp_path: Path) -> Machine:
    made = Machine(tmp_path)
    await made.start()
    return made


async def test_what_was_written_is_there_again_and_slides_on(machine: Machine) -> None:
    machine.end(machine.begin())
    await machine.kept.close()
    machine.audit.unlink()
    await machine.start()
    assert machine.used() == {("hourly", "/edge/lap-1"): [1, 30, 5]}
    machine.now += 3_660
    assert machine.used() == {}


@pytest.mark.parametrize("flushed", [True, False])
async def test_a_call_without_an_outcome_counts_as_what_it_had_reserved_until_its_window_has_passed(
    machine: Machine, flushed: bool, caplog: pytest.LogCaptureFixture
) -> None:
    reserved = machine.begin().hold
    assert isinstance(reserved, CallHold)
    if flushed:
        await machine.kept.flush()
    with caplog.at_level(logging.WARNING):
        await machine.start()
    assert "1 calls were under way" in caplog.text
    assert machine.used() == {("hourly", "/edge/lap-1"): list(reserved.hold.amounts)}
    await machine.kept.flush()
    await machine.start()  # and once
    assert machine.used() == {("hourly", "/edge/lap-1"): list(reserved.hold.amounts)}
    machine.now += 3_660
    assert machine.used() == {}


async def test_an_outcome_on_record_is_what_counts(machine: Machine) -> None:
    request = machine.begin()
    await machine.kept.flush()
    machine.end(request)
    await machine.start()
    assert machine.used() == {("hourly", "/edge/lap-1"): [1, 30, 5]}


async def test_what_was_written_before_its_outcome_was_on_record_counts_once(machine: Machine) -> None:
    request = machine.begin()
    request.usage = Usage(30, 0)
    assert request.hold is not None
    charged = request.hold.settle("answered")
    await machine.kept.flush()
    machine.write("request.outcome", request, **charged)
    await machine.start()
    assert machine.used() == {("hourly", "/edge/lap-1"): [1, 30, 5]}


async def test_what_grew_since_is_written_too(machine: Machine) -> None:
    request = machine.begin()
    await machine.kept.flush()
    hold = request.hold
    assert isinstance(hold, CallHold) and machine.quotas.ledger.extend(hold.hold, 500, T0) is None
    await machine.kept.flush()
    await machine.start()
    assert machine.used()["hourly", "/edge/lap-1"][1] == hold.hold.input + 500


async def test_a_write_that_fails_is_made_up_for(machine: Machine) -> None:
    machine.end(machine.begin())
    machine.database.broken = True
    with pytest.raises(StoreBusy):
        await machine.kept.flush()
    await machine.kept.close()
    machine.database.broken = False
    await machine.kept.flush()
    machine.audit.unlink()
    await machine.start()
    assert machine.used() == {("hourly", "/edge/lap-1"): [1, 30, 5]}


async def test_an_audit_that_begins_anew_is_read_from_its_beginning(machine: Machine) -> None:
    """It was moved away for examination, or a power cut took its end."""
    for _ in range(5):
        machine.end(machine.begin())
    await machine.kept.close()
    machine.audit.unlink()
    machine.sequence = 0
    await machine.start()
    machine.end(machine.begin())
    await machine.start()
    assert machine.used() == {("hourly", "/edge/lap-1"): [6, 180, 30]}


async def test_nothing_is_written_where_nothing_has_changed(machine: Machine) -> None:
    machine.end(machine.begin())
    await machine.kept.flush()
    machine.database.broken = True
    await machine.kept.flush()


async def test_a_clock_that_was_set_back_while_the_gateway_was_down_resets_nothing(machine: Machine) -> None:
    machine.end(machine.begin())
    await machine.kept.close()
    machine.now -= 30 * 86_400
    await machine.start()
    assert machine.used() == {("hourly", "/edge/lap-1"): [1, 30, 5]}
    assert machine.quotas.now() == T0


async def test_another_length_and_another_name(machine: Machine) -> None:
    machine.end(machine.begin())
    await machine.kept.close()
    machine.rules = [quota(tokens=50, window="1d"), quota(name="other", requests=1)]
    await machine.start()
    assert machine.used() == {("hourly", "/edge/lap-1"): [30]}


async def test_what_is_long_past_is_not_kept(machine: Machine) -> None:
    machine.end(machine.begin())
    await machine.kept.flush()
    machine.now += 3 * 3_600
    machine.end(machine.begin("edge/lap-2"))
    await machine.kept.flush()
    assert machine.database.connection.execute("SELECT who FROM quota_counts").fetchall() == [("/edge/lap-2",)]


STEPS = st.lists(st.sampled_from(["begin", "end", "flush", "crash"]), max_size=25)


@settings(max_examples=60)
@given(STEPS, st.integers(0, 2**32))
async def test_whenever_it_dies_each_call_counts_once(steps: Sequence[str], seed: int) -> None:
    """What it came to where that is on record, what it had reserved where not; for a device, a role and a model."""
    devices, models = ("edge/a", "edge/b"), ("small", "large")
    rules = (ALL, quota(name="all", per="role", tokens=10**9), quota(name="large", models=["large"], requests=900))
    with TemporaryDirectory() as directory:
        machine = Machine(Path(directory), rules)
        await machine.start()
        running: list[RequestContext] = []
        counted: list[tuple[str, str, tuple[int, int, int]]] = []
        for number, step in enumerate([*steps, "crash"]):
            pick = (seed >> number % 30) & 3
            if step == "begin":
                running.append(machine.begin(devices[pick & 1], models[pick >> 1]))
            elif step == "end" and running:
                request = running.pop(pick % len(running))
                machine.end(request, 10 + number)
                price = machine.quotas.ledger.price(request.model)
                assert price is not None
                counted.append((request.peer.id.path, request.model, (1, 10 + number, price.cost(10 + number, 0))))
            elif step == "flush":
                await machine.kept.flush()
            elif step == "crash":
                for request in running:
                    assert isinstance(request.hold, CallHold)
                    counted.append((request.peer.id.path, request.model, request.hold.hold.amounts))
                running.clear()
                await machine.start()
                expected: dict[tuple[str, str], list[int]] = {}
                for path, model, (requests, tokens, money) in counted:
                    for key, amounts in (
                        (("hourly", path), [requests, tokens, money]), (("all", ""), [tokens]),
                        *([(("large", path), [requests])] if model == "large" else []),
                    ):
                        before = expected.setdefault(key, [0] * len(amounts))
                        expected[key] = [a + b for a, b in zip(before, amounts, strict=True)]
                assert machine.used() == expected
        machine.database.connection.close()

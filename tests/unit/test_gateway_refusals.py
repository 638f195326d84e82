"""Strangers' refusals: a few records, then counts, so that nobody fills the disk or hides a rare refusal."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from relay.gateway.audit.log import AuditLog, verify
from relay.gateway.audit.refusals import KINDS_MAX, PER_MINUTE, Refusals
from relay.gateway.errors import AuditUnavailable
from tests.support.gateway_lab import Clock, audit_lines


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "a.jsonl"


@pytest.fixture
async def audit(path: Path) -> AsyncIterator[AuditLog]:
    log = AuditLog(path)
    yield log
    await log.close()


async def test_a_flood_becomes_a_few_records_and_a_count(audit: AuditLog, path: Path) -> None:
    clock = Clock(1000.0)
    refusals = Refusals(audit, clock=clock)
    for _ in range(10_000):
        await refusals.append("join.refused", reason="signature", peer="192.0.2.1")
    assert len(audit_lines(path)) == PER_MINUTE
    clock.now += 60 / PER_MINUTE
    await refusals.append("join.refused", reason="signature", peer="192.0.2.1")
    last = audit_lines(path)[-1]
    assert (last["suppressed"], last["peer"]) == (10_000 - PER_MINUTE, "192.0.2.1")
    await refusals.flush()
    assert len(audit_lines(path)) == PER_MINUTE + 1  # nothing waits
    await refusals.append("join.refused", reason="signature", peer="192.0.2.1")
    await refusals.flush()
    assert audit_lines(path)[-1] | {"time": 0, "prev": ""} == {
        "seq": PER_MINUTE + 2, "time": 0, "event": "join.refused", "reason": "signature", "suppressed": 1, "prev": "",
    }
    assert verify(path)[0] == PER_MINUTE + 2


async def test_one_kind_s_flood_hides_no_other(audit: AuditLog, path: Path) -> None:
    refusals = Refusals(audit, clock=Clock())
    for _ in range(100):
        await refusals.append("join.refused", reason="signature")
    await refusals.append("join.refused", reason="invitation used with another device key")
    assert audit_lines(path)[-1]["reason"] == "invitation used with another device key"


async def test_kinds_are_bounded(audit: AuditLog, path: Path) -> None:
    refusals = Refusals(audit, clock=Clock())
    for number in range(1000):
        await refusals.append("session.refused", reason=f"made up {number}")
    assert len(audit_lines(path)) == KINDS_MAX + PER_MINUTE
    assert len(refusals._kinds) == KINDS_MAX + 1


async def test_a_count_survives_an_audit_that_fails(
    audit: AuditLog, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refusals = Refusals(audit, clock=Clock())
    for _ in range(PER_MINUTE + 5):
        await refusals.append("join.refused", reason="signature")

    async def broken(*_: object, **__: object) -> None:
        raise AuditUnavailable("the audit log cannot be written")

    with monkeypatch.context() as patch:
        patch.setattr(audit, "append", broken)
        with pytest.raises(AuditUnavailable):
            await refusals.flush()
    await refusals.flush()
    assert audit_lines(path)[-1]["suppressed"] == 5

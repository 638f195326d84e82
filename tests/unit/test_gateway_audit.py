"""The audit: chained, on disk before anything happens, and honest about failure."""

import asyncio
import errno
import os
from pathlib import Path

import pytest

from relay.gateway.audit.log import AuditLog, verify
from relay.gateway.errors import AuditUnavailable
from tests.support.gateway_lab import audit_lines


async def filled(path: Path, count: int = 5) -> None:
    log = AuditLog(path)
    for number in range(count):
        await log.append("event", number=number)
    await log.close()


async def test_records_chain_and_verify(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    await filled(path)
    count, head = verify(path)
    assert count == 5
    assert len(head) == 64
    lines = audit_lines(path)
    assert [line["seq"] for line in lines] == [1, 2, 3, 4, 5]
    assert lines[0]["prev"] == "0" * 64
    assert path.stat().st_mode & 0o077 == 0


async def test_the_chain_goes_on_after_a_restart(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    await filled(path)
    await filled(path)
    assert verify(path)[0] == 10


@pytest.mark.parametrize("change", ["alter", "remove", "swap", "insert"])
async def test_every_change_inside_breaks_the_chain(tmp_path: Path, change: str) -> None:
    path = tmp_path / "audit.jsonl"
    await filled(path)
    lines = path.read_bytes().splitlines(keepends=True)
    if change == "alter":
        lines[2] = lines[2].replace(b'"number":2', b'"number":9')
    elif change == "remove":
        del lines[2]
    elif change == "swap":
        lines[1], lines[2] = lines[2], lines[1]
    else:
        lines.insert(2, lines[1])
    path.write_bytes(b"".join(lines))
    with pytest.raises(ValueError, match="breaks at line"):
        verify(path)


async def test_records_of_many_tasks_are_all_there_in_one_chain(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    log = AuditLog(path)
    await asyncio.gather(*(log.append("event", number=number) for number in range(200)))
    await log.close()
    assert verify(path)[0] == 200
    assert {line["number"] for line in audit_lines(path)} == set(range(200))


async def test_append_returns_only_after_fsync(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[int] = []
    real = os.fsync
    monkeypatch.setattr(os, "fsync", lambda descriptor: (synced.append(descriptor), real(descriptor))[1])
    log = AuditLog(tmp_path / "audit.jsonl")
    await log.append("event")
    assert synced
    await log.close()


async def test_a_full_disk_refuses_and_leaves_a_chain_that_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "audit.jsonl"
    log = AuditLog(path)
    await log.append("before")
    real = os.write

    def half(descriptor: int, data: bytes) -> int:
        real(descriptor, data[: len(data) // 2])
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", half)
        with pytest.raises(AuditUnavailable):
            await log.append("lost")
    await log.append("after")
    await log.close()
    assert [line["event"] for line in audit_lines(path)] == ["before", "after"]
    assert verify(path)[0] == 2


async def test_a_record_cut_by_a_crash_is_dropped_and_the_chain_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    await filled(path)
    with path.open("ab") as file:
        file.write(b'{"seq":6,"event":"half')
    await filled(path, 1)
    assert verify(path)[0] == 6


async def test_a_damaged_last_record_is_not_built_upon(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    path.write_bytes(b"not a record\n")
    with pytest.raises(AuditUnavailable):
        AuditLog(path)


async def test_text_is_bounded_and_a_closed_log_refuses(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    log = AuditLog(path)
    await log.append("event", text="x" * 100_000)
    await log.close()
    assert len(audit_lines(path)[0]["text"]) == 512
    with pytest.raises(AuditUnavailable):
        await log.append("late")


async def test_what_is_no_text_is_escaped(tmp_path: Path) -> None:
    """Names of files may be any bytes; one of those ended all writing, and all who waited for it waited for ever."""
    path = tmp_path / "audit.jsonl"
    log = AuditLog(path)
    async with asyncio.timeout(60):
        await log.append("workload.refused", path=os.fsdecode(b"/tmp/\xff/x"))
        await log.append("after")
    await log.close()
    assert audit_lines(path)[0]["path"] == "/tmp/\\udcff/x"
    assert verify(path)[0] == 2


async def test_a_record_that_cannot_be_made_fails_alone(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "audit.jsonl"
    log = AuditLog(path)
    async with asyncio.timeout(60):
        with pytest.raises(AuditUnavailable):
            await log.append("event", number=object())  # type: ignore[arg-type]
        await log.append("after")
    await log.close()
    assert caplog.messages == ["the audit log cannot be written: TypeError"]
    assert verify(path)[0] == 1

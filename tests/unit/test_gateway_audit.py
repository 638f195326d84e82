"""The audit: chained, on disk before anything happens, and honest about failure."""

import asyncio
import errno
import os
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Literal

import pytest

from relay.gateway.audit.log import AuditLog, members, verify
from relay.gateway.errors import AuditUnavailable
from tests.support.gateway_lab import audit_lines

Opened = Callable[[Path], AuditLog]


@pytest.fixture(params=["each", "group"])
def opened(request: pytest.FixtureRequest) -> Opened:
    return partial(AuditLog, sync=request.param)


async def filled(opened: Opened, path: Path, count: int = 5) -> None:
    log = opened(path)
    for number in range(count):
        await log.append("event", number=number)
    await log.close()


async def test_records_chain_and_verify(tmp_path: Path, opened: Opened) -> None:
    path = tmp_path / "audit.jsonl"
    await filled(opened, path)
    count, head = verify(path)
    assert count == 5
    assert len(head) == 64
    lines = audit_lines(path)
    assert [line["seq"] for line in lines] == [1, 2, 3, 4, 5]
    assert lines[0]["prev"] == "0" * 64
    assert path.stat().st_mode & 0o077 == 0


async def test_what_records_share_stands_in_each(tmp_path: Path, opened: Opened) -> None:
    """Cut and escaped like the rest; a record may also have nothing of its own, or nothing that is shared."""
    path = tmp_path / "audit.jsonl"
    shared = members({"request": "00ff", "route": "/v1/\udcff" + "x" * 600, "enrolment": 7})
    log = opened(path)
    await log.append("request.intent", shared, bytes_in=3)
    await log.append("request.outcome", shared)
    await log.append("request.refused")
    await log.close()
    intent, outcome, alone = audit_lines(path)
    assert verify(path)[0] == 3
    assert (intent["request"], intent["enrolment"], intent["bytes_in"]) == ("00ff", 7, 3)
    assert intent["route"] == outcome["route"] == "/v1/\\udcff" + "x" * 507
    assert outcome.keys() == intent.keys() - {"bytes_in"} and alone.keys() == {"seq", "time", "event", "prev"}


async def test_the_chain_goes_on_after_a_restart(tmp_path: Path, opened: Opened) -> None:
    path = tmp_path / "audit.jsonl"
    await filled(opened, path)
    await filled(opened, path)
    assert verify(path)[0] == 10


@pytest.mark.parametrize("change", ["alter", "remove", "swap", "insert"])
async def test_every_change_inside_breaks_the_chain(tmp_path: Path, change: str, opened: Opened) -> None:
    path = tmp_path / "audit.jsonl"
    await filled(opened, path)
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


async def test_records_of_many_tasks_are_all_there_in_one_chain(tmp_path: Path, opened: Opened) -> None:
    path = tmp_path / "audit.jsonl"
    log = opened(path)
    await asyncio.gather(*(log.append("event", number=number) for number in range(200)))
    await log.close()
    assert verify(path)[0] == 200
    assert {line["number"] for line in audit_lines(path)} == set(range(200))


@pytest.mark.parametrize(("sync", "event"), [
    ("each", "request.intent"), ("each", "device.revoked"), ("group", "request.refused"), ("group", "device.revoked"),
])
async def test_append_returns_only_after_fsync(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sync: Literal["each", "group"], event: str
) -> None:
    synced: list[int] = []
    real = os.fsync
    monkeypatch.setattr(os, "fsync", lambda descriptor: (synced.append(descriptor), real(descriptor))[1])
    log = AuditLog(tmp_path / "audit.jsonl", sync=sync)
    await log.append(event)
    assert synced
    await log.close()


async def test_a_full_disk_refuses_and_leaves_a_chain_that_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, opened: Opened
) -> None:
    path = tmp_path / "audit.jsonl"
    log = opened(path)
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


async def test_a_record_cut_by_a_crash_is_dropped_and_the_chain_goes_on(tmp_path: Path, opened: Opened) -> None:
    path = tmp_path / "audit.jsonl"
    await filled(opened, path)
    with path.open("ab") as file:
        file.write(b'{"seq":6,"event":"half')
    await filled(opened, path, 1)
    assert verify(path)[0] == 6


async def test_a_damaged_last_record_is_not_built_upon(tmp_path: Path, opened: Opened) -> None:
    path = tmp_path / "audit.jsonl"
    path.write_bytes(b"not a record\n")
    with pytest.raises(AuditUnavailable):
        opened(path)


async def test_text_is_bounded_and_a_closed_log_refuses(tmp_path: Path, opened: Opened) -> None:
    path = tmp_path / "audit.jsonl"
    log = opened(path)
    await log.append("event", text="x" * 100_000)
    await log.close()
    assert len(audit_lines(path)[0]["text"]) == 512
    with pytest.raises(AuditUnavailable):
        await log.append("late")


async def test_what_is_no_text_is_escaped(tmp_path: Path, opened: Opened) -> None:
    """Names of files may be any bytes; one of those ended all writing, and all who waited for it waited for ever."""
    path = tmp_path / "audit.jsonl"
    log = opened(path)
    async with asyncio.timeout(60):
        await log.append("workload.refused", path=os.fsdecode(b"/tmp/\xff/x"))
        await log.append("after")
    await log.close()
    assert audit_lines(path)[0]["path"] == "/tmp/\\udcff/x"
    assert verify(path)[0] == 2


async def test_a_record_that_cannot_be_made_fails_alone(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, opened: Opened
) -> None:
    path = tmp_path / "audit.jsonl"
    log = opened(path)
    async with asyncio.timeout(60):
        with pytest.raises(AuditUnavailable):
            await log.append("event", number=object())  # type: ignore[arg-type]
        await log.append("after")
    await log.close()
    assert caplog.messages == ["the audit log cannot be written: TypeError"]
    assert verify(path)[0] == 1


async def test_in_a_group_a_record_is_in_the_file_before_the_disk_has_it_and_closing_waits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, real, let, synced = tmp_path / "audit.jsonl", os.fsync, threading.Event(), []

    def slow(descriptor: int) -> None:
        assert let.wait(60)
        real(descriptor)
        synced.append(path.stat().st_size)

    monkeypatch.setattr(os, "fsync", slow)
    log = AuditLog(path, sync="group")
    for event in ("request.intent", "request.attempt", "request.outcome"):
        await log.append(event)
    refused = asyncio.create_task(log.append("request.refused"))  # which is no call that was made: it waits
    while len(audit_lines(path)) < 4:  # noqa: ASYNC110 - its turn
        await asyncio.sleep(0)
    assert (synced, refused.done()) == ([], False)
    let.set()
    await refused
    assert synced[-1] == path.stat().st_size
    await log.close()
    assert verify(path)[0] == 4


@pytest.mark.parametrize("sync", ["each", "group"])
async def test_where_the_disk_fails_no_work_is_done_any_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sync: Literal["each", "group"]
) -> None:
    path, failed = tmp_path / "audit.jsonl", threading.Event()

    def broken(descriptor: int) -> None:
        failed.set()
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fsync", broken)
    log = AuditLog(path, sync=sync)
    if sync == "each":
        with pytest.raises(AuditUnavailable):
            await log.append("lost")
    else:
        await log.append("request.outcome")
        assert await asyncio.to_thread(failed.wait, 60)
        while not log.broken:  # noqa: ASYNC110 - a thread's word
            await asyncio.sleep(0)
    monkeypatch.undo()
    with pytest.raises(AuditUnavailable):
        await log.append("after")
    await log.close()
    assert len(audit_lines(path)) == 1

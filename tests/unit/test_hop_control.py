"""A hop's control socket, its announcements and what it says: bounded, and nobody else's is taken away."""

import asyncio
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from relay.hop import app, control
from relay.hop.counters import Counters
from relay.hop.errors import HopMisuse
from relay.local_socket import LocalSocket
from relay.rates import TokenBucket
from transport.errors import LinkLost
from transport.links import discovery
from transport.links.base import Endpoint


@pytest.mark.parametrize("failure", [TimeoutError(), ValueError()])
async def test_a_hop_that_hangs_keeps_its_socket(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failure: Exception
) -> None:
    async def answer(line: bytes) -> dict[str, Any]:
        return {}

    async def hang(folder: Path, question: dict[str, Any]) -> dict[str, Any]:
        raise failure

    running = LocalSocket(tmp_path, answer)
    await running.start()
    monkeypatch.setattr(control, "ask", hang)
    before = (tmp_path / "run" / "control.sock").stat().st_ino
    with pytest.raises(HopMisuse, match="runs already"):
        await control.StatusServer(tmp_path, dict).start()
    assert (tmp_path / "run" / "control.sock").stat().st_ino == before
    await running.close()


async def test_no_place_for_the_socket_is_said(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("precious")
    with pytest.raises(HopMisuse, match="control socket: file exists"):
        await control.StatusServer(tmp_path, dict).start()
    assert (tmp_path / "run").read_text() == "precious"


async def test_an_announcement_that_fails_leaves_none_before_it(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []

    class Announcement:
        def __init__(self, port: int, addresses: Sequence[str]) -> None:
            self.port = port

        async def start(self) -> None:
            if self.port == 2:
                raise LinkLost("no network")
            told.append(f"start {self.port}")

        async def close(self) -> None:
            told.append(f"close {self.port}")

    class Listener:
        def __init__(self, endpoint: Endpoint) -> None:
            self.endpoint = endpoint

        async def close(self) -> None:
            pass

    async def listen(endpoint: Endpoint, *_: object, **__: object) -> Listener:
        return Listener(endpoint)

    async def stay_fresh(self: object) -> None:
        pass

    monkeypatch.setattr(discovery, "Announcement", Announcement)
    monkeypatch.setattr(app, "listen", listen)
    monkeypatch.setattr(app.Hop, "_stay_fresh", stay_fresh)
    hop = app.Hop.__new__(app.Hop)
    with pytest.raises(LinkLost):
        await hop.run([Endpoint("tcp", f"127.0.0.1:{port}") for port in (1, 2)], asyncio.Event(), announce=True)
    assert told == ["start 1", "close 1"]


def test_two_lines_in_turn_do_not_fill_a_log() -> None:
    """As two addresses make them that have all links they may have."""
    told: list[str] = []
    hop = app.Hop.__new__(app.Hop)
    hop._counters, hop._report, hop._last_report = Counters(0.0), told.append, ""
    hop._reports = TokenBucket(app.REPORTS, time.monotonic())
    for number in range(10_000):
        hop._tell(f"all links that one source may have are taken by {number % 2}", shown="all are taken")
    assert 2 <= len(told) <= app.REPORTS.burst + 10
    assert hop._counters.last_error == "all are taken"

"""Whoever may connect to a hop: strangers, garbage, deaf peers, crowds. Others go on, and memory is bounded."""

import asyncio
import contextlib
import os
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from relay.hop.identity import HopHome, join
from relay.hop.pipe import PipeLimits
from relay.hop.quotas import FAILURES_MAX, LONGEST_PAUSE_S
from store.keys import Passphrase
from tests.support.ca import Ca
from tests.support.edge_lab import until
from tests.support.fake_radio import FakeRadio
from tests.support.joining_gateway import JoiningGateway
from tests.support.running_hop import LIMIT, Running, dial, read
from transport.errors import LinkLost
from transport.links.base import Endpoint, Link, connect
from transport.links.websocket import WebSocketLink

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
async def gateway() -> AsyncIterator[JoiningGateway]:
    async with asyncio.timeout(60), JoiningGateway(Ca()).running() as running:
        yield running


@pytest.fixture
def home(tmp_path: Path) -> HopHome:
    return HopHome(tmp_path / "hop", Passphrase("correct horse"))


async def served(link: Link) -> bool:
    """Whether the hop carries bytes to the gateway, which echoes them, and back."""
    try:
        await link.send(b"hello")
        return await read(link, 5) == b"hello"
    except (LinkLost, AssertionError):
        return False


async def refuse(link: WebSocketLink) -> None:
    """As a gateway ends what is no handshake."""
    await link.receive()
    await link.close("error")


async def test_who_takes_nothing_disturbs_nobody(gateway: JoiningGateway, home: HopHome) -> None:
    joined = await join(home, gateway.invitation(), gateway.url)
    async with Running(home, joined, gateway.url, max_flight=4 << 20) as running:
        other = await running.connect()
        assert await served(other)
        deaf = [await running.connect() for _ in range(8)]
        floods = [asyncio.create_task(link.send(bytes(64 << 20))) for link in deaf]  # and nobody reads the echo
        for _ in range(50):
            assert await served(other)
            assert running.hop._flight.size <= 8 * 2 * 65_536 + 65_536
        assert not any(flood.done() for flood in floods)
        for flood in floods:
            flood.cancel()
        await asyncio.gather(*floods, return_exceptions=True)
        await asyncio.gather(*(link.close("error") for link in (*deaf, other)))


async def test_a_source_whose_handshakes_fail_waits_and_others_do_not(gateway: JoiningGateway, home: HopHome) -> None:
    joined = await join(home, gateway.invitation(), gateway.url)
    async with Running(home, joined, gateway.url) as running:
        gateway.on_tunnel = refuse
        for _ in range(4):
            reader, writer = await dial(running, "127.0.0.1")
            writer.write(os.urandom(500))
            assert await reader.read() == b""
            writer.close()
        now = asyncio.get_running_loop().time
        await until(lambda: running.hop._patience.pause("127.0.0.1", now()) > 0)
        for _ in range(FAILURES_MAX):  # as many more would
            running.hop._patience.failed("127.0.0.1", now())
        assert running.hop._patience.pause("127.0.0.1", now()) == LONGEST_PAUSE_S
        gateway.on_tunnel = gateway._echo
        tunnels = len(gateway.tunnels)
        _, slowed = await dial(running, "127.0.0.1")
        slowed.write(b"hello")
        reader, writer = await dial(running, "127.0.0.2")
        writer.write(b"hello")
        assert await reader.readexactly(5) == b"hello"
        assert len(gateway.tunnels) == tunnels + 1, "the other is not read yet"
        slowed.close()
        writer.close()


async def test_a_crowd_leaves_room_when_it_leaves(gateway: JoiningGateway, home: HopHome) -> None:
    joined = await join(home, gateway.invitation(), gateway.url)
    async with Running(home, joined, gateway.url, max_links=16) as running:
        edge = await running.connect()
        assert await served(edge)
        crowd = []
        for number in range(1000):
            with contextlib.suppress(OSError):
                reader, writer = await dial(running, f"127.0.{number % 7}.{number % 250 + 2}")
                writer.write(os.urandom(100))
                crowd.append((reader, writer))
            assert running.hop._places.taken <= 16
        assert await served(edge)
        assert len(gateway.tunnels) <= 16 + 1
        for _, writer in crowd:
            writer.transport.abort()
        await until(lambda: running.hop._places.taken == 1)
        again = await running.connect()
        assert await served(again)
        await asyncio.gather(edge.close(), again.close())
        assert running.hop.status()["links_since_start"] < 1024
        assert "turned away" in running.hop.status()["last_error"] and "127.0" not in running.hop.status()["last_error"]


async def test_the_radio_is_one_source_and_leaves_room_for_others(gateway: JoiningGateway, home: HopHome) -> None:
    """Addresses cost nothing there."""
    joined = await join(home, gateway.invitation(), gateway.url)
    radio = FakeRadio()
    async with Running(home, joined, gateway.url, "ble:", "tcp:127.0.0.1:0", radio=radio, max_links=16) as running:
        strangers = [await radio.connect("", timeout_s=1) for _ in range(20)]
        assert sum([await served(link) for link in strangers]) == 12
        edge = await running.connect()
        assert await served(edge)
        assert "ble:" not in running.hop.status()["last_error"]
        await asyncio.gather(edge.close(), *(link.close() for link in strangers))


async def test_by_radio_it_is_the_address_that_is_slowed_down(gateway: JoiningGateway, home: HopHome) -> None:
    joined = await join(home, gateway.invitation(), gateway.url)
    radio = FakeRadio()
    async with Running(home, joined, gateway.url, "ble:", radio=radio) as running:
        gateway.on_tunnel = refuse
        radio.address = "ble:66:66:66:66:66:66"
        for _ in range(4):
            stranger = await radio.connect("", timeout_s=1)
            assert not await served(stranger)
            await stranger.close()
        gateway.on_tunnel = gateway._echo
        now = asyncio.get_running_loop().time
        await until(lambda: running.hop._patience.pause(radio.address, now()) > 0)
        assert running.hop._patience.pause("ble:00:00:00:00:00:01", now()) == 0
        radio.address = ""
        edge = await radio.connect("", timeout_s=1)
        assert await served(edge)
        await edge.close()


async def test_one_that_says_nothing_or_breaks_off_leaves_no_trace(gateway: JoiningGateway, home: HopHome) -> None:
    joined = await join(home, gateway.invitation(), gateway.url)
    async with Running(home, joined, gateway.url, first_s=0.05, pipe=PipeLimits(idle_s=0.05)) as running:
        before = len(asyncio.all_tasks())
        for sent in (b"", b"x", bytes(100_000)):
            for abrupt in (True, False):
                link = await running.connect()
                if sent:
                    await link.send(sent)
                await link.close("error" if abrupt else "done")
        silent = [await running.connect() for _ in range(5)]
        assert [await link.receive() for link in silent] == [b""] * 5
        await until(lambda: not running.hop._places.taken and len(asyncio.all_tasks()) <= before)
        assert running.hop._flight.size == 0
        await asyncio.gather(*(link.close() for link in silent))


def memory_kib(pid: int, line: str) -> int:
    text = Path(f"/proc/{pid}/status").read_text()
    return int(text.partition(f"{line}:")[2].split()[0])


def forget_peak(pid: int) -> None:
    Path(f"/proc/{pid}/clear_refs").write_text("5")


def descriptors(pid: int) -> int:
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


async def test_a_thousand_strangers_with_full_hands_cost_a_hop_little_memory(
    gateway: JoiningGateway, home: HopHome, tmp_path: Path
) -> None:
    await join(home, gateway.invitation(), gateway.url)
    passphrase = tmp_path / "pass"
    passphrase.write_text("correct horse")
    passphrase.chmod(0o600)
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", "from relay.cli import main; main()", "hop", "serve", "--listen", "tcp:127.0.0.1:0",
        "--home", str(tmp_path / "hop"), "--passphrase-file", str(passphrase), "--max-links", "32", cwd=ROOT,
        stdin=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.PIPE,
        # The allocator gives back what is freed, so that what stays is what somebody holds.
        env=os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"},
    )
    try:
        assert process.stderr is not None
        ready = (await asyncio.wait_for(process.stderr.readline(), LIMIT)).decode()
        endpoint = Endpoint.parse(ready.split()[-1])
        edge = await connect(endpoint)
        assert await served(edge)
        forget_peak(process.pid)  # it is that of the passphrase's hash
        before, open_before = memory_kib(process.pid, "VmRSS"), descriptors(process.pid)

        async def deaf(number: int) -> None:
            """Sends without end, from one of 40 addresses, and takes nothing of the echo."""
            with contextlib.suppress(OSError):
                _, writer = await asyncio.open_connection(
                    *endpoint.host_port(), local_addr=(f"127.0.1.{number % 40 + 1}", 0)
                )
                with contextlib.suppress(OSError, TimeoutError):
                    async with asyncio.timeout(1):
                        while True:
                            writer.write(bytes(65_536))
                            await writer.drain()
                writer.transport.abort()

        for start in range(0, 1000, 250):
            await asyncio.gather(*(deaf(number) for number in range(start, start + 250)))
            assert await served(edge)
        await until(lambda: descriptors(process.pid) <= open_before)
        most, left = memory_kib(process.pid, "VmHWM") - before, memory_kib(process.pid, "VmRSS") - before
        assert most < 32 * 3 * 1024, f"{most} KiB for at most 32 links at a time"
        assert left < 48 * 1024, f"{left} KiB: 1,000 who have gone have left something"  # 12 to 25 MiB are usual
        await edge.close()
    finally:
        process.terminate()
        await asyncio.wait_for(process.communicate(), LIMIT)

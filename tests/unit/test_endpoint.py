"""Endpoint specs, and what a link says when it cannot be had."""

import asyncio
import os
import socket
import stat
from pathlib import Path

import pytest

from transport.errors import BadInput, LinkLost
from transport.links.base import Endpoint, Link, connect, listen


async def ignore(link: Link) -> None:
    await link.receive()


@pytest.mark.parametrize("text", [
    "tcp:127.0.0.1:7443", "tcp:[::1]:0", "tcp:gw.example:65535", "unix:/run/hop.sock", "unix:relative", "wss://gw.example",
    "wss://gw.example:8443", "wss://[::1]:8443/v1/tunnel", "unix:/with:colon",
    "tcp:gw.example.:1", "tcp:" + "a" * 63 + ":1", "wss://gw.example.", "tcp:my_host-1:1",
    "phone:", "phone:van 3", "sim:ble-1m@phone:",
    "ble:", "ble:relay1", "ble:F0:F1:F2:F3:F4:F5", "sim:ble-1m@tcp:127.0.0.1:1", "sim:sat?loss=0.02&seed=7@unix:/a@b",
    "rfcomm:", "rfcomm:?channel=30", "rfcomm:00:1A:7D:DA:71:13", "rfcomm:00:1A:7D:DA:71:13?channel=1",
    "sim:rfcomm@rfcomm:00:1A:7D:DA:71:13?channel=9",
])
def test_endpoints_that_are_endpoints(text: str) -> None:
    assert str(Endpoint.parse(f" {text}\n")) == text


@pytest.mark.parametrize("text", [
    "", "tcp", "tcp:", "tcp:host", "tcp:host:", "tcp:host:http", "tcp:host:65536", "tcp:host:-1", "tcp::1", "tcp:::1:2",
    "tcp:a b:1", "udp:h:1", "unix:", "unix:" + "a" * 108, "unix:a\0b", "unix:\ud800", "ws://h", "wss:h", "wss://",
    "wss://h:99999", "wss://user@h", "wss://h:1#x y", "https://h", "tcp:h:١",
    "tcp:a..b:1", "tcp:.:1", "tcp:" + "a" * 64 + ":1", "tcp:" + "a." * 127 + ":1", "tcp:.h:1", "wss://a..b", "wss://.",
    "wss://" + "a" * 64 + "/x", "wss://" + "a." * 127 + ":1/x",
    "phone: x", "phone:a/b", "phone:" + "n" * 65, "phone",
    "ble: x", "ble:" + "n" * 65, "ble:a\nb", "sim:", "sim:ble-1m", "sim:@tcp:h:1", "sim:ble-1m@", "sim:ble-1m@udp:h:1",
    "rfcomm:name", "rfcomm:00:1A:7D:DA:71", "rfcomm:00:1a:7d:da:71:13", "rfcomm:?channel=0", "rfcomm:?channel=31",
    "rfcomm:?channel=", "rfcomm:?channel=01", "rfcomm:?psm=1", "rfcomm:?channel=1&x=2",
    "sim:a@sim:b@tcp:h:1", "sim:a?" + "x" * 256 + "@tcp:h:1",
])
def test_what_is_no_endpoint(text: str) -> None:
    with pytest.raises(BadInput) as caught:
        Endpoint.parse(text)
    assert "tcp:HOST:PORT" in (caught.value.hint or "")


def test_host_and_port() -> None:
    assert Endpoint.parse("tcp:[::1]:80").host_port() == ("::1", 80)
    assert Endpoint.parse("wss://gw.example/x").host_port() == ("gw.example", 443)
    with pytest.raises(BadInput):
        Endpoint.parse("unix:/x").host_port()


async def test_nobody_there_is_a_lost_link(tmp_path: Path) -> None:
    listener = await listen(Endpoint.parse("tcp:127.0.0.1:0"), ignore)
    gone = listener.endpoint
    await listener.close()
    await listener.close()
    for endpoint in (gone, Endpoint("unix", str(tmp_path / "none")), Endpoint.parse(f"wss://127.0.0.1:{gone.host_port()[1]}")):
        with pytest.raises(LinkLost) as caught:
            await connect(endpoint, timeout_s=5)
        assert str(endpoint) in str(caught.value) and caught.value.hint


async def test_an_address_in_use_is_named_and_left_alone(tmp_path: Path) -> None:
    for spec in ("tcp:127.0.0.1:0", f"unix:{tmp_path / 's'}"):
        first = await listen(Endpoint.parse(spec), ignore)
        with pytest.raises(LinkLost, match="in use"):
            await listen(first.endpoint, ignore)
        link = await connect(first.endpoint)
        await link.close()
        await first.close()
    with pytest.raises(BadInput):
        await listen(Endpoint.parse("wss://h"), ignore)


async def test_a_unix_endpoint_whose_queue_is_full_is_not_taken_away(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as busy, socket.socket(socket.AF_UNIX) as waiting:
        busy.bind(str(tmp_path / "s"))
        busy.listen(0)
        waiting.connect(str(tmp_path / "s"))
        with pytest.raises(LinkLost, match="in use"):
            await listen(Endpoint("unix", str(tmp_path / "s")), ignore)
    assert (tmp_path / "s").exists()


async def test_a_unix_endpoint_is_private_replaces_a_stale_one_and_goes_with_its_listener(tmp_path: Path) -> None:
    endpoint = Endpoint("unix", str(tmp_path / "s"))
    (tmp_path / "f").write_text("precious")
    with pytest.raises(LinkLost, match="exists"):
        await listen(Endpoint("unix", str(tmp_path / "f")), ignore)
    assert (tmp_path / "f").read_text() == "precious"
    first = await listen(endpoint, ignore)
    first._server.close()  # as after a crash: the name stays
    assert (tmp_path / "s").exists()
    second = await listen(endpoint, ignore)
    assert stat.S_IMODE(os.stat(tmp_path / "s").st_mode) == 0o600
    await second.close()
    assert not (tmp_path / "s").exists()
    await first.close()


async def test_closing_a_listener_ends_its_handlers_and_links() -> None:
    cancelled, started = asyncio.Event(), asyncio.Event()

    async def hold(link: Link) -> None:
        started.set()
        try:
            await link.receive()
        except asyncio.CancelledError:
            cancelled.set()
            raise

    listener = await listen(Endpoint.parse("tcp:127.0.0.1:0"), hold)
    link = await connect(listener.endpoint)
    await started.wait()
    await listener.close()
    assert cancelled.is_set()
    assert await link.receive() == b""
    await link.close()

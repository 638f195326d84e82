"""The phone's page with stand-ins for the laptop: what it sends, refuses, says and keeps; and what is never in it."""

import asyncio
import json
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from relay.hop.pipe import link_id
from tests.support.browser import CHROMIUM, Tab, browser
from tests.support.phone_centrals import StandInLaptop
from tests.support.phone_lab import PhoneLab, phone_lab
from transport.errors import LinkLost
from transport.links.gatt import Info
from transport.links.gatt_link import GattLink

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")

WEB = Path(__file__).parents[2] / "relay" / "hop" / "web"
LISTENING = """(() => { const real = WebSocketStream; window.said = []; window.sockets = 0;
  window.WebSocketStream = class { constructor(url) { sockets += 1; const made = new real(url); return {
    close: (how) => made.close(how), opened: made.opened.then(({ readable, writable }) => {
      const writer = writable.getWriter(); return { readable, writable: new WritableStream({
        write: (part) => { if (typeof part === "string") said.push(part); return writer.write(part); } }) }; }) }; } };
})()"""

GIVING = """window.WebSocketStream = class { close() {}  // a gateway that has much to say
  opened = Promise.resolve({ writable: new WritableStream(), readable: new ReadableStream({ start(feed) {
    feed.enqueue('{"id": "x"}'); feed.enqueue(new Uint8Array(500)); } }) }); }; 0"""


@pytest.fixture
async def lab(tmp_path: Path) -> AsyncIterator[PhoneLab]:
    async with asyncio.timeout(100), phone_lab(tmp_path) as made:
        yield made


async def linked(lab: PhoneLab, laptop: StandInLaptop) -> GattLink:
    await lab.radio.add("lap-1", laptop)
    await lab.radio.visit(await lab.gateway.page_url("phone-1"))
    await lab.page.run(LISTENING)
    await lab.page.click("#choose")
    return await laptop.links.get()


def test_the_page_is_small_and_says_nothing_of_sessions() -> None:
    files = {path.name: path.read_text() for path in WEB.iterdir()}
    assert sum(len(text.encode()) for text in files.values()) <= 20_000
    assert {"index.html", "page.css", "page.js", "pipe.js", "gateway.js", "laptop.js"} == set(files)
    whole = "\n".join(files.values())
    assert not re.search(r"https?:|innerHTML|eval\(|WebAssembly|Worker", whole, re.I)
    assert not re.search(r"AES|ECDH|HKDF|HMAC|PBKDF|noise|derive|importKey|wrapKey|encrypt|decrypt", whole, re.I)
    assert whole.count("generateKey") == 1 and whole.count("exportKey") == 1, "its own key alone, and its public half"


async def test_a_tunnel_is_opened_for_each_pipe_when_bytes_have_come(lab: PhoneLab) -> None:
    laptop = StandInLaptop()
    link = await linked(lab, laptop)
    assert await lab.page.run("sockets") == 0
    for number in (1, 2):
        start = bytes(range(10, 110))
        await link.send(start)
        await lab.page.until(f"sockets === {number}")
        while await link.receive():  # the gateway takes it for no handshake, and says so
            pass
        await link.close()
        link = await asyncio.wait_for(laptop.links.get(), 60)
        assert await lab.page.run("sockets") == number, "a new one never goes under an old pipe"
    first, *notes = map(json.loads, await lab.page.run("said.slice(0, said.length / 2)"))
    assert set(first) == {"token", "proof"}
    assert notes and all(note["link"] == link_id(start) for note in notes)
    assert [note["final"] for note in notes] == [False] * (len(notes) - 1) + [True]
    last = notes[-1]
    assert (last["up"], last["down"]) == (100, 2) and last["start_ms"] <= last["end_ms"]
    assert lab.complaints == []


@pytest.mark.parametrize(("size", "credit"), [(20, 32), (182, 1)])
async def test_values_are_as_long_as_the_laptop_says(lab: PhoneLab, size: int, credit: int) -> None:
    laptop = StandInLaptop(Info("edge", size, credit))
    link = await linked(lab, laptop)
    await lab.page.run(GIVING)
    await link.send(b"x" * 64)
    came = b""
    while len(came) < 500 and (part := await link.receive()):
        came += part
    assert came == bytes(500) and max(map(len, laptop.written)) == size
    assert laptop.written[0][0] == 0x80, "its state comes first"


async def test_a_hop_and_nonsense_are_no_laptops(lab: PhoneLab) -> None:
    hop, nonsense = StandInLaptop(Info("hop", 495, 32)), StandInLaptop()
    nonsense.said = b"\x02" + nonsense.said[1:]
    for name, laptop in (("hop-1", hop), ("old-1", nonsense)):
        await lab.radio.add(name, laptop)
    await lab.radio.visit(await lab.gateway.page_url("phone-1"))
    for name, one in zip(("hop-1", "old-1"), lab.radio.laptops, strict=True):
        lab.radio.wanted = one.address
        await lab.page.click("#choose")
        await lab.says(f"{name}: not linked")
    assert hop.links.empty() and nonsense.links.empty()


async def test_a_peer_that_breaks_the_rules_is_left(lab: PhoneLab) -> None:
    laptop = StandInLaptop()
    link = await linked(lab, laptop)
    laptop.notify(b"\x05x" * 300)  # longer than any value
    again = await laptop.links.get()
    assert again is not link


async def test_a_laptop_that_leaves_while_it_is_told_so_is_found_again(lab: PhoneLab) -> None:
    laptop = StandInLaptop()
    link = await linked(lab, laptop)
    await lab.page.run("""{ const kind = BluetoothRemoteGATTCharacteristic.prototype, stop = kind.stopNotifications;
      kind.stopNotifications = function () { return stop.call(this).then(() => { throw new Error("gone"); }); }; } 0""")
    await link.close()
    assert await laptop.links.get() is not link
    await lab.says("lap-1: linked")


async def test_a_gateway_that_says_nothing_is_not_waited_for_without_end(lab: PhoneLab) -> None:
    laptop = StandInLaptop()
    link = await linked(lab, laptop)
    await lab.page.run("""{ const real = setTimeout;  // the page's longest wait passes at once
      window.setTimeout = (work, ms) => real(work, ms === 20000 ? 0 : ms); }
      window.WebSocketStream = class { opened = new Promise(() => {}); }; 0""")
    await link.send(b"x" * 100)
    assert await link_lost(link) == "error"
    await lab.says("The gateway does not answer")


async def link_lost(link: GattLink) -> str:
    with pytest.raises(LinkLost) as lost:
        while await link.receive():
            pass
    return lost.value.reason


async def test_a_code_that_is_scanned_into_the_open_page_is_taken_out_of_its_address(lab: PhoneLab) -> None:
    await lab.radio.visit(f"{lab.gateway.origin}/hop")
    line = (await lab.gateway.page_url("phone-1")).partition("#")[2]
    await lab.page.run(f"location.hash = {line!r}; 0")
    await lab.says("hop/phone-1")
    assert await lab.page.run("location.href") == f"{lab.gateway.origin}/hop"


async def test_nothing_is_chosen_and_nothing_is_said(lab: PhoneLab) -> None:
    await lab.radio.visit(await lab.gateway.page_url("phone-1"))
    lab.radio.wanted = ""
    await lab.page.click("#choose")
    while not lab.radio.prompts:
        await lab.page.run("0")
    await lab.page.run("new Promise((done) => { setTimeout(done); })")
    assert await lab.page.run("document.querySelectorAll('#laptops li').length") == 1
    assert await lab.page.run("document.getElementById('note').hidden")


async def test_a_page_that_was_behind_another_says_so_and_keeps_the_screen_on(lab: PhoneLab) -> None:
    await lab.radio.add("lap-1", StandInLaptop())
    await lab.radio.visit(await lab.gateway.page_url("phone-1"))
    await lab.page.run("""window.locks = []; Object.defineProperty(navigator, "wakeLock", {
        value: { request: async (what) => { locks.push(what); } } }); 0""")
    hide = """Object.defineProperty(document, 'hidden', { value: %s, configurable: true });
        document.dispatchEvent(new Event('visibilitychange')); document.title"""
    assert await lab.page.run(hide % "true") == "Causeway", "nothing is carried yet"
    await lab.page.click("#choose")
    await lab.says("lap-1: linked")
    assert await lab.page.run("locks.length") == 1
    assert "Come back" in await lab.page.run(hide % "true")
    assert await lab.page.run(hide % "false") == "Causeway"
    await lab.says("was not in front")
    assert await lab.page.run("locks") == ["screen"] * 3


async def test_a_wrong_clock_is_named(lab: PhoneLab) -> None:
    await lab.page.send("Page.addScriptToEvaluateOnNewDocument", source="""{ const real = Date.now.bind(Date);
        Date.now = () => real() - 7_200_000; }""")
    await lab.radio.visit(await lab.gateway.page_url("phone-1"))
    await lab.says("clock is wrong")


async def test_a_serial_port_carries_plain_bytes(lab: PhoneLab) -> None:
    await lab.radio.visit(await lab.gateway.page_url("phone-1"))
    await lab.page.run("""window.asked = null; window.wrote = []; window.opened = 0;
      navigator.serial.requestPort = async (options) => { asked = options; return {
        async open(how) { opened += 1; window.how = how; this.readable = new ReadableStream({
            start(feed) { window.feed = feed; } });
          this.writable = new WritableStream({ write: (part) => { wrote.push(...part); } }); },
        async close() { if (this.readable.locked || this.writable.locked) throw new Error("locked");
          opened -= 1; } }; }; 0
    """)
    await lab.page.click("#serial")
    await lab.page.until("opened === 1")
    service = "6c550005-36dd-42eb-b94f-13d310764f09"
    assert await lab.page.run("asked") == {
        "allowedBluetoothServiceClassIds": [service], "filters": [{"bluetoothServiceClassId": service}]
    }
    await lab.page.run("window.first = feed; feed.enqueue(new Uint8Array(100).fill(7)); 0")
    await lab.page.until("wrote.length === 2")
    await lab.page.until("feed !== first")
    assert await lab.page.run("[...wrote, opened]") == [0, 1, 1], "closed, and opened for the next one"
    assert lab.complaints == []


async def test_without_bluetooth_it_says_what_to_do(tmp_path: Path, lab: PhoneLab) -> None:
    async with browser(tmp_path / "plain") as tab:
        await tab.size(390, 844)
        await tab.open(await lab.gateway.page_url("phone-1"))
        assert "wss:" in await tab.text("#sorry") and "hotspot" in await tab.text("#sorry")
        assert await tab.run("document.getElementById('choose').hidden && !document.getElementById('sorry').hidden")
        await fits(tab)


async def fits(tab: Tab) -> None:
    assert await tab.run("document.documentElement.scrollWidth <= innerWidth")


async def test_it_can_be_used_by_keyboard_and_screen_reader(lab: PhoneLab) -> None:
    await lab.radio.visit(f"{lab.gateway.origin}/hop")
    tree: Any = (await lab.page.send("Accessibility.getFullAXTree"))["nodes"]
    named = {
        (node["role"]["value"], node["name"]["value"]) for node in tree if not node["ignored"] and "name" in node
    }
    assert ("button", "Join") in named
    assert any(role == "textbox" and "paste" in name for role, name in named)
    await lab.page.press("Tab")
    assert await lab.page.run("document.activeElement.id") == "line"
    await lab.page.type((await lab.gateway.page_url("phone-1")).partition("#")[2])
    await lab.page.press("Tab")
    await lab.page.press("Enter")
    await lab.says("hop/phone-1")
    assert await lab.page.run("document.querySelector('#laptops').ariaLive") == "polite"
    for width in (320, 390, 1280):
        await lab.page.size(width)
        await fits(lab.page)

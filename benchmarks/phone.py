"""`scripts/bench phone`: the phone's page in Chromium, whose Bluetooth is emulated: from the QR code to the first token
of an answer, and bytes a second beside a page that only echoes values.

Both pages meet the same emulation, by the same harness, in turns; what that costs for a value is most of what is
measured, so that rates compare with each other only. Needs chromium.
"""

import asyncio
import contextlib
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from pathlib import Path
from statistics import median, quantiles
from typing import Final

from aiohttp import WSMsgType, web

from benchmarks.measure import Row, arguments, note, show
from tests.support.browser import CHROMIUM, browser
from tests.support.phone_centrals import StandInLaptop
from tests.support.phone_lab import PhoneLab, phone_lab
from tests.support.phone_radio import SWITCHES, PhoneRadio
from tests.support.relay_process import ROOT
from transport.links.gatt import RX, SERVICE, TX, VALUE_MAX, WAITING, WINDOW
from transport.links.gatt_link import GattLink

WEB: Final = ROOT / "relay" / "hop" / "web"
TYPES: Final = {".html": "text/html", ".css": "text/css", ".js": "text/javascript"}
PLAIN: Final = f"""<!doctype html><title>plain</title><button id="choose">choose</button><script>
  document.getElementById("choose").onclick = async () => {{
    const device = await navigator.bluetooth.requestDevice(
      {{ filters: [{{ services: ["{WAITING}"] }}], optionalServices: ["{SERVICE}"] }});
    const service = await (await device.gatt.connect()).getPrimaryService("{SERVICE}");
    const rx = await service.getCharacteristic("{RX}"), tx = await service.getCharacteristic("{TX}"), values = [];
    let busy = false;
    tx.oncharacteristicvaluechanged = async () => {{
      values.push(tx.value);
      if (busy) return;
      for (busy = true; values.length;) await rx.writeValueWithoutResponse(values.shift());
      busy = false;
    }};
    await tx.startNotifications();
  }};
  document.documentElement.dataset.ready = "yes";
</script>"""


class Echo:
    """A stand-in for a gateway: what comes up a tunnel goes down it again."""

    def app(self) -> web.Application:
        app = web.Application()
        app.router.add_get("/plain", lambda _: _text(PLAIN, ".html"))
        app.router.add_get("/hop", lambda _: _text((WEB / "index.html").read_text(), ".html"))
        app.router.add_post("/hop/token", self._token)
        app.router.add_get("/hop/tunnel", self._tunnel)
        app.router.add_get("/hop/{name}", self._file)
        return app

    async def _file(self, request: web.Request) -> web.Response:
        path = WEB / request.match_info["name"]
        return await _text(path.read_text(), path.suffix)

    async def _token(self, _: web.Request) -> web.Response:
        return web.json_response({"id": "spiffe://x/hop/y", "access_token": "t", "expires_in": 600})

    async def _tunnel(self, request: web.Request) -> web.WebSocketResponse:
        socket = web.WebSocketResponse(max_msg_size=1 << 20)
        await socket.prepare(request)
        await socket.receive()
        await socket.send_json({"id": "spiffe://x/hop/y"})
        async for message in socket:
            if message.type is WSMsgType.BINARY:
                await socket.send_bytes(message.data)
        return socket


class PlainLaptop(StandInLaptop):
    """Gives values that no pipe has made, and takes them back."""

    def __init__(self) -> None:
        super().__init__()
        self.came = 0
        self.subscribed = asyncio.Event()
        self._changed = asyncio.Event()

    async def subscribe(self, on: bool) -> None:
        self.subscribed.set()

    async def write(self, value: bytes) -> None:
        self.came += 1
        self._changed.set()

    async def echo(self, values: int, at_a_time: int) -> None:
        """More are given when half of those under way have come back, as a pipe grants."""
        self.came, given = 0, 0
        while self.came < values:
            if given - self.came <= at_a_time // 2:
                for _ in range(given, new := min(values, self.came + at_a_time)):
                    self.notify(bytes(VALUE_MAX))
                given = new
            self._changed.clear()
            await self._changed.wait()


async def _text(text: str, suffix: str) -> web.Response:
    return web.Response(text=text, content_type=TYPES[suffix])


@contextlib.asynccontextmanager
async def served() -> AsyncIterator[str]:
    runner = web.AppRunner(Echo().app(), access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


async def echoes(size: int, rounds: int, folder: Path) -> list[Row]:
    """`size` bytes there and back at once: from the laptop by the page's tunnel and back, or as values by a plain page;
    in turns, each after a tenth that does not count.
    """
    values = -(-size // VALUE_MAX)
    ours: list[float] = []
    plain: dict[int, list[float]] = {values: [], WINDOW: []}
    async with contextlib.AsyncExitStack() as stack:
        origin = await stack.enter_async_context(served())
        page = await stack.enter_async_context(browser(folder / "echoes", *SWITCHES))
        radio = PhoneRadio(page)
        await radio.start()
        stack.push_async_callback(radio.close)
        laptop, other = StandInLaptop(), PlainLaptop()
        await radio.visit(f"{origin}/plain")
        await page.run("localStorage.hop = 'spiffe://x/hop/y'")
        places = [(await radio.add(name, central)).address for name, central in (("ours", laptop), ("plain", other))]
        for _ in range(rounds):
            radio.wanted = places[0]
            await radio.visit(f"{origin}/hop")
            await page.click("#choose")
            link = await laptop.links.get()
            await there_and_back(link, size // 10)
            began = time.perf_counter()
            await there_and_back(link, size)
            ours.append(size / (time.perf_counter() - began))
            radio.wanted = places[1]
            other.subscribed.clear()
            await radio.visit(f"{origin}/plain")
            await page.click("#choose")
            await other.subscribed.wait()
            for at_a_time, speeds in plain.items():
                await other.echo(values // 10, at_a_time)
                began = time.perf_counter()
                await other.echo(values, at_a_time)
                speeds.append(values * VALUE_MAX / (time.perf_counter() - began))
    first, _, third = quantiles(ours, n=4)
    mine, what = median(ours), f"there and back at once, values of {VALUE_MAX}"
    return [
        Row(what, mine / 1000, "kB/s", theirs / 1000, name, mine / theirs, wanted, (third - first) / mine)
        for theirs, name, wanted in (
            (median(plain[values]), "a page that only echoes", 0.7),
            (median(plain[WINDOW]), f"the same, {WINDOW} values under way as in a pipe", None),
        )
    ]


async def there_and_back(link: GattLink, size: int) -> None:
    sending, left = asyncio.create_task(link.send(bytes(size))), size
    while left > 0:
        left -= len(await link.receive())
    await sending


async def first_token(lab: PhoneLab) -> float:
    """Seconds from the scan to the first words at the laptop, where `edge ask` waits for a phone already. A person's
    part is left out: the button is pressed, and the laptop picked, at once.
    """
    home, _ = await lab.edge()
    way = lab.gateway.https.replace("https", "wss") + "/v1/edge"
    await home.run("join", "--invitation-file", str(lab.folder / "lap-1.invitation"), "--hop", way)
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", "from edge_client.cli import main; main()", "ask", "--relay", "Why?", cwd=ROOT,
        env=home.environment, stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    assert process.stdout is not None and process.stderr is not None
    while b"waiting for a phone" not in (line := await process.stderr.readline()):
        assert line, "edge ask ended"
    url = await lab.gateway.page_url("phone-1")
    began = time.perf_counter()
    await lab.radio.visit(url)
    await lab.page.click("#choose")
    assert await process.stdout.read(1)
    taken = time.perf_counter() - began
    await process.communicate()
    return taken


async def first_tokens(rounds: int, folder: Path) -> Row:
    times: list[float] = []
    for number in range(rounds):
        (own := folder / str(number)).mkdir()
        async with phone_lab(own) as lab:
            times.append(await first_token(lab))
    return Row(f"from the scan to the first token, median of {rounds}", median(times), "s", None, "", None)


async def run(smoke: bool) -> list[Row]:
    with tempfile.TemporaryDirectory() as folder:
        note("bytes a second")
        echo = await echoes(50_000 if smoke else 500_000, 3 if smoke else 7, Path(folder))
        note("from the scan to the first token")
        return [*echo, await first_tokens(1 if smoke else 5, Path(folder))]


def main() -> int:
    options = arguments(__doc__ or "")
    if CHROMIUM is None:
        print("chromium is not installed", file=sys.stderr)
        return 1
    show("phone", asyncio.run(run(options.smoke)), as_json=options.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())

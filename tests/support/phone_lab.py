"""A phone's page in Chromium between an edge and a gateway: both real processes, a virtual radio, an emulated phone."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Final

from tests.integration.test_bluetooth_chain import EdgeHome
from tests.support.browser import Tab, browser
from tests.support.gateway_lab import make_folder
from tests.support.mock_provider import KEY, WORDS, MockProvider
from tests.support.phone_centrals import RadioCentral
from tests.support.phone_radio import SWITCHES, Laptop, PhoneRadio
from tests.support.relay_process import CONFIG, Gateway, relay, secret_file
from transport.links.virtual_join import RadioServer, serve_radio

VIA: Final = "spiffe://field.example/hop/phone-1"
ANSWER: Final = ("".join(WORDS), VIA)
EXPECTED: Final = ("401", "ERR_CONNECTION_REFUSED", "ERR_CONNECTION_RESET", "503", "WebSocket connection")


class PhoneLab:
    """`gateway` is there from `start_gateway` to `stop_gateway`, at the same address each time."""

    gateway: Gateway

    def __init__(self, folder: Path, provider: MockProvider, air: RadioServer, page: Tab) -> None:
        self.folder, self.provider, self.air, self.page = folder, provider, air, page
        self.radio = PhoneRadio(page)
        self._running: contextlib.AsyncExitStack | None = None

    async def start_gateway(self) -> None:
        folder, config = self.folder / "gateway", self.folder / "gateway" / "gateway.toml"
        if not folder.exists():
            await asyncio.to_thread(make_folder, folder)
            secret_file(folder / "provider.key", KEY)
            secret_file(folder / "pass", "gateway pass")
            config.write_text(CONFIG.format(base_url=self.provider.base_url))
        self._running = contextlib.AsyncExitStack()
        pid, ready = await self._running.enter_async_context(relay(
            "gateway", "serve", "--config", str(config), "--passphrase-file", str(folder / "pass")
        ))
        at = dict(place.split("=", 1) for place in ready.split() if "=" in place)
        self.gateway = Gateway(pid, folder, f"https://{at['https']}", f"http://{at['public']}")
        config.write_text(config.read_text().replace('public = "127.0.0.1:0"', f'public = "{at["public"]}"'))

    async def stop_gateway(self) -> None:
        if self._running is not None:
            await self._running.aclose()

    async def edge(self, name: str = "lap-1") -> tuple[EdgeHome, Laptop]:
        """A laptop with nothing but the radio, and what the phone sees of it. It has an invitation, and has not joined.
        """
        home = EdgeHome(self.folder / name, f"virtual:{self.folder / 'radio.sock'}")
        home.configure(f"phone:{name}")
        secret_file(self.folder / f"{name}.invitation", (await self.gateway.invite(f"edge/{name}")).encode())
        return home, await self.radio.add(name, RadioCentral(await self.air.radio.device(f"phone for {name}"), name))

    async def join(self, home: EdgeHome, name: str = "lap-1") -> Any:
        line = self.folder / f"{name}.invitation"
        return await home.run("join", "--invitation-file", str(line), "--hop", f"phone:{name}")

    async def connected(self) -> tuple[EdgeHome, Laptop]:
        """Scans the code, and has a laptop join through the phone."""
        home, laptop = await self.edge()
        await self.radio.visit(await self.gateway.page_url("phone-1"))
        joining = asyncio.create_task(self.join(home))
        await self.page.click("#choose")
        await joining
        return home, laptop

    async def says(self, words: str) -> None:
        await self.page.until(f"document.body.innerText.includes({words!r})")

    @property
    def complaints(self) -> list[str]:
        """What the browser's console reports beyond what has to be."""
        return [said for said in self.page.complaints if not any(part in said for part in EXPECTED)]


@contextlib.asynccontextmanager
async def phone_lab(folder: Path, *switches: str) -> AsyncIterator[PhoneLab]:
    async with asyncio.timeout(300), contextlib.AsyncExitStack() as stack:
        provider = await stack.enter_async_context(MockProvider())
        air = await serve_radio(folder / "radio.sock", "2m", seed=1)
        stack.push_async_callback(air.close)
        page = await stack.enter_async_context(browser(folder / "profile", *SWITCHES, *switches))
        lab = PhoneLab(folder, provider, air, page)
        stack.push_async_callback(lab.stop_gateway)
        await lab.start_gateway()
        await page.size(390, 844)
        await lab.radio.start()
        stack.push_async_callback(lab.radio.close)
        yield lab

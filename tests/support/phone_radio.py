"""Bluetooth as a page in Chromium sees it: emulated peripherals, whose operations a central of ours carries out.

The page's code is the one that ships. Chromium's emulation cannot push a notification, so the page's own event is
dispatched with its value; nor does it tell of a page that disconnects.
"""

import asyncio
import base64
import contextlib
import json
from collections.abc import Callable, Coroutine
from typing import Any, Final, Protocol

from aiohttp import ClientConnectionError

from tests.support.browser import Tab
from transport.errors import LinkLost
from transport.links.gatt import INFO, RX, SERVICE, TX, WAITING

SWITCHES: Final = ("--enable-features=WebBluetooth",)
_PATCH: Final = """(() => {
  const kind = globalThis.BluetoothRemoteGATTCharacteristic?.prototype, start = kind?.startNotifications;
  if (!kind) return;
  const asking = [], subscribed = new Map();
  kind.startNotifications = function () {
    asking.push(this);
    return start.call(this);
  };
  const server = BluetoothRemoteGATTServer.prototype, disconnect = server.disconnect;
  server.disconnect = function () {
    for (const [address, tx] of subscribed) if (tx.service.device === this.device) __left(address);
    return disconnect.call(this);
  };
  globalThis.__bind = (address) => { subscribed.set(address, asking.shift()); };
  globalThis.__notify = (address, values) => {
    const tx = subscribed.get(address);
    for (const text of values) {
      const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
      Object.defineProperty(tx, "value", { configurable: true, value: new DataView(bytes.buffer) });
      tx.dispatchEvent(new Event("characteristicvaluechanged"));
    }
  };
})()"""
_OK, _FAILED = 0, 0x3E  # HCI: success; connection failed to be established
_TOGETHER: Final = 64  # values of one dispatch


class Central(Protocol):
    """Whoever reaches the laptop for the browser. All raise LinkLost."""

    async def connect(self, notify: Callable[[bytes], None], gone: Callable[[], object]) -> None:
        """`notify` is given the values of `tx`; `gone` is called when the connection ends."""

    async def info(self) -> bytes: ...

    async def subscribe(self, on: bool) -> None: ...

    async def write(self, value: bytes) -> None: ...

    async def disconnect(self) -> None: ...


class Laptop:
    """One emulated peripheral. `connects` counts the page's attempts."""

    def __init__(self, radio: "PhoneRadio", name: str, address: str, central: Central) -> None:
        self.name, self.address, self.central = name, address, central
        self.connects = 0
        self.connected = False
        self.came = asyncio.Event()  # a connection, since it was cleared
        self._radio, self._ids = radio, dict[str, str]()
        self._values: asyncio.Queue[bytes] = asyncio.Queue()  # a pipe's credit bounds it
        self.answering: set[asyncio.Task[None]] = set()
        self._connecting: asyncio.Task[None] | None = None
        self._notifying = asyncio.create_task(self._notify())

    async def drop(self) -> None:
        """The radio loses it."""
        await self.central.disconnect()
        await self._gone()

    async def leave(self) -> None:
        """The page has gone."""
        self.connected = False
        if self._connecting is not None:
            self._connecting.cancel()
        if self.answering:  # what it has asked for is answered before it goes, or the browser waits for it
            await asyncio.wait(self.answering)
        await self.central.disconnect()

    async def close(self) -> None:
        self._notifying.cancel()
        await asyncio.gather(self._notifying, return_exceptions=True)
        await self.leave()

    async def gatt(self, kind: str) -> None:
        """Answers an operation on the device."""
        code = _OK
        if kind == "connection":
            self.connects += 1
            self._connecting = self._radio.do(
                self.central.connect(self._values.put_nowait, lambda: self._radio.do(self._gone()))
            )
            try:
                await self._connecting
                self.connected = True
                self.came.set()
            except (LinkLost, asyncio.CancelledError):
                code = _FAILED
        elif kind == "discovery":
            await self._add_service()
        await self._radio.answer("simulateGATTOperationResponse", address=self.address, type=kind, code=code)

    async def operate(self, characteristic: str, kind: str, data: bytes) -> None:
        """Answers an operation on a characteristic."""
        back: dict[str, str] = {}
        code = _OK
        try:
            if kind == "read":
                back["data"] = base64.b64encode(await self.central.info()).decode()
            elif kind == "write":
                await self.central.write(data)
            elif kind == "subscribe-to-notifications":
                await self._radio.page.send("Runtime.evaluate", expression=f"__bind({json.dumps(self.address)})")
                await self.central.subscribe(True)
            else:
                await self.central.subscribe(False)
        except LinkLost:
            code = 0x0E  # ATT: unlikely error
        await self._radio.answer(
            "simulateCharacteristicOperationResponse", characteristicId=characteristic, type=kind, code=code, **back
        )

    def has(self, characteristic: str) -> bool:
        return characteristic in self._ids.values()

    async def _add_service(self) -> None:
        added = await self._radio.tell("addService", address=self.address, serviceUuid=SERVICE)
        self._ids = {"service": added["serviceId"]}
        for uuid, can in ((RX, "writeWithoutResponse"), (TX, "notify"), (INFO, "read")):
            made = await self._radio.tell(
                "addCharacteristic", serviceId=self._ids["service"], characteristicUuid=uuid, properties={can: True}
            )
            self._ids[uuid] = made["characteristicId"]
        await self._radio.tell(
            "addDescriptor", characteristicId=self._ids[TX], descriptorUuid="00002902-0000-1000-8000-00805f9b34fb"
        )

    async def _gone(self) -> None:
        if self.connected:
            self.connected = False
            await self._radio.answer("simulateGATTDisconnection", address=self.address)

    async def _notify(self) -> None:
        while True:
            values = [await self._values.get()]
            while not self._values.empty() and len(values) < _TOGETHER:
                values.append(self._values.get_nowait())
            texts = [base64.b64encode(value).decode() for value in values]
            await self._radio.page.send(
                "Runtime.evaluate", expression=f"__notify({json.dumps(self.address)}, {json.dumps(texts)})"
            )


class PhoneRadio:
    """The radio of a phone whose browser is `page`, started with `SWITCHES`."""

    def __init__(self, page: Tab) -> None:
        self.page = page
        self.laptops: list[Laptop] = []
        self.wanted = ""  # the address of the laptop that the person picks; "" cancels
        self.prompts: set[str] = set()
        self._on = False
        self._tasks: set[asyncio.Task[None]] = set()
        self._order: dict[str, asyncio.Task[None]] = {}

    async def start(self) -> None:
        """Before the first page."""
        await self.page.send("Page.addScriptToEvaluateOnNewDocument", source=_PATCH)
        await self.page.send("DeviceAccess.enable")
        await self.page.send("Runtime.addBinding", name="__left")
        self.page.heard["Runtime.bindingCalled"] = self._left
        whole = self.page.whole.heard
        self.page.heard["DeviceAccess.deviceRequestPrompted"] = lambda said: self.do(self._prompted(said))
        whole["BluetoothEmulation.gattOperationReceived"] = self._gatt
        whole["BluetoothEmulation.characteristicOperationReceived"] = self._characteristic

    async def add(self, name: str, central: Central) -> Laptop:
        """A laptop in reach, that the person will pick."""
        self.wanted = f"09:09:09:09:09:{len(self.laptops):02X}"
        self.laptops.append(laptop := Laptop(self, name, self.wanted, central))
        if self._on:
            await self._show(laptop)
        return laptop

    async def visit(self, url: str) -> None:
        """Opens a page. Connections end with the last one, and so does the browser's emulation."""
        for laptop in self.laptops:
            await laptop.leave()
        with contextlib.suppress(AssertionError):  # a page that goes may have taken it along
            if self._on:
                await self.tell("disable")
        await self.page.open(url)
        await self.tell("enable", state="powered-on", leSupported=True)
        self._on = True
        for laptop in self.laptops:
            await self._show(laptop)

    async def _show(self, laptop: Laptop) -> None:
        await self.tell(
            "simulatePreconnectedPeripheral", address=laptop.address, name=laptop.name, manufacturerData=[],
            knownServiceUuids=[WAITING, SERVICE],
        )

    async def close(self) -> None:
        for laptop in self.laptops:
            await laptop.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def tell(self, command: str, **params: Any) -> Any:
        return await self.page.whole.send(f"BluetoothEmulation.{command}", **params)

    async def answer(self, command: str, **params: Any) -> None:
        """To a page that may have gone on, or away."""
        with contextlib.suppress(AssertionError, TimeoutError, ClientConnectionError):
            await self.tell(command, **params)

    def do(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        self._tasks.add(task := asyncio.create_task(work))
        task.add_done_callback(self._tasks.discard)
        return task

    async def _prompted(self, said: Any) -> None:
        prompt, found = said["id"], self.wanted in [one["id"] for one in said["devices"]]
        if prompt in self.prompts or not (found or self.wanted == ""):
            return
        self.prompts.add(prompt)  # it is told again as its devices change; two answers end the browser
        if found:
            await self.page.send("DeviceAccess.selectPrompt", id=prompt, deviceId=self.wanted)
        else:
            await self.page.send("DeviceAccess.cancelPrompt", id=prompt)

    def _left(self, said: Any) -> None:
        laptop = next(one for one in self.laptops if one.address == said["payload"])
        self.do(laptop.drop())

    def _gatt(self, said: Any) -> None:
        laptop = next(one for one in self.laptops if one.address == said["address"])
        laptop.answering.add(task := self.do(laptop.gatt(said["type"])))
        task.add_done_callback(laptop.answering.discard)

    def _characteristic(self, said: Any) -> None:
        laptop = next(one for one in self.laptops if one.has(said["characteristicId"]))
        data = base64.b64decode(said.get("data", ""))
        self.do(laptop.operate(said["characteristicId"], said["type"], data))

"""A headless Chromium, driven by the DevTools protocol over aiohttp's WebSocket client: real clicks, real keys.

Waiting is for a condition inside the page (`until`), told by the page's own changes, never for a time.
"""

import asyncio
import base64
import contextlib
import json
import os
import re
import shutil
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, Final

from aiohttp import ClientSession, ClientWebSocketResponse, WSMsgType

CHROMIUM: Final = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
_PATIENCE_S: Final = 30.0
_KEYS: Final = {
    "Enter": (13, "\r"), "Escape": (27, ""), "Tab": (9, ""), "ArrowRight": (39, ""), "k": (75, "k"),
}
_UNTIL: Final = """new Promise((resolve) => {
  const look = () => { const found = (() => { try { return %s; } catch { return false; } })();
                       if (found) { watch.disconnect(); clearInterval(timer); resolve(found); } };
  const watch = new MutationObserver(look), timer = setInterval(look, 50);
  watch.observe(document, { subtree: true, childList: true, attributes: true, characterData: true });
  look();
})"""


class Tab:
    """One page. What its console reports as errors, and what its policy refused, is in `complaints`.

    `heard` has what is called for the protocol's other events, `whole` speaks to the browser itself.
    """

    whole: "Tab"

    def __init__(self, socket: ClientWebSocketResponse) -> None:
        self._socket, self._last = socket, 0
        self._answers: dict[int, asyncio.Future[Any]] = {}
        self.complaints: list[str] = []
        self.requested: list[str] = []
        self.heard: dict[str, Callable[[Any], object]] = {}
        self._reading = asyncio.create_task(self._read())

    async def _read(self) -> None:
        async for message in self._socket:
            if message.type is not WSMsgType.TEXT:
                continue
            said = json.loads(message.data)
            if "id" in said:
                future = self._answers.pop(said["id"])
                if not future.done():
                    future.set_result(said)
            elif said["method"] == "Log.entryAdded" and said["params"]["entry"]["level"] == "error":
                self.complaints.append(said["params"]["entry"]["text"])
            elif said["method"] == "Runtime.exceptionThrown":
                self.complaints.append(json.dumps(said["params"]["exceptionDetails"])[:500])
            elif said["method"] == "Network.requestWillBeSent":
                self.requested.append(said["params"]["request"]["url"])
            elif said["method"] in self.heard:
                self.heard[said["method"]](said["params"])

    async def send(self, method: str, **params: Any) -> Any:
        self._last += 1
        future = self._answers[self._last] = asyncio.get_running_loop().create_future()
        await self._socket.send_json({"id": self._last, "method": method, "params": params})
        async with asyncio.timeout(_PATIENCE_S):
            said = await future
        assert "error" not in said, (method, said)
        return said["result"]

    async def run(self, script: str) -> Any:
        """The value of an expression in the page, awaited if it is a promise."""
        result = await self.send("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in result, (script, result["exceptionDetails"])
        return result["result"].get("value")

    async def until(self, condition: str) -> Any:
        """Waits until an expression in the page is true, and returns its value."""
        try:
            return await self.run(_UNTIL % f"({condition})")
        except TimeoutError:
            text = await self.run("document.body.innerText")
            raise AssertionError(f"never came true: {condition}\n{self.complaints}\n{text}") from None

    async def open(self, url: str) -> None:
        await self.send("Page.navigate", url=url)
        await self.until("document.documentElement.dataset.ready")

    async def size(self, width: int, height: int = 800, *, dark: bool = False) -> None:
        await self.send(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600
        )
        value = "dark" if dark else "light"
        await self.send("Emulation.setEmulatedMedia", features=[
            {"name": "prefers-color-scheme", "value": value}, {"name": "prefers-reduced-motion", "value": "reduce"},
        ])

    async def click(self, selector: str) -> None:
        """A mouse click in the middle of what a person would see; fails if something else lies there.

        Clicks again if the page has moved under the mouse, as a person would.
        """
        found = f"document.querySelector({json.dumps(selector)})"
        struck = f"window.__hit && {{ on: !!window.__hit.closest({json.dumps(selector)}) }}"
        for _ in range(5):
            place = await self.until(f"""(() => {{ const it = {found}; it.scrollIntoView({{ block: "nearest" }});
                const box = it.getBoundingClientRect(), x = box.x + box.width / 2, y = box.y + box.height / 2;
                const top = document.elementFromPoint(x, y);
                return top && (it === top || it.contains(top) || top.contains(it)) && box.width && [x, y]; }})()""")
            await self.run("""window.__hit = null; addEventListener(
                "click", (event) => { window.__hit = event.target; }, { capture: true, once: true }); 0""")
            for kind in ("mousePressed", "mouseReleased"):
                await self.send(
                    "Input.dispatchMouseEvent", type=kind, x=place[0], y=place[1], button="left", clickCount=1
                )
            if (await self.until(struck))["on"]:
                return
        raise AssertionError(f"the page moves on and on under {selector}")

    async def type(self, text: str) -> None:
        await self.send("Input.insertText", text=text)

    async def press(self, key: str, *, shift: bool = False, control: bool = False) -> None:
        code, text = _KEYS[key]
        modifiers = 8 * shift + 2 * control
        more = {"text": text} if text and not control else {}
        await self.send(
            "Input.dispatchKeyEvent", type="keyDown", key=key, windowsVirtualKeyCode=code, modifiers=modifiers, **more
        )
        await self.send(
            "Input.dispatchKeyEvent", type="keyUp", key=key, windowsVirtualKeyCode=code, modifiers=modifiers
        )

    async def text(self, selector: str) -> str:
        """What is shown in the element, once it is there."""
        await self.until(f"document.querySelector({json.dumps(selector)})")
        return str(await self.run(f"document.querySelector({json.dumps(selector)}).innerText"))

    async def choose_files(self, selector: str, *paths: Path) -> None:
        root = await self.send("DOM.getDocument")
        node = await self.send("DOM.querySelector", nodeId=root["root"]["nodeId"], selector=selector)
        await self.send("DOM.setFileInputFiles", nodeId=node["nodeId"], files=[str(path) for path in paths])

    async def screenshot(self) -> bytes:
        """A PNG of what is visible."""
        return base64.b64decode((await self.send("Page.captureScreenshot", format="png"))["data"])

    async def heap(self) -> bytes:
        """All strings of the page, as a heap snapshot has them, in UTF-8 (a NUL is a space); no bytes of buffers."""
        parts: list[str] = []
        self.heard["HeapProfiler.addHeapSnapshotChunk"] = lambda said: parts.append(said["chunk"])
        await self.send("HeapProfiler.takeHeapSnapshot")
        strings = await asyncio.to_thread(lambda: json.loads("".join(parts))["strings"])
        return "\n".join(strings).encode(errors="surrogatepass")

    async def renderers(self) -> list[int]:
        """The processes that pages run in."""
        processes = (await self.whole.send("SystemInfo.getProcessInfo"))["processInfo"]
        return [one["id"] for one in processes if one["type"] == "renderer"]

    async def close(self) -> None:
        await self._socket.close()
        await self._reading


@contextlib.asynccontextmanager
async def browser(profile: Path, *switches: str) -> AsyncIterator[Tab]:
    """One tab of a Chromium of its own, which ends with it."""
    assert CHROMIUM is not None
    root = ["--no-sandbox"] if os.geteuid() == 0 else []
    process = await asyncio.create_subprocess_exec(
        CHROMIUM, "--headless=new", "--remote-debugging-port=0", f"--user-data-dir={profile}", "--disable-gpu",
        "--no-first-run", "--disable-background-networking", "--disable-component-update", "--hide-scrollbars",
        "--disable-dev-shm-usage", "--js-flags=--heap-snapshot-string-limit=10000000",  # whole, not their beginnings
        *switches, *root, "about:blank", stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.PIPE,
    )
    assert process.stderr is not None
    try:
        async with asyncio.timeout(_PATIENCE_S):
            while (found := re.search(rb"listening on (ws://([^/]+)/\S+)", await process.stderr.readline())) is None:
                assert process.returncode is None and not process.stderr.at_eof(), "chromium ended"
        drain = asyncio.create_task(process.stderr.read())
        async with ClientSession() as client:
            async with client.get(f"http://{found[2].decode()}/json/list") as listed:
                tabs = [tab for tab in await listed.json() if tab["type"] == "page"]
            tab = Tab(await client.ws_connect(tabs[0]["webSocketDebuggerUrl"], max_msg_size=64 << 20))
            tab.whole = Tab(await client.ws_connect(found[1].decode(), max_msg_size=64 << 20))
            for domain in ("Page", "Runtime", "Log", "Network", "DOM"):
                await tab.send(f"{domain}.enable")
            yield tab
            await tab.close()
            await tab.whole.close()
    finally:
        if process.returncode is None:
            process.terminate()
        await process.wait()
    await drain

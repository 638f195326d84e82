"""The phone's page in a real browser, between a real edge and a real gateway: joined, linked, dropped, resumed."""

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.support.browser import CHROMIUM
from tests.support.phone_lab import ANSWER, VIA, PhoneLab, phone_lab

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")

ASK = ("ask", "--relay", "How fast does the pump run?")
SHOTS = os.environ.get("CAUSEWAY_SHOTS")  # a folder: pictures of each step are kept there


@pytest.fixture
async def lab(tmp_path: Path) -> AsyncIterator[PhoneLab]:
    async with phone_lab(tmp_path) as made:
        yield made


async def shot(lab: PhoneLab, name: str) -> None:
    if SHOTS is None:
        return
    for width, height in ((390, 844), (1280, 800)):
        for dark in (False, True):
            await lab.page.size(width, height, dark=dark)
            picture = await lab.page.screenshot()
            file = Path(SHOTS) / f"phone-{name}-{width}-{'dark' if dark else 'light'}.png"
            await asyncio.to_thread(file.write_bytes, picture)
    await lab.page.size(390, 844)


async def test_from_the_code_to_an_answer(lab: PhoneLab) -> None:
    home, laptop = await lab.edge()
    await lab.radio.visit(await lab.gateway.page_url("phone-1"))
    assert await lab.page.run("location.href") == f"{lab.gateway.origin}/hop", "the invitation is in no address"
    assert not [url for url in lab.page.requested if "cw1" in url.partition("#")[0]]
    await lab.says("hop/phone-1")
    await shot(lab, "joined")
    joining = asyncio.create_task(lab.join(home))
    await lab.page.click("#choose")
    assert (await joining)["id"].endswith("/edge/lap-1")
    answer = await home.run(*ASK)
    assert (answer["answer"], answer["via"]) == ANSWER
    await lab.page.until("parseFloat(document.getElementById('down').innerText) > 1")
    await shot(lab, "linked")
    assert lab.provider.calls == 1 and laptop.connects >= 1 and lab.complaints == []


async def test_a_reload_needs_no_new_invitation(lab: PhoneLab) -> None:
    home, _ = await lab.connected()
    await lab.radio.visit(f"{lab.gateway.origin}/hop")
    await lab.says("hop/phone-1")
    asking = asyncio.create_task(home.run(*ASK))
    await lab.page.click("#choose")
    assert (await asking)["via"] == VIA and lab.complaints == []

"""The phone's page in a real browser, between a real edge and a real gateway: joined, linked, dropped, resumed."""

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from aiohttp import ClientSession

from scripts import canaries
from tests.support.browser import CHROMIUM
from tests.support.dpop_page import DpopPage
from tests.support.mock_provider import chunk
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


async def test_a_dropped_link_comes_back_and_the_answer_is_whole(lab: PhoneLab) -> None:
    home, laptop = await lab.connected()
    lab.provider.mode = "stream_stall"
    asking = asyncio.create_task(home.run(*ASK))
    await lab.provider.began.wait()
    await lab.says("lap-1: linked")
    laptop.came.clear()
    await laptop.drop()
    await laptop.came.wait()
    lab.provider.release.set()
    answer = await asking
    assert (answer["answer"], answer["via"]) == ANSWER
    assert lab.provider.calls == 1 and lab.complaints == []


async def test_a_gateway_that_was_gone_is_found_again(lab: PhoneLab) -> None:
    home, _ = await lab.connected()
    await lab.stop_gateway()
    asking = asyncio.create_task(home.run(*ASK))
    await lab.says("The gateway does not answer")
    await shot(lab, "no-gateway")
    await lab.start_gateway()
    assert (await asking)["via"] == VIA
    await lab.says("The gateway answers")


async def test_each_tunnel_has_a_token_of_its_own(lab: PhoneLab) -> None:
    home, _ = await lab.connected()

    def renewals() -> int:
        return sum(url.endswith("/hop/token") for url in lab.page.requested)

    for _ in range(2):
        before = renewals()
        assert (await home.run(*ASK))["via"] == VIA and renewals() > before
    assert lab.complaints == []


async def test_what_a_gateway_refuses_is_said_and_another_invitation_helps(lab: PhoneLab) -> None:
    await lab.radio.visit(f"{lab.gateway.origin}/hop#cw1nonsense")
    await lab.says("Ask for a new one")
    assert await lab.page.run("document.getElementById('work').hidden")
    await shot(lab, "refused")
    await lab.radio.visit(f"{lab.gateway.origin}/hop")
    await shot(lab, "new")
    line = (await lab.gateway.page_url("phone-1")).partition("#")[2]
    await lab.page.click("#line")
    await lab.page.type(f"  {line}\n")
    await lab.page.click("#join button")
    await lab.says("hop/phone-1")
    assert not await lab.page.run("document.getElementById('work').hidden")
    # A registration that ends (another page took its name) is told as well, and the way back is the same.
    async with ClientSession() as client:
        other = DpopPage(client, lab.gateway.origin, lab.gateway.origin)
        await other.greet()
        assert (await other.join((await lab.gateway.page_url("phone-1")).partition("#")[2]))[0] == 200
    await lab.radio.visit(f"{lab.gateway.origin}/hop")
    await lab.says("Ask for a new one")
    assert not await lab.page.run("document.getElementById('join').hidden")
    await lab.page.click("#line")
    await lab.page.type((await lab.gateway.page_url("phone-2")).partition("#")[2])
    await lab.page.click("#join button")
    await lab.says("hop/phone-2")


async def test_two_laptops_are_served_at_once(lab: PhoneLab) -> None:
    first, _ = await lab.connected()
    second, _ = await lab.edge("lap-2")
    joining = asyncio.create_task(lab.join(second, "lap-2"))
    await lab.page.click("#choose")
    assert (await joining)["id"].endswith("/edge/lap-2")
    lab.provider.mode = "stream_stall"
    one = asyncio.create_task(first.run(*ASK))
    await lab.provider.began.wait()
    lab.provider.began.clear()
    two = asyncio.create_task(second.run(*ASK))
    await lab.provider.began.wait()
    assert not one.done() and not lab.provider.ended.is_set(), "both answers are on their way"
    lab.provider.release.set()
    assert [(await asking)["via"] for asking in (one, two)] == [VIA, VIA]
    await lab.says("lap-1: not linked")
    await lab.says("lap-2: not linked")
    await shot(lab, "two")


async def test_no_word_that_it_carries_is_in_its_memory(lab: PhoneLab) -> None:
    """Nor in its heap: a snapshot of it shows a word that the page was told, and none that went through."""
    prompt, reply, told = canaries.word(), canaries.word(), canaries.word()
    lab.provider.stream = [chunk(f"{reply} ") for _ in range(50)] + [b"data: [DONE]\n\n"]
    home, _ = await lab.connected()
    answer = await home.run("ask", "--relay", f"{prompt} " * 200)
    assert answer["answer"].count(reply) == 50 and prompt.encode() in lab.provider.bodies[0]
    forms = canaries.forms(prompt) | canaries.forms(reply)
    await lab.page.run(f"window.told = {told!r}; 0")
    heap = await lab.page.heap()
    assert {one for one in forms | {told.encode()} if one in heap} == {told.encode()}

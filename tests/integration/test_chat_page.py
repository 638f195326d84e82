"""The chat page in a real browser, clicked through as a person would."""

import asyncio
import os
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from edge_client.errors import EngineFailed, GaveUp
from edge_client.promises import Kept
from tests.support.browser import CHROMIUM, Tab, browser
from tests.support.page_lab import TOKEN, Lab, page_lab

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")

MANUAL = "# Pump P-7\n\nThe pump P-7 runs at a pressure of 6 bar.\n\nIts filter is changed every 400 hours.\n"
SHOTS = os.environ.get("CAUSEWAY_SHOTS")  # a folder: pictures of each step are kept there


@pytest.fixture
async def lab(tmp_path: Path) -> AsyncIterator[Lab]:
    async with page_lab(tmp_path) as made:
        yield made


@pytest.fixture
async def tab(tmp_path: Path) -> AsyncIterator[Tab]:
    async with browser(tmp_path / "profile") as made:
        await made.size(1280)
        yield made


async def opened(tab: Tab, lab: Lab) -> None:
    await tab.open(lab.address + lab.page.fragment)
    assert await tab.run("document.documentElement.dataset.ready") == "yes"


async def ask(tab: Tab, question: str) -> None:
    await tab.press("k", control=True)
    await tab.type(question)
    await tab.press("Enter")


async def shot(tab: Tab, name: str) -> None:
    if SHOTS is None:
        return
    for width, height in ((1280, 800), (360, 740)):
        for dark in (False, True):
            await tab.size(width, height, dark=dark)
            picture = await tab.screenshot()
            file = Path(SHOTS) / f"{name}-{width}-{'dark' if dark else 'light'}.png"
            await asyncio.to_thread(file.write_bytes, picture)
    await tab.size(1280)


async def test_the_link_works_once_and_leaves_nothing_behind(tab: Tab, lab: Lab) -> None:
    link = lab.address + lab.page.fragment
    await opened(tab, lab)
    assert await tab.run("location.href") == lab.address + "/", "the code is not left in the address"
    assert await tab.run("document.cookie") == "" and TOKEN not in await tab.run("JSON.stringify(localStorage)")
    assert await tab.run("sessionStorage.getItem('causeway-token')") == TOKEN
    assert lab.told == [lab.page.fragment] and not link.endswith(lab.page.fragment)
    await tab.open(lab.address + "/")
    assert await tab.run("document.documentElement.dataset.ready") == "yes", "a reload keeps the token"
    await tab.run("sessionStorage.clear()")
    await tab.send("Page.navigate", url="about:blank")
    await tab.open(link)
    assert await tab.run("document.documentElement.dataset.ready") == "locked"
    assert "does not work" in await tab.text("#locked")
    await shot(tab, "locked")


async def test_a_streamed_answer_says_where_it_came_from(tab: Tab, lab: Lab) -> None:
    await opened(tab, lab)
    await shot(tab, "welcome")
    lab.chat.gate.clear()
    await ask(tab, "Hello there")
    await tab.until("document.querySelector('.text').innerText === 'Six'")
    assert await tab.run("document.activeElement.id") == "prompt"
    assert await tab.text(".badge.local") == "Local" and await tab.text(".how span:nth-child(2)")
    assert not await tab.run("document.getElementById('stop').hidden")
    lab.chat.gate.set()
    await tab.until("document.querySelector('.text').innerText === 'Six bar.'")
    await tab.until("document.getElementById('stop').hidden")
    assert len((await tab.text(".trace")).removeprefix("trace ")) == 32
    # The conversation goes on with what was said.
    await ask(tab, "And then?")
    await tab.until("document.querySelectorAll('.theirs .trace').length === 2")
    assert [message.content for message in lab.chat.asked[1]] == ["Hello there", "Six bar.", "And then?"]
    assert tab.complaints == []


async def test_relayed_answers_and_the_choice_of_who_answers(tab: Tab, lab: Lab) -> None:
    await opened(tab, lab)
    await tab.until("document.querySelectorAll('#model option').length === 4")
    await ask(tab, "Explain step by step why the sky is blue, and compare it with a sunset")
    await tab.until("document.querySelector('.badge.relay')?.innerText === 'Relayed'")
    await tab.until("document.querySelector('.text').innerText === 'It stands.'")
    await shot(tab, "relayed")
    await tab.run("document.getElementById('model').value = 'local'")
    await ask(tab, "Explain it again")
    await tab.until("document.querySelector('.badge.local')")
    assert len(lab.relay.requests) == 1


async def test_escape_stops_the_stream_and_the_model(tab: Tab, lab: Lab) -> None:
    await opened(tab, lab)
    lab.chat.endless = True
    await ask(tab, "Hello")
    await tab.until("document.querySelector('.text').innerText.startsWith('Six bar.')")
    await tab.press("Escape")
    await tab.until("document.body.innerText.includes('You stopped it.')")
    await lab.chat.closed.wait()


async def test_shift_enter_is_a_new_line(tab: Tab, lab: Lab) -> None:
    await opened(tab, lab)
    await tab.type("one")
    await tab.press("Enter", shift=True)
    await tab.type("two")
    assert await tab.run("document.getElementById('prompt').value") == "one\ntwo"
    assert lab.chat.asked == []


async def test_a_file_is_added_with_its_label_cited_and_opened(tab: Tab, lab: Lab, tmp_path: Path) -> None:
    (tmp_path / "pump.md").write_text(MANUAL)
    (tmp_path / "broken.pdf").write_text("no pdf")
    await opened(tab, lab)
    await tab.click("#tab-documents")
    await tab.choose_files("#files", tmp_path / "pump.md", tmp_path / "broken.pdf")
    await tab.until("document.getElementById('label').open")
    await shot(tab, "label")
    await tab.click("#label label:nth-child(3)")
    await tab.click("#label .main")
    await tab.until("document.querySelector('#papers .tag')?.innerText === 'local only'")
    await tab.until("document.querySelector('#papers .error')?.innerText.includes('bad_document')")
    assert [(document.title, document.label) for document in await lab.documents.list()] == [("Pump P-7", "local-only")]
    lab.chat.words = ["The pump", " runs at", " **6 bar**."]
    assert await tab.text("#papers .tag") == "local only"
    await ask(tab, "At which pressure runs the pump P-7?")
    await tab.until("document.querySelector('.cites button')")
    await tab.until("document.querySelector('.text b')?.innerText === '6 bar'")
    await tab.click(".cites button")
    await tab.until("document.querySelector('#passage .tag')?.innerText === 'local only'")
    assert "6 bar" in await tab.text("#passage .cited")
    await shot(tab, "passage")
    await tab.press("Escape")
    await tab.until("!document.getElementById('passage').open")
    await shot(tab, "answer")
    await tab.click("#papers button")
    await tab.click("#papers button")
    await tab.until("document.querySelectorAll('#papers .tag').length === 0")
    assert await lab.documents.list() == []


async def test_a_dropped_file_asks_for_its_label(tab: Tab, lab: Lab) -> None:
    await opened(tab, lab)
    await tab.run(f"""(() => {{ const carried = new DataTransfer();
        carried.items.add(new File([{MANUAL!r}], "pump.md"));
        for (const kind of ["dragenter", "dragover", "drop"])
          window.dispatchEvent(new DragEvent(kind, {{ dataTransfer: carried, cancelable: true }})); }})()""")
    await tab.until("document.getElementById('label').open")
    await tab.click("#label .main")
    await tab.until("document.querySelector('#papers .tag')?.innerText === 'internal'")


async def test_the_queue_is_seen_retried_and_cancelled(tab: Tab, lab: Lab) -> None:
    now = int(time.time())
    await lab.queue(1, "What helps against heat stroke?", now=now)
    await lab.queue(2, "How do I splice a rope?", now=now - 7200 + 3700)
    lab.relay.link = ("down", "")
    await opened(tab, lab)
    await tab.until("document.getElementById('queue-count').innerText === '2'")
    await tab.click("#tab-queue")
    await tab.until("document.getElementById('link').dataset.state === 'down'")
    assert "rope" in await tab.text("#waiting li:nth-child(2)")
    lab.relay.retry_error = GaveUp("01010101", 60.0, sent=False)
    await tab.click("#waiting li:nth-child(1) button")
    await tab.until("document.querySelector('#waiting .error')?.innerText.includes('gave_up')")
    await shot(tab, "queue")
    lab.relay.retry_error, lab.relay.link = None, ("up", "spiffe://field.example/hop/pi-1")
    await tab.click("#waiting li:nth-child(1) button")
    await tab.until("document.querySelector('.theirs .text')?.innerText === 'Rest and drink.'")
    await tab.until("document.getElementById('link').dataset.state === 'up'")
    assert await tab.text("#hop") == "pi-1"
    await tab.until("document.querySelectorAll('#waiting li').length === 1")
    await tab.click("#waiting li:nth-child(1) button:nth-child(2)")
    await tab.until("document.getElementById('waiting').innerText.includes('How do I') === false")


async def test_a_question_for_later_is_queued_and_its_answer_read(tab: Tab, lab: Lab) -> None:
    lab.relay.link = ("down", "")
    await opened(tab, lab)
    await tab.run("document.getElementById('model').value = 'later'")
    await ask(tab, "Why is the sky blue?")
    await tab.until("document.querySelector('.badge.relay')?.innerText === 'Queued'")
    await tab.click("#tab-queue")
    await tab.until("document.getElementById('waiting').innerText.includes('by itself')")
    assert lab.relay.requests == [] and lab.chat.asked == []
    (entry,) = await lab.outbox.entries()
    await lab.promises.keep(entry.id, Kept(int(time.time()), "Why is the sky blue?", "It scatters.", "", "7" * 32))
    await lab.outbox.done(entry.id)
    await tab.until("document.getElementById('waiting').innerText.includes('the answer is here')")
    await shot(tab, "answered")
    await tab.click("#waiting .main")
    await tab.until("document.querySelector('.theirs .text')?.innerText === 'It scatters.'")
    await tab.until("document.getElementById('waiting').innerText.includes('Nothing waits')")
    assert await lab.promises.answers() == []


async def test_errors_have_words_a_code_and_a_hint(tab: Tab, lab: Lab) -> None:
    await opened(tab, lab)
    lab.chat.words, lab.chat.error = ["Half"], EngineFailed("the local model stopped", hint="ask again")
    await ask(tab, "Hello")
    await tab.until("document.querySelector('.error .code')?.innerText === 'engine_failed'")
    assert "The local model stopped." in await tab.text(".error") and "Ask again." in await tab.text(".error p + p")
    assert await tab.text(".text") == "Half"
    lab.relay.error = GaveUp("01010101", 60.0, sent=False)
    await ask(tab, "Explain step by step why the sky is blue, and compare it with a sunset")
    await tab.until("document.querySelectorAll('.error .code').length === 2")
    assert await tab.run("document.getElementById('prompt').value") == "", "it waits in the queue"
    await shot(tab, "errors")
    await tab.until("document.querySelectorAll('#model option').length === 4")
    await tab.run("document.getElementById('model').value = 'cloud-model'")
    await ask(tab, "My password is hunter22, what do you think of it?")
    await tab.until("document.querySelectorAll('.error .code')[2]?.innerText === 'kept_local'")
    assert "hunter22" in await tab.run("document.getElementById('prompt').value"), "to be mended"


async def test_text_from_outside_never_becomes_markup(tab: Tab, lab: Lab) -> None:
    evil = "<img src=x onerror=document.title='owned'><script>document.title='owned'</script>"
    await opened(tab, lab)
    lab.chat.words = [evil, "\n\n```html\n", evil, "\n```\n"]
    await ask(tab, evil)
    await tab.until("document.querySelector('.text pre') && document.getElementById('stop').hidden")
    assert await tab.run("document.querySelectorAll('#talk img, #talk script').length") == 0
    assert await tab.text(".mine") == evil and await tab.run("document.title") == "Causeway"
    # The control: what the page never does is refused where it is tried.
    write = "(() => { try { document.body.innerHTML = 'x'; } catch (error) { return error.name; } })()"
    assert await tab.run(write) == "TypeError"
    assert all(url.startswith(lab.address) for url in tab.requested), "the page asks nobody else"
    elsewhere = """new Promise((resolve) => { addEventListener("securitypolicyviolation",
        (event) => resolve(event.effectiveDirective)); fetch("http://localhost.invalid/").catch(() => {}); })"""
    assert await tab.run(elsewhere) == "connect-src", "and could not"


async def test_chats_are_kept_found_and_opened(tab: Tab, lab: Lab) -> None:
    await opened(tab, lab)
    await ask(tab, "Hello there")
    await tab.until("document.querySelectorAll('#talks button.open').length === 1")
    await tab.click("#new")
    await ask(tab, "Good evening")
    await tab.until("document.querySelectorAll('#talks button.open').length === 2")
    await shot(tab, "chats")
    await tab.click("#search")
    await tab.type("hello BAR")
    await tab.until("document.querySelectorAll('#talks button.open').length === 1")
    await tab.click("#talks button.open")
    await tab.until("document.querySelector('.mine')?.innerText === 'Hello there'")
    assert await tab.text(".badge.local") == "Local"
    await tab.click("#talks button.small")
    await tab.click("#talks button.small")
    await tab.until("document.querySelector('#talks .faint')?.innerText === 'No chat holds these words.'")


@pytest.mark.parametrize("dark", [False, True])
async def test_the_switch_turns_light_and_dark(tab: Tab, lab: Lab, dark: bool) -> None:
    await tab.size(1280, dark=dark)
    await opened(tab, lab)
    ground = "getComputedStyle(document.body).backgroundColor"
    before = await tab.run(ground)
    await tab.click("#theme")
    assert await tab.run(ground) != before
    await tab.open(lab.address + "/")
    assert await tab.run(ground) != before, "the choice is kept"
    await tab.click("#theme")
    assert await tab.run(ground) == before


async def test_nothing_is_cut_off_at_360_pixels(tab: Tab, lab: Lab) -> None:
    await tab.size(360, 640)
    await opened(tab, lab)
    lab.chat.words = ["averyveryverylongword" * 9, "\n\n```\n" + "x = 1 " * 50 + "\n```\n"]
    await ask(tab, "Hello")
    await tab.until("document.querySelector('.text pre') && document.getElementById('stop').hidden")
    assert await tab.run("document.documentElement.scrollWidth") == 360
    assert await tab.run("document.getElementById('scroll').scrollWidth") == 360
    await tab.click("#menu")
    await tab.until("document.getElementById('link').getBoundingClientRect().x >= 0")
    await tab.click("#tab-documents")
    await shot(tab, "drawer")
    await tab.size(360, 640)
    await tab.click("#close")
    await tab.until("!document.getElementById('side').classList.contains('shown')")
    await tab.click("#prompt")

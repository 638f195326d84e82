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
    await tab.until("document.querySelector('#papers .tag')?.innerText === 'local only'")
    await ask(tab, "At which pressure runs the pump P-7?")
    await tab.until("document.querySelector('.cites button')")
    await tab.until("document.querySelector('.text b')?.innerText === '6 bar'")
    assert "runs at a pressure of 6 bar" in await tab.text(".text .quoted")
    assert await tab.run("document.querySelectorAll('.quoted').length") == 1, "the model's own words are told apart"
    await tab.click(".cites button")
    await tab.until("document.querySelector('#passage .tag')?.innerText === 'local only'")
    assert "6 bar" in await tab.text("#passage .cited")
    await shot(tab, "passage")
    await tab.press("Escape")
    await tab.until("!document.getElementById('passage').open")
    await shot(tab, "answer")
    await tab.click("#papers .small")
    await tab.click("#papers .small")
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


async def test_a_label_is_changed_from_the_page(tab: Tab, lab: Lab) -> None:
    outcome = await (await lab._ingest()).dropped("pump.md", MANUAL.encode(), collection="default", label="internal")
    assert outcome.label == "internal"
    await opened(tab, lab)
    await tab.click("#tab-documents")
    for place, label, shown in ((3, "local-only", "local only"), (1, "public", "public")):
        await tab.click("#papers .tag")
        await tab.until("document.getElementById('label').open")
        assert await tab.text("#label-files") == "Pump P-7"
        await tab.click(f"#label label:nth-child({place})")
        await tab.click("#label-do")
        await tab.until(f"document.querySelector('#papers .tag')?.innerText === '{shown}'")
        assert [document.label for document in await lab.documents.list()] == [label]
    await tab.click("#papers .tag")
    await tab.until("document.getElementById('label').open")
    assert await tab.run("document.querySelector('#label :checked').value") == "public", "as it is now"
    await tab.press("Escape")
    await tab.until("!document.getElementById('label').open")
    assert [document.label for document in await lab.documents.list()] == ["public"]


async def test_the_picture_of_the_link_is_live(tab: Tab, lab: Lab) -> None:
    await opened(tab, lab)
    await tab.until("document.getElementById('link-words').innerText === 'Linked by way of pi-1, over TCP.'")
    assert "\u2191 2.3 kB" in await tab.text("#link-facts") and "84 ms" in await tab.text("#link-facts")
    await tab.click("#ways-words")
    assert "in use" in await tab.text("#ways-list [data-state=up]")
    assert "not tried yet" in await tab.text("#ways-list [data-state=untried]")
    lab.relay.received += 1_000_000
    await tab.until("document.getElementById('link').dataset.busy === 'true'")
    await tab.until("document.getElementById('link').dataset.busy === 'false'")
    await shot(tab, "link")
    lab.relay.link = ("down", "")
    await tab.until("document.querySelector('#ways-list [data-state=failed]')?.innerText.includes('no answer lately')")
    assert "cannot be reached" in await tab.text("#link-words")
    await shot(tab, "link-down")
    lab.relay.link, lab.relay.endpoint = ("up", ""), "ble:field-hop"
    await tab.until("document.getElementById('link-words').innerText.includes('directly, over Bluetooth')")


async def test_nobody_is_asked_while_nobody_looks(tab: Tab, lab: Lab) -> None:
    await opened(tab, lab)
    await tab.run("window.planned = []; window.setTimeout = (work) => planned.push(work); 0")
    await tab.until("planned.length")
    hide = "Object.defineProperty(document, 'visibilityState', {{ value: '{}', configurable: true }}); 0"
    asked, lab.relay.link = len(tab.requested), ("down", "")
    await tab.run("planned.pop()()")
    assert len(tab.requested) == asked + 1 and await tab.run("planned.length") == 1, "the control"
    await tab.run(hide.format("hidden"))
    await tab.run("planned.pop()()")
    assert len(tab.requested) == asked + 1 and await tab.run("planned.length") == 0
    lab.relay.link = ("up", "")
    await tab.run(hide.format("visible"))
    await tab.run("document.dispatchEvent(new Event('visibilitychange')); 0")
    await tab.until("document.getElementById('link').dataset.state === 'up'")


async def test_a_locked_store_is_told_in_words_and_its_texts_leave_the_screen(tab: Tab, lab: Lab) -> None:
    await opened(tab, lab)
    await ask(tab, "Hello there")
    await tab.until("document.querySelectorAll('#talks button.open').length === 1")
    behind = lab.page._behind
    lab.lock()
    await tab.until("!document.getElementById('shut').hidden && !document.body.innerText.includes('Hello there')")
    assert "edge store unlock" in await tab.text("#shut") and "locked" in await tab.text("#link-words")
    await shot(tab, "store-locked")
    await tab.run("document.getElementById('model').value = 'later'")
    await ask(tab, "Why is the sky blue?")
    await tab.until("document.querySelector('.error .code')?.innerText === 'store_locked'")
    lab.page._behind = behind
    await tab.until("document.getElementById('shut').hidden")
    await tab.until("document.querySelectorAll('#talks button.open').length === 1")


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
    lab.relay.gate.clear()
    await tab.click("#waiting li:nth-child(1) button")
    await tab.until("document.querySelector('.theirs .text')?.innerText.trim() === 'Rest'")
    assert await tab.text(".mine") == "What helps against heat stroke?"
    lab.relay.gate.set()
    await tab.until("document.querySelector('.theirs .text')?.innerText === 'Rest and drink.'")
    await tab.until("document.querySelectorAll('#talks button.open').length === 1")
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
    assert await tab.run("document.querySelectorAll('#waiting button').length") == 1, "it is not sent by hand, too"
    (entry,) = await lab.outbox.entries()
    await tab.run("document.getElementById('model').value = 'auto'")
    await ask(tab, "Hello")
    await tab.until("document.querySelectorAll('.theirs .trace').length === 1")
    assert [message.content for message in lab.chat.asked[0]] == ["Hello"], "what waits is not carried along"
    await shot(tab, "queued")
    await lab.promises.keep(entry.id, Kept(int(time.time()), "Why is the sky blue?", "It scatters.", "", "7" * 32))
    await lab.outbox.done(entry.id)
    await tab.until("document.querySelector('.theirs .text')?.innerText === 'It scatters.'")
    await tab.until("document.getElementById('waiting').innerText.includes('Nothing waits')")
    await shot(tab, "answered")
    assert await lab.promises.answers() == []
    # A follow-up carries both along, also after the chat was opened again.
    await tab.click("#tab-chats")
    await tab.click("#new")
    await tab.click("#talks button.open")
    await tab.until("document.querySelectorAll('.theirs .trace').length === 2")
    await ask(tab, "And then?")
    await tab.until("document.querySelectorAll('.theirs .trace').length === 3")
    assert [message.content for message in lab.chat.asked[1]] == [
        "Why is the sky blue?", "It scatters.", "Hello", "Six bar.", "And then?",
    ]


async def test_an_answer_whose_chat_is_not_open_waits_in_the_queue_and_opens_it(tab: Tab, lab: Lab) -> None:
    await opened(tab, lab)
    await tab.run("document.getElementById('model').value = 'later'")
    await ask(tab, "Why is the sky blue?")
    await tab.until("document.querySelectorAll('#talks button.open').length === 1")
    await tab.click("#new")
    (entry,) = await lab.outbox.entries()
    await lab.promises.keep(entry.id, Kept(int(time.time()), "Why is the sky blue?", "It scatters.", "", "7" * 32))
    await lab.outbox.done(entry.id)
    other = b"o" * 16
    await lab.promises.keep(other, Kept(int(time.time()), "From the terminal", "Of old.", "", "7" * 32))
    await tab.click("#tab-queue")
    await tab.until("document.querySelectorAll('#waiting .main').length === 2")
    await shot(tab, "answers")
    await tab.run("document.querySelector('#waiting [title=\"Why is the sky blue?\"]').parentNode.dataset.it = 'yes'")
    await tab.click("#waiting [data-it] .main")
    await tab.until("document.querySelector('.theirs .text')?.innerText === 'It scatters.'")
    await tab.until("document.querySelectorAll('#waiting .main').length === 1")
    await tab.click("#waiting .main")
    await tab.until("document.querySelectorAll('.theirs .text')[1]?.innerText === 'Of old.'")
    await tab.until("document.getElementById('waiting').innerText.includes('Nothing waits')")


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

"""What the chat page asks for, over HTTP alone: who is let in, and what each route says. No browser."""

import io
import json
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import ClientResponse, ClientSession

from edge_client.promises import Kept
from tests.support.fake_engine import sse
from tests.support.page_lab import TOKEN, Lab, page_lab

BEARER = {"Authorization": f"Bearer {TOKEN}"}
ID = "0123456789abcdef0123456789abcdef"


@pytest.fixture
async def lab(tmp_path: Path) -> AsyncIterator[Lab]:
    async with page_lab(tmp_path) as made:
        yield made


@pytest.fixture
async def client(lab: Lab) -> AsyncIterator[ClientSession]:
    async with ClientSession(lab.address) as made:
        yield made


def routes(lab: Lab) -> list[tuple[str, str]]:
    assert lab.runner.app is not None
    found = []
    for route in lab.runner.app.router.routes():
        assert route.resource is not None
        path = route.resource.canonical
        for name, value in (("{id}", ID[:8] if "outbox" in path else ID), ("{act}", "cancel"), ("{model}", "auto")):
            path = path.replace(name, value)
        found.append((route.method, path.replace(ID, "1") if "passage" in path or "documents" in path else path))
    assert len(found) > 25, "the control: there are routes"
    return found


def kept(folder: Path) -> list[bytes]:
    found = [file.read_bytes() for file in folder.iterdir()]
    assert sum(map(len, found)) > 4096, "the control: there is a store"
    return found


async def problem(answer: ClientResponse) -> Any:
    return (await answer.json())["error"]


@pytest.mark.parametrize("headers", [{}, {"Authorization": f"Bearer {TOKEN[:-1]}"}, {"Cookie": f"token={TOKEN}"}])
async def test_only_the_pages_own_files_need_no_token(
    lab: Lab, client: ClientSession, headers: dict[str, str]
) -> None:
    free = {path for _, path in routes(lab) if path in lab.page.open_paths}
    assert {"/", "/page.js", "/page.css", "/causeway/session"} <= free
    for method, path in routes(lab):
        answer = await client.request(method, path, headers=headers)
        body = await answer.read()
        assert TOKEN.encode() not in body and "Set-Cookie" not in answer.headers
        if path not in (*lab.page.open_paths, "/healthz"):
            assert answer.status == 401, path
            assert method == "HEAD" or b"invalid_api_key" in body


@pytest.mark.parametrize(("name", "value"), [
    ("Host", "evil.example"), ("Origin", "https://evil.example"), ("Origin", "null"),
])
async def test_foreign_pages_are_refused_everywhere(lab: Lab, client: ClientSession, name: str, value: str) -> None:
    code = lab.page.fragment.removeprefix("/#open=")
    for method, path in routes(lab):
        answer = await client.request(method, path, headers=BEARER | {name: value}, data=code)
        assert answer.status == 403, path
    assert lab.page.fragment.endswith(code), "and the link's code is not used up"


async def test_the_pages_files_allow_nothing_but_themselves(lab: Lab, client: ClientSession) -> None:
    for path in lab.page.open_paths[:-1]:
        answer = await client.get(path)
        assert answer.status == 200
        policy = answer.headers["Content-Security-Policy"]
        assert policy.startswith("default-src 'none'") and "unsafe" not in policy and "frame-ancestors 'none'" in policy
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        text = await answer.text()
        assert "https://" not in text and "style=" not in text, "nothing from elsewhere, nothing inline"


async def test_a_links_code_is_good_for_one_token(lab: Lab, client: ClientSession) -> None:
    code = lab.page.fragment.removeprefix("/#open=")
    assert len(code) >= 43
    for wrong in ("", code[:-1], code + "x", TOKEN, "\u00fc", "x" * 100_000):
        assert (await client.post("/causeway/session", data=wrong)).status == 401
    given = await client.post("/causeway/session", data=code)
    assert (await given.json()) == {"token": TOKEN} and given.headers["Cache-Control"] == "no-store"
    assert (await problem(await client.post("/causeway/session", data=code)))["code"] == "link_used"
    assert lab.told == [lab.page.fragment] and not lab.told[0].endswith(code)
    assert (await client.post("/causeway/session", data=lab.told[0].removeprefix("/#open="))).status == 200


async def test_documents_come_in_with_a_label_and_open_by_passage(lab: Lab, client: ClientSession) -> None:
    text = "\n\n".join(f"# Part {n}\n\n" + f"word{n} " * 200 for n in range(3))
    added = await client.post("/causeway/documents?name=a.md&label=local-only", data=text, headers=BEARER)
    assert (await added.json())["label"] == "local-only"
    (document,) = (await (await client.get("/causeway/documents", headers=BEARER)).json())["documents"]
    assert document["label"] == "local-only" and document["chunks"] >= 3
    opened = await (await client.get("/causeway/passage/2", headers=BEARER)).json()
    assert [passage["id"] for passage in opened["passages"]] == [1, 2, 3] and opened["document"] == document
    status = await (await client.get("/causeway/status", headers=BEARER)).json()
    assert status["documents"] == 1
    gone = await client.delete(f"/causeway/documents/{document['id']}", headers=BEARER)
    assert (await gone.json()) == {"forgotten": True}
    assert (await problem(await client.get("/causeway/passage/2", headers=BEARER)))["code"] == "no_passage"


@pytest.mark.parametrize(("query", "code"), [
    ("name=&label=public", "bad_use"), ("name=../a.md", "bad_use"), ("name=a/b.md", "bad_use"),
    ("name=a.md&label=secret", "bad_use"), ("name=a.exe", "bad_document"), ("name=" + "a" * 256, "bad_use"),
])  # fmt: skip
async def test_what_cannot_be_a_document(lab: Lab, client: ClientSession, query: str, code: str) -> None:
    answer = await client.post(f"/causeway/documents?{query}", data="text", headers=BEARER)
    assert answer.status == 400 and (await problem(answer))["code"] == code
    assert await lab.documents.list() == []


async def test_a_file_may_be_larger_than_a_prompt_but_not_without_bound(
    lab: Lab, client: ClientSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = "word\n\n" * (3 << 19)
    too_large = "edge_client.api.page.MAX_BYTES"
    monkeypatch.setattr(too_large, len(text) - 1)
    answer = await client.post("/causeway/documents?name=a.txt", data=io.BytesIO(text.encode()), headers=BEARER)
    assert answer.status == 400 and "larger" in (await problem(answer))["message"]


async def test_the_outbox_is_shown_without_what_was_erased(lab: Lab, client: ClientSession) -> None:
    now = int(time.time())
    first, _ = await lab.queue(1, "first", now=now), await lab.queue(2, "second", now=now)
    await lab.outbox.cancel(first)
    rows = (await (await client.get("/causeway/outbox", headers=BEARER)).json())["outbox"]
    assert [(row["question"], row["prompt_kept"], row["state"]) for row in rows] == [
        ("", False, "failed"), ("second", True, "waiting"),
    ]
    unknown = await client.post("/causeway/outbox/99999999/cancel", headers=BEARER)
    assert unknown.status == 400 and (await problem(unknown))["code"] == "bad_use"


async def test_a_retried_question_streams(lab: Lab, client: ClientSession) -> None:
    id = (await lab.queue(2, "second", now=int(time.time()))).hex()
    lab.relay.gate.clear()
    answer = await client.post(f"/causeway/outbox/{id}/retry", headers=BEARER)
    assert (answer.status, answer.content_type) == (200, "text/event-stream")
    first, second = [json.loads((await answer.content.readuntil(b"\n\n"))[6:]) for _ in range(2)]
    about = first["causeway"]
    assert (first["question"], about["model"], about["trace_id"]) == ("second", "pi-1", "5" * 32)
    assert second["choices"][0]["delta"] == {"content": "Rest "}, "while the rest is still to come"
    lab.relay.gate.set()
    rest = (await answer.read()).decode()
    assert '"and drink."' in rest and rest.endswith("data: [DONE]\n\n")


async def test_a_retried_answer_that_breaks_off_ends_in_an_error(
    lab: Lab, client: ClientSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    id = (await lab.queue(2, "second", now=int(time.time()))).hex()
    monkeypatch.setattr("tests.support.page_lab.sse", lambda *texts: sse(*texts)[:1])
    answer = await client.post(f"/causeway/outbox/{id}/retry", headers=BEARER)
    last = (await answer.text()).split("\n\n")[-2]
    assert json.loads(last[6:])["error"]["code"] == "provider_failed"


async def test_a_label_is_changed_both_ways(lab: Lab, client: ClientSession) -> None:
    await client.post("/causeway/documents?name=a.md", data="text", headers=BEARER)
    (document,) = await lab.documents.list()
    url = f"/causeway/documents/{document.id}/label"
    for label in ("local-only", "public", "internal"):
        assert (await client.put(url, data=label, headers=BEARER)).status == 200
        assert [one.label for one in await lab.documents.list()] == [label]
    for wrong in ("", "secret", "PUBLIC", "x" * 100_000):
        assert (await problem(await client.put(url, data=wrong, headers=BEARER)))["code"] == "bad_use"
    assert [one.label for one in await lab.documents.list()] == ["internal"]
    gone = await client.put("/causeway/documents/99/label", data="public", headers=BEARER)
    assert gone.status == 404 and (await problem(gone))["code"] == "no_document"


async def test_the_picture_of_the_link_is_live_and_looks_for_a_way_itself(
    lab: Lab, client: ClientSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def link() -> Any:
        return (await (await client.get("/causeway/status", headers=BEARER)).json())["link"]

    assert await link() == {
        "state": "up", "via": "spiffe://field.example/hop/pi-1", "endpoint": "tcp:192.168.7.20:7443",
        "round_trip_s": 0.084, "sent": 2345, "received": 67890, "ways": [
            {"endpoint": "tcp:192.168.7.20:7443", "state": "worked", "opened_ms": 84},
            {"endpoint": "ble:", "state": "untried", "opened_ms": None},
        ],
    }
    assert lab.relay.reached == 0, "what stands is not looked for"
    lab.relay.link = ("down", "")
    for _ in range(3):
        assert (await link())["state"] == "down"
    assert lab.relay.reached == 1, "not at every glance"
    monkeypatch.setattr(lab.page, "_look_at", 0.0)
    await link()
    await link()
    assert lab.relay.reached == 2


async def test_a_question_for_later_waits_and_what_is_secret_does_not(lab: Lab, client: ClientSession) -> None:
    async def later(text: str) -> ClientResponse:
        body = {"model": "auto", "messages": [{"role": "user", "content": text}]}
        return await client.post("/causeway/later", json=body, headers=BEARER)

    given = await (await later("Why is the sky blue?")).json()
    rows = (await (await client.get("/causeway/outbox", headers=BEARER)).json())["outbox"]
    assert [(row["id"], row["promised"]) for row in rows] == [(given["id"], True)]
    assert (await problem(await later("my password is hunter22")))["code"] == "kept_local"
    assert (await problem(await later(" ")))["code"] == "empty_prompt"
    await lab.promises.keep(bytes.fromhex(given["id"]), Kept(1, "q", "a", "", "7" * 32))
    answer = await (await client.get(f"/causeway/answers/{given['id']}", headers=BEARER)).json()
    assert answer == {"question": "q", "answer": "a", "via": "", "trace_id": "7" * 32, "failure": "", "talk": ""}
    about = {"route": "queued", "waits": given["id"]}
    turns = [{"role": "user", "text": "q"}, {"role": "assistant", "text": "", "about": about}]
    await client.put(f"/causeway/history/{ID}", json={"turns": turns}, headers=BEARER)
    answer = await (await client.get(f"/causeway/answers/{given['id']}", headers=BEARER)).json()
    assert answer["talk"] == ID, "the chat it belongs to"
    await client.delete(f"/causeway/answers/{given['id']}", headers=BEARER)
    gone = await client.get(f"/causeway/answers/{given['id']}", headers=BEARER)
    assert (await problem(gone))["code"] == "no_answer"


async def test_chats_are_kept_encrypted_and_found_by_all_words(lab: Lab, client: ClientSession, tmp_path: Path) -> None:
    turns = [{"role": "user", "text": "Where is the XYLOPHONE?"}, {"role": "assistant", "text": "In the attic."}]
    put = await client.put(f"/causeway/history/{ID}", data=json.dumps({"turns": turns}), headers=BEARER)
    assert put.status == 200

    async def found(words: str) -> list[str]:
        listed = await client.get("/causeway/history", params={"q": words}, headers=BEARER)
        return [row["id"] for row in (await listed.json())["history"]]

    assert await found("") == await found("attic xylophone") == [ID] and await found("attic piano") == []
    whole = await (await client.get(f"/causeway/history/{ID}", headers=BEARER)).json()
    assert [(turn["role"], turn["text"]) for turn in whole["turns"]] == [
        ("user", turns[0]["text"]), ("assistant", turns[1]["text"]),
    ]
    assert all(b"XYLOPHONE" not in data for data in kept(tmp_path))
    await client.delete(f"/causeway/history/{ID}", headers=BEARER)
    assert (await problem(await client.get(f"/causeway/history/{ID}", headers=BEARER)))["code"] == "no_conversation"


@pytest.mark.parametrize("body", [
    b"", b"{", b'{"turns": []}', b'{"turns": [{"role": "system", "text": "x"}]}', b'{"turns": [{"role": "user"}]}',
    b"[" * 100_000, b'{"turns": [{"role": "user", "text": "' + b"x" * (1 << 20) + b'"}]}',
])  # fmt: skip
async def test_what_is_no_chat_is_not_kept(client: ClientSession, body: bytes) -> None:
    answer = await client.put(f"/causeway/history/{ID}", data=io.BytesIO(body), headers=BEARER)
    assert answer.status == 400 and (await problem(answer))["code"] == "bad_use"


async def test_without_a_store_there_is_nothing_to_show_and_a_file_says_why(lab: Lab, client: ClientSession) -> None:
    lab.without_store()
    for path, empty in (("documents", {}), ("outbox", {"answers": []}), ("history", {})):
        assert await (await client.get(f"/causeway/{path}", headers=BEARER)).json() == {path: [], **empty}
    status = await (await client.get("/causeway/status", headers=BEARER)).json()
    assert (status["store"], status["documents"], status["queue"]) == ("none", 0, {})
    answer = await client.post("/causeway/documents?name=a.md", data="text", headers=BEARER)
    assert answer.status == 503 and (await problem(answer))["code"] == "no_store"


async def test_a_locked_store_is_told_as_such(lab: Lab, client: ClientSession) -> None:
    lab.lock()
    status = await (await client.get("/causeway/status", headers=BEARER)).json()
    assert (status["store"], status["link"]["state"], status["documents"]) == ("locked", "none", 0)
    for path in ("documents", "outbox", "history", f"history/{ID}", f"answers/{ID}", "passage/1"):
        answer = await client.get(f"/causeway/{path}", headers=BEARER)
        assert answer.status == 423 and answer.headers["x-should-retry"] == "false"
        error = await problem(answer)
        assert (error["code"], error["type"]) == ("store_locked", "invalid_request_error")
        assert error["message"] == "the store is locked (`edge store unlock`)"


async def test_the_oldest_chats_go(lab: Lab, client: ClientSession, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edge_client.history._KEPT", 2)
    history = lab.history
    for number in range(4):
        await history.put(f"{number:032x}", b'{"turns": [{"role": "user", "text": "x"}]}', now=1000 + number)
    assert [row["id"][-1] for row in await history.search("")] == ["3", "2"]

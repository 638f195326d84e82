"""The chat page, and what only it asks for: status, documents, passages, outbox and history, all behind the token.

The page's own files hold nothing of anybody and are open; the token reaches a browser by a link that works once. Its
code is in the fragment, which no browser sends to a server or in a Referer, and is worth nothing once it is used: not
in the terminal's scrollback, nor in the browser's history.
"""

import asyncio
import contextlib
import hmac
import importlib.resources
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final, Literal, Protocol

import msgspec
from aiohttp import web

from edge_client.answering import Assistant, Question, RelayedAnswer, Routed
from edge_client.api.errors import error_response, failure_object
from edge_client.api.shapes import parse_request
from edge_client.api.shapes import question_of as asked
from edge_client.completions import ROUTE, AnswerReader, failure
from edge_client.documents import MAX_BYTES
from edge_client.engine.base import Text
from edge_client.errors import BadUse, EdgeError, NotJoined
from edge_client.history import History
from edge_client.ingest import Ingest, relabel
from edge_client.offline import Queued
from edge_client.outbox import Entry, Outbox, question_of
from edge_client.promises import Promises
from edge_client.ways import LinkPicture
from store.documents import LABELS, Document, Documents
from store.errors import StoreError
from transport.errors import TransportError
from transport.messages import decode_header

__all__ = ["Behind", "Page", "Way"]

_TYPES: Final = {
    "html": "text/html", "css": "text/css", "js": "text/javascript", "svg": "image/svg+xml",
}
# Only the page's own files, and no text ever becomes markup: `trusted-types 'none'` takes that away even from its own
# scripts.
_POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
)
_HEADERS: Final = {
    "Content-Security-Policy": _POLICY, "Cache-Control": "no-cache", "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer", "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}
_SESSION: Final = "/causeway/session"
_COLLECTION: Final = "default"
_LOOK_S: Final = 15.0  # between attempts to find a way to the gateway while somebody looks at the picture of the link


class _Retried(RelayedAnswer, Protocol):
    @property
    def trace_id(self) -> str: ...


class Way(Protocol):
    """What the page needs of gateway_client.GatewayClient."""

    def picture(self) -> LinkPicture: ...
    async def reach(self) -> str: ...
    async def retry(self, request_id: bytes) -> _Retried: ...
    async def cancel(self, request_id: bytes) -> bool: ...


async def _no_way() -> Way | None:
    return None


@dataclass(frozen=True)
class Behind:
    """What the page looks into. Each raises NoStore where there is no store yet; `relay` gives None before joining.

    `store` says whether there is one, and whether it is open: where it is locked, all the others raise StoreLocked.
    `later` is an assistant that puts into the outbox what it would relay, and raises Queued.
    """

    documents: Callable[[], Documents]
    outbox: Callable[[], Outbox]
    promises: Callable[[], Promises]
    history: Callable[[], History]
    later: Callable[[], Awaitable[Assistant]]
    ingest: Callable[[], Awaitable[Ingest]]
    store: Callable[[], Literal["none", "locked", "open"]] = lambda: "open"
    relay: Callable[[], Awaitable[Way | None]] = _no_way


class Page:
    """Routes for one server. `tell` is given each link; a new one is made when one is used."""

    def __init__(self, behind: Behind, token: str, tell: Callable[[str], None] = lambda fragment: None) -> None:
        self._behind, self._token, self._tell = behind, token, tell
        self._code = secrets.token_urlsafe(32)
        self._looking: asyncio.Task[None] | None = None
        self._look_at = 0.0  # the next time, by the monotonic clock
        self._files: dict[str, tuple[bytes, str]] = {}
        for file in (importlib.resources.files("edge_client") / "web").iterdir():
            kind = _TYPES.get(file.name.rpartition(".")[2])
            if kind is not None:
                name = "/" if file.name == "index.html" else f"/{file.name}"
                self._files[name] = (file.read_bytes(), kind)

    @property
    def open_paths(self) -> tuple[str, ...]:
        """What needs no token: the page's files, and the place where a link's code is given for it."""
        return (*self._files, _SESSION)

    @property
    def fragment(self) -> str:
        """To be appended to the server's address: the link that works once."""
        return f"/#open={self._code}"

    def add_routes(self, app: web.Application) -> None:
        for path in self._files:
            app.router.add_get(path, self._file)
        add = app.router
        add.add_post(_SESSION, self._session)
        add.add_get("/causeway/status", self._status)
        add.add_get("/causeway/passage/{id:[0-9]{1,18}}", self._passage)
        add.add_get("/causeway/documents", self._documents)
        add.add_post("/causeway/documents", self._ingest)
        add.add_delete("/causeway/documents/{id:[0-9]{1,18}}", self._forget)
        add.add_put("/causeway/documents/{id:[0-9]{1,18}}/label", self._label)
        add.add_get("/causeway/outbox", self._outbox)
        add.add_post("/causeway/outbox/{id:[0-9a-f]{8,32}}/retry", self._retry)
        add.add_post("/causeway/outbox/{id:[0-9a-f]{8,32}}/cancel", self._cancel)
        add.add_post("/causeway/later", self._later)
        add.add_get("/causeway/answers/{id:[0-9a-f]{32}}", self._answer)
        add.add_delete("/causeway/answers/{id:[0-9a-f]{32}}", self._drop_answer)
        add.add_get("/causeway/history", self._list_history)
        add.add_get("/causeway/history/{id:[0-9a-f]{32}}", self._get_history)
        add.add_put("/causeway/history/{id:[0-9a-f]{32}}", self._put_history)
        add.add_delete("/causeway/history/{id:[0-9a-f]{32}}", self._delete_history)
        app.on_shutdown.append(self._look_no_more)

    async def _file(self, request: web.Request) -> web.Response:
        body, kind = self._files[request.path]
        return web.Response(body=body, content_type=kind, charset="utf-8", headers=_HEADERS)

    async def _session(self, request: web.Request) -> web.Response:
        given = (await request.read())[:256]
        if not hmac.compare_digest(given, self._code.encode()):
            return error_response(
                401, "link_used", "this link does not work, or not any more (`edge serve` has printed a new one)"
            )
        self._code = secrets.token_urlsafe(32)
        self._tell(self.fragment)
        return web.json_response({"token": self._token}, headers={"Cache-Control": "no-store"})

    async def _status(self, request: web.Request) -> web.Response:
        store = self._behind.store()
        relay = None if store == "locked" else await self._behind.relay()
        picture = None if relay is None else relay.picture()
        if relay is not None and picture is not None and picture.state != "up":
            self._look(relay)
        count: tuple[int, int] = (0, 0)
        queue: Mapping[str, int] = {}
        answers: list[str] = []
        if store == "open":
            count, queue = await self._behind.documents().count(), await self._behind.outbox().counts()
            answers = [one.id.hex() for one in await self._behind.promises().answers()]
        return _json({
            "link": {"state": "none", "via": ""} if picture is None else asdict(picture), "queue": queue,
            "answers": answers, "documents": count[0], "passages": count[1], "store": store,
        })

    def _look(self, relay: Way) -> None:
        """Finds out, from time to time, how the link is now, so that the picture is of no earlier attempt."""
        now = time.monotonic()
        if now < self._look_at or (self._looking is not None and not self._looking.done()):
            return

        async def reach() -> None:
            with contextlib.suppress(EdgeError, TransportError, StoreError):
                await relay.reach()

        self._look_at = now + _LOOK_S
        self._looking = asyncio.create_task(reach())

    async def _look_no_more(self, app: web.Application) -> None:
        self._look_at = float("inf")
        if self._looking is not None:
            self._looking.cancel()
            await asyncio.wait({self._looking})

    async def _passage(self, request: web.Request) -> web.Response:
        found = await self._behind.documents().around(int(request.match_info["id"]))
        if found is None:
            return error_response(404, "no_passage", "this passage is no longer in the store")
        document, passages = found
        return _json({
            "document": _document(document), "passages": [{"id": id, **asdict(chunk)} for id, chunk in passages]
        })

    async def _documents(self, request: web.Request) -> web.Response:
        found = await self._behind.documents().list() if self._behind.store() != "none" else []
        return _json({"documents": [_document(document) for document in found]})

    async def _ingest(self, request: web.Request) -> web.Response:
        name, label = request.query.get("name", "").strip(), request.query.get("label", "internal")
        if not name or len(name) > 255 or set(name) & set("/\\\0"):
            raise BadUse("`name` is the name of a file, without folders")
        data = bytearray()
        async for part in request.content.iter_chunked(1 << 16):  # not read(), which has the bound of a prompt
            data += part
            if len(data) > MAX_BYTES:
                raise BadUse(f"the file is larger than {MAX_BYTES >> 20} MiB")
        ingest = await self._behind.ingest()
        outcome = await ingest.dropped(name, bytes(data), collection=_COLLECTION, label=label)
        return _json(asdict(outcome))

    async def _forget(self, request: web.Request) -> web.Response:
        return _json({"forgotten": await self._behind.documents().delete(int(request.match_info["id"]))})

    async def _label(self, request: web.Request) -> web.Response:
        """Sets the label, looser or stricter, as `edge documents label` does."""
        label, documents = (await request.read())[:32].decode("ascii", "replace"), self._behind.documents()
        if label not in LABELS:
            raise BadUse("a label is public, internal or local-only")
        found = [one for one in await documents.list() if one.id == int(request.match_info["id"])]
        if not found:
            return error_response(404, "no_document", "this document is no longer in the store")
        await relabel(documents, found, label)
        return _json({"label": label})

    async def _outbox(self, request: web.Request) -> web.Response:
        if self._behind.store() == "none":
            return _json({"outbox": [], "answers": []})
        await self._behind.outbox().expire(now=int(time.time()))
        promised = await self._behind.promises().promised()
        entries = [
            _entry(entry) | {"promised": entry.id in promised} for entry in await self._behind.outbox().entries()
        ]
        answers = [
            {"id": one.id.hex(), "at": one.kept.at, "question": one.kept.question, "failure": one.kept.failure}
            for one in await self._behind.promises().answers()
        ]
        return _json({"outbox": entries, "answers": answers})

    async def _later(self, request: web.Request) -> web.Response:
        """Takes a chat completion's request; what may leave is decided as ever, and nothing is dialled."""
        question = asked(parse_request(await request.read()), Question((), "relay"))
        try:
            await (await self._behind.later()).answer(question, _ignore)
        except Queued as queued:
            return _json({"id": queued.request_id.hex(), "expires_at": queued.expires_at})
        raise BadUse("this question cannot wait", hint="ask it now")

    async def _answer(self, request: web.Request) -> web.Response:
        found = await self._behind.promises().find(request.match_info["id"])
        if found is None:
            return error_response(404, "no_answer", "this answer is no longer in the store")
        kept = found.kept
        return _json({
            "question": kept.question, "answer": kept.text, "via": kept.via, "trace_id": kept.trace_id,
            "failure": kept.failure, "talk": await self._behind.history().waiting(found.id.hex()),
        })

    async def _drop_answer(self, request: web.Request) -> web.Response:
        await self._behind.promises().drop(bytes.fromhex(request.match_info["id"]))
        return _json({})

    async def _cancel(self, request: web.Request) -> web.Response:
        relay, entry = await self._queued(request)
        return _json({"id": entry.id.hex(), "gateway_told": await relay.cancel(entry.id)})

    async def _retry(self, request: web.Request) -> web.StreamResponse:
        """Streams the answer in chunks as of a chat completion; the first has `question` and `causeway`."""
        relay, entry = await self._queued(request)
        if entry.header is not None and decode_header(entry.header).route != ROUTE:
            raise BadUse("this is not a question", hint="it can be cancelled")
        answer = await relay.retry(entry.id)
        if answer.status != 200:
            raise await failure(answer.status, answer.chunks())
        about = {
            "route": "relay", "rule": "retried", "reasons": ["it waited in the queue"], "citations": [], "notes": [],
            "model": answer.via.rpartition("/")[2] or "direct", "trace_id": answer.trace_id,
        }
        stream = web.StreamResponse(headers={"Content-Type": "text/event-stream", "Cache-Control": "no-store"})
        await stream.prepare(request)
        await stream.write(_event({"question": question_of(entry), "causeway": about, "choices": []}))
        with contextlib.suppress(ConnectionError):  # the page has gone; leaving the chunks cancels the request
            async for event in _events(answer):
                await stream.write(event)
        return stream

    async def _queued(self, request: web.Request) -> tuple[Way, Entry]:
        relay = await self._behind.relay()
        if relay is None:
            raise NotJoined
        return relay, await self._behind.outbox().find(request.match_info["id"])

    async def _list_history(self, request: web.Request) -> web.Response:
        if self._behind.store() == "none":
            return _json({"history": []})
        return _json({"history": await self._behind.history().search(request.query.get("q", ""))})

    async def _get_history(self, request: web.Request) -> web.Response:
        talk = await self._behind.history().get(request.match_info["id"])
        if talk is None:
            return error_response(404, "no_conversation", "this conversation is no longer in the store")
        return web.Response(body=talk, content_type="application/json", headers={"Cache-Control": "no-store"})

    async def _put_history(self, request: web.Request) -> web.Response:
        await self._behind.history().put(request.match_info["id"], await request.read(), now=int(time.time()))
        return _json({})

    async def _delete_history(self, request: web.Request) -> web.Response:
        await self._behind.history().delete(request.match_info["id"])
        return _json({})


async def _ignore(event: Routed | Text) -> None:
    """Nothing is said of what waits."""


async def _events(answer: RelayedAnswer) -> AsyncIterator[bytes]:
    """The text as chunks of a chat completion; then [DONE], or what went wrong."""
    try:
        async with contextlib.aclosing(answer.chunks()) as chunks:
            async for text in AnswerReader(answer.content_type).texts(chunks):
                yield _event({"choices": [{"index": 0, "delta": {"content": text}}]})
    except Exception as error:  # whatever comes becomes an event
        yield _event(failure_object(error)[1])
        return
    yield b"data: [DONE]\n\n"


def _event(value: Mapping[str, Any]) -> bytes:
    return b"data: " + msgspec.json.encode(value) + b"\n\n"


def _json(value: Mapping[str, Any]) -> web.Response:
    return web.json_response(value, headers={"Cache-Control": "no-store"})


def _document(document: Document) -> dict[str, Any]:
    return {
        "id": document.id, "title": document.title, "source": document.source, "label": document.label,
        "chunks": document.chunks,
    }


def _entry(entry: Entry) -> dict[str, Any]:
    return {
        "id": entry.id.hex(), "name": entry.name, "state": entry.state, "reason": entry.note,
        "created_at": entry.created_at, "question": question_of(entry), "prompt_kept": entry.body is not None,
    }

"""HTTP to a provider that says anything at any pace: each case has one decision, here beside that of aiohttp's client.

`reference` is aiohttp's client as the gateway used it; where it differs from ours the case says how, and why.
"""

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import aiohttp
import pytest
import uvloop
from hypothesis import example, given
from hypothesis import strategies as st

from relay.gateway.errors import ProviderFailure
from relay.gateway.upstream import dial
from relay.gateway.upstream.base import Timeouts
from relay.gateway.upstream.client import Client
from relay.gateway.upstream.connection import Limits, timed_out, unreachable, unreached
from relay.gateway.upstream.dial import tls_context
from relay.gateway.upstream.formats import garbled
from tests.support.ca import Ca
from tests.support.scripted_http import END, HANG, RESET, Peer, Script, Scripted, chunked, whole
from tests.support.virtually import in_virtual_time
from transport.identity.tls import load_svid
from transport.links import virtual_time

TIMES = Timeouts(connect=3.0, first_byte=10.0, idle=5.0)
OK = b"HTTP/1.1 200 OK\r\n"
CHUNKED = OK + b"Transfer-Encoding: chunked\r\n\r\n"
GARBLED, LATE = ("provider_garbled", False), ("provider_timeout", False)


# --- two clients, and what became of a request ------------------------------------------------------------------------

class Asked(Protocol):
    status: int

    async def chunk(self) -> bytes: ...
    def close(self) -> None: ...


class Asking(Protocol):
    async def request(
        self, method: str, path: str, headers: Mapping[str, str], body: bytes | None = None
    ) -> Asked: ...
    async def close(self) -> None: ...


class _ReferenceAnswer:
    def __init__(self, response: aiohttp.ClientResponse) -> None:
        self._response, self.status = response, response.status

    async def chunk(self) -> bytes:
        try:
            async with asyncio.timeout(TIMES.idle):
                return await self._response.content.readany()
        except TimeoutError:
            raise timed_out() from None
        except (aiohttp.ClientError, ValueError):
            raise garbled() from None

    def close(self) -> None:
        self._response.close()


class Reference:
    """aiohttp's client, with its failures put into our words."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=100, keepalive_timeout=15),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=TIMES.connect),
            cookie_jar=aiohttp.DummyCookieJar(), auto_decompress=False, trust_env=False,
        )

    async def request(
        self, method: str, path: str, headers: Mapping[str, str], body: bytes | None = None
    ) -> _ReferenceAnswer:
        try:
            async with asyncio.timeout(TIMES.connect + TIMES.first_byte):
                return _ReferenceAnswer(await self._session.request(
                    method, self._url + path, data=body, headers=headers, allow_redirects=False
                ))
        except aiohttp.ConnectionTimeoutError:
            raise unreached() from None
        except TimeoutError:
            raise timed_out() from None
        except aiohttp.ClientConnectorError:
            raise unreachable() from None
        except aiohttp.ClientError:
            raise garbled() from None

    async def close(self) -> None:
        await self._session.close()


async def outcome(client: Asking, body: bytes = b"{}") -> tuple[Any, Any]:
    """Status and body, or kind and whether it may be tried again."""
    try:
        answer = await client.request("POST", "/chat", {"Content-Type": "application/json"}, body)
        try:
            parts = []
            while data := await answer.chunk():
                parts.append(data)
        finally:
            answer.close()
    except ProviderFailure as failure:
        return failure.kind, failure.again
    return answer.status, b"".join(parts)


@asynccontextmanager
async def ours(url: str, limits: Limits | None = None, **named: Any) -> AsyncIterator[Client]:
    """Leaves nothing behind, whatever was done with it."""
    client = Client(url, TIMES, limits=limits, **named)
    try:
        yield client
    finally:
        await client.close()
        assert (client._places, len(client._all), len(client._idle), len(client._waiting)) == (0, 0, 0, 0)


@asynccontextmanager
async def reference(url: str) -> AsyncIterator[Reference]:
    client = Reference(url)
    try:
        yield client
    finally:
        await client.close()


# --- every answer there can be ----------------------------------------------------------------------------------------

@dataclass(frozen=True)
class Case:
    """`kept`: the connection is used for the next request. `reference`: what aiohttp makes of it, if it is not the
    same; "any" where that depends on its parser.
    """

    script: Script
    expected: tuple[Any, Any]
    kept: bool = False
    reference: tuple[Any, Any] | str = "same"


CASES: dict[str, Case] = {
    # whole, and the connection lives on
    "a length": Case([whole(b"hi")], (200, b"hi"), kept=True),
    "no body by its length": Case([whole(b"")], (200, b""), kept=True),
    "chunks": Case([chunked(b"one", b"two")], (200, b"onetwo"), kept=True),
    "chunks, sizes in capitals and with zeros": Case(
        [CHUNKED + b"000A\r\n0123456789\r\n0\r\n\r\n"], (200, b"0123456789"), kept=True),
    "a piece at a time": Case(
        [whole(b"hello")[:9], 1.0, whole(b"hello")[9:-3], 1.0, b"llo"], (200, b"hello"), kept=True),
    "chunks cut anywhere": Case([CHUNKED, 1.0, b"5", 1.0, b"\r\nhel", 1.0, b"lo\r", 1.0, b"\n0\r\n\r", 1.0, b"\n"],
                                (200, b"hello"), kept=True),
    "an early answer": Case([whole(b"no", status="413 Too Large")], (413, b"no"), kept=True),
    "no content": Case([b"HTTP/1.1 204 No Content\r\n\r\n"], (204, b""), kept=True),
    "not modified, with the length of what it would have": Case(
        [b"HTTP/1.1 304 Not Modified\r\nContent-Length: 9\r\n\r\n"], (304, b""), kept=True),
    "informational ones before": Case(
        [b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n" + whole(b"hi")], (200, b"hi"),
        kept=True),
    "an informational one, and the answer later": Case(
        [b"HTTP/1.1 102 Processing\r\n\r\n", 2.0, whole(b"hi")], (200, b"hi"), kept=True),
    "no reason phrase": Case([b"HTTP/1.1 200 \r\nContent-Length: 1\r\n\r\nx"], (200, b"x"), kept=True),
    "a redirect is an answer": Case(
        [whole(b"", status="307 Moved", fields="Location: http://127.0.0.1:1/\r\n")], (307, b""), kept=True),
    # whole, but the connection ends with it
    "the server closes": Case([whole(b"hi", fields="Connection: close\r\n"), END], (200, b"hi")),
    "the server says that it closes, and does not": Case([whole(b"hi", fields="Connection: Close\r\n")], (200, b"hi")),
    "HTTP/1.0 with a length": Case([b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nhi", END], (200, b"hi")),
    "HTTP/1.0 that offers to go on": Case(
        [b"HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 2\r\n\r\nhi"], (200, b"hi")),
    "to the connection's end": Case([OK + b"\r\nhello", 1.0, b" you", END], (200, b"hello you")),
    "to the connection's end, HTTP/1.0": Case([b"HTTP/1.0 200 OK\r\n\r\nhello", END], (200, b"hello")),
    "trailers": Case([CHUNKED + b"2\r\nhi\r\n0\r\nX-Sum: 1\r\n\r\n"], (200, b"hi")),
    "extensions of chunks": Case([CHUNKED + b'2;a="b"\r\nhi\r\n0;c\r\n\r\n'], (200, b"hi")),
    "an extension of a chunk, and a plain end": Case([CHUNKED + b"2;a\r\nhi\r\n0\r\n\r\n"], (200, b"hi"), kept=True),
    "bytes behind a length": Case([whole(b"hi") + b"more"], (200, b"hi"), reference=GARBLED),
    "an empty line behind a length": Case([whole(b"hi") + b"\r\n"], (200, b"hi")),
    "bytes behind the last chunk": Case([chunked(b"hi") + b"more"], (200, b"hi"), reference="any"),
    "an empty line behind the last chunk": Case([chunked(b"hi") + b"\r\n"], (200, b"hi"), reference="any"),
    "another answer behind a length": Case([whole(b"hi") + whole(b"smuggled")], (200, b"hi")),
    "another answer behind the last chunk": Case(
        [chunked(b"hi") + chunked(b"smuggled")], (200, b"hi"), reference="any"),
    "a body where there is none": Case(
        [b"HTTP/1.1 204 No Content\r\nContent-Length: 2\r\n\r\nhi"], (204, b""), reference="any"),
    # cut
    "nothing, and the end": Case([END], GARBLED),
    "nothing, and a reset": Case([RESET], GARBLED),
    "half a head": Case([OK, END], GARBLED),
    "an end in a length": Case([whole(b"hello")[:-2], END], GARBLED),
    "a reset in a length": Case([whole(b"hello")[:-2], 0.1, RESET], GARBLED),
    "an end in a chunk": Case([CHUNKED + b"5\r\nhel", END], GARBLED),
    "an end between chunks": Case([CHUNKED + b"5\r\nhello\r\n", END], GARBLED),
    "an end before the last empty line": Case([CHUNKED + b"2\r\nhi\r\n0\r\n", END], GARBLED),
    "a reset instead of the connection's end": Case(
        [OK + b"\r\nhello", 0.1, RESET], GARBLED, reference=(200, b"hello")),
    # slow
    "no answer": Case([HANG], LATE),
    "half a head, and no more": Case([OK, HANG], LATE),
    "a head that trickles": Case([OK, *([b"A: b\r\n", 1.0] * 20)], LATE),
    "informational ones for ever": Case([*([b"HTTP/1.1 102 Processing\r\n\r\n", 1.0] * 20)], LATE),
    "no body": Case([whole(b"hi")[:-2], HANG], LATE),
    "half a body, and no more": Case([whole(b"hello")[:-2], HANG], LATE),
    "no end of chunks": Case([chunked(b"hi")[:-5], HANG], LATE),
    # no HTTP that we take
    "noise": Case([b"\x00\xff\x13 what\r\n\r\n"], GARBLED),
    "TLS": Case([b"\x15\x03\x01\x00\x02\x02\x16", END], GARBLED),
    "HTTP/2": Case([b"\x00\x00\x12\x04\x00\x00\x00\x00\x00", END], GARBLED),
    "a version there is not": Case([b"HTTP/2.0 200 OK\r\nContent-Length: 0\r\n\r\n"], GARBLED, reference="any"),
    "an old version": Case([b"HTTP/0.9 200 OK\r\nContent-Length: 0\r\n\r\n"], GARBLED, reference="any"),
    "another protocol's version": Case([b"RTSP/1.0 200 OK\r\nContent-Length: 0\r\n\r\n"], GARBLED,
                                        reference="any"),
    "a status of two digits": Case([b"HTTP/1.1 20 OK\r\nContent-Length: 0\r\n\r\n"], GARBLED),
    "a status of four digits": Case([b"HTTP/1.1 2000 OK\r\nContent-Length: 0\r\n\r\n"], GARBLED),
    "a status there is not": Case([b"HTTP/1.1 999 OK\r\nContent-Length: 0\r\n\r\n"], GARBLED, reference=(999, b"")),
    "empty lines before": Case([b"\r\n\r\n" + whole(b"hi")], GARBLED, reference="any"),
    "an empty line before": Case([b"\r\n" + whole(b"hi")], GARBLED, reference="any"),
    "lines that end in a line feed alone": Case([b"HTTP/1.1 200 OK\nContent-Length: 2\n\nhi\r\n\r\n"], GARBLED,
                                               reference="any"),
    "another protocol": Case(
        [b"HTTP/1.1 101 Switching\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\nhi"], GARBLED, reference="any"),
    "another protocol that has no name": Case([b"HTTP/1.1 101 Switching\r\n\r\n", whole(b"hi")], GARBLED,
                                              reference="any"),
    "a field without a name": Case([OK + b": x\r\nContent-Length: 0\r\n\r\n"], GARBLED),
    "a field without a colon": Case([OK + b"Content-Length\r\n\r\n"], GARBLED),
    "a space before a colon": Case([OK + b"Content-Length : 2\r\n\r\nhi"], GARBLED, reference="any"),
    "a folded field": Case([OK + b"X: a\r\n b\r\nContent-Length: 2\r\n\r\nhi"], GARBLED, reference="any"),
    "a fold that holds a length": Case([OK + b"X: a\r\n Content-Length: 2\r\n\r\nhi"], GARBLED, reference="any"),
    "a carriage return within a field": Case([OK + b"X: a\rContent-Length: 9\r\nContent-Length: 2\r\n\r\nhi"], GARBLED),
    "a zero within a field": Case([OK + b"X: a\0b\r\nContent-Length: 2\r\n\r\nhi"], GARBLED),
    # lengths that say two things
    "two lengths": Case([OK + b"Content-Length: 2\r\nContent-Length: 5\r\n\r\nhello"], GARBLED),
    "the same length twice": Case([OK + b"Content-Length: 2\r\nContent-Length: 2\r\n\r\nhi"], GARBLED),
    "a list of lengths": Case([OK + b"Content-Length: 2, 2\r\n\r\nhi"], GARBLED),
    "a signed length": Case([OK + b"Content-Length: +2\r\n\r\nhi"], GARBLED),
    "a negative length": Case([OK + b"Content-Length: -1\r\n\r\nhi"], GARBLED),
    "a length in other digits": Case([OK + b"Content-Length: 0x2\r\n\r\nhi"], GARBLED),
    "a length that is none": Case([OK + b"Content-Length: \r\n\r\nhi"], GARBLED),
    "a length beyond all": Case([OK + b"Content-Length: 99999999999999999999999\r\n\r\nhi"], GARBLED),
    "chunks and a length": Case(
        [OK + b"Transfer-Encoding: chunked\r\nContent-Length: 2\r\n\r\n2\r\nhi\r\n0\r\n\r\n"], GARBLED),
    "a length and chunks": Case(
        [OK + b"Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n"], GARBLED),
    "a length behind chunks": Case([CHUNKED + b"2\r\nhi\r\n0\r\nContent-Length: 7\r\n\r\n"], GARBLED, reference="any"),
    "chunks twice": Case(
        [OK + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n"], GARBLED,
        reference="any"),
    "chunks within another coding": Case(
        [OK + b"Transfer-Encoding: gzip, chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n"], GARBLED, reference="any"),
    "another coding": Case([OK + b"Transfer-Encoding: gzip\r\n\r\nhi", END], GARBLED, reference="any"),
    "chunks that are not last": Case(
        [OK + b"Transfer-Encoding: chunked, identity\r\n\r\n2\r\nhi\r\n0\r\n\r\n", END], GARBLED, reference="any"),
    "a coding that looks like chunks": Case(
        [OK + b"Transfer-Encoding: xchunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n", END], GARBLED, reference="any"),
    "chunks in HTTP/1.0": Case(
        [b"HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n", END], GARBLED, reference="any"),
    "a chunk's size that is none": Case([CHUNKED + b"x\r\nhi\r\n0\r\n\r\n"], GARBLED),
    "a chunk's size with a sign": Case([CHUNKED + b"-2\r\nhi\r\n0\r\n\r\n"], GARBLED),
    "a chunk's size with a prefix": Case([CHUNKED + b"0x2\r\nhi\r\n0\r\n\r\n"], GARBLED),
    "a chunk's size beyond all": Case([CHUNKED + b"FFFFFFFFFFFFFFFFF\r\nhi\r\n0\r\n\r\n"], GARBLED, reference="any"),
    "a space behind a chunk's size": Case([CHUNKED + b"2 \r\nhi\r\n0\r\n\r\n"], GARBLED, reference="any"),
    "a chunk longer than it says": Case([CHUNKED + b"2\r\nhiX\r\n0\r\n\r\n"], GARBLED),
    "a chunk shorter than it says": Case([CHUNKED + b"4\r\nhi\r\n0\r\n\r\n"], GARBLED),
    "a line feed behind a chunk's size": Case([CHUNKED + b"2\nhi\r\n0\r\n\r\n"], GARBLED, reference="any"),
    # too much
    "a head without end": Case([OK + b"X: " + b"a" * 40_000], GARBLED),
    "a head without end, in pieces": Case([OK, *([b"X: " + b"a" * 5_000 + b"\r\n"] * 8)], GARBLED, reference=LATE),
    "a large head": Case(
        [OK + b"".join(b"X: %b\r\n" % (b"a" * 5_000) for _ in range(8)) + b"Content-Length: 0\r\n\r\n"], GARBLED,
        reference=(200, b"")),
    "many fields": Case([OK + b"".join(b"X%d: a\r\n" % n for n in range(200)) + b"Content-Length: 0\r\n\r\n"], GARBLED,
                        reference="any"),
    "many informational ones": Case([b"HTTP/1.1 100 Continue\r\n\r\n" * 2_000 + whole(b"hi")], GARBLED,
                                    reference="any"),
    "an extension without end": Case([CHUNKED + b"2;" + b"a" * 100_000], GARBLED, reference="any"),
    "many extensions": Case([CHUNKED, *([b"1;" + b"a" * 900 + b"\r\nx\r\n"] * 100), b"0\r\n\r\n"], GARBLED,
                            reference="any"),
    "trailers without end": Case([CHUNKED + b"2\r\nhi\r\n0\r\n", *([b"X: " + b"a" * 900 + b"\r\n"] * 100)], GARBLED,
                                 reference="any"),
}


@pytest.mark.parametrize("name", CASES)
@in_virtual_time
async def test_an_answer_has_one_meaning(name: str) -> None:
    case = CASES[name]
    async with Scripted([case.script, [whole(b"next")]]) as server, ours(server.url) as client:
        assert await outcome(client) == case.expected
        assert await outcome(client) == (200, b"next")
        assert len(server.made) == (1 if case.kept else 2)
        assert len(server.requests) == 2 and not server.mixed


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.reference != "any"])
@in_virtual_time
async def test_the_reference_finds_the_same_meaning(name: str) -> None:
    case = CASES[name]
    async with Scripted([case.script]) as server, reference(server.url) as client:
        assert await outcome(client) == (case.expected if case.reference == "same" else case.reference)


@given(st.sampled_from([name for name, case in CASES.items() if len(case.script) < 3]), st.data())
def test_pieces_make_no_difference(name: str, data: st.DataObject) -> None:
    script = CASES[name].script
    wire = b"".join(step for step in script if isinstance(step, bytes))
    cuts = sorted(data.draw(st.sets(st.integers(0, len(wire)), max_size=6)))
    steps: list[Any] = []
    for begin, end in zip([0, *cuts], [*cuts, len(wire)], strict=True):
        steps += [wire[begin:end], 0.01]
    steps += [step for step in script if isinstance(step, str)]

    async def work() -> None:
        async with Scripted([steps]) as server, ours(server.url) as client:
            assert await outcome(client) == CASES[name].expected

    virtual_time.run(work())


def broken(wire: bytes) -> st.SearchStrategy[bytes]:
    """`wire` with a few bytes taken out, put in or changed."""
    edit = st.tuples(st.integers(0, len(wire)), st.integers(0, 3), st.sampled_from(
        [b"", b"\r\n", b"\n", b"0", b"\r\n\r\n", b":", b" ", b"\0", b"chunked", b"HTTP/1.1 200 OK\r\n"]))

    def edited(edits: list[tuple[int, int, bytes]]) -> bytes:
        data = wire
        for at, removed, added in edits:
            data = data[:at] + added + data[at + removed:]
        return data

    return st.lists(edit, min_size=1, max_size=4).map(edited)


@given(
    st.one_of(
        st.binary(max_size=200), broken(whole(b"hello")), broken(chunked(b"hello", b"you")),
        st.binary(max_size=60).map(CHUNKED.__add__), st.binary(max_size=60).map((OK + b"X: y\r\n").__add__),
    ),
    st.sampled_from([END, RESET, HANG]),
)
@example(b"", HANG)
def test_whatever_comes_it_ends_and_nothing_stays(wire: bytes, last: Any) -> None:
    async def work() -> None:
        async with Scripted([[wire, 0.1, last], [whole(b"next")]]) as server, ours(server.url) as client:
            begun = asyncio.get_running_loop().time()
            found = await outcome(client)
            assert found in (GARBLED, LATE) or (isinstance(found[0], int) and 200 <= found[0] <= 599)
            assert asyncio.get_running_loop().time() - begun < TIMES.first_byte + TIMES.idle + 1.0
            assert await outcome(client) == (200, b"next")
            assert not server.mixed

    virtual_time.run(work())


# --- what goes out ----------------------------------------------------------------------------------------------------

@in_virtual_time
async def test_a_request_is_exactly_this() -> None:
    async with Scripted([[whole(b"{}")]]) as server, ours(server.url) as client:
        (await client.request("POST", "/chat?a=b", {"Content-Type": "text/x", "X-Key": "k"}, b"body")).close()
        (await client.request("GET", "/models", {})).close()
        common = b"Host: 127.0.0.1:%d\r\nUser-Agent: causeway-gateway\r\nAccept-Encoding: identity\r\n" % server.port
        assert server.requests == [
            b"POST /v1/chat?a=b HTTP/1.1\r\n" + common
            + b"Content-Type: text/x\r\nX-Key: k\r\nContent-Length: 4\r\n\r\nbody",
            b"GET /v1/models HTTP/1.1\r\n" + common + b"\r\n",
        ]


@pytest.mark.parametrize(("path", "fields"), [
    ("/a\r\nX: y", {}), ("/a b", {}), ("a", {}), ("", {}), ("/\u00e9", {}), ("/a\0", {}),
    ("/", {"X": "a\r\nY: b"}), ("/", {"X": "a\nb"}), ("/", {"X": "a\0"}), ("/", {"X": "\u2028"}), ("/", {"X": "\xe9"}),
    ("/", {"X: a\r\nY": "b"}), ("/", {"X ": "b"}), ("/", {"X:": "b"}), ("/", {"\r\nX": "b"}),
])
@in_virtual_time
async def test_nothing_gets_into_a_request_but_what_belongs_there(path: str, fields: dict[str, str]) -> None:
    async with Scripted([[whole(b"")]]) as server, ours(server.url) as client:
        with pytest.raises(ValueError, match="cannot be a request") as refused:
            await client.request("GET", path, {"Authorization": "Bearer sk-canary", **fields})
        assert "canary" not in str(refused.value) and refused.value.__cause__ is None
        assert not server.made


@in_virtual_time
async def test_a_key_shows_nowhere(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(0)
    asyncio.get_running_loop().set_debug(True)
    async with Scripted([[whole(b"hi")], [b"x" * 100 + b"\r\n\r\n"], [END]]) as server, ours(server.url) as client:
        said = []
        for _ in range(3):
            try:
                response = await client.request("POST", "/chat", {"Authorization": "Bearer sk-canary"}, b"canary")
                said += [repr(response), repr(vars(response))]
                response.close()
            except ProviderFailure as failure:
                said += [repr(failure), repr(failure.__cause__), repr(failure.__context__)]
        said += [repr(client), repr(vars(client)), *(repr(vars(one)) for one in client._all), caplog.text]
        assert len(server.requests) == 3 and b"canary" in server.requests[0]
        assert "canary" not in "".join(said)


@in_virtual_time
async def test_a_redirect_is_not_followed() -> None:
    async with Scripted([[whole(b"{}")]]) as other:
        moved = whole(b"", status="302 Found", fields=f"Location: {other.url}/chat\r\n")
        async with Scripted([[moved]]) as server, ours(server.url) as client:
            assert await outcome(client) == (302, b"")
        assert not other.made


# --- time -------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize(("script", "seconds"), [
    ([HANG], 10.0),  # first_byte
    ([OK, *([1.0, b"A: b\r\n"] * 20)], 10.0),  # ... which a head does not lengthen
    ([9.0, whole(b"hello")[:-1], HANG], 14.0),  # idle, from the last byte on
    ([whole(b"hello")[:-1], HANG], 5.0),
    ([whole(b"hello")[:-5], HANG], 10.0),  # the first piece has the rest of first_byte
    ([whole(b"hello")[:-1], 4.0, b"!", 100.0], 4.0),  # in time
    ([chunked(b"a")[:-5], *([4.0, b"1\r\nx\r\n"] * 5), HANG], 25.0),
])
@in_virtual_time
async def test_time_outs_are_exact(script: Script, seconds: float) -> None:
    async with Scripted([script]) as server, ours(server.url) as client:
        begun = asyncio.get_running_loop().time()
        found = await outcome(client)
        assert asyncio.get_running_loop().time() - begun == pytest.approx(seconds)
        assert found == (LATE if seconds != 4.0 else (200, b"hell!"))


@in_virtual_time
async def test_a_slow_reader_is_not_the_provider_s_fault() -> None:
    async with Scripted([[chunked(b"one")[:-5], 1.0, b"3\r\ntwo\r\n0\r\n\r\n"]]) as server, ours(server.url) as client:
        response = await client.request("GET", "/", {})
        assert await response.chunk() == b"one"
        await asyncio.sleep(1_000.0)
        assert (await response.chunk(), await response.chunk()) == (b"two", b"")
        response.close()


@in_virtual_time
async def test_an_idle_connection_is_kept_for_so_long() -> None:
    async with Scripted([[whole(b"hi")]]) as server, ours(server.url, Limits(keep_s=15.0)) as client:
        for seconds in (0.0, 14.9, 14.9):
            await asyncio.sleep(seconds)
            assert await outcome(client) == (200, b"hi")
        assert len(server.made) == 1
        await asyncio.sleep(14.9)
        assert len(server.open) == 1
        await asyncio.sleep(0.2)
        assert not server.open and client._places == 0
        assert await outcome(client) == (200, b"hi")
        assert len(server.made) == 2


# --- what was provably not accepted -----------------------------------------------------------------------------------

@in_virtual_time
async def test_an_idle_connection_that_ends_is_noticed_at_once() -> None:
    async with Scripted([[whole(b"hi")]]) as server, ours(server.url) as client:
        for ended in range(1, 4):
            assert await outcome(client) == (200, b"hi")
            assert len(server.made) == ended
            server.made[-1].transport.close()
            await asyncio.sleep(0.01)
            assert client._places == 0


@in_virtual_time
async def test_an_idle_connection_that_speaks_is_ended() -> None:
    async with Scripted([[whole(b"hi")]]) as server, ours(server.url) as client:
        assert await outcome(client) == (200, b"hi")
        server.made[0].say(whole(b"smuggled"))
        await asyncio.sleep(0.01)
        assert client._places == 0 and not server.open
        assert await outcome(client) == (200, b"hi")


def cut_unseen(server: Scripted) -> None:
    """Ends all connections, without a turn of the loop in which the client could see it."""
    for peer in server.open:
        peer.transport.get_extra_info("socket").shutdown(socket.SHUT_RDWR)


@in_virtual_time
async def test_an_end_that_the_loop_has_not_seen_is_looked_for_on_a_connection_that_was_idle() -> None:
    async with Scripted([[whole(b"hi")]]) as server, ours(server.url) as client:
        assert await outcome(client) == (200, b"hi")
        await asyncio.sleep(2.0)
        cut_unseen(server)
        assert await outcome(client) == (200, b"hi")
        assert (len(server.made), len(server.requests)) == (2, 2)


@in_virtual_time
async def test_what_was_written_is_not_sent_again_by_itself() -> None:
    async with Scripted([[whole(b"hi")]]) as server, ours(server.url) as client:
        assert await outcome(client) == (200, b"hi")
        cut_unseen(server)  # just used: not looked at; what we write may have been read, for all we know
        assert await outcome(client) == GARBLED
        assert len(server.made) == 1


@in_virtual_time
async def test_who_is_not_there_has_accepted_nothing() -> None:
    async with Scripted() as server:
        pass
    async with ours(server.url) as client:
        for _ in range(3):
            assert await outcome(client) == ("provider_unreachable", True)


@in_virtual_time
async def test_a_name_that_is_nobody_s(monkeypatch: pytest.MonkeyPatch) -> None:
    async def unknown(*_: object, **__: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "CANARY")

    async with ours("https://nobody.invalid/v1") as client:
        monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", unknown)
        assert await outcome(client) == ("provider_unreachable", True)


@in_virtual_time
async def test_a_server_that_hangs_up_on_everyone_ends_it() -> None:
    async with Scripted(greeting=[END]) as server, ours(server.url) as client:
        assert (await outcome(client))[0] in ("provider_unreachable", "provider_garbled")
        assert len(server.made) == 1


@in_virtual_time
async def test_a_closed_client_accepts_nothing() -> None:
    async with Scripted([[HANG]]) as server, ours(server.url, Limits(connections=1)) as client:
        work = [asyncio.create_task(outcome(client)) for _ in range(3)]
        await asyncio.sleep(0.1)
        await client.close()
        assert await asyncio.gather(*work) == [GARBLED, *([("provider_unreachable", True)] * 2)]
        assert await outcome(client) == ("provider_unreachable", True)
        assert len(server.requests) == 1 and not server.open


@in_virtual_time
async def test_a_new_connection_that_has_ended_before_it_was_used_is_not_made_again(
    monkeypatch: pytest.MonkeyPatch
) -> None:
    made = 0

    async def brief(make: Any, *_: object) -> None:
        nonlocal made
        made += 1
        assert made < 3
        left, right = socket.socketpair()
        right.close()
        await asyncio.get_running_loop().create_connection(make, sock=left)
        await asyncio.sleep(0.1)

    async with ours("http://127.0.0.1/v1") as client:
        monkeypatch.setattr("relay.gateway.upstream.client.dial", brief)
        assert await outcome(client) == ("provider_unreachable", True)
        assert made == 1


@in_virtual_time
async def test_a_connection_that_is_made_when_all_is_over_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    async def slow(*arguments: Any) -> Any:
        await asyncio.sleep(1.0)
        return await dial.dial(*arguments)

    async with Scripted([[whole(b"hi")]]) as server, ours(server.url) as client:
        monkeypatch.setattr("relay.gateway.upstream.client.dial", slow)
        work = asyncio.create_task(outcome(client))
        await asyncio.sleep(0.5)
        await client.close()
        assert await work == ("provider_unreachable", True)
        assert not server.requests


# --- places -----------------------------------------------------------------------------------------------------------

@in_virtual_time
async def test_so_many_connections_and_a_turn_for_everyone() -> None:
    scripts: list[Script] = [[seconds, whole(b"hi")] for seconds in (1.0, 1.1, 1.2, 1.0)]
    async with Scripted(scripts) as server, ours(server.url, Limits(connections=3)) as client:
        order: list[int] = []

        async def one(number: int) -> None:
            response = await client.request("GET", f"/{number}", {})
            order.append(number)
            assert await response.read(10) == b"hi"
            response.close()

        work = [asyncio.create_task(one(number)) for number in range(9)]
        await asyncio.sleep(0.5)
        work[4].cancel()  # gives up its turn
        await asyncio.gather(*work, return_exceptions=True)
        assert sorted(order[:3]) == [0, 1, 2] and order[3:] == [3, 5, 6, 7, 8]
        assert len(server.made) == 3 and not server.mixed


@pytest.mark.parametrize("given", ["a place", "a connection"])
@in_virtual_time
async def test_who_gives_up_in_the_moment_of_its_turn_passes_it_on(given: str) -> None:
    scripts: list[Script] = [[whole(b"hello")[:-1], HANG], [whole(b"hi")]]
    async with Scripted(scripts) as server, ours(server.url, Limits(connections=1)) as client:
        first = await client.request("GET", "/", {})
        second, third = asyncio.create_task(outcome(client)), asyncio.create_task(outcome(client))
        await asyncio.sleep(0.1)
        (connection,) = client._all
        if given == "a place":
            first.close()
            client.lost(connection)
        else:
            server.made[0].busy = False
            connection.data_received(b"!")
        second.cancel()
        assert await third == (200, b"hi")
        assert len(server.requests) == 2 and second.cancelled()
        assert len(server.made) == (2 if given == "a place" else 1)
        first.close()


@in_virtual_time
async def test_a_connection_that_was_held_back_goes_on_with_its_next_answer() -> None:
    large = whole(b"x" * 100_001)
    async with Scripted([[large[:-1], HANG], [whole(b"hi")]]) as server, ours(server.url) as client:
        response = await client.request("GET", "/", {})
        await asyncio.sleep(0.1)
        (connection,) = client._all
        assert connection._paused
        connection.data_received(b"!")  # as what TLS has read already
        server.made[0].busy = False
        assert await outcome(client) == (200, b"hi")
        assert len(await response.read(300_000)) == 100_001
        response.close()


@in_virtual_time
async def test_who_waits_for_a_place_for_too_long_was_not_accepted() -> None:
    async with Scripted([[HANG]]) as server, ours(server.url, Limits(connections=1)) as client:
        first, second = await asyncio.gather(outcome(client), outcome(client))
        assert (first, second) == (LATE, ("provider_timeout", True))
        assert len(server.requests) == 1


@pytest.mark.parametrize("cut", ["closed", "cancelled"])
@in_virtual_time
async def test_an_answer_that_is_not_read_to_its_end_takes_its_connection_along(cut: str) -> None:
    script: Script = [chunked(b"one")[:-5], HANG] if cut == "closed" else [HANG]
    async with Scripted([script, [whole(b"next")]]) as server, ours(server.url, Limits(connections=1)) as client:
        work = asyncio.create_task(client.request("POST", "/", {}, b"x"))
        await asyncio.sleep(0.1)
        if cut == "closed":
            (await work).close()
        else:
            work.cancel()
        assert await outcome(client) == (200, b"next")
        assert len(server.made) == 2 and len(server.open) == 1


@in_virtual_time
async def test_the_provider_is_read_no_faster_than_its_reader_takes() -> None:
    pieces = [bytes([n]) * 100_000 for n in range(200)]  # 20 MB: more than all buffers between
    async with Scripted([[chunked(*pieces)]]) as server, ours(server.url) as client:
        response = await client.request("GET", "/", {})
        got = len(await response.chunk())
        await asyncio.sleep(1.0)
        assert response._size < 512 << 10  # ahead, and what one turn brings
        assert server.made[0].transport.get_write_buffer_size() > 10_000_000
        while data := await response.chunk():
            got += len(data)
        response.close()
        assert got == 20_000_000
        assert await outcome(client) == (200, b"".join(pieces))
        assert len(server.made) == 1


@in_virtual_time
async def test_many_tiny_chunks_hold_little_memory() -> None:
    async with Scripted([[chunked(*([b"ab"] * 500_000))]]) as server, ours(server.url) as client:
        response = await client.request("GET", "/", {})
        await asyncio.sleep(1.0)
        assert len(response._held) < 50_000
        got = 0
        while data := await response.chunk():
            got += len(data)
        response.close()
        assert got == 1_000_000


@in_virtual_time
async def test_an_answer_before_the_request_was_written_ends_the_connection() -> None:
    class Deaf(Scripted):
        def greet(self, peer: Peer) -> None:
            peer.transport.pause_reading()
            super().greet(peer)

    async with Deaf(greeting=[0.5, whole(b"no", status="413 Too Large")]) as server, ours(server.url) as client:
        assert await outcome(client, b"x" * (16 << 20)) == (413, b"no")
        await asyncio.sleep(0.1)
        assert client._places == 0


@in_virtual_time
async def test_a_whole_answer_has_a_length_and_a_limit() -> None:
    endless = [OK + b"\r\n{}", END]
    scripts: list[Script] = [endless, [whole(b"x" * 11)], [chunked(b"x" * 11)], [whole(b"x" * 10)]]
    async with Scripted(scripts) as server, ours(server.url) as client:
        for message in ("cut short", "too large", "too large"):
            response = await client.request("GET", "/", {})
            with pytest.raises(ProviderFailure, match=message):
                await response.read(10)
            response.close()
        response = await client.request("GET", "/", {})
        assert await response.read(10) == b"x" * 10
        response.close()


@in_virtual_time
async def test_what_comes_behind_a_body_is_no_header() -> None:
    answer = OK + b"Content-Type: a/b\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nContent-Type: c/d\r\nX-A: b\r\n\r\n"
    async with Scripted([[answer]]) as server, ours(server.url) as client:
        response = await client.request("GET", "/", {})
        assert await response.chunk() == b""
        assert (response.content_type, response.header("x-a")) == ("a/b", "")
        response.close()


@in_virtual_time
async def test_headers_are_found_by_name() -> None:
    fields = "X-A: one\r\nx-a: two\r\nX-B:\r\nRetry-After:  7 \r\n"
    async with Scripted([[whole(b"", fields=fields)]]) as server, ours(server.url) as client:
        response = await client.request("GET", "/", {})
        assert [response.header(name) for name in ("x-a", "x-b", "x-c")] == ["one, two", "", ""]
        assert response.header("retry-after").strip() == "7"
        assert response.content_type == "application/json"
        response.close()


# --- TLS, addresses, event loops --------------------------------------------------------------------------------------

CA = Ca("tests.example")


def serving(ca: Ca = CA, *, name: str = "localhost", **named: Any) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.set_alpn_protocols(["h2", "http/1.1"])
    load_svid(context, ca.issue("server", dns=[name], **named))
    return context


def trusting(ca: Ca = CA) -> ssl.SSLContext:
    context = tls_context()
    context.load_verify_locations(cadata=ca.root_der)
    return context


def over_tls(*scripts: Script, **named: Any) -> Scripted:
    return Scripted(scripts or ([whole(b"hi")],), tls=serving(**named), name="localhost")


@in_virtual_time
async def test_every_case_is_the_same_over_tls() -> None:
    tls, trusted = serving(), trusting()
    for name, case in CASES.items():
        async with (
            Scripted([case.script, [whole(b"next")]], tls=tls, name="localhost") as server,
            ours(server.url, tls=trusted) as client,
        ):
            assert (name, await outcome(client)) == (name, case.expected)
            assert await outcome(client) == (200, b"next")
            assert (name, len(server.made)) == (name, 1 if case.kept else 2)
            assert not server.mixed


@in_virtual_time
async def test_tls_speaks_http_1_1_and_nothing_old() -> None:
    async with over_tls() as server, ours(server.url, tls=trusting()) as client:
        assert await outcome(client) == (200, b"hi")
        (connection,) = client._all
        spoken = connection._transport.get_extra_info("ssl_object")  # type: ignore[union-attr]
        assert spoken.selected_alpn_protocol() == "http/1.1" and spoken.version() in ("TLSv1.2", "TLSv1.3")
        assert b"Host: localhost:%d\r\n" % server.port in server.requests[0]


@pytest.mark.parametrize("wrong", ["name", "authority", "expired", "not yet", "no server", "plain"])
@in_virtual_time
async def test_who_does_not_prove_its_name_gets_nothing(wrong: str) -> None:
    named: dict[str, Any] = {
        "name": {"name": "other.example"}, "authority": {"ca": Ca("tests.example")}, "expired": {"lifetime": 200.0},
        "not yet": {"start": 3_000.0}, "no server": {"ca": CA},
    }.get(wrong, {})
    tls, greeting = serving(**named), ()
    if wrong == "plain":
        tls, greeting = None, (whole(b"speak plainly", status="400 Bad Request"),)
    async with Scripted(tls=tls, name="localhost", greeting=greeting) as server:
        url = server.url.replace("http:", "https:")
        async with ours(url, tls=None if wrong == "no server" else trusting()) as client:  # None: WebPKI knows it not
            assert await outcome(client) == ("provider_unreachable", True)
        assert not server.requests


@in_virtual_time
async def test_a_handshake_takes_no_longer_than_connecting_may() -> None:
    async with Scripted(name="localhost") as server, ours(server.url.replace("http:", "https:")) as client:
        begun = asyncio.get_running_loop().time()
        server.made.clear()
        assert await outcome(client) == ("provider_timeout", True)
        assert asyncio.get_running_loop().time() - begun == pytest.approx(TIMES.connect)


FIRST, SECOND = ("192.0.2.1", 443), ("192.0.2.2", 443)
NET = socket.AF_INET


@pytest.mark.parametrize(("first", "seconds"), [("silent", 0.25), ("refuses", 0.0)])
@in_virtual_time
async def test_an_address_that_does_not_answer_holds_nobody_up(
    first: str, seconds: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with Scripted([[whole(b"hi")]]) as server, ours(server.url) as client:
        loop, connect = asyncio.get_running_loop(), dial._connected

        async def found(*_: object, **__: object) -> list[Any]:
            return [(NET, socket.SOCK_STREAM, 6, "", one) for one in (FIRST, ("127.0.0.1", server.port), SECOND)]

        async def connected(family: socket.AddressFamily, address: Any) -> socket.socket:
            if address == FIRST and first == "refuses":
                raise ConnectionRefusedError
            if address in (FIRST, SECOND):
                await asyncio.sleep(1_000.0)
            return await connect(family, address)

        monkeypatch.setattr(loop, "getaddrinfo", found)
        monkeypatch.setattr(dial, "_connected", connected)
        begun = loop.time()
        assert await outcome(client) == (200, b"hi")
        assert loop.time() - begun == pytest.approx(seconds)


@in_virtual_time
async def test_of_two_addresses_that_answer_one_is_let_go(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[socket.socket] = []

    async def connected(family: socket.AddressFamily, address: Any) -> socket.socket:
        await asyncio.sleep(0.5 if address == FIRST else 0.25)  # both at once
        made.append(socket.socket(family))
        return made[-1]

    monkeypatch.setattr(dial, "_connected", connected)
    winner = await dial._first([(NET, FIRST), (NET, SECOND)])
    winner.close()
    await asyncio.sleep(1.0)
    assert all(one.fileno() == -1 for one in made)


def test_families_take_turns() -> None:
    six, four = socket.AF_INET6, socket.AF_INET
    found = [(six, 1), (six, 2), (six, 3), (four, 4)]
    assert [one for _, one in dial._by_turns(found)] == [1, 4, 2, 3]


@in_virtual_time
async def test_an_ipv6_address_is_named_as_one(monkeypatch: pytest.MonkeyPatch) -> None:
    async with Scripted([[whole(b"hi")]], name="::1") as server, ours(server.url) as client:
        async def found(host: str, *_: object, **__: object) -> list[Any]:
            assert host == "::1"
            return [(NET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", server.port))]

        monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", found)
        assert await outcome(client) == (200, b"hi")
        assert b"\r\nHost: [::1]:%d\r\n" % server.port in server.requests[0]


@pytest.mark.parametrize("tls", [False, True])
def test_libuv_s_event_loop_makes_no_difference(tls: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("relay.gateway.upstream.connection._LOOK_AFTER_S", 0.0)
    quick = [case for case in CASES.values() if HANG not in case.script and max(
        (step for step in case.script if isinstance(step, float)), default=0.0) < 0.2]

    async def work() -> None:
        context, trusted = (serving(), trusting()) if tls else (None, None)
        for case in quick:
            async with (
                Scripted([case.script, [whole(b"next")]], tls=context, name="localhost") as server,
                ours(server.url, tls=trusted) as client,
            ):
                assert await outcome(client) == case.expected
                assert await outcome(client) == (200, b"next")
                assert len(server.made) == (1 if case.kept else 2)

    assert len(quick) > 60
    uvloop.run(work())

"""Streamed answers as a watcher at the hop sees them: the product's own cores under virtual time, and TLS + SSE.

**Answers.** Two topics. `prose`: tokens of some 5 characters, generated one by one with much jitter. `code`: tokens of
some 3, of which many come together (a provider that guesses ahead guesses code well). Everything else is drawn alike
for both: 20 to 60 tokens a second, the number of tokens (log-normal, median 90, 16 to 320), the time to the first one,
and a stall now and then. Each token is one server-sent event in OpenAI's format, of some 190 bytes.

**Causeway.** A full handshake, then one request at a random moment of the session; EdgeConnection and GatewayConnection
as they ship; answers travel as `transport.events` has them, as the product's gateway sends them. The link takes no time
and adds no jitter: the best a watcher can have. A trace begins with the request's record; in mode `constant`, where
nobody can tell where that is, it is the whole session, which lasts `LIFETIME_S`.

**TLS + SSE.** A model: HTTP/1.1 over TLS 1.3 without padding. Each event is a chunk of its own (its length in hex and
two line ends) in a record of its own, 22 bytes longer than that (header 5, inner type 1, tag 16), and leaves when the
provider wrote it, as servers that flush each event do. One record with the head comes before, one with the last chunk
after. The edge sends its request and no more.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Final

import numpy as np

from benchmarks.chains import Chains
from transport.connection import Connection, CredentialReceived, SignatureNeeded
from transport.events import CONTENT_TYPE, EventEncoder
from transport.handshake import Verify
from transport.identity.svid import Svid
from transport.identity.verify import verify_svid
from transport.initiator import EdgeConnection, SvidLogin
from transport.messages import Padding, RequestHeader, Welcome, encode_header
from transport.mux import AnswerBytes, AnswerEnded
from transport.noise import SystemEphemerals
from transport.primitives import sha256
from transport.responder import GatewayConnection
from transport.tickets import TicketStore

TOPICS: Final = ("prose", "code")
LIFETIME_S: Final = 36.0  # of a session in mode `constant`; every answer here fits in
QUIET_S: Final = 2.0  # a trace of the other modes ends when nothing has been planned or sent for so long
TICK_LIMIT_S: Final = 120.0  # the longest tail of dummy cells
TOKENS: Final = (16, 90, 320)  # least, median, most
UP, DOWN = 0, 1
_TLS_RECORD: Final = 22
_HTTP_REQUEST, _HTTP_HEAD = 640, 420  # bytes
_BODY: Final = b'{"model":"m","messages":[{"role":"user","content":"the same short question"}],"stream":true}'
_EVENT: Final = (
    'data: {"id":"chatcmpl-8f1d2c3b4a59","object":"chat.completion.chunk","created":1760000000,'
    '"model":"large-2","choices":[{"index":0,"delta":{"content":"%s"},"finish_reason":null}]}\n\n'
)
_DONE: Final = b"data: [DONE]\n\n"
_LENGTHS: Final = {  # characters a token, as weights from 1 upwards
    "prose": (6, 9, 14, 17, 16, 13, 10, 7, 4, 2, 1, 1),
    "code": (30, 20, 15, 11, 8, 6, 4, 3, 2, 1),
}
_TOGETHER: Final = {"prose": 0.12, "code": 0.45}  # share of tokens that come with the one before
_EVENNESS: Final = {"prose": 4.0, "code": 12.0}  # shape of the gamma distribution of gaps
_ESCAPED: Final = {"prose": 0.02, "code": 0.15}  # share of tokens with a line end or a quote, which takes two bytes


@dataclass(frozen=True)
class Script:
    """One answer: seconds from the beginning of the session, and what the provider writes."""

    topic: int
    asked: float
    begun: float
    events: tuple[tuple[float, bytes], ...]

    @property
    def length(self) -> int:
        """Of the text: tokens."""
        return len(self.events) - 1


@dataclass(frozen=True)
class Trace:
    """What a watcher sees: seconds, direction and bytes of each record, in order; and what it does not see."""

    at: np.ndarray
    way: np.ndarray
    size: np.ndarray
    first_token_s: float  # from the provider to the edge's application
    whole_s: float  # the same of the end

    @property
    def bytes(self) -> int:
        return int(self.size.sum())

    @property
    def cells(self) -> int:
        """Records from the gateway."""
        return int((self.way == DOWN).sum())


def script(number: int, seed: int) -> Script:
    """Answer `number`; even numbers are prose."""
    rng = random.Random(f"whisper {seed} {number}")
    topic = number % 2
    name = TOPICS[topic]
    least, middle, most = TOKENS
    count = min(most, max(least, round(rng.lognormvariate(0, 0.6) * middle)))
    rate = rng.uniform(20, 60)
    asked = rng.uniform(0.5, 1.5)
    begun = at = asked + rng.uniform(0.2, 1.0)
    events = []
    for _ in range(count):
        if rng.random() < _TOGETHER[name]:
            at += 0.0005
        else:
            mean = 1 / rate / (1 - _TOGETHER[name])
            at += rng.gammavariate(_EVENNESS[name], mean / _EVENNESS[name])
        if rng.random() < 0.01:
            at += rng.uniform(0.1, 0.5)
        length = 1 + rng.choices(range(len(_LENGTHS[name])), _LENGTHS[name])[0]
        text = "x" * (length - 1) + (r"\n" if rng.random() < _ESCAPED[name] else "x")
        events.append((at, (_EVENT % text).encode()))
    return Script(topic, asked, begun, (*events, (at + 0.001, _DONE)))


def over_tls(answer: Script) -> Trace:
    """The model of TLS + SSE."""
    seen = [(answer.asked, UP, _HTTP_REQUEST + _TLS_RECORD), (answer.begun, DOWN, _HTTP_HEAD + _TLS_RECORD)]
    seen += [(at, DOWN, len(event) + len(f"{len(event):x}") + 4 + _TLS_RECORD) for at, event in answer.events]
    seen.append((answer.events[-1][0], DOWN, len(b"0\r\n\r\n") + _TLS_RECORD))
    return _trace(seen, answer.asked, 0.0, 0.0)


class Stage:
    """Plays answers through fresh sessions of one edge and one gateway."""

    def __init__(self) -> None:
        self._chains = Chains(intermediate=False)
        self._edge, self._gateway = self._chains.issue("edge/bench"), self._chains.issue("gateway/bench")

    def play(self, answer: Script, padding: Padding) -> Trace:
        return _Session(self._chains, self._edge, self._gateway, padding).play(answer)


class _Session:
    def __init__(self, chains: Chains, edge: Svid, gateway: Svid, padding: Padding) -> None:
        def verify(role: str) -> Verify:
            return lambda chain, now: verify_svid(chain, chains.bundle, role=role, now=now)

        self.now = chains.now
        self._keys = edge, gateway
        self._padding = padding
        self._edge = EdgeConnection(
            SvidLogin(edge.chain, edge.not_after), verify("gateway"), SystemEphemerals(), self.now, padding
        )
        self._gateway = GatewayConnection(
            gateway.chain, gateway.not_after, chains.root, verify("edge"), SystemEphemerals(), self.now, TicketStore()
        )
        self.seen: list[tuple[float, int, int]] = []
        self._plan: list[tuple[float, Callable[[], object]]] = []
        self._first = self._last = 0.0
        self._settle()
        self._start = self.now
        self.seen.clear()

    def play(self, answer: Script) -> Trace:
        streams = self._gateway.streams
        header = encode_header(RequestHeader(
            "POST", "/v1/chat/completions", "application/json", "", len(_BODY), int(self.now) + 3600
        ))
        encoder = EventEncoder()
        entries = [(at, encoder.feed(event)) for at, event in answer.events]
        whole = b"".join(entry for _, entry in entries)
        self._plan = [
            (answer.asked, lambda: self._edge.request(b"r" * 16, header, _BODY)),
            (answer.begun, lambda: streams.answer(0, 200, CONTENT_TYPE, streamed=True)),
            *((at, partial(streams.write, 0, entry)) for at, entry in entries),
            (answer.events[-1][0], lambda: streams.end(0, len(whole), sha256(whole))),
        ]
        self._plan.reverse()
        self._run(LIFETIME_S if self._padding is Padding.CONSTANT else None)
        if not self._last:
            raise RuntimeError("an answer was not whole at the end of its session")
        return _trace(
            self.seen, 0.0 if self._padding is Padding.CONSTANT else answer.asked,
            self._first - answer.events[0][0], self._last - answer.events[-1][0],
        )

    def _run(self, seconds: float | None) -> None:
        """For so long, or until all is said."""
        while True:
            due = [d for core in (self._edge, self._gateway) if (d := core.next_deadline()) is not None]
            due += [self._start + self._plan[-1][0]] if self._plan else []
            now = max(self.now, min(due))
            quiet = now > self.now + QUIET_S and not self._plan
            if now > self._start + (seconds or LIFETIME_S + TICK_LIMIT_S) or (seconds is None and quiet):
                return
            self.now = now
            while self._plan and self._start + self._plan[-1][0] <= now:
                self._plan.pop()[1]()
            for core in (self._edge, self._gateway):
                core.handle_time(now)
            self._settle()

    def _settle(self) -> None:
        moved = True
        while moved:
            moved = False
            for way, core, peer in ((UP, self._edge, self._gateway), (DOWN, self._gateway, self._edge)):
                self._answer(core)
                if data := core.data_to_send(self.now):
                    moved = True
                    if self._edge.tickets:  # the session stands
                        self._note(way, data)
                    peer.receive_data(data, self.now)
                    self._answer(peer)

    def _note(self, way: int, flight: bytes) -> None:
        while flight:
            size = 2 + int.from_bytes(flight[:2], "big")
            self.seen.append((self.now - self._start, way, size))
            flight = flight[size:]

    def _answer(self, core: Connection) -> None:
        while (event := core.next_event()) is not None:
            match event, core:
                case SignatureNeeded(), EdgeConnection() | GatewayConnection():
                    key = self._keys[core is self._gateway].key
                    core.signed(key.sign(event.message), self.now)
                case CredentialReceived(), GatewayConnection():
                    core.admit(Welcome(bytes(16), "", 1), self.now)
                case AnswerBytes(), EdgeConnection():
                    self._first = self._first or self.now - self._start
                    core.consumed(event.stream, len(event.data))
                case AnswerEnded(), EdgeConnection():
                    self._last = self.now - self._start
                    core.acknowledge(b"r" * 16, 1 << 20)


def _trace(seen: list[tuple[float, int, int]], zero: float, first_s: float, whole_s: float) -> Trace:
    kept = [record for record in seen if record[0] >= zero - 1e-6]
    at = np.round(np.array([record[0] for record in kept]) - zero, 4)  # the virtual clock is no finer than that
    return Trace(at, np.array([r[1] for r in kept]), np.array([r[2] for r in kept]), first_s, whole_s)
